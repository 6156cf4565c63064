import io

import pytest
import torch
from torch import nn

from unseen.averaging.swa import SWA


def walk(average, steps, total=20):
    model, states = nn.Linear(2, 2), {}
    average.setup(steps=total)
    for step in steps:
        with torch.no_grad():
            model.weight.fill_(float(step * step))
        states[step] = model.weight.detach().clone()
        average.observe(step, model, None)
    return states


@pytest.mark.parametrize(("start", "every"), [(0.0, 1), (0.5, 1), (0.25, 3)])
def test_equals_the_mean_of_the_chosen_states(start, every):
    average = SWA(start=start, every=every)
    states = walk(average, range(20))
    chosen = [states[step] for step in range(int(start * 20), 20, every)]
    torch.testing.assert_close(average.result()["weight"], torch.stack(chosen).mean(0))


def test_stopped_before_the_start_it_gives_nothing():
    average = SWA(start=0.5)
    walk(average, range(9))
    assert average.result() is None


def test_goes_on_exactly_after_an_interruption():
    whole, first, second = SWA(), SWA(), SWA()
    walk(whole, range(20))
    walk(first, range(14))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    walk(second, range(14, 20))
    assert torch.equal(second.result()["weight"], whole.result()["weight"])
