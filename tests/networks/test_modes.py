import pytest
import torch
from torch import nn

from unseen.networks.domain_heads import DomainHeads
from unseen.networks.modes import evaluating
from unseen.networks.simple import mlp
from unseen.networks.steering import Steering, SteeringStream


def modes(network):
    return [part.training for part in network.modules()]


def test_every_part_has_its_own_mode_again():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))).train()
    network[1][1].eval()
    before = modes(network)
    assert True in before and False in before
    with evaluating(network):
        assert not any(modes(network))
    assert modes(network) == before


def test_modes_come_back_after_an_error():
    network = nn.Sequential(nn.Dropout())
    with pytest.raises(ZeroDivisionError), evaluating(network):
        1 / 0  # noqa: B018
    assert modes(network) == [True, True]


@pytest.mark.parametrize("stream", [False, True])
def test_steering_leaves_a_frozen_part_in_evaluation_mode(stream):
    network = DomainHeads(mlp(input_shape=(3,), classes=2, width=4), 2).train()
    network.featurizer.eval()
    before, x = modes(network), torch.randn(4, 3)
    if stream:
        SteeringStream(network, Steering()).answer(x, [0, 0, 1, 1])
    else:
        Steering().answer(network, x)
    assert modes(network) == before and True in before
