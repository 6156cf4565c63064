"""Tent against plain torch, written from the paper: same arithmetic, and a network that stays as it was."""

import copy

import pytest
import torch
from torch import nn

from unseen.adaptation.tent import Tent
from unseen.errors import InputError
from unseen.networks import Network


def plain_tent(network, batches, make_optimizer, steps=1):
    """Batch statistics by torch's own layer in training mode; entropy by its definition."""
    model = copy.deepcopy(network).eval().requires_grad_(False)
    parameters = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.track_running_stats = False
            module.running_mean = module.running_var = None
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            module.requires_grad_(True)
            parameters += list(module.parameters())
    optimizer, answers = make_optimizer(parameters), []
    for x in batches:
        for _ in range(steps):
            logits = model(x)
            p = logits.exp() / logits.exp().sum(1, keepdim=True)
            loss = -(p * p.log()).sum() / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        answers.append(logits.detach())
    return answers


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_tent_is_plain_entropy_minimisation(kind, steps, optimizer, small_network, generator):
    network, rate = small_network(kind), 0.05 if optimizer == "adam" else 0.5
    batches = [2 * torch.randn(12, 3, 8, 8, generator=generator) + 1 for _ in range(4)]

    def make_optimizer(parameters):
        if optimizer == "adam":
            return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.999))
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)

    tent = Tent(network, learning_rate=rate, optimizer=optimizer, steps=steps)
    expected = plain_tent(network, batches, make_optimizer, steps)
    for x, answer in zip(batches, expected, strict=True):
        torch.testing.assert_close(tent.adapt(x), answer, rtol=1e-4, atol=1e-4)
    moved = tent.adapt(batches[0]) - Tent(network).adapt(batches[0])
    assert float(moved.abs().max()) > 1e-3  # what was compared is not the beginning


def test_entropy_falls_on_the_same_batch(world):
    tent, x = Tent(world.network, learning_rate=0.01), world.inputs()
    entropies = []
    for _ in range(5):
        logits = tent.adapt(x)
        entropies.append(float(-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()))
    assert entropies[-1] < entropies[0]


def test_adapted_weights_load_into_the_original_network(world):
    tent = Tent(world.network, learning_rate=0.01)
    for seed in range(3):
        tent.adapt(world.inputs(seed=seed))
    own = copy.deepcopy(world.network)
    own.load_state_dict(tent.network.state_dict())
    changed = [
        n for n, p in own.named_parameters() if not torch.equal(p, dict(world.network.named_parameters())[n])
    ]
    assert changed == ["featurizer.1.weight", "featurizer.1.bias"]


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_it_learns_within_no_grad_and_inference_mode(guard, world):
    outside, inside = Tent(world.network, learning_rate=0.01), Tent(world.network, learning_rate=0.01)
    x = world.inputs()
    expected = [outside.adapt(x) for _ in range(3)]
    with guard():
        found = [inside.adapt(x.clone()) for _ in range(3)]
    assert all(map(torch.equal, found, expected)) and not torch.equal(expected[0], expected[2])


def test_a_predictor_is_taken_for_its_network(world):
    holder = nn.Module()
    holder.network = world.network
    x = world.inputs()
    assert torch.equal(Tent(holder).adapt(x), Tent(world.network).adapt(x))


def test_a_single_example_needs_statistics_of_training(world):
    x = world.inputs()[:1]
    with pytest.raises(InputError, match=r"batch of one example.*prior=16"):
        Tent(world.network).adapt(x)
    assert Tent(world.network, prior=16).adapt(x).shape == (1, 10)


def test_what_cannot_be_adapted_is_refused(world, small_network):
    with pytest.raises(InputError, match=r"has no normalisation layer"):
        Tent(Network(nn.Flatten(), 4, 2))
    with pytest.raises(InputError, match="batch: is empty"):
        Tent(world.network).adapt(torch.zeros(0, 3, 8, 8))
    with pytest.raises(InputError, match="network: is a str"):
        Tent("resnet")
    for options in ({"learning_rate": 0}, {"steps": 0}, {"momentum": 1.0}):
        with pytest.raises(InputError, match="Give a positive rate"):
            Tent(world.network, **options)
    with pytest.raises(InputError, match="optimizer 'lion'.*'sgd' or 'adam'"):
        Tent(world.network, optimizer="lion")
    with pytest.raises(InputError, match="adaptation state: is of another network or method"):
        Tent(world.network).load_state_dict(Tent(Network(nn.LayerNorm(4), 4, 2)).state_dict())
