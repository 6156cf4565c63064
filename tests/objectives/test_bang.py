import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.mixup import Mixup
from unseen.registry import objectives
from unseen.shifts import Batch


def built(spec):
    objective = objectives.build(spec)
    objective.setup(features=4, classes=3, domains=2)
    return objective


@pytest.fixture
def batch(generator):
    return Batch(
        x=torch.randn(8, 4, generator=generator),
        y=torch.randint(3, (8,), generator=generator),
        domain=torch.arange(8) % 2,
        domains=2,
    )


def test_label_smoothing_is_that_of_pytorch(batch, generator):
    objective, model = built("label-smoothing(smoothing=0.3)"), Network(nn.Identity(), 4, 3)
    ready = objective.prepare(batch, generator)
    expected = nn.functional.cross_entropy(model(batch.x), batch.y, label_smoothing=0.3)
    torch.testing.assert_close(objective(model, ready).total, expected)
    assert torch.equal(ready.x, batch.x)


def test_without_smoothing_it_is_mixup(batch):
    mixup = Mixup(0.4)
    mixup.setup(features=4, classes=3, domains=2)
    one = mixup.prepare(batch, torch.Generator().manual_seed(1))
    other = built("bang(smoothing=0.0, mixup_alpha=0.4)").prepare(batch, torch.Generator().manual_seed(1))
    torch.testing.assert_close(one.x, other.x)
    torch.testing.assert_close(one.y, other.y)


def test_both_give_targets_that_sum_to_one_and_are_never_sure(batch, generator):
    ready = built("bang").prepare(batch, generator)
    torch.testing.assert_close(ready.y.sum(1), torch.ones(8))
    assert ready.y.min() >= 0.1 / 3 - 1e-6 and ready.y.max() <= 0.9 + 0.1 / 3 + 1e-6
    assert not torch.equal(ready.x, batch.x)


def test_the_least_loss_is_at_smoothed_confidence(batch, generator):
    """A network free to give any logits is led to the target's probabilities, not to certainty."""
    objective = built("label-smoothing(smoothing=0.3)")
    network = Network(nn.Identity(), 4, 3)
    network.head.weight.data.zero_()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    batch.y = torch.zeros_like(batch.y)
    for _ in range(300):
        optimizer.zero_grad()
        objective(network, objective.prepare(batch, generator)).total.backward()
        optimizer.step()
    torch.testing.assert_close(
        network(batch.x).softmax(1)[:, 0].detach(), torch.full((8,), 0.8), atol=0.01, rtol=0
    )


def test_targets_that_are_no_classes_are_refused(batch, generator):
    batch.y = torch.randn(8, 1, generator=generator)
    with pytest.raises(InputError, match="neither labels nor shares of 3 classes"):
        built("bang").prepare(batch, generator)
    batch.y = torch.randn(8, generator=generator)
    with pytest.raises(InputError, match="neither labels nor shares of 3 classes"):
        built("bang").prepare(batch, generator)


@pytest.mark.parametrize(
    "spec", ["bang(smoothing=1.0)", "bang(mixup_alpha=-1)", "label-smoothing(smoothing=-0.1)"]
)
def test_settings_out_of_range_are_refused(spec):
    with pytest.raises(InputError, match="smoothing|mixup_alpha"):
        objectives.build(spec)
