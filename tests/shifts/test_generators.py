"""Generated shifts: the dial does what it says, in closed form and as a linear probe sees it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from unseen import registry
from unseen.errors import InputError
from unseen.shifts import generators

DIALS = {
    "gaussian-shift": (0.0, 0.5, 1.0, 1.5, 2.0),
    "spurious": (0.0, 0.25, 0.5, 0.75, 1.0),
    "concept-shift": (0.0, 0.25, 0.5, 0.75, 1.0),
    "label-shift": (0.0, 0.5, 1.0),
    "drift": (0.0, 0.25, 0.5, 0.75, 1.0),
}
names = pytest.mark.parametrize("name", DIALS)


def gap(name: str, strength: float) -> float:
    """ID minus OOD accuracy of a linear probe when the last domain is unseen, mean over three seeds."""
    gaps = []
    for seed in range(3):
        shift = registry.shifts.build(name, strength=strength, seed=seed)
        split = shift.split(shift.domains[-1], seed=seed)
        probe = LogisticRegression(max_iter=500).fit(shift.take(split.train), shift.labels[split.train])
        id_accuracy, ood_accuracy = (
            probe.score(shift.take(rows), shift.labels[rows]) for rows in (split.validation, split.unseen)
        )
        gaps.append(id_accuracy - ood_accuracy)
    return float(np.mean(gaps))


@names
def test_gap_of_a_linear_probe_grows_with_strength(name):
    gaps = [gap(name, strength) for strength in DIALS[name]]
    assert abs(gaps[0]) < 0.03
    assert all(later > earlier for earlier, later in pairwise(gaps))
    assert gaps[-1] > 0.06


@names
def test_sizes_classes_and_seeds(name):
    shift = registry.shifts.build(name, size=60)
    assert shift.kind == "array"
    assert shift.inputs.dtype == torch.float32
    assert torch.bincount(shift.domain).tolist() == [60] * len(shift.domains)
    assert (shift.counts() >= 2).all().all()
    assert registry.shifts.build(name, size=60).fingerprint == shift.fingerprint
    assert registry.shifts.build(name, size=60, seed=1).fingerprint != shift.fingerprint
    assert registry.shifts.build(shift.source["source"]).fingerprint == shift.fingerprint


@names
def test_global_random_state_is_left_alone(name):
    before = torch.random.get_rng_state()
    registry.shifts.build(name, size=20)
    assert torch.equal(torch.random.get_rng_state(), before)


@names
@pytest.mark.parametrize(
    "options",
    [{"strength": -1.0}, {"strength": math.nan}, {"size": 3}, {"features": 1}, {"strength": math.inf}],
)
def test_dials_out_of_range_are_refused(name, options):
    with pytest.raises(InputError, match=next(iter(options))):
        registry.shifts.build(name, **options)


def test_gaussian_shift_moves_the_inputs_and_keeps_the_rule():
    shift = generators.gaussian_shift(strength=2.0, domains=3, size=4000)
    x = shift.inputs
    for k in range(3):
        centre = x[shift.domain == k].mean(0)
        torch.testing.assert_close(centre[:2], torch.tensor([(2.0 * k) ** 2 / 8, 2.0 * k]), atol=0.06, rtol=0)
    assert torch.equal(shift.labels, (x[:, 0] > x[:, 1] ** 2 / 8).long())


def test_spurious_rates_follow_the_formula():
    shift = generators.spurious(strength=0.5, agreement=(1.0, 0.5, 0.0), size=8000, label_noise=0.2)
    rates = [float(shift.group[shift.domain == k].float().mean()) for k in range(3)]
    assert rates == pytest.approx([0.75, 0.5, 0.25], abs=0.02)
    # The causal half alone: its means are 1.5 from zero, and a share of 0.2 of the labels is flipped.
    causal = (shift.inputs[:, :5].sum(1) > 0).long()
    expected = 0.8 * norm.cdf(1.5) + 0.2 * norm.cdf(-1.5)
    assert float((causal == shift.labels).float().mean()) == pytest.approx(expected, abs=0.01)
    # The other half tells the label where it agrees.
    custom = (shift.inputs[:, 5:].sum(1) > 0).long()
    agree = shift.group == 1
    accuracy = float((custom == shift.labels)[agree].float().mean())
    assert accuracy == pytest.approx(norm.cdf(1.5), abs=0.01)


def test_full_concept_shift_reverses_the_labels():
    shift = generators.concept_shift(strength=1.0, domains=2, size=200)
    first = shift.domain == 0
    side = shift.inputs[:, 0] > 0
    assert torch.equal(shift.labels[first], side[first].long())
    assert torch.equal(shift.labels[~first], (~side[~first]).long())


def test_label_shift_mirrors_the_frequencies():
    shift = generators.label_shift(strength=0.8, domains=3, classes=4, size=400)
    counts = shift.counts().to_numpy()
    assert np.abs(counts[0] - counts[2][::-1]).max() <= 3  # rounding
    assert np.abs(counts[1] - 100).max() <= 3
    assert (np.diff(counts[2]) > 0).all()


@pytest.mark.parametrize("strength", [0.0, 1.0, 50.0])
def test_label_shift_keeps_every_class_at_any_strength(strength):
    shift = generators.label_shift(strength=strength, classes=10, size=20)
    assert (shift.counts().to_numpy() >= 2).all()


def test_drift_is_ordered_in_time():
    shift = generators.drift(size=50)
    assert (np.diff(shift.time) > 0).all()
    later = shift.split(after=0.6)
    assert float(shift.time[later.train.numpy()].max()) <= 0.6 < float(shift.time[later.unseen.numpy()].min())
    assert later.unseen_domains == ("period-4", "period-5")


@pytest.mark.parametrize("agreement", [0.9, (0.9,), (0.9, 0.9), (0.5, 1.5)])
def test_spurious_refuses_agreements_that_make_no_shift(agreement):
    with pytest.raises(InputError):
        generators.spurious(agreement=agreement)
