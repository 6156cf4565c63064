import copy
import pickle

import torch
from torch import nn

from unseen.averaging import estimate_batch_statistics
from unseen.networks.freezing import freeze, is_frozen


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )


def test_train_mode_changes_nothing_in_a_frozen_part():
    model = network()
    freeze(model[0])
    x = torch.randn(16, 3) + 5
    before = copy.deepcopy(model.state_dict())
    expected = model[0].eval()(x)
    model.train()
    assert torch.equal(model[0](x), expected)
    model(x).sum().backward()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("0."))
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])  # the other norm goes on
    assert model[0][0].weight.grad is None and model[2].weight.grad is not None


def test_averaging_estimates_no_statistics_of_frozen_layers_anew():
    model = network()
    freeze(model[0])
    kept = model[0][1].running_mean.add_(3).clone()
    estimate_batch_statistics(model, lambda: iter([torch.randn(8, 3)]))
    assert torch.equal(model[0][1].running_mean, kept)
    assert model[1].running_mean.abs().sum() > 0


def test_copies_stay_frozen_and_names_are_the_same():
    model = network()
    names = list(model.state_dict())
    freeze(freeze(model[0]))
    assert list(model.state_dict()) == names
    assert len(model[0]._forward_pre_hooks) == 1
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_frozen(twin[0][1]) and not is_frozen(twin[1])
