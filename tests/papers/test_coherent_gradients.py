from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from unseen.measures.coherence import coherence
from unseen.networks.example_gradients import ExampleGradients, cross_entropy
from unseen.papers.coherence_runs import aggregation_rows, coherence_rows
from unseen.papers.coherent_gradients import (
    AGGREGATORS,
    CHOSEN,
    EARLY,
    LATER,
    MATCHED,
    NOISES,
    SHORT,
    TEST,
    CoherentGradients,
)
from unseen.papers.coherent_mnist import coherence_in_training
from unseen.papers.noisy_digits import Accuracies, NoisyDigits, Perceptrons, Protocol, Settings, train
from unseen.updates.coherent import MedianOfMeans, Winsorized

TINY = Protocol(train=60, validation=30, width=12, epochs=9)


@pytest.fixture
def data():
    return NoisyDigits.draw(0, TINY)


def nothing(step, networks):
    pass


class TestData:
    def test_noise_is_nested_and_spares_the_test_part(self):
        data = NoisyDigits.draw(1)
        assert len(data.y) == 1797 and data.x.min() >= 0 and data.x.max() == 1
        test, wrong = data.parts["test"], []
        for noise in NOISES.values():
            labels = data.labels(noise)
            assert torch.equal(labels[test], data.y[test])
            wrong.append(labels != data.y)
            assert wrong[-1][:797].float().mean() == pytest.approx(0.9 * noise, abs=0.06)
        assert all((less <= more).all() for less, more in pairwise(wrong))

    def test_parts_do_not_overlap(self, data):
        rows = torch.cat([torch.arange(1797)[part] for part in data.parts.values()])
        assert torch.equal(rows, torch.arange(1797))

    def test_seeds_draw_anew(self):
        assert torch.equal(NoisyDigits.draw(1).x, NoisyDigits.draw(1).x)
        assert not torch.equal(NoisyDigits.draw(1).y, NoisyDigits.draw(2).y)


class TestPerceptrons:
    @pytest.mark.parametrize("groups", [1, 3, 6])
    def test_gradients_are_those_of_autograd(self, generator, groups):
        networks = Perceptrons(2, 5, 0)
        networks.theta += torch.randn(networks.theta.shape, generator=generator) / 10
        x, y = torch.rand(6, 64, generator=generator), torch.randint(10, (2, 6), generator=generator)
        targets = 0.8 * nn.functional.one_hot(y, 10) + 0.02
        found = networks.gradients(x, targets, groups)
        for run in range(2):
            module = networks.run(run)
            parts = zip(x.split(6 // groups), targets[run].split(6 // groups), strict=True)
            for group, (inputs, goals) in enumerate(parts):
                loss = nn.functional.cross_entropy(module(inputs), goals)
                expected = torch.autograd.grad(loss, list(module.parameters()))
                flat = torch.cat([gradient.flatten() for gradient in expected])
                torch.testing.assert_close(found[group, run], flat, atol=1e-6, rtol=1e-4)

    def test_single_examples_are_those_of_the_engine(self, generator):
        networks = Perceptrons(1, 5, 0)
        x, y = torch.rand(4, 64, generator=generator), torch.arange(4)
        engine = ExampleGradients(networks.run(0), cross_entropy)
        found = networks.gradients(x, nn.functional.one_hot(y, 10).unsqueeze(0).float(), 4)[:, 0]
        torch.testing.assert_close(found, engine.flat((x, y)), atol=1e-6, rtol=1e-4)

    def test_plain_training_is_torch_sgd(self, data):
        theta = {}
        norms = train(
            data,
            [Settings(0.5), Settings(0.5, decay=0.1)],
            3,
            lambda s, n: theta.update({s: n.theta.clone()}),
        )
        module = Perceptrons(1, TINY.width, 3).run(0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        generator = torch.Generator().manual_seed(_order_seed(3))
        for _ in range(2):
            for rows in torch.randperm(60, generator=generator).split(30):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(data.x[rows]), data.labels(0.5)[rows]).backward()
                optimizer.step()
        expected = nn.utils.parameters_to_vector(module.parameters())
        torch.testing.assert_close(theta[4][1], expected.detach(), atol=1e-5, rtol=1e-4)
        assert norms.shape == (18, 2)

    def test_a_rule_without_effect_is_the_mean_and_level_one_is_not(self, data):
        last = {}
        for name, rule in (
            ("mean", None),
            ("zero", Winsorized(0)),
            ("one", Winsorized(1)),
            ("m3", MedianOfMeans()),
        ):
            train(data, [Settings(0.5)], 0, lambda s, n, k=name: last.update({k: n.theta.clone()}), rule=rule)
        torch.testing.assert_close(last["zero"], last["mean"], atol=1e-4, rtol=1e-3)
        assert (last["one"] - last["mean"]).norm() > 0.1 and (last["m3"] - last["mean"]).norm() > 0.1

    def test_steps_are_cut_to_given_norms(self, data):
        longest = torch.full((18, 1), 0.01)
        ends = {}
        for name, limit in (("short", longest), ("free", 1e9 * longest), ("plain", None)):
            train(
                data,
                [Settings(0.0)],
                0,
                lambda s, n, k=name: ends.update({k: n.theta.clone()}),
                longest=limit,
            )
        torch.testing.assert_close(ends["free"], ends["plain"])
        start = Perceptrons(1, TINY.width, 0).theta
        assert (ends["short"] - start).norm() <= 18 * 0.05 * 0.01 * 10 < (ends["plain"] - start).norm()


def _order_seed(seed):
    from unseen.shifts.sampling import derive_seed

    return derive_seed(seed, 44)


def test_accuracies(data):
    stack = [Settings(0.5), Settings(0.0)]
    accuracies, last = Accuracies(data, stack), {}

    def observe(step, networks):
        accuracies(step, networks)
        last["module"] = networks.run(0)

    train(data, stack, 0, observe)
    part, labels = data.parts["train"], data.labels(0.5)
    found = last["module"](data.x).argmax(1)
    assert accuracies.of("train", 0).shape == (10,)
    assert accuracies.of("train", 0)[-1] == (found == labels)[part].float().mean()
    assert accuracies.of("test", 0)[-1] == (found == data.y)[data.parts["test"]].float().mean()
    wrong = (labels != data.y)[part]
    assert accuracies.on_wrong_labels(0) == pytest.approx(
        float((found == labels)[part][wrong].float().mean())
    )
    assert np.isnan(accuracies.on_wrong_labels(1))


@pytest.fixture(scope="module")
def miniature():
    data = NoisyDigits.draw(0, TINY)
    return coherence_rows(data, 0), aggregation_rows(data, 0)


class TestMiniature:
    def test_rows_are_declared(self, miniature):
        conditions = {condition.name for condition in CoherentGradients.conditions}
        for row in [*miniature[0], *miniature[1]]:
            assert row.condition in conditions and row.metric in CoherentGradients.metrics
            assert np.isfinite(row.value)
        assert {row.condition for rows in miniature for row in rows} == conditions

    def test_early_coherence_is_the_mean_of_epochs(self, miniature, data):
        values = {(row.condition, row.metric): row.value for row in miniature[0]}
        module = Perceptrons(1, TINY.width, 0).run(0)
        part = data.parts["train"]
        report = coherence(ExampleGradients(module), (data.x[part], data.labels(0.25)[part]))
        assert values["noise 25 %", "m-coherence, epoch 0"] == pytest.approx(
            report.whole.m_coherence, rel=1e-4
        )
        assert 0 < values["real labels", EARLY] < 60
        assert all((name, metric) in values for name in NOISES for metric in (LATER, MATCHED, TEST))

    def test_the_chosen_aggregator_is_best_on_noisy_validation(self, miniature):
        values = {(row.condition, row.metric): row.value for row in miniature[1]}
        best = max(AGGREGATORS, key=lambda name: values[name, "validation"])
        assert values[CHOSEN, TEST] == values[best, TEST]
        assert (SHORT, "wrong labels") in values

    def test_claims_and_plot(self, miniature):
        table = pd.DataFrame(
            [row._asdict() | {"seed": seed} for seed in range(3) for rows in miniature for row in rows]
        )
        for claim in CoherentGradients.claims:
            judged = claim.pooled(table) if claim.pooled else claim.judge(table).mean
            assert np.isfinite(judged)
        assert CoherentGradients().plot(table) is not None


def test_arithmetic_of_claims():
    values = {(name, EARLY): early for name, early in zip(NOISES, (10.0, 7.0, 3.0, 1.0), strict=True)}
    values |= {(name, TEST): test for name, test in zip(NOISES, (0.96, 0.8, 0.6, 0.1), strict=True)}
    values |= {
        ("sgd", "wrong labels"): 0.9,
        (CHOSEN, "wrong labels"): 0.3,
        ("sgd", TEST): 0.6,
        (CHOSEN, TEST): 0.7,
    }
    table = pd.DataFrame(
        [(0, c, m, v) for (c, m), v in values.items()], columns=["seed", "condition", "metric", "value"]
    )
    claims = {claim.name: claim for claim in CoherentGradients.claims}
    assert claims["ordered by noise"].pooled(table) == 2
    assert claims["real against random"].value(values) == 10
    assert claims["tells test accuracy"].pooled(table) == pytest.approx(1)
    assert claims["memorizes less"].value(values) == pytest.approx(0.6)
    assert claims["tests better"].value(values) == pytest.approx(0.1)
    swapped = table.assign(value=table.value.where(table.condition != "noise 25 %", 11.0))
    assert claims["ordered by noise"].pooled(pd.concat([table, swapped.assign(seed=1)])) == -1


def test_full_scale_on_a_few_digits(generator):
    images = torch.randint(256, (40, 28, 28), generator=generator).to(torch.uint8)
    labels = torch.arange(40) % 10
    options = {"network": "cnn(width=8)", "epochs": 1, "sample": 20, "batch": 10}
    found, test = coherence_in_training(images, labels, images, labels, 0.5, 0, **options)
    assert len(found) == 2 and all(0 < value < 20 for value in found) and 0 <= test <= 1
    assert (found, test) == coherence_in_training(images, labels, images, labels, 0.5, 0, **options)
