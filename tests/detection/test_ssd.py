import numpy as np
import pytest
import torch

from unseen.detection.ssd import MahalanobisSSD
from unseen.errors import InputError
from unseen.networks import Bank


def bank(features):
    return Bank(features, torch.zeros(len(features), 3))


@pytest.fixture
def features(generator):
    mixing = torch.randn(6, 6, generator=generator)
    return 1 + torch.randn(80, 6, generator=generator) @ mixing


def test_equals_the_formula_of_the_published_score(features, generator):
    others = torch.randn(9, 6, generator=generator)
    found = MahalanobisSSD().fit(bank(features)).score(bank(others)).double().numpy()
    train, test = (
        x.double().numpy() / np.linalg.norm(x.double(), axis=1, keepdims=True) for x in (features, others)
    )
    mean, deviation = train.mean(0), train.std(0)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    inverse = np.linalg.pinv(np.cov(train.T, bias=True))
    expected = -np.sum((test - train.mean(0)) * (inverse @ (test - train.mean(0)).T).T, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_length_and_labels_do_not_count(features):
    detector = MahalanobisSSD().fit(bank(features))
    scores = detector.score(bank(features))
    torch.testing.assert_close(detector.score(bank(7 * features)), scores, rtol=1e-3, atol=1e-3)
    labelled = bank(features)
    labelled.labels = torch.zeros(80, dtype=torch.int64)
    torch.testing.assert_close(MahalanobisSSD().fit(labelled).score(bank(features)), scores)


def test_statistics_are_those_of_training_alone(features):
    detector = MahalanobisSSD().fit(bank(features))
    torch.testing.assert_close(detector.score(bank(features))[:5], detector.score(bank(features[:5])))


def test_directions_without_variance_do_not_count(features):
    with_dead = torch.cat([features, torch.zeros(80, 2)], 1)
    torch.testing.assert_close(
        MahalanobisSSD().fit(bank(with_dead)).score(bank(with_dead)),
        MahalanobisSSD().fit(bank(features)).score(bank(features)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_errors(features):
    with pytest.raises(InputError, match="is not fitted"):
        MahalanobisSSD().score(bank(features))
    with pytest.raises(InputError, match="are empty"):
        MahalanobisSSD().fit(bank(features[:0]))
    with pytest.raises(InputError, match="NaN"):
        MahalanobisSSD().fit(bank(features * float("nan")))


def test_features_without_a_direction_are_named(features):
    """They would be in the middle of the sphere: more familiar than any other where the directions are spread."""
    detector, some = MahalanobisSSD().fit(bank(features)), features[:12].clone()
    some[[3, 7]] = 0.0
    with pytest.raises(InputError, match=r"in 2 row\(s\): 3, 7\. Leave these inputs out"):
        detector.score(bank(some))
    with pytest.raises(InputError, match="norm zero"):
        MahalanobisSSD().fit(bank(some))
