import io

import torch
from torch import nn

from unseen.averaging.ema import EMA


def walk(average, model, steps, generator):
    states = []
    for step in steps:
        with torch.no_grad():
            model.weight.copy_(torch.randn(model.weight.shape, generator=generator))
        states.append(model.weight.detach().clone())
        average.observe(step, model, None)
    return states


def test_equals_the_recursion_with_a_decay_that_rises(generator):
    average, model = EMA(decay=0.6), nn.Linear(3, 2)
    states = walk(average, model, range(20), generator)
    mean = states[0]
    for step, state in enumerate(states[1:], start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * state
    torch.testing.assert_close(average.result()["weight"], mean)
    assert set(average.result()) == {"weight", "bias"}


def test_nothing_seen_gives_nothing():
    assert EMA().result() is None


def test_counters_are_copied_and_the_network_is_not_touched(generator):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = EMA()
    for step in range(3):
        model(torch.randn(4, 3, generator=generator))
        average.observe(step, model, None)
    before = model[0].weight.detach().clone()
    average.observe(3, model, None)
    assert int(average.result()["1.num_batches_tracked"]) == 3
    assert torch.equal(model[0].weight, before)


def test_goes_on_exactly_after_an_interruption(generator):
    first, model = EMA(), nn.Linear(3, 2)
    walk(first, model, range(5), generator)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = EMA()
    second.load_state_dict(torch.load(file, weights_only=True))
    for average in (first, second):
        walk(average, model, range(5, 9), torch.Generator().manual_seed(1))
    assert torch.equal(first.result()["weight"], second.result()["weight"])
