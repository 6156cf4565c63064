"""Whoever looks at a network leaves each part in its own mode: a frozen one stays frozen."""

import pytest
import torch
from torch import nn

from unseen.averaging import estimate_batch_statistics
from unseen.measures.sparsity import flops_estimate
from unseen.networks import Network
from unseen.objectives.whole_data import WholeData, outputs_of
from unseen.shifts import Batch
from unseen.shifts.preprocessing import ArrayPreprocessing
from unseen.training.data import network_outputs

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
BATCH = Batch(X, torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.long), 1)
LOOKS = {
    "outputs": lambda network: network_outputs(network, ArrayPreprocessing([3], [0.0] * 3, [1.0] * 3), X),
    "whole data": lambda network: outputs_of(network, WholeData(6, BATCH.take, BATCH)),
    "batch statistics": lambda network: estimate_batch_statistics(network, lambda: [X]),
    "operations": lambda network: flops_estimate(network, X),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_parts_keep_their_modes(look):
    featurizer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    network = Network(featurizer, 4, 2).train()
    network.featurizer[1].eval()
    before = [part.training for part in network.modules()]
    look(network)
    assert [part.training for part in network.modules()] == before
