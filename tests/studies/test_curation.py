import pytest
import torch

from unseen.errors import InputError
from unseen.shifts.arrays import from_arrays
from unseen.studies.curation import FULL, curation_study
from unseen.studies.scoring import score_shift
from unseen.training.learner import Learner


def heaps(count=120, wrong=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = 4 * torch.eye(5)[labels] + torch.randn(count, 5, generator=generator)
    flipped = torch.rand(count, generator=generator) < wrong
    domain = torch.arange(count) % 12 // 3
    flipped &= domain != 3
    return from_arrays(x, torch.where(flipped, (labels + 1) % 3, labels), domain), flipped


LEARNER = Learner(steps=60, batch_size=16, evaluations=1, keep="last")


def test_every_selector_is_judged_on_every_domain():
    shift, _ = heaps()
    split = shift.split("3")
    table = curation_study(split, ["random", "small_loss"], LEARNER, keep=0.5, seeds=2)
    assert set(table.selector) == {FULL, "random", "small_loss"} and set(table.seed) == {0, 1}
    assert set(table.domain[table.role == "unseen"]) == {"3"}
    assert set(table.domain[table.role == "validation"]) == {"0", "1", "2"}
    full, part = (table[table.selector == name] for name in (FULL, "random"))
    assert (full.examples == len(split.train)).all()
    assert (
        part.examples == sum(-(-int((split.shift.domain[split.train] == d).sum()) // 2) for d in range(3))
    ).all()
    assert (table.steps == 60).all()
    again = curation_study(split, ["random", "small_loss"], LEARNER, keep=0.5, seeds=2)
    assert again.equals(table)
    assert table.accuracy[table.role == "unseen"].mean() > 0.8


def test_equal_epochs_are_fewer_steps():
    shift, _ = heaps()
    table = curation_study(shift.split("3"), ["random"], LEARNER, keep=0.5, equal="epochs", seeds=1)
    assert table.groupby("selector").steps.first().to_dict() == {FULL: 60, "random": 30}


def test_small_loss_leaves_wrong_labels_out():
    shift, flipped = heaps(240, wrong=0.3)
    found = score_shift(shift, ["small_loss", "random"], 0.5, steps=60)
    wrong = {name: float(flipped[rows].double().mean()) for name, rows in found.rows.items()}
    assert wrong["small_loss"] < 0.25 * wrong["random"]
    ids = found.ids("small_loss")
    assert ids.kept.sum() == len(found.rows["small_loss"])
    assert ids.score[ids.kept].mean() > ids.score[~ids.kept].mean()
    assert found.overlap.loc["random", "random"] == 1


def test_bad_input_is_told_before_training():
    split = heaps()[0].split("3")
    with pytest.raises(InputError, match="Did you mean 'small_loss'"):
        curation_study(split, ["small_los"], LEARNER)
    with pytest.raises(InputError, match="equal"):
        curation_study(split, ["random"], LEARNER, equal="time")
    with pytest.raises(InputError, match="seeds"):
        curation_study(split, ["random"], LEARNER, seeds=0)
    with pytest.raises(InputError, match="budget"):
        curation_study(split, ["random"], LEARNER.replace(steps=1), keep=0, seeds=1)


def test_a_class_that_loses_all_its_examples_is_named():
    shift, _ = heaps(wrong=0.0)
    with pytest.raises(InputError, match="class"):
        curation_study(shift.split("3"), ["small_loss"], LEARNER, keep=0.02, seeds=1)
