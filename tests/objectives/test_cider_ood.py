import copy

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.prototypes import PrototypeBank
from unseen.objectives.cider_ood import CompactDispersedLoss
from unseen.registry import objectives
from unseen.shifts import Batch


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=-1)


@pytest.fixture
def bank():
    return PrototypeBank(3, 1, 5, 0.9, generator=torch.Generator().manual_seed(1)).double()


def test_loss_and_step_written_out(bank):
    z, y = unit(4, 2, 5).requires_grad_(), torch.tensor([0, 1, 0, 0])  # class 2 is absent
    start = bank.vectors.clone()
    moved = []
    for c in range(3):
        members = [v for i in range(4) for v in z[i] if y[i] == c]
        new = 0.9 * start[c] + 0.1 * (sum(members) / len(members) if members else 0)
        moved.append(new / new.norm())
    compactness = 0.0
    for i in range(4):
        for v in z[i]:
            logits = torch.stack([m.detach() @ v / 0.1 for m in moved])
            compactness = compactness - logits.log_softmax(0)[y[i]] / 8
    dispersion = (
        sum(
            sum(torch.exp(moved[a] @ moved[b] / 0.1) for b in range(3) if b != a).div(2).log()
            for a in range(3)
        )
        / 3
    )
    loss = CompactDispersedLoss(bank)(z, y)
    torch.testing.assert_close(loss.parts["compactness"], compactness)
    torch.testing.assert_close(loss.parts["dispersion"], dispersion)
    expected = compactness + 2 * dispersion
    torch.testing.assert_close(*(torch.autograd.grad(t, z)[0] for t in (loss.total, expected)))
    torch.testing.assert_close(bank.vectors, torch.stack(moved).detach())


def test_features_gather_around_prototypes_that_come_apart():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 2 * torch.eye(3, 6)[y] + 0.3 * torch.randn(60, 6, generator=generator)
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), 16, 3)
    objective = objectives.build("compact-dispersed(projection=8, corruption=0.1, momentum=0.5)")
    objective.setup(features=16, classes=3, domains=1)
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], lr=1e-2)
    for step in range(150):
        batch = Batch(x=x, y=y, domain=torch.zeros_like(y), domains=1, step=step)
        loss = objective(network, objective.prepare(batch, generator))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    prototypes = objective.loss.bank.vectors
    z = nn.functional.normalize(objective.projector(network.featurizer(x)), dim=1)
    cosines = z @ prototypes.T
    assert cosines.gather(1, y[:, None]).mean() > 0.9
    # three directions are farthest apart at 120 degrees
    assert (prototypes @ prototypes.T)[~torch.eye(3, dtype=torch.bool)].max() < -0.3
    assert (network(x).argmax(1) == y).float().mean() > 0.95


def test_a_repeated_batch_has_the_same_loss(bank):
    loss, z, y = CompactDispersedLoss(bank), unit(4, 2, 5), torch.tensor([0, 1, 2, 0])
    first, state = loss(z, y).total, None
    state = copy.deepcopy(loss.state_dict())
    torch.testing.assert_close(loss(z, y, repeat=True).total, first)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())


def test_it_is_not_the_objective_of_missing_modalities():
    assert objectives["compact-dispersed"].target is not objectives["cider"].target


def test_bad_input(bank):
    with pytest.raises(InputError, match="bank: has 2 prototypes a class"):
        CompactDispersedLoss(PrototypeBank(3, 2, 5))
    with pytest.raises(InputError, match="are not unit vectors"):
        CompactDispersedLoss(bank)(2 * unit(4, 2, 5), torch.zeros(4).long())
    with pytest.raises(InputError, match="weight: is -1"):
        objectives.build("compact-dispersed(weight=-1)")
    with pytest.raises(InputError, match="tau: is 0"):
        objectives.build("compact-dispersed(tau=0)")
