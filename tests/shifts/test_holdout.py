import pytest
import torch

from unseen.errors import InputError
from unseen.shifts.holdout import holdout_split

LABELS = torch.tensor([7, 3, 3, 5, 1, 9, 7, 1])


def test_classes_are_parted_by_the_seed():
    known, others = holdout_split(LABELS, 3, seed=0)
    assert len(known) == 3 and sorted([*known.tolist(), *others.tolist()]) == [1, 3, 5, 7, 9]
    assert known.tolist() == sorted(known.tolist()) and others.tolist() == sorted(others.tolist())
    assert torch.equal(holdout_split(LABELS.flip(0), 3, seed=0)[0], known)
    drawn = {tuple(holdout_split(LABELS, 3, seed=s)[0].tolist()) for s in range(60)}
    assert len(drawn) == 10


def test_errors():
    for wrong in (1, 5, 6):
        with pytest.raises(InputError, match="n_id"):
            holdout_split(LABELS, wrong, 0)
