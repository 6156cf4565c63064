import pytest
import torch
from outlier_data import accuracy, trained
from torch import nn

from unseen.errors import InputError
from unseen.objectives.mixing import mixup
from unseen.objectives.regmixup import RegMixup


def ready(**options):
    objective = RegMixup(**options)
    objective.setup(features=8, classes=3, domains=3)
    return objective


def test_the_loss_is_the_published_formula(model, batch):
    objective = ready(weight=2.0)
    prepared = objective.prepare(batch, torch.Generator().manual_seed(3))
    one_hot = nn.functional.one_hot(batch.y, 3).float()
    mixed, _, share = mixup(batch.x, one_hot, 20.0, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    torch.randint(2**62, (1,), generator=generator)
    partner = torch.randperm(22, generator=generator)
    logits, ce = model(mixed), nn.functional.cross_entropy
    mixture = share * ce(logits, batch.y) + (1 - share) * ce(logits, batch.y[partner])
    torch.testing.assert_close(objective(model, prepared).total, ce(model(batch.x), batch.y) + 2 * mixture)


def test_mixtures_are_nearly_even_by_default():
    x, y = torch.arange(4.0).unsqueeze(1), torch.eye(4)
    shares = [mixup(x, y, RegMixup().alpha, torch.Generator().manual_seed(s))[2] for s in range(300)]
    assert 0.4 < sum(shares) / 300 < 0.6 and max(abs(s - 0.5) for s in shares) < 0.35


def test_it_learns_and_is_less_sure_between_classes():
    erm, regmixup = trained("erm")[2], trained("regmixup")[2]
    assert accuracy(regmixup) > 0.95
    between = torch.tensor([[0.5, 0.85, 0.0, 0.0]]) + 0.1 * torch.randn(
        50, 4, generator=torch.Generator().manual_seed(0)
    )
    confidence = [logits(between).softmax(1).amax(1).mean() for logits in (erm, regmixup)]
    assert confidence[1] < confidence[0]


def test_errors(model, batch):
    with pytest.raises(InputError, match="without mixtures"):
        ready()(model, batch)
    with pytest.raises(InputError, match="alpha"):
        RegMixup(alpha=0)
    with pytest.raises(InputError, match="weight"):
        RegMixup(weight=-1)
