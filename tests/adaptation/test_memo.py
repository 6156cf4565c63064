import copy

import pytest
import torch

from unseen.adaptation.memo import MEMO
from unseen.errors import InputError


def identity(x, generator):
    return x


def test_examples_do_not_learn_from_each_other(world):
    x = world.inputs(count=4)
    together = MEMO(world.network, 0.01, augmentations=3, augment=identity).adapt(x)
    alone = [
        MEMO(world.network, 0.01, augmentations=3, augment=identity).adapt(x[i : i + 1]) for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_one_step_is_plain_gradient_descent(small_network, generator):
    network = small_network("group", classes=4)
    x = torch.randn(1, 3, 8, 8, generator=generator)

    def augment(x, generator):
        return x + torch.randn(x.shape, generator=generator)

    found = MEMO(network, 0.1, augmentations=5, augment=augment, seed=2).adapt(x)
    plain = copy.deepcopy(network)
    copies = augment(x.repeat(5, 1, 1, 1), torch.Generator().manual_seed(2))
    mean = plain(copies).softmax(1).mean(0)
    (-(mean * mean.log()).sum()).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.1 * parameter.grad
        torch.testing.assert_close(found, plain(x), rtol=1e-4, atol=1e-5)
        assert float((found - network(x)).abs().max()) > 1e-3


def test_copies_count_as_one_example_in_batch_normalisation(world, generator):
    """The step and the answer by hand: statistics of training weigh 3 of 4, however many copies there are."""
    x = world.inputs(count=1)
    noise = 0.5 * torch.randn(6, 3, 8, 8, generator=generator)
    found = MEMO(world.network, 0.1, augmentations=6, augment=lambda x, _: x + noise, prior=3.0).adapt(x)
    convolution, norm, *rest = copy.deepcopy(world.network.featurizer)
    head = copy.deepcopy(world.network.head)

    def forward(x):
        z = convolution(x)
        mean = (3 * norm.running_mean + z.mean((0, 2, 3))) / 4
        variance = (3 * norm.running_var + z.var((0, 2, 3), correction=0)) / 4
        z = (z - mean.view(1, -1, 1, 1)) / (variance + norm.eps).sqrt().view(1, -1, 1, 1)
        z = z * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        return head(torch.nn.Sequential(*rest)(z))

    mean = forward(x + noise).softmax(1).mean(0)
    parameters = [*convolution.parameters(), *norm.parameters(), *head.parameters()]
    gradients = torch.autograd.grad(-(mean * mean.log()).sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.1 * gradient
        torch.testing.assert_close(found, forward(x), rtol=1e-4, atol=1e-4)


def test_nothing_is_remembered(world):
    method = MEMO(world.network, 0.01, augmentations=2, augment=identity)
    x = world.inputs(count=2)
    first = method.adapt(x)
    assert all(
        torch.equal(p, q)
        for p, q in zip(method.network.parameters(), world.network.parameters(), strict=True)
    )
    assert torch.equal(method.adapt(x), first)


def test_it_needs_an_augmentation(world):
    with pytest.raises(InputError, match="augmentations: are 0"):
        MEMO(world.network, augmentations=0)
