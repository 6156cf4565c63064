import pytest
import torch
from torch import nn

from unseen.adaptation.cotta import CoTTA
from unseen.errors import InputError


def shift_by_noise(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def test_a_confident_network_is_answered_without_augmentation(world):
    calls = []

    def augment(x, generator):
        calls.append(len(x))
        return x

    method = CoTTA(world.network, augment=augment, confidence=0.0)
    method.adapt(world.inputs())
    assert not calls
    method = CoTTA(world.network, augment=augment, confidence=1.1, augmentations=3)
    method.adapt(world.inputs())
    assert calls == [64] * 3


def test_the_answer_is_the_teachers_mean_and_the_student_follows_it(world):
    x, rate = world.inputs(), 0.05
    method = CoTTA(
        world.network, rate, "sgd", momentum=0.0, teacher_momentum=0.9, restore=0.0,
        confidence=1.1, augmentations=2, augment=shift_by_noise,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(0)
    before = {n: p.detach().clone() for n, p in method.network.named_parameters()}
    targets = sum(method.network(shift_by_noise(x, draws)) for _ in range(2)).detach() / 2
    loss = -(targets.softmax(1) * method.network(x).log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(method.network.parameters()))
    torch.testing.assert_close(method.adapt(x), targets)
    for (name, value), gradient in zip(method.network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(value, before[name] - rate * gradient, rtol=1e-4, atol=1e-6)
        teacher = method.memory["teacher"][name]
        torch.testing.assert_close(teacher, 0.9 * before[name] + 0.1 * value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("restore", "least", "most"), [(0.0, 0.0, 0.01), (0.3, 0.25, 0.35), (1.0, 1.0, 1.0)])
def test_weights_are_restored_with_the_given_probability(restore, least, most, small_network, generator):
    network = small_network("group", width=32)
    method = CoTTA(network, learning_rate=0.01, restore=restore, confidence=0.0)
    method.adapt(torch.randn(8, 3, 8, 8, generator=generator))
    same = [
        (new == old).float().flatten()
        for new, old in zip(method.network.parameters(), network.parameters(), strict=True)
    ]
    assert least <= float(torch.cat(same).mean()) <= most


def test_other_inputs_than_images_need_their_own_augmentation(generator):
    network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 4, generator=generator)
    with pytest.raises(InputError, match="no augmentation is known"):
        CoTTA(network, confidence=1.1).adapt(x)
    assert CoTTA(network, confidence=1.1, augment=shift_by_noise).adapt(x).shape == (5, 3)
    with pytest.raises(InputError, match="augment 'augmax': is not known. Did you mean 'augmix'"):
        CoTTA(network, augment="augmax")
    with pytest.raises(InputError, match="teacher_momentum, restore or augmentations"):
        CoTTA(network, restore=2.0)
