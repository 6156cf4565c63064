import math

import pytest
import torch
from torch import nn

from unseen.averaging.local_mean_teacher import LocalMeanTeacher
from unseen.errors import InputError


def walked(teacher, steps, upto=None):
    """The teacher after steps in which the only weight is 0, 1, 2, ..."""
    teacher.setup(steps=steps)
    model = nn.Linear(1, 1, bias=False)
    for step in range(steps if upto is None else upto):
        with torch.no_grad():
            model.weight.fill_(step)
        teacher.observe(step, model, None)
    return teacher


def test_the_window_grows_along_the_cosine_from_its_least_to_its_most():
    teacher = LocalMeanTeacher(window=(3, 9), every=1)
    teacher.setup(steps=50)
    sizes = [teacher.size(t) for t in range(51)]
    assert sizes[0] == 3 and sizes[-1] == 9 and sizes == sorted(sizes)
    assert sizes[20] == math.floor((1 + math.cos(math.pi * 1.4)) * 3) + 3


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_mean_is_the_weighted_sum_written_out(decay):
    teacher = walked(LocalMeanTeacher(window=(1, 4), decay=decay, every=1), 12)
    weights = [decay**age for age in range(5)]
    expected = sum(w * (11 - age) for age, w in enumerate(weights)) / sum(weights)
    assert float(teacher.result()["weight"]) == pytest.approx(expected, rel=1e-5)


def test_it_forgets_what_lies_before_the_window_and_can_be_asked_early():
    teacher = LocalMeanTeacher(window=(0, 2), decay=1.0, every=1)
    assert teacher.result() is None
    assert float(walked(teacher, 10, upto=1).result()["weight"]) == 0.0
    constant = walked(LocalMeanTeacher(window=(1, 2), schedule="constant", decay=1.0, every=1), 10)
    assert float(constant.result()["weight"]) == pytest.approx(8.0)


def test_states_are_kept_at_distances():
    teacher = walked(LocalMeanTeacher(window=(1, 1), decay=1.0, every=5), 20)
    assert float(teacher.result()["weight"]) == pytest.approx((14 + 19) / 2)
    by_default = walked(LocalMeanTeacher(decay=1.0, window=(0, 0)), 40)
    assert float(by_default.result()["weight"]) == 39.0


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"window": (4, 3)}, "window"),
        ({"window": (-1, 3)}, "window"),
        ({"schedule": "linear"}, "schedule"),
        ({"decay": 0.0}, "decay"),
        ({"decay": 1.1}, "decay"),
        ({"every": 0}, "every"),
    ],
)
def test_options_out_of_range_are_named(options, subject):
    with pytest.raises(InputError) as error:
        LocalMeanTeacher(**options)
    assert error.value.subject == subject


def test_a_window_longer_than_the_training_is_told():
    with pytest.raises(InputError, match="reaches 9 states back, but 8 updates keep 8"):
        LocalMeanTeacher(window=(3, 9), every=1).setup(steps=8)


def test_by_default_the_window_is_no_longer_than_the_training():
    teacher = walked(LocalMeanTeacher(decay=1.0), 2)
    assert (teacher.low, teacher.high) == (2, 2) and teacher.result() is not None
