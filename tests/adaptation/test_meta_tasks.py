from itertools import islice

import pytest
import torch

from unseen.adaptation.meta_tasks import pseudo_ood_classes, transform_tasks
from unseen.errors import InputError

X = torch.arange(60.0).view(60, 1)
Y = torch.arange(60) % 4


def test_pseudo_ood_classes_are_whole_classes_drawn_at_random():
    drawn = [pseudo_ood_classes(Y, 2, seed=seed) for seed in range(20)]
    for out in drawn:
        chosen = Y[out].unique()
        assert len(chosen) == 2 and torch.equal(out, torch.isin(Y, chosen))
    assert len({tuple(Y[out].unique().tolist()) for out in drawn}) > 2
    assert torch.equal(drawn[3], pseudo_ood_classes(Y, 2, seed=3))


def test_one_transformation_shifts_the_whole_task_and_its_parts_are_disjoint():
    transforms = [lambda v: v, lambda v: v + 1000]
    outliers = torch.arange(100.0, 130).view(30, 1)
    seen = set()
    for task in islice(transform_tasks(X, Y, transforms, outliers=outliers, shots=2, queries=10), 20):
        moved = {bool(part.min() >= 1000) for part in (task.support.x, task.query.x, task.outliers)}
        assert len(moved) == 1
        seen |= moved
        offset = 1000 * moved.pop()
        assert torch.bincount(task.support.y).tolist() == [2, 2, 2, 2]
        for part in (task.support, task.query):
            assert torch.equal((part.x.squeeze(1) - offset).long() % 4, part.y)
        assert not set(task.support.x.flatten().tolist()) & set(task.query.x.flatten().tolist())
        assert len(task.query.y) == len(task.outliers) == 10 and (task.outliers - offset >= 100).all()
    assert seen == {True, False}


def test_without_outliers_other_classes_play_them_for_every_task():
    played = set()
    for task in islice(transform_tasks(X, Y, [lambda v: v], n_ood=1, shots=2, queries=8), 30):
        (out,) = (task.outliers.squeeze(1).long() % 4).unique().tolist()
        assert out not in task.support.y.tolist() and out not in task.query.y.tolist()
        played.add(out)
    assert played == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_tasks():
    first, second, other = (next(transform_tasks(X, Y, [lambda v: v], seed=s)) for s in (0, 0, 1))
    assert torch.equal(first.query.x, second.query.x) and not torch.equal(first.query.x, other.query.x)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="n_ood"):
        pseudo_ood_classes(Y, 0)
    with pytest.raises(InputError, match="n_ood.*leave two"):
        pseudo_ood_classes(Y, 3)
    with pytest.raises(InputError, match="transforms"):
        transform_tasks(X, Y, [])
    with pytest.raises(InputError, match="outliers"):
        transform_tasks(X, Y, [lambda v: v], outliers=X[:0])
    with pytest.raises(InputError, match="shots=15"):
        transform_tasks(X, Y, [lambda v: v], shots=15)
    with pytest.raises(InputError, match="queries"):
        transform_tasks(X, Y, [lambda v: v], queries=0)
