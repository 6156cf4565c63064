from dataclasses import replace

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.worst_group import WorstGroup, correctness_groups, is_right, squared_errors
from unseen.shifts import Batch

IDS = torch.tensor([4, 0, 3, 1])
BATCH = Batch(x=torch.zeros(4, 1), y=torch.zeros(4).long(), domain=torch.zeros(4).long(), domains=1, ids=IDS)
GROUPS = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
LOSSES = torch.tensor([1.0, 2.0, 6.0, 4.0])  # of examples 4, 0, 3, 1
MEANS = [3.0, 3.5, 4.0]  # of the first three groups; nobody of the fourth is there


def test_hardmax_is_the_largest_mean_of_the_groups_present():
    losses = LOSSES.clone().requires_grad_()
    loss = WorstGroup(GROUPS)(losses, BATCH)
    assert loss.item() == max(MEANS)
    assert torch.autograd.grad(loss, losses)[0].tolist() == [0, 0.5, 0.5, 0]


def test_groupdro_raises_the_weights_of_hard_groups():
    objective = WorstGroup(GROUPS, "groupdro", step_size=0.5)
    loss = objective(LOSSES, BATCH)
    expected = torch.exp(0.5 * torch.tensor([*MEANS, 0.0]))
    torch.testing.assert_close(objective.weights, expected / expected.sum())
    torch.testing.assert_close(loss, (expected[:3] / expected[:3].sum()) @ torch.tensor(MEANS))
    before = objective.weights.clone()
    objective(LOSSES, BATCH.again())
    assert torch.equal(objective.weights, before)
    for _ in range(200):
        loss = objective(LOSSES, BATCH)
    assert loss.item() == pytest.approx(max(MEANS), abs=1e-3)  # in the end, the hard maximum


def test_empty_groups_and_unknown_kinds_are_refused():
    with pytest.raises(InputError, match="groups"):
        WorstGroup(torch.cat([GROUPS, torch.zeros(1, 5).bool()]))
    with pytest.raises(InputError, match="Did you mean 'hardmax'"):
        WorstGroup(GROUPS, "hard-max")


def test_groups_of_a_model_divide_the_examples():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.randint(3, (40,), generator=generator)
    data = Batch(x=x, y=y, domain=torch.arange(40) % 2, domains=2)
    model = nn.Linear(3, 3)
    right = model(x).argmax(1) == y
    assert torch.equal(correctness_groups(model, data), torch.stack([right, ~right]))
    crossed = correctness_groups(model, data, by_domain=True)
    assert crossed.shape == (4, 40) and torch.equal(crossed.sum(0), torch.ones(40).long())
    assert torch.equal(crossed[2], right & (data.domain == 1))
    soft = replace(data, y=nn.functional.one_hot(y, 3).float())
    assert torch.equal(correctness_groups(model, soft), correctness_groups(model, data))


def test_regression_is_right_below_a_threshold():
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.1, 2.0, 5.0])
    torch.testing.assert_close(squared_errors(outputs, targets), torch.tensor([0.01, 0.0, 4.0]))
    torch.testing.assert_close(squared_errors(outputs, targets[:, None]), squared_errors(outputs, targets))
    assert is_right(outputs, targets, threshold=0.1).tolist() == [True, True, False]
