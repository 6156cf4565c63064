import pytest
import torch
from torch import nn

from unseen.averaging import snapshot
from unseen.errors import InputError, UnseenWarning
from unseen.merging import interpolate, layerwise_curves
from unseen.merging.curves import Curve
from unseen.merging.stragglers import repair_interpolation, sparsify_update, straggler_layers

ALPHAS = (0.0, 0.5, 1.0)


def pair():
    a = {"x.w": torch.zeros(4), "y.w": torch.zeros(2), "y.b": torch.zeros(2), "n": torch.tensor(1)}
    b = {
        "x.w": torch.tensor([4.0, -3.0, 2.0, 1.0]),
        "y.w": torch.tensor([1.0, -5.0]),
        "y.b": torch.tensor([3.0, 2.0]),
        "n": torch.tensor(2),
    }
    return a, b


def test_stragglers_cost_the_most_on_their_own_way():
    curves = {
        "one": Curve(ALPHAS, (0.5, 0.88, 0.9)),
        "two": Curve(ALPHAS, (0.9, 0.3, 0.9)),
        "three": Curve(ALPHAS, (0.89, 0.85, 0.9)),
        "four": Curve(ALPHAS, (0.9, 0.9, 0.9)),
    }
    assert straggler_layers(curves) == ["two"]
    assert straggler_layers(curves, k=2) == ["two", "one"]
    assert straggler_layers(curves, k=None) == ["two"]  # falls .4, .6, .05, 0: mean + deviation is .51
    assert straggler_layers(curves, k=2, anchor="a") == ["two", "three"]
    for k in (0, 5):
        with pytest.raises(InputError, match="of 4 groups"):
            straggler_layers(curves, k=k)
    with pytest.raises(InputError, match="no score at 1"):
        straggler_layers({"one": Curve((0.0, 0.5), (0.1, 0.2))})


def test_the_largest_of_a_groups_update_are_kept():
    a, b = pair()
    half = sparsify_update(a, b, 0.5)
    assert half["x.w"].tolist() == [4, -3, 0, 0]
    assert half["y.w"].tolist() == [0, -5] and half["y.b"].tolist() == [3, 0]  # counted over the group
    assert half["n"] == 2
    only = sparsify_update(a, b, 0.0, layers=["x"])
    assert not only["x.w"].any() and torch.equal(only["y.w"], b["y.w"])
    assert all(torch.equal(sparsify_update(a, b, 1.0)[name], b[name]) for name in b)
    shifted = {name: value + 0.1 for name, value in a.items() if name != "n"} | {"n": a["n"]}
    kept = sparsify_update(shifted, b, 0.5)
    assert set(kept["x.w"].tolist()) <= {
        *b["x.w"].tolist(),
        *shifted["x.w"].tolist(),
    }  # exactly one of the two
    assert b["x.w"].tolist() == [4, -3, 2, 1]


def test_wrong_updates_are_refused():
    a, b = pair()
    for keep in (-0.1, 1.1):
        with pytest.raises(InputError, match="keep"):
            sparsify_update(a, b, keep)
    with pytest.raises(InputError, match="group 'z'"):
        sparsify_update(a, b, 0.5, layers=["z"])
    with pytest.raises(InputError, match="shape"):
        sparsify_update(a, {**b, "x.w": torch.zeros(5)}, 0.5)


def test_repair_looks_at_id_scores_alone_and_takes_the_sparsest_of_the_best():
    a, b = pair()

    def evaluate(state):
        """The group x costs score as soon as its small entries move, y nothing."""
        return 1.0 - 0.1 * float(state["x.w"][2:].abs().sum() != 1.5) - 0.01 * float(state["x.w"][0] == 0)

    found = repair_interpolation(a, b, lambda s: -float(s["x.w"][2:].abs().sum()), alphas=ALPHAS)
    assert (found.keep == 0.0 and found.layers == ("y",)) or found.layers == ("x",)
    found = repair_interpolation(a, b, evaluate, keeps=(1.0, 0.5, 0.25), alphas=ALPHAS, tolerance=0.0)
    assert found.layers == ("x",) and found.keep == 1.0 and set(found.scores) == {1.0, 0.5, 0.25}
    assert torch.equal(found.state["x.w"], interpolate(a, b, 0.5)["x.w"])
    loose = repair_interpolation(a, b, evaluate, keeps=(1.0, 0.5, 0.25), alphas=ALPHAS, tolerance=0.2)
    assert loose.keep == 0.25 and loose.state["x.w"].tolist() == [2, 0, 0, 0]
    assert torch.equal(loose.state["y.w"], interpolate(a, b, 0.5)["y.w"])
    with pytest.raises(InputError, match="keeps"):
        repair_interpolation(a, b, evaluate, keeps=(), alphas=ALPHAS)


def test_batch_statistics_are_estimated_anew_on_the_way(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, two = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2))
    x = torch.randn(50, 3, generator=generator)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = snapshot(model)

    def evaluate(state):
        return -float(state["1.running_mean"].abs().sum())

    found = repair_interpolation(
        one.state_dict(), two.state_dict(), evaluate, alphas=ALPHAS, model=model, batches=lambda: [x]
    )
    torch.testing.assert_close(
        found.state["1.running_mean"], (x @ found.state["0.weight"].T + found.state["0.bias"]).mean(0)
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.warns(UnseenWarning, match="batch statistics"):
        repair_interpolation(one.state_dict(), two.state_dict(), evaluate, alphas=ALPHAS)


def test_layers_by_expression():
    a, b = pair()
    curves = layerwise_curves(a, b, lambda s: float(s["y.w"][0]), alphas=ALPHAS, groups={"all of y": "^y"})
    assert list(curves) == ["all of y"] and curves["all of y"].scores == (0, 0.5, 1)
    with pytest.raises(InputError, match="has no parameter"):
        layerwise_curves(a, b, lambda s: 0.0, groups={"z": "^z"})


def test_gains_by_share_and_failures():
    curve = Curve((0.0, 0.3, 0.5, 1.0), (0.8, 0.7, 0.79, 0.6))
    assert curve.gain(0.3) == pytest.approx(-0.1) and curve.gain() == 0 and curve.fails()
    assert not Curve((0.0, 0.3, 0.5, 1.0), (0.8, 0.7, 0.81, 0.6)).fails()
    assert not Curve((0.0, 1.0), (0.8, 0.6)).fails()
