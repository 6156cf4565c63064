import pytest
import torch

from unseen.errors import InputError
from unseen.shifts.arrays import from_arrays
from unseen.shifts.fair_circle import fair_circle
from unseen.shifts.generators import drift
from unseen.studies.rolling import rolling_evaluation
from unseen.training import Learner, fit

LEARNER = Learner(network="linear", steps=60, learning_rate=0.05, evaluations=1)


def test_each_window_is_judged_on_what_comes_next():
    table = rolling_evaluation(LEARNER, fair_circle(domains=4, size=40), horizon=2)
    assert list(zip(table.trained, table.domain, table.ahead, strict=True)) == [
        (2, "period-03", 1), (2, "period-04", 2), (3, "period-04", 1),
    ]  # fmt: skip
    assert (table.n == 40).all() and table.accuracy.between(0, 1).all()
    assert table["demographic parity"].between(0, 1).all() and table["equalized odds"].between(0, 1).all()


def test_a_boundary_that_turns_is_missed_more_the_further_ahead():
    table = rolling_evaluation(LEARNER, drift(strength=1.0, domains=6, size=100), horizon=3)
    mean = table.groupby("ahead").accuracy.mean()
    assert mean[1] > mean[2] > mean[3] and "demographic parity" not in table


def test_training_sees_no_later_domain():
    shift, seen = drift(domains=5, size=30), []

    def train(split, seed):
        seen.append((split.train_domains, float(split.shift.time[split.train].max()), seed))
        assert split.shift.domain.max() <= len(split.train_domains)
        return fit(LEARNER.replace(steps=1), split, seed=seed)

    rolling_evaluation(train, shift, first=3, seed=7)
    assert [names for names, *_ in seen] == [shift.domains[:3], shift.domains[:4]]
    assert all(time < len(names) / 5 and seed == 7 for names, time, seed in seen)


def test_a_group_without_examples_leaves_a_gap():
    shift = fair_circle(domains=3, size=30)
    shift.group = torch.where(shift.domain == 2, 0, shift.group)
    table = rolling_evaluation(LEARNER.replace(steps=2), shift)
    assert table["demographic parity"].isna().all() and table.accuracy.notna().all()


def test_errors():
    shift = from_arrays(torch.randn(8, 2).numpy(), [0, 1] * 4, [0, 0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(InputError, match="Leave one"):
        rolling_evaluation(LEARNER, shift)
    with pytest.raises(InputError, match="horizon"):
        rolling_evaluation(LEARNER, shift, horizon=0, first=1)
