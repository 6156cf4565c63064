import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.erm import ERM
from unseen.shifts import Batch


def test_is_the_mean_cross_entropy_over_all_examples_and_not_over_domains(generator):
    model = Network(nn.Identity(), 4, 3)
    x, y = torch.randn(10, 4, generator=generator), torch.randint(3, (10,), generator=generator)
    domain = torch.tensor([0] * 9 + [1])
    loss = ERM()(model, Batch(x=x, y=y, domain=domain, domains=2)).total
    expected = -torch.stack([torch.log_softmax(model(x[i]), 0)[y[i]] for i in range(10)]).mean()
    torch.testing.assert_close(loss, expected)


def test_weights_multiply_the_losses(generator):
    model = Network(nn.Identity(), 4, 3)
    x, y = torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)
    weight = torch.rand(6, generator=generator)
    domain = torch.zeros(6, dtype=torch.int64)
    loss = ERM()(model, Batch(x=x, y=y, domain=domain, domains=1, weight=weight)).total
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(loss, (losses * weight).sum() / 6)
