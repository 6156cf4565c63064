import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers.cider import HALF, MEAN_RATE, CIDerReproduction, Protocol, topic_weights, train, unit_rows
from unseen.papers.topic_digits import (
    CUES,
    FIRST_CUE,
    FIRST_OTHER,
    FIRST_TOPIC,
    TOPIC_TOKENS,
    TOPICS,
    VOCABULARY,
    Sentences,
    World,
    topic_digits,
)
from unseen.registry import Spec, papers

TINY = Protocol(
    steps=2, batch_size=16, trials=1, trial_steps=1,
    network=Spec.make("multimodal", vocabulary=VOCABULARY, width=8),
)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return topic_digits(0)


@pytest.fixture(scope="module")
def small(world):
    def few(data):
        return data.take(torch.arange(40))

    return World(
        few(world.train), few(world.validation), few(world.shifted_validation),
        {name: few(data) for name, data in world.tests.items()},
    )  # fmt: skip


class TestWorld:
    def agreement(self, data):
        text = data.x["text"]
        inside = (text >= FIRST_TOPIC) & (text < FIRST_CUE)
        group = (text - FIRST_TOPIC) // TOPICS
        return float((group == data.y.unsqueeze(1))[inside].double().mean())

    def test_topic_words_agree_as_often_as_the_distribution_says(self, world):
        assert self.agreement(world.train) == pytest.approx(0.9, abs=0.02)
        for name, share in (("IID", 0.9), ("OOD-1", 1 / 3), ("OOD-2", 0.1)):
            assert self.agreement(world.tests[name]) == pytest.approx(share, abs=0.05)
        assert self.agreement(topic_digits(0, agreement=1 / 3).train) == pytest.approx(1 / 3, abs=0.04)

    def test_cue_words_agree_everywhere_alike(self, world):
        for data in (world.train, *world.tests.values()):
            text = data.x["text"]
            inside = (text >= FIRST_CUE) & (text < FIRST_OTHER)
            assert inside.sum(1).eq(3).all()
            right = ((text - FIRST_CUE) // CUES == data.y.unsqueeze(1))[inside].double().mean()
            assert right == pytest.approx(0.6, abs=0.06)

    def test_class_shares_change_and_digits_are_apart(self, world):
        shares = torch.bincount(world.tests["OOD-1"].y).double() / len(world.tests["OOD-1"].y)
        torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]).double(), atol=0.01, rtol=0)
        sizes = [len(world.train.y), len(world.validation.y), len(world.shifted_validation.y)]
        assert sizes == [997, 200, 100]

        def pictures(data):
            return {
                tuple(row.tolist()) for row in torch.cat([data.x["upper"], data.x["lower"]], 1).flatten(1)
            }

        for held in (*world.tests.values(), world.validation, world.shifted_validation):
            assert len(pictures(world.train) & pictures(held)) <= 2  # some digits look the same
        assert len(pictures(world.shifted_validation) & pictures(world.tests["OOD-2"])) <= 2


class TestTraining:
    def test_it_is_a_function_of_the_seed_and_leaves_global_state_alone(self, small):
        before = torch.random.get_rng_state()
        first, again, other = (train(Spec("cider"), small, seed, TINY) for seed in (0, 0, 1))
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.equal(first.head.weight, again.head.weight)
        assert not torch.equal(first.head.weight, other.head.weight)

    def test_weights_make_topic_words_say_nothing(self, world):
        data = world.train
        weight = topic_weights(data, TOPIC_TOKENS, 3)
        text = data.x["text"]
        shares = torch.zeros(3)
        for group in range(3):
            first = FIRST_TOPIC + group * TOPICS
            count = ((text >= first) & (text < first + TOPICS)).sum(1).double()
            own = (weight * count)[data.y == group].sum() / (weight * count).sum()
            shares[group] = own
        plain = 0.9
        assert (shares < plain - 0.3).all()
        for label in range(3):
            inside = data.y == label
            assert weight[inside].sum() == pytest.approx(float(inside.sum()), rel=1e-4)


@pytest.fixture(scope="module")
def table(small):
    units = CIDerReproduction().units("laptop")
    rows = [(0, *row) for unit in units for row in unit_rows(unit, small, 0, TINY)]
    rows += [(seed, *row[1:3], row[3] + 0.01 * seed) for seed in (1, 2) for row in rows]
    return pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])


class TestReproduction:
    def test_it_is_registered(self):
        assert isinstance(papers.build("cider"), CIDerReproduction)

    def test_every_condition_has_every_accuracy_and_every_claim_is_judged(self, table):
        declared = CIDerReproduction.conditions
        accuracies = {m for m in CIDerReproduction.metrics if m != "tau"}
        for condition in declared:
            assert accuracies <= set(table.metric[table.condition == condition.name]), condition.name
        assert set(table.condition) == {c.name for c in declared}
        assert set(table.metric) == set(CIDerReproduction.metrics)
        for claim in CIDerReproduction.claims:
            assert np.isfinite(claim.judge(table).mean), claim.name

    def test_no_tau_is_chosen_on_a_test(self, small, table):
        """Other tests, same tau: it depends on the validation data alone."""
        other = World(
            small.train, small.validation, small.shifted_validation,
            {name: Sentences(data.x, (data.y + 1) % 3) for name, data in small.tests.items()},
        )  # fmt: skip
        taus = [row.value for row in unit_rows("erm", other, 0, TINY) if row.metric == "tau"]
        own = table[(table.seed == 0) & (table.condition == "erm + counterfactual") & (table.metric == "tau")]
        assert taus == own.value.tolist()

    def test_claims_are_differences(self):
        measured = {("masking", MEAN_RATE): 0.8, ("erm", MEAN_RATE): 0.65}
        claim = next(c for c in CIDerReproduction.claims if c.name == "masking helps")
        assert claim.value(measured) == pytest.approx(0.15)

    def test_plot(self, table):
        figure = CIDerReproduction().plot(table)
        assert len(figure.axes[0].get_yticklabels()) == len(CIDerReproduction.conditions)

    def test_the_papers_own_scale_reads_a_file(self, tmp_path, monkeypatch):
        generator = np.random.default_rng(0)
        names = np.array(["train", "valid", "shifted_valid", "IID", "OOD-1", "OOD-2"])
        np.savez(
            tmp_path / "mosi.npz", text=generator.integers(0, 300, (60, 6)), split=np.tile(names, 10),
            audio=generator.normal(size=(60, 5, 3)), vision=generator.normal(size=(60, 4, 2)),
            label=np.arange(60) // 6 % 2,
        )  # fmt: skip
        monkeypatch.setenv("UNSEEN_MULTIMODAL", str(tmp_path / "mosi.npz"))
        network = Spec.make("multimodal", vocabulary=300, width=8, align="text")
        monkeypatch.setattr("unseen.papers.cider.PAPER", Protocol(**{**vars(TINY), "network": network}))
        for unit in ("mcm", "idle topics"):
            rows = CIDerReproduction().measure(unit, 0, "full")
            assert f"OOD-2, {HALF}" in {row.metric for row in rows}
