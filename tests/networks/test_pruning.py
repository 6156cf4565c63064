import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from unseen.averaging import snapshot
from unseen.errors import InputError
from unseen.networks.pruning import Pruner, apply_masks, prunable, prune, sparsity_schedule


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 10),
            nn.Linear(10, 3),
        )


def train(network, optimizer, steps=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, 1, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()


def test_weights_of_layers_are_prunable_and_nothing_else():
    assert list(prunable(model())) == ["0.weight", "4.weight", "5.weight"]
    assert list(prunable(model(), exclude=("^0", r"5\.w"))) == ["4.weight"]
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    assert [n for n in prunable(attention) if "self_attn" in n] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
    ]
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    assert list(prunable(tied)) == ["a.weight"]
    assert prunable(nn.Embedding(3, 2)) == {}


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 0.99])
def test_the_smallest_of_all_weights_are_pruned_and_counted_exactly(sparsity):
    network = model()
    masks = Pruner()(network, sparsity)
    weights = torch.cat([w.detach().abs().flatten() for w in prunable(network).values()])
    kept = torch.cat([m.flatten() for m in masks.values()])
    assert int((~kept).sum()) == round(sparsity * len(kept))
    if sparsity > 0:
        assert weights[kept].min() >= weights[~kept].max()


def test_ties_do_not_prune_more_than_asked():
    network = nn.Linear(10, 10)
    nn.init.ones_(network.weight)
    assert int((~Pruner()(network, 0.3)["weight"]).sum()) == 30


def test_by_layer_each_has_the_sparsity():
    masks = Pruner(scope="layer")(model(), 0.5)
    assert {name: float((~mask).double().mean()) for name, mask in masks.items()} == {
        "0.weight": 0.5, "4.weight": 0.5, "5.weight": 0.5,
    }  # fmt: skip


def test_random_and_own_criteria(generator):
    pruner = Pruner(criterion="random")
    first = pruner(model(), 0.5, generator=torch.Generator().manual_seed(3))
    again = pruner(model(1), 0.5, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(first[n], again[n]) for n in first)  # whatever the weights are
    assert not torch.equal(first["4.weight"], Pruner()(model(), 0.5)["4.weight"])
    with pytest.raises(InputError, match="no generator"):
        pruner(model(), 0.5)
    signed = Pruner(criterion=lambda name, weight: weight)(network := model(), 0.5)
    assert network[4].weight[signed["4.weight"]].min() > network[4].weight[~signed["4.weight"]].max() - 1
    values = torch.cat([w.detach().flatten() for w in prunable(network).values()])
    kept = torch.cat([m.flatten() for m in signed.values()])
    assert values[kept].min() >= values[~kept].max()
    with pytest.raises(InputError, match="are NaN"):
        Pruner(criterion=lambda name, weight: weight * torch.nan)(model(), 0.5)
    with pytest.raises(InputError, match="shape"):
        Pruner(criterion=lambda name, weight: weight.sum())(model(), 0.5)


def test_phases_are_nested_and_what_is_pruned_stays_pruned():
    network, masks, before = model(), None, None
    for sparsity in sparsity_schedule(0.9, 3):
        masks = Pruner(criterion="random")(
            network, sparsity, masks=masks, generator=torch.Generator().manual_seed(int(sparsity * 100))
        )
        if before is not None:
            assert all((before[name] | ~masks[name]).all() for name in masks)
        before = masks
    with pytest.raises(InputError, match="less than that of the masks"):
        Pruner()(network, 0.5, masks=masks)
    with pytest.raises(InputError, match="missing or of another shape"):
        Pruner()(network, 0.95, masks={})


def test_each_phase_prunes_the_same_share_of_the_rest():
    schedule = [0.0, *sparsity_schedule(0.875, 3)]
    assert schedule == pytest.approx([0, 0.5, 0.75, 0.875]) and schedule[-1] == 0.875
    for phases, sparsity, word in ((0, 0.5, "phases"), (2, 1.0, "sparsity"), (2, -0.1, "sparsity")):
        with pytest.raises(InputError, match=word):
            sparsity_schedule(sparsity, phases)


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("old", [False, True])
def test_zeros_stay_through_any_optimizer_even_one_that_remembers(name, old):
    network = model()
    optimizer = OPTIMIZERS[name](network.parameters())
    if old:
        train(network, optimizer)
    masks = Pruner()(network, 0.8)
    with apply_masks(network, masks, optimizer):
        train(network, optimizer)
    weights = prunable(network)
    for key, mask in masks.items():
        assert not weights[key][~mask].any() and weights[key].grad[~mask].abs().max() == 0
        state = [v for v in optimizer.state[weights[key]].values() if v.shape == mask.shape]
        assert state and all(not value[~mask].any() for value in state)


def test_what_is_kept_trains_as_by_the_mask_written_out():
    network = model()
    by_hand = copy.deepcopy(network)
    masks = Pruner()(network, 0.7)
    with apply_masks(network, masks):
        train(network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01))
    prune(by_hand, masks)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    weights = prunable(by_hand)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x, y = torch.randn(8, 1, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(x), y).backward()
        for name, mask in masks.items():
            weights[name].grad *= mask
        optimizer.step()
    for key, value in snapshot(by_hand).items():
        torch.testing.assert_close(value, snapshot(network)[key])
    train(network, torch.optim.SGD(network.parameters(), lr=0.1))
    assert network[4].weight[~masks["4.weight"]].any()  # after the context all train again


def test_masks_of_another_network_and_reparametrized_weights_are_refused():
    network = model()
    with pytest.raises(InputError, match="fits no parameter"):
        prune(network, {"9.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(InputError, match="bool"):
        prune(network, {"4.weight": torch.ones(10, 16)})
    torch_prune.l1_unstructured(network[4], "weight", 0.5)
    with pytest.raises(InputError, match="prune.remove"):
        Pruner()(network, 0.5)
    torch_prune.remove(network[4], "weight")
    assert int((~Pruner()(network, 0.1)["4.weight"]).sum()) > 0
    with pytest.raises(InputError, match="no weight"):
        Pruner(exclude=(".",))(network, 0.5)
    for bad in ({"scope": "blocks"}, {"criterion": "gradient"}):
        with pytest.raises(InputError, match="is not known"):
            Pruner(**bad)
