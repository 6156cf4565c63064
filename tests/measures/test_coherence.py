"""Coherence against the definition, and the facts that follow from it."""

import math

import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.measures.coherence import (
    Coherence,
    CoherenceCurve,
    alignment,
    batch_coherence,
    coherence,
    microbatch_coherence,
)
from unseen.networks import build_network
from unseen.networks.example_gradients import ExampleGradients


def as_gradients(module, x, y):
    """A loss whose gradient in the weight of a linear module is x itself (times y)."""
    return module(x)[:, 0] * y


def given(rows, **options):
    """Engine and data whose per-example gradients are `rows` (N, P)."""
    module = nn.Linear(rows.shape[1], 1, bias=False).to(rows.dtype)
    return ExampleGradients(module, as_gradients, **options), (rows, torch.ones(len(rows)).to(rows))


@pytest.fixture
def data(generator):
    return torch.randn(12, 6, generator=generator, dtype=torch.float64), torch.arange(12) % 3


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return build_network("mlp(width=5, depth=1)", (6,), 3).double()


@pytest.mark.parametrize("chunk", [1, 5, 12])
@pytest.mark.parametrize("method", ["linear", "vmap"])
def test_the_report_is_that_of_the_definition(mlp, data, chunk, method):
    engine = ExampleGradients(mlp, method=method, chunk=chunk)
    groups = ["a"] * 5 + ["b"] * 4 + ["a"] * 3
    report, flat = coherence(engine, data, groups), engine.flat(data)

    def alpha(rows):
        gram = rows @ rows.T
        return float(gram.mean() / gram.diagonal().mean())

    inside = torch.tensor([g == "a" for g in groups])
    assert report.whole.alpha == pytest.approx(alpha(flat))
    assert report.whole.examples == 12 and report.whole.m_coherence == pytest.approx(12 * alpha(flat))
    assert report.groups["a"].alpha == pytest.approx(alpha(flat[inside]))
    assert report.groups["b"].m_coherence == pytest.approx(4 * alpha(flat[~inside]))
    means = torch.stack([flat[inside].mean(0), flat[~inside].mean(0)])
    torch.testing.assert_close(report.inner_products, means @ means.T)
    torch.testing.assert_close(report.cosines[0, 1], nn.functional.cosine_similarity(*means, dim=0))
    torch.testing.assert_close(report.norms, flat.norm(dim=1))
    assert list(report.layers) == ["featurizer.1", "head"]
    head = ExampleGradients(mlp, parameters="head.*").flat(data)
    assert report.layers["head"].alpha == pytest.approx(alpha(head))
    bias = ExampleGradients(mlp, parameters="head.bias").flat(data)
    assert report.parameters["head.bias"].m_coherence == pytest.approx(12 * alpha(bias))
    assert list(report.parameters) == list(engine.names)
    # layers are orthogonal blocks: the whole is their mean, weighted by shares
    shared = sum(report.shares[name] * each.alpha for name, each in report.layers.items())
    assert report.whole.alpha == pytest.approx(shared)
    assert sum(report.shares.values()) == pytest.approx(1)
    off = (flat @ flat.T)[~torch.eye(12, dtype=torch.bool)].mean() / flat.square().sum(1).mean()
    assert report.whole.unbiased_alpha == pytest.approx(float(off))


def test_limits():
    same = coherence(*given(torch.ones(5, 3))).whole
    assert same.alpha == pytest.approx(1) and same.m_coherence == pytest.approx(5)
    orthogonal = coherence(*given(torch.eye(4))).whole
    assert orthogonal.alpha == pytest.approx(1 / 4) and orthogonal.m_coherence == pytest.approx(1)
    assert orthogonal.unbiased_alpha == pytest.approx(0)
    cancelling = coherence(*given(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))).whole
    assert cancelling.alpha == 0 and cancelling.unbiased_alpha == pytest.approx(-1)


def test_scale_does_not_matter_and_zeros_dilute(generator):
    rows = torch.randn(8, 5, generator=generator) + 1
    alone = coherence(*given(rows))
    assert coherence(*given(100 * rows)).whole.alpha == pytest.approx(alone.whole.alpha, rel=1e-5)
    diluted = coherence(*given(torch.cat([rows, torch.zeros(24, 5)])))
    assert diluted.whole.alpha == pytest.approx(alone.whole.alpha / 4, rel=1e-5)
    assert diluted.near_zero == 0.75 and alone.near_zero == 0


def test_at_a_minimum_of_the_very_examples_coherence_vanishes(data):
    """The trap of comparing trained networks: nothing to do with generalization."""
    x, goal = data[0], data[0] @ torch.ones(6, 1, dtype=torch.float64) + data[0][:, :1].abs()

    def squares(model, x, y):
        return (model(x) - y).square().sum(1)

    module = nn.Linear(6, 1).double()
    ones = torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(ones, goal).solution.T
    with torch.no_grad():
        module.weight.copy_(best[:, :6])
        module.bias.copy_(best[:, 6])
    assert coherence(ExampleGradients(module, squares), (x, goal)).whole.m_coherence < 1e-12


def test_undefined_for_zero_gradients():
    with pytest.warns(UnseenWarning, match="all gradients are zero"):
        report = coherence(*given(torch.zeros(3, 2)))
    assert math.isnan(report.whole.alpha) and math.isnan(report.whole.m_coherence)


def test_alignment(generator):
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    rows[2] = 0
    engine, data = given(rows)
    found = alignment(engine, data)
    expected = rows @ rows.mean(0) / rows.square().sum(1)
    assert torch.isnan(found[2])
    kept = torch.arange(9) != 2
    torch.testing.assert_close(found[kept], expected[kept])
    weights = rows.square().sum(1)[kept]
    alpha = coherence(engine, data).whole.alpha
    assert float((found[kept] * weights).sum() / weights.sum()) == pytest.approx(alpha)


def test_micro_batches_estimate_without_bias(generator):
    """Over many draws of micro-batches from a normal law whose moments are known."""
    draws, count, size = 2000, 4, 3
    truth = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    noise = torch.randn(draws, count, size, 3, generator=generator, dtype=torch.float64)
    found = [
        microbatch_coherence([{"w": mean} for mean in draw], size, 100)
        for draw in (truth + 2 * noise).mean(2)
    ]
    for values, expected in (
        ([f.squared_mean for f in found], 1.25),
        ([f.mean_squared for f in found], 1.25 + 4 * 3),
    ):
        values = torch.tensor(values)
        assert abs(values.mean() - expected) < 4 * values.std() / draws**0.5


def test_coherence_of_batch_means(generator):
    rows = torch.randn(40, 3, generator=generator, dtype=torch.float64) + 0.4
    alpha = coherence(*given(rows)).whole.alpha
    # all means of pairs drawn independently from the rows
    pairs = (rows[:, None] + rows[None]).flatten(0, 1) / 2
    assert coherence(*given(pairs)).whole.alpha == pytest.approx(batch_coherence(alpha, 2))


def test_two_independent_steps_are_as_far_apart_as_the_bound_allows(generator):
    rows = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 0.3
    report = coherence(*given(rows)).whole
    apart = (rows[:, None] - rows[None]).norm(dim=-1).mean()
    assert apart <= math.sqrt(2 * (1 - report.alpha) * report.mean_squared)


def test_a_curve_along_training(mlp, data):
    curve = CoherenceCurve(data, data[1], every=2)
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    for step in range(5):
        curve(step, mlp)
    assert all(torch.equal(before[name], value) for name, value in mlp.state_dict().items())
    assert [row["step"] for row in curve.rows()] == [0, 2, 4]
    report = coherence(ExampleGradients(mlp), data, data[1])
    row = curve.rows()[-1]
    assert row["m_coherence"] == report.whole.m_coherence
    assert row["layer head"] == report.layers["head"].m_coherence
    assert row["group 1"] == report.groups["1"].m_coherence
    assert "group all" not in CoherenceCurve(data).rows()


class TestErrors:
    def test_fewer_than_two_examples(self, mlp, data):
        engine = ExampleGradients(mlp)
        with pytest.raises(InputError, match="of 1 example in 'all'"):
            coherence(engine, (data[0][:1], data[1][:1]))
        with pytest.raises(InputError, match="of 1 example in 'b'"):
            coherence(engine, data, ["a"] * 11 + ["b"])

    @pytest.mark.parametrize("count", [11, 13])
    def test_groups_of_another_length(self, mlp, data, count):
        with pytest.raises(InputError, match=f"groups: name {count} examples"):
            coherence(ExampleGradients(mlp), data, ["a"] * count)

    def test_micro_batches(self):
        with pytest.raises(InputError, match="two or more"):
            microbatch_coherence([{"w": torch.ones(2)}], 4, 10)
        with pytest.raises(InputError, match="are 0 and 10"):
            microbatch_coherence([{"w": torch.ones(2)}] * 2, 0, 10)

    def test_every(self, data):
        with pytest.raises(InputError, match="every"):
            CoherenceCurve(data, every=0)


def test_values():
    assert Coherence(10, 2.0, 4.0).alpha == 0.5
    assert Coherence(10, 2.0, 4.0).m_coherence == 5
    assert Coherence(10, 2.0, 4.0).unbiased_alpha == pytest.approx(4 / 9)
