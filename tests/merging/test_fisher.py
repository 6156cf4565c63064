import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.merging import diagonal_fisher


def test_the_diagonal_is_that_of_loops(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(5, 3, generator=generator)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for example in x:
        for label in range(3):
            model.zero_grad()
            log_probability = model(example[None]).log_softmax(-1)[0]
            log_probability[label].backward()
            for name, p in model.named_parameters():
                expected[name] += float(log_probability[label].detach().exp()) * p.grad.square() / 5
    found = diagonal_fisher(model, [x[:2], x[2:]])
    assert found.keys() == model.state_dict().keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_linear_head_in_closed_form(generator):
    model = nn.Linear(3, 2, bias=False)
    x = torch.randn(1, 3, generator=generator)
    p = model(x).softmax(-1)[0].detach()
    torch.testing.assert_close(diagonal_fisher(model, [x])["weight"], (p * (1 - p))[:, None] * x.square())


def test_buffers_get_one_and_the_mode_is_kept(generator):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    found = diagonal_fisher(model, [torch.randn(4, 3, generator=generator)])
    assert model.training and bool((found["1.running_mean"] == 1).all())
    with pytest.raises(InputError, match="are empty"):
        diagonal_fisher(model, [])
