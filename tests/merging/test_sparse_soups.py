import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from unseen.averaging import snapshot
from unseen.errors import InputError
from unseen.measures.sparsity import sparsity
from unseen.merging import merge
from unseen.merging.sparse_soups import (
    SparseSoup,
    adaptive_rate,
    candidate_geometry,
    check_zeros,
    reprune,
)
from unseen.networks.pruning import Pruner, apply_masks, prunable, prune
from unseen.shifts.arrays import from_arrays
from unseen.training.fit import fit
from unseen.training.learner import Learner
from unseen.training.retraining import retrainer


def network(norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        between = [nn.BatchNorm1d(20)] if norm else []
        return nn.Sequential(nn.Linear(6, 20), *between, nn.ReLU(), nn.Linear(20, 2))


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(80, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def train(model, setting):
    model.train()
    options = {"lr": setting.get("rate", 0.1), "momentum": 0.9, "weight_decay": 0.01}
    optimizer, (x, y) = torch.optim.SGD(model.parameters(), **options), data()
    generator = torch.Generator().manual_seed(100 * setting["seed"] + setting["phase"])
    for _ in range(6):
        rows = torch.randint(80, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def accuracy(model):
    x, y = data(1)
    return float((model.eval()(x).argmax(1) == y).double().mean())


def batches():
    return [data()[0]]


def zeros(model, share):
    weights = prunable(model).values()
    return sum(int((w == 0).sum()) for w in weights) == round(share * sum(w.numel() for w in weights))


@pytest.mark.parametrize("merging", ["uniform", "greedy"])
@pytest.mark.parametrize("average", ["every", "last"])
def test_the_soup_is_exactly_as_sparse_as_asked(merging, average):
    model = network(norm=True)
    before = copy.deepcopy(model.state_dict())
    soup = SparseSoup(train, 0.9, 3, merge=merging, average=average, evaluate=accuracy, recalibrate=batches)
    found = soup.run(model)
    assert zeros(found.model, 0.9)
    assert [phase.sparsity for phase in found.history] == pytest.approx([0.5358, 0.7846, 0.9], abs=1e-4)
    counts = [len(phase.scores) for phase in found.history]
    assert counts == ([3, 3, 3] if average == "every" else [1, 1, 3])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(0 < phase.pruned_norm < 1 for phase in found.history)
    assert found.history[-1].distance > 0 and 0 < found.history[-1].angle < 180
    if merging == "greedy":
        assert found.history[-1].score >= max(found.history[-1].scores)
    for state in found.members:
        check_zeros(state, found.masks)


def test_one_phase_written_out():
    model = network()
    found = SparseSoup(train, 0.6, vary={"seed": (3, 5), "rate": (0.1, 0.05)}).run(model)
    masks = Pruner()(model, 0.6)
    members = []
    for seed, rate in ((3, 0.1), (5, 0.05)):
        member = copy.deepcopy(model)
        with apply_masks(member, masks):
            train(member, {"seed": seed, "rate": rate, "phase": 0})
        members.append(snapshot(member))
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, (members[0][name] + members[1][name]) / 2)
    assert all(torch.equal(mask, found.masks[name]) for name, mask in masks.items())
    assert dict(found.history[0].settings[1]) == {"seed": 5, "rate": 0.05}


def test_a_single_member_is_iterative_magnitude_pruning():
    found = SparseSoup(train, 0.8, 2, vary={"seed": (1,)}).run(network())
    assert found.history[-1].distance == found.history[-1].angle == 0 and len(found.members) == 1
    assert all(torch.equal(found.members[0][n], v) for n, v in found.model.state_dict().items())


@pytest.mark.filterwarnings("ignore:batch statistics differ")
def test_batch_statistics_of_a_soup_are_those_of_its_own_activations():
    found = SparseSoup(train, 0.5, recalibrate=batches).run(network(norm=True)).model
    hidden = found[0](data()[0])
    torch.testing.assert_close(found[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(found[1].running_var, hidden.var(0))
    stale = merge(
        [s for s in SparseSoup(train, 0.5, recalibrate=batches).run(network(norm=True)).members], "linear"
    )
    assert not torch.allclose(stale["1.running_mean"], found[1].running_mean, atol=1e-4)


def test_counters_are_not_averaged():
    found = SparseSoup(train, 0.5, recalibrate=batches).run(network(norm=True))
    assert found.model[1].num_batches_tracked.dtype == torch.int64


def forgets(model, setting):
    """Trains a copy, which knows of no mask."""
    return train(copy.deepcopy(model), setting)


def test_members_with_other_zeros_are_refused_unless_the_mean_is_pruned_again():
    with pytest.raises(InputError, match="that are not zero"):
        SparseSoup(forgets, 0.8).run(network())
    found = SparseSoup(forgets, 0.8, 2, reprune=True).run(network())
    assert zeros(found.model, 0.8)
    check_zeros(found.model.state_dict(), found.masks)


def test_means_of_separately_pruned_networks_must_be_pruned_again():
    models = []
    for seed in range(3):
        model = train(network(), {"seed": seed, "phase": 0, "rate": 0.5})
        prune(model, Pruner()(model, 0.7))
        models.append(model)
    mean = network()
    mean.load_state_dict(merge([m.state_dict() for m in models], "uniform_soup"))
    assert sparsity(mean) < 0.7
    state, _ = reprune(models, 0.7)
    mean.load_state_dict(state)
    assert zeros(mean, 0.7)


def test_raw_weights_of_torchs_own_pruning_are_refused():
    """There `weight_orig` is not zero where it is pruned: means of it and of masks would be wrong."""
    model = network()
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(InputError, match="prune.remove"):
        SparseSoup(train, 0.5).run(model)


def test_geometry_of_candidates_in_closed_form():
    base = {"w": torch.zeros(2), "b": torch.zeros(1)}
    states = [
        {"w": torch.tensor([2.0, 0.0]), "b": torch.ones(1)},
        {"w": torch.tensor([0.0, 2.0]), "b": torch.ones(1)},
    ]
    distance, angle = candidate_geometry(states, {"w": torch.ones(2, dtype=torch.bool)}, base=base)
    assert distance == pytest.approx(2**0.5) and angle == pytest.approx(90)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, "from 0 to below 1"),
        ({"sparsity": -0.1}, "from 0 to below 1"),
        ({"phases": 0}, "whole number from 1"),
        ({"vary": {}}, "one value a member"),
        ({"vary": {"seed": (0, 1), "rate": (0.1,)}}, "'seed' 2, 'rate' 1"),
        ({"merge": "greedy"}, "has no evaluate"),
        ({"merge": "mean"}, "is not known"),
        ({"average": "first"}, "is not known"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SparseSoup(**{"train": train, "sparsity": 0.5, **changes})


def test_batch_statistics_need_batches():
    with pytest.raises(InputError, match="has batch statistics"):
        SparseSoup(train, 0.5).run(network(norm=True))


def test_members_of_another_form_are_refused():
    other = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 2), nn.Linear(2, 2))

    def grows(model, setting):
        if setting["seed"]:
            other.load_state_dict(model.state_dict(), strict=False)
            return other
        return train(model, setting)

    with pytest.raises(InputError, match=r"3\.(weight|bias)"):
        SparseSoup(grows, 0.5).run(network())


@pytest.mark.filterwarnings("ignore:weight:unseen.errors.UnseenWarning")
def test_a_learner_retrains_with_its_zeros():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 45)
    x = generator.normal(size=(90, 5)).astype("float32") + labels[:, None]
    split = from_arrays(x, labels, np.repeat([0, 1, 2], 30)).split("2")
    learner = Learner(network="mlp(width=16)", steps=6, evaluations=2)
    dense = fit(learner, split).network
    soup = SparseSoup(retrainer(learner, split), 0.8, 2, vary={"seed": (0, 1), "weight_decay": (0.0, 0.1)})
    first, again = soup.run(dense), soup.run(dense)
    assert zeros(first.model, 0.8)
    assert all(torch.equal(v, again.model.state_dict()[n]) for n, v in first.model.state_dict().items())
    with pytest.raises(InputError, match="'weight_decay'"):
        SparseSoup(retrainer(learner, split), 0.8, vary={"weight_decy": (0.1,)}).run(dense)


def test_the_adaptive_rate_is_clipped_between_the_length_of_retraining_and_the_largest():
    assert adaptive_rate(0.2, 0.25, 0.1) == pytest.approx(0.4)  # r / sqrt(q)
    assert adaptive_rate(0.2, 0.25, 0.5) == 0.5  # a long retraining may begin higher
    assert adaptive_rate(0.9, 0.25, 0.1) == adaptive_rate(0.1, 0.25, 3.0) == 1
    # random pruning of the share q takes sqrt(q) of the norm: the largest rate
    assert adaptive_rate(0.5**0.5, 0.5, 0.1) == pytest.approx(1)
    for bad in ((1.1, 0.5, 0.1), (0.5, 0.0, 0.1), (0.5, 0.5, 0.0), (float("nan"), 0.5, 0.1)):
        with pytest.raises(InputError, match="pruned_share"):
            adaptive_rate(*bad)


def test_a_train_that_returns_nothing_or_another_network_is_told():
    with pytest.raises(InputError, match="train: gives a NoneType. Return the trained network"):
        SparseSoup(lambda model, setting: None, 0.5).run(network())
    with pytest.raises(InputError, match="in the network, but .* in the trained one"):
        SparseSoup(lambda model, setting: nn.Sequential(nn.Linear(2, 2)), 0.5).run(
            nn.Sequential(nn.Linear(2, 3))
        )
    with pytest.raises(InputError, match="models: are none"):
        reprune([], 0.5)
