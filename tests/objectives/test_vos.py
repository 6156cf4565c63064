import pytest
import torch
from outlier_data import accuracy, outliers, trained
from torch import nn
from torch.distributions import MultivariateNormal

from unseen.errors import InputError
from unseen.objectives.class_queue import ClassQueue
from unseen.objectives.vos import VOS, gaussian_tails, tail_draws


def filled(classes=3, count=40, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queue = ClassQueue(classes, 50, size)
    for c in range(classes):
        features = (
            torch.randn(count, size, generator=generator) @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0])) + c
        )
        queue.push(features, torch.full((count,), c))
    return queue


def test_the_longest_noise_is_the_least_likely_draw_of_any_gaussian():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 4, generator=generator)
    chosen = tail_draws(500, 7, 4, torch.Generator().manual_seed(0))
    mean, root = torch.randn(4, generator=generator), torch.randn(4, 4, generator=generator)
    covariance = root @ root.T + torch.eye(4)
    gaussian = MultivariateNormal(mean, covariance)
    draws = mean + noise @ torch.linalg.cholesky(covariance).T
    least = noise[gaussian.log_prob(draws).topk(7, largest=False).indices]
    assert {tuple(z.tolist()) for z in least} == {tuple(z.tolist()) for z in chosen}


def test_virtual_outliers_are_those_of_class_means_and_a_common_covariance():
    queue, noise = filled(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    found = gaussian_tails(queue, noise)
    own = [queue.values[c, :40] for c in range(3)]
    centred = torch.cat([values - values.mean(0) for values in own])
    covariance = centred.T @ centred / 120
    ridge = 1e-4 * max(1.0, float(covariance.diagonal().mean()))
    root = torch.linalg.cholesky(covariance + ridge * torch.eye(4))
    for c in range(3):
        for k in range(5):
            torch.testing.assert_close(found[c, k], own[c].mean(0) + root @ noise[k])


def ready(**options):
    torch.manual_seed(3)
    objective = VOS(**{"queue": 50, "draws": 200, **options})
    objective.setup(features=8, classes=3, domains=3)
    return objective


def test_the_loss_is_binary_cross_entropy_on_weighted_energies(model, batch):
    objective = ready(weight=0.4, select=2).double()
    prepared = objective.prepare(batch, torch.Generator().manual_seed(0))
    loss = objective(model, prepared)
    features = model.featurizer(batch.x)
    virtual = gaussian_tails(objective.queue, prepared.auxiliary).flatten(0, 1)
    weights = objective.energy_weights.clamp(min=0)

    def log_odds(logits):
        energies = torch.stack([(weights * row.exp()).sum().log() for row in logits])
        return objective.slope.exp() * energies + objective.offset

    odds = torch.cat([log_odds(model.head(features)), log_odds(model.head(virtual.double()))])
    truth = torch.cat([torch.ones(22), torch.zeros(6)]).double()
    uncertainty = nn.functional.binary_cross_entropy_with_logits(odds, truth)
    torch.testing.assert_close(loss.parts["uncertainty"], uncertainty)
    torch.testing.assert_close(loss.total, loss.parts["risk"] + 0.4 * uncertainty)


def test_classes_without_features_have_no_outliers(model, batch):
    objective = ready().double()
    only = batch.take(batch.y == 1)
    loss = objective(model, objective.prepare(only, torch.Generator().manual_seed(0)))
    assert objective.queue.held.tolist() == [0, len(only), 0]
    assert torch.isfinite(loss.total)
    loss.total.backward()


def test_features_are_remembered_once_and_the_warm_up_counts_cross_entropy_alone(model, batch):
    objective = ready(warmup_steps=10**9).double()
    prepared = objective.prepare(batch, torch.Generator().manual_seed(0))
    loss = objective(model, prepared)
    held = objective.queue.seen.clone()
    objective(model, prepared.again())
    assert torch.equal(objective.queue.seen, held)
    torch.testing.assert_close(loss.total, loss.parts["risk"])


def test_it_learns_classes_and_its_energies_tell_outliers_the_right_way_round():
    """A logistic slope of either sign would give the far outliers the lower energies here: 0.005 was measured."""
    network, data, logits = trained("vos(queue=100, draws=500, weight=1.0, select=60)", steps=300)
    assert accuracy(logits) > 0.95
    known, far = data.bank(network, "train").logits.logsumexp(1), logits(outliers(200, 9)).logsumexp(1)
    assert (known.unsqueeze(1) > far).float().mean() > 0.65


def test_virtual_outliers_of_always_the_same_tails_are_learned(model, batch):
    """Drawn anew, both tails of a Gaussian look alike to a linear head, and little is learned in a few steps."""
    objective = ready(select=3, weight=1.0).double()
    optimizer = torch.optim.Adam([*objective.parameters(), *model.parameters()], lr=1e-2)
    losses = []
    for _ in range(100):
        loss = objective(model, objective.prepare(batch, torch.Generator().manual_seed(0)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.parts["uncertainty"].detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_errors(model, batch):
    with pytest.raises(InputError, match="without noise"):
        ready()(model, batch)
    for match, wrong in {
        "weight": {"weight": -1},
        "select": {"select": 0},
        "select: is 11": {"select": 11, "draws": 10},
        "queue": {"queue": 1},
    }.items():
        with pytest.raises(InputError, match=match):
            VOS(**wrong)
