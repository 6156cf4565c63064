import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.rotation import RotPred, turned
from unseen.shifts import Batch


def test_images_are_turned_by_quarters_and_rows_by_orthogonal_maps():
    images = torch.arange(2 * 9.0).view(1, 2, 3, 3)
    copies = turned(images)
    assert torch.equal(copies[0], images) and torch.equal(copies[2], images.flip(2, 3))
    assert copies[1][0, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    rows = torch.randn(5, 7, dtype=torch.float64)
    first, again = turned(rows), turned(rows)
    for copy, same in zip(first, again, strict=True):
        assert torch.equal(copy, same)
        torch.testing.assert_close(copy @ copy.T, rows @ rows.T)
    assert not torch.isclose(first[1], first[2]).any()


def digits(count=400):
    from sklearn.datasets import load_digits

    small = load_digits()
    x = torch.from_numpy(small.images[:count] / 8 - 1).float().unsqueeze(1)
    return Batch(
        x=x,
        y=torch.from_numpy(small.target[:count]).long(),
        domain=torch.zeros(count, dtype=torch.int64),
        domains=1,
    )


def ready(features=32, classes=10, **options):
    torch.manual_seed(0)
    objective = RotPred(**options)
    objective.setup(features=features, classes=classes, domains=1)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, features), nn.ReLU()), features, classes)
    return objective, network


def test_the_loss_is_a_loop_over_turns():
    (objective, network), batch = ready(weight=0.7), digits(20)
    loss = objective(network, batch)
    ce = nn.functional.cross_entropy
    turns = [
        ce(objective.turn(network.featurizer(torch.rot90(batch.x, t, (2, 3)))), torch.full((20,), t))
        for t in range(4)
    ]
    expected = ce(network(batch.x), batch.y) + 0.7 * sum(turns) / 4
    torch.testing.assert_close(loss.total, expected)


def test_turns_and_classes_are_learned():
    (objective, network), batch = ready(), digits()
    optimizer = torch.optim.Adam([*objective.parameters(), *network.parameters()], lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(network, batch)
        loss.total.backward()
        optimizer.step()
    turns = torch.arange(4).repeat_interleave(400)
    told = objective.turn(network.featurizer(torch.cat(turned(batch.x)))).argmax(1)
    assert (told == turns).float().mean() > 0.9
    assert (network(batch.x).argmax(1) == batch.y).float().mean() > 0.95


def test_errors():
    for wrong in (torch.zeros(2, 1, 3, 4), torch.zeros(2, 3, 4), {"a": torch.zeros(2, 3)}):
        with pytest.raises(InputError, match="inputs to turn"):
            turned(wrong)
    with pytest.raises(InputError, match="weight"):
        RotPred(weight=-1)
