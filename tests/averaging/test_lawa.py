import pytest
import torch
from torch import nn

from unseen.averaging.lawa import LAWA
from unseen.errors import InputError


def walk(average, first, last):
    model = nn.Linear(2, 2)
    for step in range(first, last):
        with torch.no_grad():
            model.weight.fill_(float(step * step))
        average.observe(step, model, None)


@pytest.mark.parametrize(("steps", "expected"), [(4, None), (5, [4]), (13, [4, 9]), (30, [19, 24, 29])])
def test_is_the_mean_of_the_latest_states(steps, expected):
    average = LAWA(states=3, every=5)
    walk(average, 0, steps)
    if expected is None:
        assert average.result() is None
    else:
        mean = torch.tensor([float(step * step) for step in expected]).mean()
        torch.testing.assert_close(average.result()["weight"], mean.expand(2, 2))


def test_keeps_no_more_states_than_it_needs():
    average = LAWA(states=3, every=2)
    walk(average, 0, 40)
    assert len(average.state_dict()["kept"]) == 3


@pytest.mark.parametrize("options", [{"states": 0}, {"every": 0}])
def test_counts_below_one_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        LAWA(**options)
