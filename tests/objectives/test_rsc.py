import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.rsc import RSC
from unseen.shifts import Batch


def slow_loss(model, batch, feature_share, batch_share):
    """The published equations, example by example, with the gradient by autograd and percentiles by NumPy."""
    features = model.featurizer(batch.x)
    kept, falls = [], []
    for z, y in zip(features.detach(), batch.y, strict=True):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(model.head(z)[y], z)
        kept.append((gradient < np.percentile(gradient.numpy(), 100 * (1 - feature_share))).double())
        with torch.no_grad():
            falls.append(model.head(z).softmax(0)[y] - model.head(z * kept[-1]).softmax(0)[y])
    limit = np.percentile(torch.stack(falls).numpy(), 100 * (1 - batch_share))
    masks = [k if fall >= limit else torch.ones_like(k) for k, fall in zip(kept, falls, strict=True)]
    return nn.functional.cross_entropy(model.head(features * torch.stack(masks)), batch.y)


@pytest.mark.parametrize("shares", [(1 / 3, 0.3), (0.5, 0.2), (0.1, 0.9)])
def test_loss_equals_the_published_equations(shares, model, batch, built, same_with_gradients):
    objective = built("rsc", feature_share=shares[0], batch_share=shares[1])
    same_with_gradients(objective(model, batch).total, slow_loss(model, batch, *shares))


def test_the_head_learns_to_use_a_second_feature(generator):
    """Each class has a strong and a weak feature of its own; plain training leans on the strong one."""
    y = torch.arange(60) % 2
    own = nn.functional.one_hot(y, 2).float()
    x = torch.cat([2 * own, 0.5 * own], 1) + 0.05 * torch.rand(60, 4, generator=generator)
    batch = Batch(x=x, y=y, domain=torch.zeros(60, dtype=torch.int64), domains=1)
    weak = []
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        model = Network(nn.Identity(), 4, 2)
        objective = RSC(feature_share=0.25, batch_share=share)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        for _ in range(200):
            optimizer.zero_grad()
            objective(model, batch).total.backward()
            optimizer.step()
        alone = model.head(x * torch.tensor([0.0, 0.0, 1.0, 1.0]))
        weak.append(float(nn.functional.cross_entropy(alone, y).detach()))
    assert weak[1] < 0.7 * weak[0]


def test_errors(model, batch):
    with pytest.raises(InputError, match="feature_share: is 2"):
        RSC(feature_share=2)
    model.head = nn.Sequential(model.head)
    with pytest.raises(InputError, match="closed forms"):
        RSC()(model, batch)
