import pytest
import torch
from torch import nn

from unseen.averaging import snapshot
from unseen.errors import InputError, UnseenWarning
from unseen.merging import interpolate, interpolation_curve, layerwise_curves
from unseen.merging.curves import Curve


def pair():
    a = {"x.w": torch.tensor([0.0, 0.0]), "y.w": torch.tensor([0.0]), "n": torch.tensor(1)}
    b = {"x.w": torch.tensor([1.0, 3.0]), "y.w": torch.tensor([1.0]), "n": torch.tensor(2)}
    return a, b


def test_interpolation_is_a_line_and_counters_are_the_firsts():
    a, b = pair()
    middle = interpolate(a, b, 0.25)
    assert middle["x.w"].tolist() == [0.25, 0.75] and middle["n"] == 1
    assert interpolate(a, b, {"y.w": 0.5})["x.w"].tolist() == [0, 0]
    with pytest.raises(InputError, match="outside"):
        interpolate(a, b, 1.1)
    assert interpolate(a, b, 2.0, extrapolate=True)["y.w"].tolist() == [2.0]


def test_a_curve_of_eleven_points_is_eleven_evaluations_of_one_state():
    a, b = pair()
    seen = []

    def evaluate(state):
        seen.append(({v.data_ptr() for v in state.values()}, float(state["y.w"])))
        return -abs(seen[-1][1] - 0.3)

    curve = interpolation_curve(a, b, evaluate)
    assert len(seen) == 11 and all(where == seen[0][0] for where, _ in seen)
    assert [alpha for _, alpha in seen] == pytest.approx(curve.alphas)
    assert curve.best() == 0.3 and curve.gain() == pytest.approx(0.3)
    assert a["y.w"].tolist() == [0.0] and b["y.w"].tolist() == [1.0]


def test_barriers_are_measured_from_the_line_between_the_ends():
    curve = Curve((0.0, 0.5, 1.0), (0.8, 0.1, 0.6))
    assert curve.barrier() == pytest.approx(0.6) and curve.gain() == 0
    assert Curve((0.0, 0.5, 1.0), (0.8, 0.9, 0.6)).barrier() == 0
    with pytest.raises(InputError, match="both ends"):
        Curve((0.0, 0.5), (0.8, 0.1)).barrier()


@pytest.mark.parametrize("anchor, rest", [("a", 0.0), ("b", 1.0)])
def test_layer_by_layer_only_one_group_moves(anchor, rest):
    a, b = pair()
    seen = []
    curves = layerwise_curves(
        a, b, lambda s: seen.append((float(s["x.w"][0]), float(s["y.w"]))) or seen[-1][0], alphas=(0, 0.5, 1),
        anchor=anchor, groups=lambda name: name[0],
    )  # fmt: skip
    assert list(curves) == ["x", "y", "n"] and curves["x"].scores == (0, 0.5, 1)
    assert seen[:6] == [(0, rest), (0.5, rest), (1, rest), (rest, 0), (rest, 0.5), (rest, 1)]
    with pytest.raises(InputError, match="anchor"):
        layerwise_curves(a, b, lambda s: 0.0, anchor="c")


def test_batch_statistics_are_estimated_anew(generator):
    def network():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, a, b = network(), snapshot(network()), snapshot(network())
    x = 5 + torch.randn(64, 3, generator=generator)
    before = snapshot(model)

    @torch.no_grad()
    def spread(state):
        model.eval()
        return float(model(x).var(0).mean())

    curve = interpolation_curve(a, b, spread, alphas=(0, 0.5, 1), model=model, batches=lambda: [x])
    assert curve.scores == pytest.approx((1, 1, 1), abs=0.05)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.warns(UnseenWarning, match="batch statistics"):
        interpolation_curve(a, b, lambda state: 0.0, alphas=(0, 1))
    with pytest.raises(InputError, match="come together"):
        interpolation_curve(a, b, spread, model=model)


def test_states_must_have_one_form():
    a, b = pair()
    with pytest.raises(InputError, match="'y.w'"):
        interpolation_curve(a, {**b, "y.w": torch.zeros(3)}, lambda state: 0.0)
    with pytest.raises(InputError, match=r"'y.w': has shape \(1,\) in state a, but \(3,\) in state b"):
        interpolate(a, {**b, "y.w": torch.zeros(3)}, 0.5)
    with pytest.raises(InputError, match="'x.w': is in state a, but not in state b. Did you mean 'x.ww'"):
        interpolate(a, {"x.ww": b["x.w"], "y.w": b["y.w"], "n": b["n"]}, 0.5)
    with pytest.raises(InputError, match="alpha of 'x.ww': is of no tensor. Did you mean 'x.w'"):
        interpolate(a, b, {"x.ww": 0.5})


def test_scores_that_are_no_numbers_and_no_shares_are_refused():
    a, b = pair()
    for way in (interpolation_curve, layerwise_curves):
        with pytest.raises(InputError, match="score at 0: is NaN"):
            way(a, b, lambda state: float("nan"))
        with pytest.raises(InputError, match="alphas: are none"):
            way(a, b, lambda state: 0.0, alphas=())
