import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.objectives.distillation import MultiHeadDistiller, average_heads
from unseen.shifts import Batch

generator = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=generator)
DATA = Batch(
    x=X, y=torch.zeros(300).long(), domain=torch.zeros(300).long(), domains=1
)  # labels that say nothing


def net(seed, classes=3, name="mlp(width=24, depth=1)"):
    torch.manual_seed(seed)
    found = build_network(name, (4,), classes)
    with torch.no_grad():
        found.head.weight.mul_(5)
    return found


def fit(distiller, steps=250, **options):
    return distiller.fit(
        DATA, steps=steps, learning_rate=0.02, generator=torch.Generator().manual_seed(0), **options
    )


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_each_head_imitates_its_teacher_and_not_the_labels(targets):
    distiller = MultiHeadDistiller([net(0), net(1)], net(2), targets)
    network = fit(distiller)
    assert min(distiller.agreement(DATA)) > 0.9
    mean = torch.stack([head(network.featurizer(X)) for head in distiller.heads]).mean(0)
    torch.testing.assert_close(network(X), mean)
    average = average_heads(distiller.heads)
    torch.testing.assert_close(average(network.featurizer(X)), network(X))


def test_one_teacher_is_enough():
    distiller = MultiHeadDistiller([net(0)], net(2))
    fit(distiller)
    assert distiller.agreement(DATA)[0] > 0.9 and len(distiller.heads) == 1


def test_losses_against_torch():
    teachers = [net(0), net(1)]
    hard, soft = (MultiHeadDistiller(teachers, net(2), kind, 2.0) for kind in ("hard", "soft"))
    logits = hard.logits(X)
    expected = torch.stack(
        [
            nn.functional.cross_entropy(own, teacher(X).argmax(1))
            for own, teacher in zip(logits, teachers, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(hard.loss(DATA, hard.taught(DATA)), expected)
    logits = soft.logits(X)
    expected = (
        4
        * torch.stack(
            [
                nn.functional.cross_entropy(own / 2, torch.softmax(teacher(X) / 2, -1))
                for own, teacher in zip(logits, teachers, strict=True)
            ]
        ).mean()
    )
    torch.testing.assert_close(soft.loss(DATA, soft.taught(DATA)), expected)


def test_numbers_are_imitated_by_squared_error():
    distiller = MultiHeadDistiller([net(0, 1), net(1, 1)], net(2, 1), regression=True)
    assert max(distiller.agreement(DATA)) < 0.5
    fit(distiller)
    assert min(distiller.agreement(DATA)) > 0.9


def test_wrong_classes_and_settings_are_refused():
    with pytest.raises(InputError, match="teachers"):
        MultiHeadDistiller([net(0), net(1, classes=4)], net(2))
    with pytest.raises(InputError, match="teachers"):
        MultiHeadDistiller([], net(2))
    with pytest.raises(InputError, match="targets"):
        MultiHeadDistiller([net(0)], net(2), "smooth")
    with pytest.raises(InputError, match="temperature"):
        MultiHeadDistiller([net(0)], net(2), "soft", 0.0)


def test_heads_of_other_scales_are_rescaled_on_demand():
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    with torch.no_grad():
        second.weight.mul_(10)
        second.bias.mul_(10)
    plain = average_heads([first, second])
    torch.testing.assert_close(plain.weight, (first.weight + second.weight) / 2)
    torch.testing.assert_close(plain.bias, (first.bias + second.bias) / 2)
    rescaled = average_heads([first, second], rescale=True)
    a, b = first.weight / first.weight.norm(), second.weight / second.weight.norm()
    size = (first.weight.norm() + second.weight.norm()) / 2
    torch.testing.assert_close(rescaled.weight, size * (a + b) / 2)
