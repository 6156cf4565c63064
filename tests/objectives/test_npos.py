import pytest
import torch
from outlier_data import accuracy, trained
from torch import nn

from unseen.errors import InputError
from unseen.objectives.class_queue import ClassQueue
from unseen.objectives.npos import NPOS, boundary_outliers, neighbour_distances


def filled(counts=(30, 12, 7), size=6):
    generator = torch.Generator().manual_seed(1)  # no two features are equally far out at the ranks read here
    queue = ClassQueue(len(counts), 40, size)
    for c, count in enumerate(counts):
        features = torch.randn(count, size, generator=generator) + 3 * torch.eye(size)[c]
        queue.push(nn.functional.normalize(features, dim=-1), torch.full((count,), c))
    return queue


def slow_distance(point, features, k):
    distances = sorted(float((point - feature).norm()) for feature in features)
    return distances[min(k, len(distances)) - 1]


def test_distances_are_those_of_a_sorted_list_also_where_features_are_few():
    queue = filled()
    points = nn.functional.normalize(torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    found = neighbour_distances(points, queue.values, queue.filled, 10)
    for c, count in enumerate((30, 12, 7)):
        for i in range(7):
            expected = slow_distance(points[c, i], queue.values[c, :count], 10)
            assert float(found[c, i]) == pytest.approx(expected, abs=1e-4)


def test_outliers_are_made_as_a_loop_over_classes_makes_them():
    queue, generator = filled(), torch.Generator().manual_seed(2)
    noise, place = torch.randn(20, 6, generator=generator), torch.tensor([0.0, 0.55])
    found = boundary_outliers(queue, noise, place, k=2, boundary=6, sigma=0.3, keep=9)
    assert found.shape == (3, 9, 6)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 9))
    for c, count in enumerate((30, 12, 7)):
        own = queue.values[c, :count]
        outer = sorted(range(count), key=lambda i: -slow_distance(own[i], own, 3))  # itself is the nearest
        picked = [outer[int(p * min(6, count))] for p in place.tolist()]
        points = [nn.functional.normalize(own[i] + 0.3 * z, dim=0) for i in picked for z in noise]
        kept = sorted(points, key=lambda point: -slow_distance(point, own, 2))[:9]
        for one, other in zip(sorted(found[c].tolist()), sorted(k.tolist() for k in kept), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def ready(**options):
    torch.manual_seed(3)
    small = {"queue": 40, "k": 3, "boundary": 5, "draws": 10, "keep": 6}
    objective = NPOS(**{**small, **options})
    objective.setup(features=8, classes=3, domains=3)
    return objective


def test_the_loss_is_binary_cross_entropy_on_unit_features(model, batch):
    objective = ready(weight=0.4).double()
    prepared = objective.prepare(batch, torch.Generator().manual_seed(0))
    loss = objective(model, prepared)
    unit = nn.functional.normalize(model.featurizer(batch.x), dim=1)
    made = boundary_outliers(objective.queue, **prepared.auxiliary, k=3, boundary=5, sigma=0.1, keep=6)
    odds = torch.cat([objective.teller(unit), objective.teller(made.flatten(0, 1))]).squeeze(1)
    truth = torch.cat([torch.ones(22), torch.zeros(18)]).double()
    openness = nn.functional.binary_cross_entropy_with_logits(odds, truth)
    torch.testing.assert_close(loss.parts["openness"], openness)
    torch.testing.assert_close(loss.total, loss.parts["risk"] + 0.4 * openness)


def test_classes_with_less_than_two_features_have_no_outliers_and_repeats_are_not_remembered(model, batch):
    objective = ready().double()
    only = batch.take(batch.y == 1)
    prepared = objective.prepare(only, torch.Generator().manual_seed(0))
    loss = objective(model, prepared)
    assert torch.isfinite(loss.total)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    objective(model, prepared.again())
    assert objective.queue.seen.tolist() == [0, len(only), 0]
    warm = ready(warmup_steps=10**9).double()(model, prepared)
    torch.testing.assert_close(warm.total, warm.parts["risk"])


def test_it_learns_classes_and_tells_its_outliers():
    small = "npos(queue=64, k=5, boundary=20, draws=40, keep=20, sigma=0.5, weight={})"
    _, _, logits = trained(small.format(1.0))
    assert accuracy(logits) > 0.95
    network, data, _ = trained(small.format(1.0))
    objective = ready(queue=300, k=5, boundary=20, draws=40, keep=20, sigma=0.5)
    objective.setup(features=network.features, classes=3, domains=1)
    batch = data.batch(data.split.train, 0)
    optimizer = torch.optim.Adam(objective.teller.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        prepared = objective.prepare(batch, torch.Generator().manual_seed(step))
        loss = objective(network, prepared)
        optimizer.zero_grad()
        loss.parts["openness"].backward()
        optimizer.step()
        losses.append(float(loss.parts["openness"].detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_errors(model, batch):
    with pytest.raises(InputError, match="without noise"):
        ready()(model, batch)
    for match, wrong in {
        "weight": {"weight": -1},
        "k: is 0": {"k": 0},
        "keep": {"keep": 10**6},
        "sigma": {"sigma": 0},
        "picks": {"picks": 0},
    }.items():
        with pytest.raises(InputError, match=match):
            NPOS(**wrong)
