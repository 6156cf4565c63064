import pytest
import torch

from unseen.errors import InputError
from unseen.registry import shifts
from unseen.shifts.fair_circle import fair_circle, people


def test_only_the_attribute_changes_between_counterfactuals():
    hidden = people(size=50, seed=1)
    shift = fair_circle(size=50, seed=1)
    actual, zero, one = hidden.inputs(hidden.attribute), hidden.inputs(0), hidden.inputs(1)
    assert torch.equal(actual, shift.inputs) and torch.equal(shift.group, hidden.attribute)
    chosen = torch.where(hidden.attribute.bool().unsqueeze(1), one, zero)
    assert torch.equal(chosen, actual) and (one != zero).any(1).all()
    assert torch.equal(hidden.inputs(1, observed=False), one[:, :6])
    still = people(size=50, seed=1, effect=0.0)
    assert torch.equal(still.inputs(0)[:, :6], still.inputs(1)[:, :6])


def test_what_fairness_costs_is_as_said():
    hidden = people(size=4000, seed=2)
    moved = hidden.semantic[:, 0] + hidden.effect * (2 * hidden.attribute - 1)
    best, fair = ((first / 2 + hidden.semantic[:, 1] > 0).long() for first in (moved, hidden.semantic[:, 0]))
    accuracy = [float((rule == hidden.labels).float().mean()) for rule in (best, fair)]
    assert accuracy[0] == pytest.approx(0.95, abs=0.005) and accuracy[0] - accuracy[1] == pytest.approx(
        0.04, abs=0.007
    )
    rate = [float(hidden.labels[hidden.attribute == value].float().mean()) for value in (0, 1)]
    assert rate[1] - rate[0] == pytest.approx(0.08, abs=0.015)


def test_domains_drift_as_far_as_the_dial_says():
    far, near = (people(strength=strength, seed=3) for strength in (1.0, 0.0))
    last = far.environment[far.domain == 11].mean(0)
    assert last[0] < -1.4 and abs(float(near.environment[near.domain == 11].mean())) < 0.05
    assert torch.equal(far.labels, near.labels)


def test_registered_and_decided_by_the_seed():
    shift = shifts.build("fair-circle(size=30)", seed=4)
    assert len(shift.domains) == 12 and list(shift.domains) == sorted(shift.domains)
    assert shifts.build(shift.source["source"]).fingerprint == shift.fingerprint
    assert shifts.build("fair-circle(size=30,seed=5)").fingerprint != shift.fingerprint
    assert len(fair_circle(size=30, observed=False).inputs[0]) == 6
    with pytest.raises(InputError, match="strength"):
        fair_circle(strength=-1.0)
    with pytest.raises(InputError, match="size"):
        fair_circle(size=3)
