import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.measures.sparsity import flops_estimate, layer_sparsity, sparsity
from unseen.networks.pruning import Pruner, prune


def test_sparsity_counts_weights_that_may_be_pruned():
    network = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    with torch.no_grad():
        network[2].weight.zero_()
        network[0].bias.zero_()
    assert sparsity(network) == pytest.approx(10 / 30)
    assert layer_sparsity(network) == {"0.weight": 0.0, "2.weight": 1.0}
    assert sparsity(network, exclude=("^0",)) == 1
    with pytest.raises(InputError, match="no weight"):
        sparsity(nn.LayerNorm(3))


def test_operations_of_layers_in_closed_form():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    found = flops_estimate(network, torch.zeros(5, 3, 8, 8))
    assert found.dense == found.sparse == 2 * (27 * 8 * 16 + 1280) and found.speedup == 1
    masks = Pruner(scope="layer")(network, 0.75)
    prune(network, masks)
    assert flops_estimate(network, torch.zeros(1, 3, 8, 8)).speedup == 4
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert flops_estimate(grouped, torch.zeros(2, 8, 4, 4)).dense == 2 * 8 * 9 * 16
    transposed = nn.ConvTranspose2d(4, 6, 2, stride=2)
    assert flops_estimate(transposed, torch.zeros(2, 4, 3, 3)).dense == 2 * 4 * 6 * 4 * 9


def test_dense_operations_agree_with_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 7), nn.Linear(7, 2)
    ).eval()
    x = torch.zeros(3, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert counter.get_total_flops() / 3 == flops_estimate(network, x).dense


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 4}])
def test_attention_counts_its_projections(sizes):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, x):
            batch = len(x)
            key, value = (
                torch.zeros(batch, 5, sizes.get("kdim", 8)),
                torch.zeros(batch, 5, sizes.get("vdim", 8)),
            )
            return self.attention(x, key, value)[0]

    network = Attends().train()
    found = flops_estimate(network, torch.zeros(2, 3, 8))
    inner = 3 * 64 + 5 * 8 * (sizes.get("kdim", 8) + sizes.get("vdim", 8)) + 3 * 64
    assert found.dense == 2 * inner and network.training
