import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from unseen.adaptation.deyo import DeYO
from unseen.adaptation.sar import SAR
from unseen.errors import InputError
from unseen.networks import Network


def slow_sar(network, batches, rate, radius):
    """Two-pass steps on group normalisation, spelt out; no momentum."""
    parameters = [network.featurizer[1].weight, network.featurizer[1].bias]
    threshold, answers = 0.4 * math.log(4), []

    def entropy(x):
        p = network(x).softmax(1)
        return -(p * p.log()).sum(1)

    for x in batches:
        answers.append(network(x).detach())
        first = entropy(x)
        reliable = first < threshold
        gradients = torch.autograd.grad(first[reliable].mean(), parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        with torch.no_grad():
            for value, gradient in zip(parameters, gradients, strict=True):
                value += radius * gradient / norm
        second = entropy(x)[reliable]
        uphill = torch.autograd.grad(second[second < threshold].mean(), parameters)
        with torch.no_grad():
            for value, gradient, step in zip(parameters, gradients, uphill, strict=True):
                value -= radius * gradient / norm
                value -= rate * step
    return answers


def test_sar_is_the_slow_reference(small_network, generator):
    network = small_network("group", classes=4)
    with torch.no_grad():
        network.head.weight *= 10
    batches = [3 * torch.randn(24, 3, 8, 8, generator=generator) + 1 for _ in range(4)]
    fast = SAR(network, learning_rate=0.05, momentum=0.0, radius=0.1, recovery=0.0)
    found = [fast.adapt(x) for x in batches]
    for answer, reference in zip(found, slow_sar(network, batches, 0.05, 0.1), strict=True):
        torch.testing.assert_close(answer, reference, rtol=1e-3, atol=1e-3)
    assert float((fast.network.featurizer[1].weight.detach() - 1).abs().max()) > 1e-3


def test_recovery_forgets_when_the_loss_has_collapsed(world):
    kept, recovered = (SAR(world.network, learning_rate=0.01, recovery=r) for r in (0.0, 10.0))
    for method in (kept, recovered):
        method.adapt(world.inputs())
    start = world.network.featurizer[1].weight
    assert not torch.equal(kept.network.featurizer[1].weight, start)
    assert kept.memory["average"] is not None
    assert torch.equal(recovered.network.featurizer[1].weight, start)
    assert recovered.memory == {"average": None}


def test_unsure_batches_change_nothing(small_network, generator):
    network = small_network("layer")
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    method = SAR(network, learning_rate=1.0)
    before = method.state_dict()
    method.adapt(torch.randn(6, 3, 8, 8, generator=generator))
    after = method.state_dict()
    assert all(torch.equal(after["network"][n], v) for n, v in before["network"].items())
    assert after["memory"] == {"average": None}


@pytest.mark.parametrize("method", [SAR, DeYO])
def test_last_blocks_and_the_final_normalisation_stay(method):
    blocks = nn.Sequential(*(nn.Sequential(OrderedDict(norm=nn.LayerNorm(4))) for _ in range(12)))
    transformer = nn.Sequential(OrderedDict(blocks=blocks, norm=nn.LayerNorm(4)))
    learnt = method(Network(transformer, 4, 2)).changing()
    found = {name.removeprefix("featurizer.").rpartition(".")[0] for name in learnt}
    assert found == {f"blocks.{number}.norm" for number in range(9)}
    assert "featurizer.norm.weight" in method(Network(transformer, 4, 2), skip=()).changing()
    with pytest.raises(InputError, match=r"only within layer4, .*Choose skip=\(\)"):
        method(Network(nn.Sequential(OrderedDict(norm=nn.LayerNorm(4))), 4, 2))
