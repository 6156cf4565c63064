import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import nn

from unseen.detection import class_gaussians
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors
from unseen.testing import check_detector


@pytest.mark.parametrize("spec", ["gmm", "gmm(shrinkage=0.1)"])
def test_contract(spec):
    check_detector(spec)


def classes_of_many_shapes(count=400, features=40, classes=6, seed=0, spread=1.0) -> Bank:
    """Each class with a covariance of its own, some of them near each other."""
    shared = torch.Generator().manual_seed(5)
    means = torch.randn(classes, features, generator=shared, dtype=torch.float64)
    shapes = torch.randn(classes, features, features, generator=shared, dtype=torch.float64) / features**0.5
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, features, 1, generator=generator, dtype=torch.float64)
    x = means[labels] + spread * (shapes[labels] @ noise).squeeze(2)
    return Bank(x.float(), nn.functional.one_hot(labels, classes).float(), labels)


def slow_scores(train: Bank, bank: Bank, shrinkage: float) -> np.ndarray:
    """scipy's densities, class by class, and their log-determinants relative to the mean."""
    x, y = train.features.double().numpy(), train.labels.numpy()
    residuals = np.concatenate([x[y == c] - x[y == c].mean(0) for c in np.unique(y)])
    ridge = shrinkage * (residuals**2).mean() * np.eye(x.shape[1])
    laws, weights = [], []
    for c in np.unique(y):
        own = x[y == c]
        laws.append(multivariate_normal(own.mean(0), np.cov(own.T, bias=True) + ridge))
        weights.append(len(own) / len(x))
    constant = np.mean([law.cov_object.log_pdet for law in laws]) / 2 + x.shape[1] / 2 * np.log(2 * np.pi)
    logs = [
        np.log(w) + law.logpdf(bank.features.double().numpy()) for w, law in zip(weights, laws, strict=True)
    ]
    return logsumexp(logs, axis=0) + constant


@pytest.mark.parametrize(("count", "spread"), [(400, 1.0), (60, 1.0), (400, 0.01)])
def test_gmm_is_that_of_scipy(count, spread):
    """Also with fewer examples of a class than features, and with tight classes."""
    train = classes_of_many_shapes(count, spread=spread)
    detector = detectors.build("gmm(shrinkage=1e-3)").fit(train)
    for queries in (classes_of_many_shapes(100, seed=1, spread=spread), classes_of_many_shapes(50, seed=2)):
        expected = slow_scores(train, queries, 1e-3)
        np.testing.assert_allclose(detector.score(queries), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(("glance", "look", "block"), [(1, 4, 7), (8, 20, 4096), (8, 80, 4096), (40, 40, 16)])
def test_ruling_classes_out_does_not_change_the_sum(glance, look, block, monkeypatch):
    train, queries = classes_of_many_shapes(), classes_of_many_shapes(50, seed=1, spread=2.0)
    detector = detectors.build("gmm").fit(train)
    centred = queries.features - detector.centre
    every = torch.stack([detector._log_density(centred, number) for number in range(6)], 1).logsumexp(1)
    monkeypatch.setattr(class_gaussians, "GLANCE", glance)
    monkeypatch.setattr(class_gaussians, "LOOK", look)
    monkeypatch.setattr(class_gaussians, "BLOCK", block)
    assert torch.allclose(detector.score(queries), every, rtol=1e-5, atol=1e-4)


def test_most_classes_are_ruled_out(monkeypatch):
    train, queries = classes_of_many_shapes(1200, classes=12), classes_of_many_shapes(60, classes=12, seed=1)
    detector = detectors.build("gmm").fit(train)
    whitened = []
    full = detector._log_density_above
    monkeypatch.setattr(
        detector, "_log_density_above", lambda floor, x, c: whitened.append(len(x)) or full(floor, x, c)
    )
    detector.score(queries)
    assert len(queries) <= sum(whitened) < 3 * len(queries)  # of 12


def test_a_look_that_shows_enough_ends_there(monkeypatch):
    monkeypatch.setattr(class_gaussians, "LOOK", 20)
    train, queries = classes_of_many_shapes(), classes_of_many_shapes(50, seed=1)
    detector = detectors.build("gmm").fit(train)
    centred = queries.features - detector.centre
    every = detector._log_density(centred, 0)
    floor = every.median().expand(50)
    found = detector._log_density_above(floor, centred, 0)
    above = every > floor
    assert torch.allclose(found[above], every[above], rtol=1e-5, atol=1e-4)
    assert found[~above].isneginf().any() and (found[~above] <= floor[~above]).all()


def test_far_inputs_are_less_familiar(train, familiar, far):
    detector = detectors.build("gmm").fit(train)
    assert (detector.score(familiar)[:, None] > detector.score(far)).float().mean() > 0.9


def test_labels_of_every_class_are_needed(train):
    with pytest.raises(InputError, match=r"lack class number\(s\) \[0\]"):
        detectors.build("gmm").fit(train.take(train.labels != 0))
    train.labels = None
    with pytest.raises(InputError, match="hold no labels"):
        detectors.build("gmm").fit(train)
