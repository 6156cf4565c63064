import pytest
import torch

from unseen.errors import InputError
from unseen.sequences.memorization import MemorizationTracker


def tracked(losses, eps=0.1, delta=1.0):
    tracker = MemorizationTracker(eps, delta)
    for index, row in enumerate(losses):
        tracker.observe(100 * index, torch.tensor(row))
    return tracker


def test_since_the_first_step_after_which_the_loss_stays_low():
    #                          always  later  relapse  never  lost
    tracker = tracked([[0.05, 3.0, 3.0, 3.0, 0.05], [0.04, 0.05, 0.05, 2.0, 0.05],
                       [0.05, 0.05, 0.5, 2.0, 0.05], [0.05, 0.01, 0.05, 1.0, 0.50]])  # fmt: skip
    assert tracker.since().tolist() == [0, 100, 300, -1, -1]
    assert {step: rows.tolist() for step, rows in tracker.groups().items()} == {0: [0], 100: [1], 300: [2]}


def test_losses_must_be_near_the_last_one():
    rows = [[0.09], [0.08], [0.01]]
    assert tracked(rows, delta=1.0).since().tolist() == [0]
    assert tracked(rows, delta=0.07).since().tolist() == [100]
    assert tracked(rows, delta=0.0).since().tolist() == [200]


def test_the_definition_written_out():
    losses = torch.rand(12, 50, generator=torch.Generator().manual_seed(0)) ** 4
    eps, delta = 0.3, 0.2
    expected = []
    for i in range(50):
        holds = [
            t
            for t in range(12)
            if all(losses[u, i] <= eps and abs(losses[u, i] - losses[-1, i]) <= delta for u in range(t, 12))
        ]
        expected.append(100 * holds[0] if holds else -1)
    assert len(set(expected)) > 3
    assert tracked(losses.tolist(), eps, delta).since().tolist() == expected


def test_bad_input():
    for eps, delta in ((0, 1), (float("inf"), 1), (float("nan"), 1), (1, -1), (1, float("nan"))):
        with pytest.raises(InputError):
            MemorizationTracker(eps, delta)
    tracker = MemorizationTracker(0.1, 0.1)
    with pytest.raises(InputError, match="no checkpoint"):
        tracker.since()
    tracker.observe(10, [0.5, 0.5])
    for step, losses in (
        (10, [0.5, 0.5]),
        (20, [0.5]),
        (20, [0.5, float("nan")]),
        (20, [[0.5, 0.5]]),
        (20, []),
    ):
        with pytest.raises(InputError):
            tracker.observe(step, losses)
    with pytest.raises(InputError, match="step"):
        MemorizationTracker(0.1, 0.1).observe(-1, [0.5])
    assert tracker.steps == [10]
