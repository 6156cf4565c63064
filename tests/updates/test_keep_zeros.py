import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.measures.sparsity import sparsity
from unseen.networks.pruning import Pruner, prune
from unseen.registry import objectives, updates
from unseen.shifts.arrays import from_arrays
from unseen.testing import check_update
from unseen.testing.toy import DOMAINS, Run, toy_system
from unseen.training.data import TrainingData
from unseen.training.fit import fit, train
from unseen.training.learner import Learner

BASES = [name for name in updates.names() if name != "keep-zeros"]


def pruned_system(share=0.6):
    system = toy_system(lambda: objectives.build("erm"), 0, "cpu", DOMAINS)
    masks = Pruner()(system, share)
    prune(system, masks)
    return system, masks


def test_the_contract_holds_stacked_too():
    assert check_update("keep-zeros").facts["stacked"] is True


@pytest.mark.parametrize("base", BASES)
def test_zeros_stay_zero_under_every_rule(base):
    system, masks = pruned_system()
    run = Run(system, updates.build("keep-zeros", base=base), "cpu")
    before = copy.deepcopy(system.state_dict())
    for _ in range(4):
        run.step()
    parameters = dict(system.named_parameters())
    assert all(not parameters[name][~mask].any() for name, mask in masks.items())
    head = "network.head.weight"
    assert not torch.equal(before[head], parameters[head])


def test_a_network_without_zeros_trains_as_by_the_rule_itself():
    moved = []
    for rule in ("sam(rho=0.1)", "keep-zeros(base='sam(rho=0.1)')"):
        system = toy_system(lambda: objectives.build("erm"), 0, "cpu", DOMAINS)
        run = Run(system, rule, "cpu")
        for _ in range(3):
            run.step()
        moved.append(system.state_dict())
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_resumed_runs_keep_the_first_masks():
    system, _ = pruned_system()
    first = Run(system, "keep-zeros", "cpu")
    first.step()
    saved = copy.deepcopy(first.state())
    other = toy_system(lambda: objectives.build("erm"), 1, "cpu", DOMAINS)
    second = Run(other, "keep-zeros", "cpu")
    second.load(saved)
    for run in (first, second):
        run.step()
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in system.state_dict().items())


def test_a_wholly_pruned_layer_is_told_of():
    system, _ = pruned_system()
    with torch.no_grad():
        system.network.head.weight.zero_()
    run = Run(system, "keep-zeros", "cpu")
    with pytest.warns(UnseenWarning, match=r"head.weight' is zero throughout"):
        run.step()
    assert not system.network.head.weight.any()


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 45)
    x = generator.normal(size=(90, 5)).astype("float32")
    x[:, 0] += 2 * labels
    return from_arrays(x, labels, np.repeat([0, 1, 2], 30)).split("2")


def sparse_start(learner, split):
    network = fit(learner, split).network
    prune(network, Pruner()(network, 0.8))
    return network


def test_fit_goes_on_from_a_pruned_network(split):
    learner = Learner(network="mlp(width=16)", steps=12, optimizer="adamw", weight_decay=0.1)
    start = sparse_start(learner, split)
    kept = fit(learner.replace(update="keep-zeros"), split, start=start.state_dict()).network
    assert sparsity(kept) == sparsity(start) > 0.79
    assert not torch.equal(kept.head.weight, start.head.weight)
    dense = fit(learner, split, start=start.state_dict()).network
    assert sparsity(dense) < 0.5  # units that are dead have no gradient
    with pytest.raises(InputError, match="is no state of the learner's network"):
        fit(learner.replace(network="mlp(width=8)"), split, start=start.state_dict())


def test_a_start_is_part_of_what_a_checkpoint_belongs_to(split, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[train.__module__], "SECONDS_BETWEEN_CHECKPOINTS", -1)
    learner = Learner(network="mlp(width=16)", steps=12, update="keep-zeros", evaluations=4)
    data, start = TrainingData(split), sparse_start(learner.replace(update="plain"), split).state_dict()
    whole = train(learner, data, start=start)
    path = tmp_path / "run"

    def stop(done, steps):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(learner, data, start=start, checkpoint=path, progress=stop)
    with pytest.raises(InputError, match="another start"):
        train(learner, data, checkpoint=path)
    resumed = train(learner, data, start=start, checkpoint=path)
    assert all(torch.equal(v, resumed.state[n]) for n, v in whole.state.items())


def test_it_binds_to_networks_without_such_weights():
    module = nn.Sequential(nn.LayerNorm(3))
    rule = updates.build("keep-zeros").bind(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert rule._weights() == []
