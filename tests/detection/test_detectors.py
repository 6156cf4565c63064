from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from unseen.detection import Familiarity
from unseen.detection.mahalanobis import class_statistics, squared_distances, whitening
from unseen.detection.nearest_neighbours import kth_neighbour
from unseen.errors import InputError, UnseenWarning
from unseen.networks import Bank
from unseen.registry import detectors


def outputs(count=300, features=10, classes=4, seed=0, offset=0.0, spread=1.0, dtype=torch.float32) -> Bank:
    """Gaussian classes with one full covariance; `offset` moves inputs away from all of them.

    spread  size of the classes; below 0.1, they are as far apart as those of a network trained to the end
    """
    shared = torch.Generator().manual_seed(99)
    means = 2 * torch.randn(classes, features, generator=shared, dtype=torch.float64)
    mix = torch.randn(features, features, generator=shared, dtype=torch.float64) / (3 * features**0.5)
    mix = spread * (mix + torch.eye(features))
    head = nn.utils.skip_init(nn.Linear, features, classes, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(means)
        head.bias.copy_(-means.square().sum(1) / 2)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, features, generator=generator, dtype=torch.float64)
    x = means[labels] + noise @ mix + offset
    return Bank(x.to(dtype), head(x).detach().to(dtype), labels, head=head)


def broken(bank: Bank, value: float) -> Bank:
    bank = bank.take(torch.arange(len(bank)))
    for rows in (bank.features, bank.logits):
        rows[[5, 9]] = value
    return bank


NAMES = [name for name in detectors.names() if not detectors.build(name).observes]
"""Detectors to which features, logits and a head are enough; the others have test files of their own."""
every = pytest.mark.parametrize("name", NAMES)
LEARNING = [name for name in NAMES if detectors.build(name).fit(outputs()).state_dict()]
learning = pytest.mark.parametrize("name", LEARNING)


BY_CHANCE = {"isolation-forest"}
"""Random cuts hardly find what lies between classes, and are other cuts when a feature is added."""


def reads_head(name: str) -> bool:
    headless = replace(outputs(), head=None)
    try:
        detectors.build(name).fit(headless).score(headless)
    except InputError:
        return True
    return False


headless = pytest.mark.parametrize(
    "name", [name for name in NAMES if not reads_head(name) and name not in BY_CHANCE]
)
"""Detectors to which features and logits may be given that no head maps to each other."""


# ---- every registered detector ----


@headless
def test_higher_means_more_familiar(name):
    """Between the classes, where no logit is large, and where no training feature was."""
    train, familiar = outputs(), outputs(seed=1)
    between = outputs(seed=2)
    between.features = 0.1 * between.features + torch.tensor([0.0] * 9 + [6.0])
    between.logits = 0.1 * between.logits / between.logits.std()
    detector = detectors.build(name).fit(train)
    known, unknown = detector.score(familiar), detector.score(between)
    assert (known[:, None] > unknown).float().mean() > 0.9  # AUROC


@every
def test_state_round_trip_is_exact(name):
    detector = detectors.build(name).fit(outputs())
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    other = detectors.build(name).restore(state)
    assert torch.equal(detector.score(outputs(seed=1)), other.score(outputs(seed=1)))
    assert other.state_dict().keys() == detector.state_dict().keys()


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_counted(name, value):
    detector = detectors.build(name).fit(outputs())
    with pytest.raises(InputError, match=r"NaN or infinite values in 2 row\(s\), first in row 5"):
        detector.score(broken(outputs(seed=1), value))
    if name in LEARNING:
        with pytest.raises(InputError, match=r"NaN or infinite values in 2 row\(s\)"):
            detectors.build(name).fit(broken(outputs(), value))


@every
def test_no_inputs_and_one_input(name):
    detector, bank = detectors.build(name).fit(outputs()), outputs(seed=1)
    none = detector.score(bank.take(torch.arange(0)))
    assert none.shape == (0,) and none.dtype == torch.float32
    alone = torch.cat([detector.score(bank.take(torch.tensor([row]))) for row in range(20)])
    assert torch.allclose(alone, detector.score(bank)[:20], rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(name, dtype):
    detector = detectors.build(name).fit(outputs(dtype=dtype))
    scores = detector.score(outputs(seed=1, dtype=dtype))
    expected = detectors.build(name).fit(outputs()).score(outputs(seed=1))
    assert scores.dtype == torch.float32
    assert np.corrcoef(scores, expected)[0, 1] > 0.99


@every
def test_fewer_samples_than_dimensions(name):
    train = outputs(count=24, features=100)
    detector = detectors.build(name).fit(train)
    known = detector.score(outputs(count=40, features=100, seed=1))
    unknown = detector.score(outputs(count=40, features=100, seed=2, offset=50.0))
    assert torch.isfinite(known).all() and torch.isfinite(unknown).all()
    if not detector.needs_logits:
        assert known.median() > unknown.median()


@headless
def test_a_feature_that_never_fires_does_no_harm(name):
    def padded(bank: Bank) -> Bank:
        return Bank(torch.cat([bank.features, torch.zeros(len(bank), 1)], 1), bank.logits, bank.labels)

    plain = detectors.build(name).fit(outputs()).score(outputs(seed=1))
    dead = detectors.build(name).fit(padded(outputs())).score(padded(outputs(seed=1)))
    assert torch.allclose(plain, dead, rtol=5e-3, atol=1e-3)  # the ridge is relative to the mean variance


@learning
def test_scoring_before_fitting_says_so(name):
    with pytest.raises(InputError, match="is not fitted"):
        detectors.build(name).score(outputs())


# ---- scores of logits ----


def test_logit_scores_are_their_formulas():
    bank = outputs(dtype=torch.float64)
    logits = bank.logits.numpy()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    for name, expected in {
        "msp": probabilities.max(1),
        "max-logit": logits.max(1),
        "energy": np.logaddexp.reduce(logits, 1),
        "energy(temperature=5)": 5 * np.logaddexp.reduce(logits / 5, 1),
    }.items():
        np.testing.assert_allclose(detectors.build(name).score(bank), expected, rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow():
    bank = Bank(torch.zeros(1, 2), torch.tensor([[1e4, -1e4]]))
    assert detectors.build("energy").score(bank).item() == 1e4
    assert detectors.build("msp").score(bank).item() == 1


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="temperature: is 0"):
        detectors.build("energy(temperature=0)")


# ---- Mahalanobis ----


def reference(train: Bank, bank: Bank, shrinkage: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Both scores, class by class and input by input, in float64."""
    x, y, queries = train.features.double().numpy(), train.labels.numpy(), bank.features.double().numpy()
    means = {c: x[y == c].mean(0) for c in np.unique(y)}
    within = sum((x[y == c] - means[c]).T @ (x[y == c] - means[c]) for c in means) / len(x)
    total = np.cov(x.T, bias=True)

    def distance(query, mean, covariance):
        ridge = shrinkage * np.trace(covariance) / len(covariance)
        offset = query - mean
        return offset @ np.linalg.solve(covariance + ridge * np.eye(len(covariance)), offset)

    to_class = np.array([min(distance(q, m, within) for m in means.values()) for q in queries])
    to_all = np.array([distance(q, x.mean(0), total) for q in queries])
    return -to_class, to_all - to_class


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1000.0, 1.0), (0.0, 0.003)])
def test_mahalanobis_is_the_slow_loop(offset, spread):
    """Also far from the origin, and with tight classes, where float32 squares would lose the distances."""
    train, queries = outputs(spread=spread), outputs(seed=1, spread=spread)
    for bank in (train, queries):
        bank.features = bank.features + offset
    plain, relative = reference(train, queries)
    scores = detectors.build("mahalanobis").fit(train).score(queries)
    np.testing.assert_allclose(scores, plain, rtol=2e-3, atol=2e-3)
    scores = detectors.build("relative-mahalanobis").fit(train).score(queries)
    np.testing.assert_allclose(scores, relative, rtol=2e-3, atol=4e-3)


def test_mahalanobis_does_not_depend_on_the_units_of_features():
    train, queries = outputs(), outputs(seed=1)
    mix = torch.randn(10, 10, generator=torch.Generator().manual_seed(5))
    plain = detectors.build("mahalanobis(shrinkage=1e-9)").fit(train).score(queries)
    for bank in (train, queries):
        bank.features = bank.features @ mix
    mixed = detectors.build("mahalanobis(shrinkage=1e-9)").fit(train).score(queries)
    assert torch.allclose(plain, mixed, rtol=1e-2)


def test_statistics_are_those_of_numpy():
    bank = outputs(features=6)
    means, within, total = class_statistics(bank.features, bank.labels, 4)
    x = bank.features.double().numpy()
    centred = np.concatenate([x[bank.labels == c] - x[bank.labels == c].mean(0) for c in range(4)])
    np.testing.assert_allclose(means[2], x[bank.labels == 2].mean(0))
    np.testing.assert_allclose(total, np.cov(x.T, bias=True), atol=1e-12)
    np.testing.assert_allclose(within, centred.T @ centred / len(x), atol=1e-12)
    transform = whitening(within, 0.0)
    np.testing.assert_allclose(transform.T @ within @ transform, np.eye(6), atol=1e-9)
    near = squared_distances(bank.features, bank.features[:5])
    np.testing.assert_allclose(near, torch.cdist(bank.features, bank.features[:5]) ** 2, atol=1e-3)


@pytest.mark.parametrize("name", ["mahalanobis", "relative-mahalanobis"])
def test_labels_that_do_not_fit_are_refused(name):
    train = outputs()
    with pytest.raises(InputError, match=r"lack class number\(s\) \[2\]"):
        detectors.build(name).fit(train.take(train.labels != 2))
    train.labels = train.labels + 1
    with pytest.raises(InputError, match="labels from 1 to 4, but logits of 4 classes"):
        detectors.build(name).fit(train)
    train.labels = None
    with pytest.raises(InputError, match="hold no labels"):
        detectors.build(name).fit(train)


# ---- nearest neighbours ----


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_is_that_of_scikit_learn(k):
    train, queries = outputs(), outputs(seed=1)
    unit = [nn.functional.normalize(b.features.double(), dim=1).numpy() for b in (train, queries)]
    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(unit[0]).kneighbors(unit[1])
    scores = detectors.build(f"knn(k={k})").fit(train).score(queries)
    np.testing.assert_allclose(-scores, distances[:, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_blocks_do_not_change_the_neighbours(block, k):
    queries, bank = outputs(count=20).features, outputs(count=50, seed=1).features
    similar = queries @ bank.T
    expected = similar.sort(1, descending=True).values[:, k - 1]
    found = similar.gather(1, kth_neighbour(queries, bank, k, block)[:, None]).squeeze(1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_equal_features_have_distance_zero():
    bank = outputs()
    assert torch.equal(detectors.build("knn(k=1)").fit(bank).score(bank), torch.zeros(len(bank)))


def test_knn_chooses_k_and_thins_a_large_bank():
    assert len(detectors.build("knn(largest=20)").fit(outputs()).bank) == 20
    train, queries = outputs(count=300), outputs(seed=1)
    chosen = detectors.build("knn").fit(train).score(queries)
    assert torch.equal(chosen, detectors.build("knn(k=3)").fit(train).score(queries))  # 1 % of 300
    detector = detectors.build("knn(k=50, largest=20)").fit(train)
    assert torch.isfinite(detector.score(queries)).all()  # k beyond the thinned bank: its farthest row


def test_neighbours_of_features_without_a_direction():
    train, queries = outputs(), outputs(12, seed=1)
    whole = detectors.build("knn(k=3)").fit(train)
    expected = whole.score(queries)
    queries.features[[3, 7]] = 0.0
    with pytest.warns(
        UnseenWarning, match=r"norm zero.*in 2 row\(s\): 3, 7: they score as the least familiar"
    ):
        found = whole.score(queries)
    expected[[3, 7]] = -2.0  # nothing on the sphere is farther
    assert torch.equal(found, expected)
    train.features[:11] = 0.0
    with pytest.warns(UnseenWarning, match=r"11 row\(s\): 0, 1, .*9, \.\.\.: they are not kept"):
        kept = detectors.build("knn(k=3)").fit(train).bank
    assert torch.equal(kept, whole.bank[11:])
    with pytest.raises(InputError, match="all have norm zero"):
        detectors.build("knn").fit(train.take(torch.arange(11)))


def test_knn_refuses_what_cannot_be():
    with pytest.raises(InputError, match="k: is 301 with 300 training features"):
        detectors.build("knn(k=301)").fit(outputs())
    with pytest.raises(InputError, match="k: is 0"):
        detectors.build("knn(k=0)").fit(outputs())
    with pytest.raises(InputError, match="are empty"):
        detectors.build("knn").fit(outputs().take(torch.arange(0)))


# ---- threshold ----


def test_familiarity_accepts_the_asked_share_of_validation():
    validation = outputs(seed=1, count=200)
    familiarity = Familiarity.fit("mahalanobis", outputs(), validation, coverage=0.9)
    assert familiarity.accepts(validation).sum() == 180
    assert familiarity.accepts(outputs(seed=2, offset=5.0)).float().mean() < 0.1
    assert familiarity.spec.name == "mahalanobis" and familiarity.coverage == 0.9
