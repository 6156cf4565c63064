import pytest
import torch
from sklearn.datasets import load_digits

from unseen.errors import InputError
from unseen.registry import shifts
from unseen.shifts.builtin.patched_digits import PIXELS, patched_digits, shown_digits
from unseen.shifts.generators import spurious


@pytest.fixture(scope="module")
def shift():
    return shifts.build("patched-digits")


def test_sizes_and_names(shift):
    assert shift.inputs.shape == (1200 + 3 * 597, 64 + 96)
    assert shift.domains == ("broken-0", "broken-0.7", "broken-0.8", "broken-0.9")
    assert torch.bincount(shift.domain).tolist() == [1200, 597, 597, 597]
    assert len(set(shift.ids)) == len(shift)


def test_no_patch_is_broken_in_training_and_the_dial_says_how_many_are_elsewhere(shift):
    broken = shown_digits(shift) != shift.labels[:, None]
    for index, probability in enumerate((0.0, 0.7, 0.8, 0.9)):
        share = float(broken[shift.domain == index].double().mean())
        assert share == pytest.approx(
            0.9 * probability, abs=0.015
        )  # a random digit is the right one at times


def test_the_record_gives_the_colours_back(shift):
    again = patched_digits(noise=0.0)
    assert torch.equal(shown_digits(again), shown_digits(shift))
    images = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    assert torch.equal(again.inputs[0, :PIXELS], images[int(again.ids[0].split("/")[1])])


def test_test_digits_are_the_same_in_all_domains_and_never_trained_on(shift):
    rows = [
        [one.split("/")[1] for one, d in zip(shift.ids, shift.domain.tolist(), strict=True) if d == k]
        for k in range(4)
    ]
    assert rows[1] == rows[2] == rows[3] and not set(rows[0]) & set(rows[1])


def test_patches_break_one_by_one(shift):
    """Independently: the number of broken patches varies as a binomial does."""
    inside = shift.domain == 3
    count = (shown_digits(shift) != shift.labels[:, None])[inside].sum(1).double()
    assert float(count.var()) == pytest.approx(32 * 0.81 * 0.19, rel=0.25)


def test_the_seed_decides():
    one, same, other = patched_digits(seed=1), patched_digits(seed=1), patched_digits(seed=2)
    assert torch.equal(one.inputs, same.inputs) and not torch.equal(one.inputs, other.inputs)


def test_a_number_of_patches_may_be_chosen():
    assert patched_digits(broken=(0.0, 1.0), patches=1, test=100).inputs.shape == (1797, 67)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"broken": 0.7}, "broken"),
        ({"broken": (0.0, 1.2)}, "broken"),
        ({"broken": (0.5, 0.5)}, "broken"),
        ({"patches": 0}, "patches"),
        ({"noise": -1.0}, "noise"),
        ({"test": 1797}, "test"),
    ],
)
def test_settings_out_of_range_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        patched_digits(**options)


def test_other_shifts_have_no_patches():
    with pytest.raises(InputError, match="has no patches"):
        shown_digits(spurious(size=50))
