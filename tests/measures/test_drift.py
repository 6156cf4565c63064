import warnings

import numpy as np
import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.measures.drift import TESTS, drift, serial_correlation
from unseen.networks import Bank


def bank(examples: int, seed: int, move: float = 0.0) -> Bank:
    features = torch.randn(examples, 4, generator=torch.Generator().manual_seed(seed)) + move
    return Bank(features, 3 * features[:, :3])


class Length:
    def score(self, bank: Bank) -> torch.Tensor:
        return -bank.features.norm(dim=1)


@pytest.mark.parametrize("test", TESTS)
def test_every_test_on_features(test):
    same = drift(bank(80, 0), bank(60, 1), test=test)
    moved = drift(bank(80, 0), bank(60, 2, 1.0), test=test)
    assert moved.p_value <= 0.001 < same.p_value and moved.effect > same.effect
    assert (moved.test, moved.sizes) == (test, (80, 60))


@pytest.mark.parametrize("on", ["features", "logits", "familiarity", "classes"])
@pytest.mark.parametrize("test", ["mmd", "ks"])
def test_every_quantity(on, test):
    moved = bank(80, 2)
    moved.features[:, 0] += 2.5
    moved.logits = 3 * moved.features[:, :3]
    found = drift(bank(80, 0), moved, test=test, on=on, scorer=Length())
    assert found.p_value < 0.01


def test_options_reach_the_test():
    assert drift(bank(30, 0), bank(30, 1), permutations=9).p_value >= 0.1


def test_unknown_names():
    with pytest.raises(InputError, match="mmd"):
        drift(bank(9, 0), bank(9, 1), test="mdm")
    with pytest.raises(InputError, match="features"):
        drift(bank(9, 0), bank(9, 1), on="feature")
    with pytest.raises(InputError, match="scorer: is missing"):
        drift(bank(9, 0), bank(9, 1), on="familiarity")


# ---- order ----


def test_serial_correlation_in_closed_form():
    found = serial_correlation([1.0, 1.0, -1.0, -1.0])
    assert found.correlation == pytest.approx((1 - 1 + 1) / 4)
    alternating = serial_correlation(np.tile([1.0, -1.0], 20))
    assert alternating.correlation == pytest.approx(-39 / 40) and alternating.p_value == 1
    assert serial_correlation(np.ones((5, 2))).p_value == 1


def test_serial_correlation_recovers_that_of_an_autoregression():
    noise, x = np.random.default_rng(0).normal(size=(1500, 3)), np.zeros((1500, 3))
    for t in range(1, 1500):
        x[t] = 0.6 * x[t - 1] + noise[t]
    found = serial_correlation(x * [1, 10, 100])
    assert found.correlation == pytest.approx(0.6, abs=0.05) and found.p_value == 0.001


def test_random_orders_are_seldom_called_correlated():
    draw = np.random.default_rng(1)
    p_values = [
        serial_correlation(draw.exponential(size=(40, 3)), permutations=49).p_value for _ in range(100)
    ]
    assert 2 <= np.sum(np.array(p_values) <= 0.1) <= 21


def test_a_correlated_stream_warns_and_a_shuffled_one_does_not():
    stream = bank(100, 1)
    ordered = stream.take(stream.features[:, 0].argsort())
    with pytest.warns(UnseenWarning, match="neighbours resemble each other .* about .* independent"):
        found = drift(bank(80, 0), ordered)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drift(bank(80, 0), stream).p_value == pytest.approx(found.p_value, abs=0.06)


def test_p_values_of_correlated_streams_are_too_small():
    """Why there is a warning: no drift, only runs, and the test at level 0.1 rejects most of the time."""
    draw, rejected = np.random.default_rng(3), 0
    for seed in range(20):
        runs = torch.from_numpy(np.repeat(draw.normal(size=(10, 4)), 10, axis=0)).float()
        with pytest.warns(UnseenWarning):
            rejected += drift(bank(100, seed), Bank(runs, runs), permutations=49).p_value <= 0.1
    assert rejected > 10
