import math

import pytest
import torch
from scipy import stats

from unseen.errors import InputError
from unseen.measures.multilevel_splitting import multilevel_splitting


def tail(theta):
    """-theta_0: P(score <= -a) is the normal tail beyond a."""
    return -theta[:, 0]


@pytest.mark.parametrize("distance", [1.0, 4.0, 7.0])
def test_normal_tails_far_beyond_the_samples(distance):
    found = multilevel_splitting(tail, 1.0, -distance, 5, states=400, seed=1)
    truth = stats.norm.logsf(distance)
    assert found.log_probability == pytest.approx(truth, abs=max(0.4, 0.06 * abs(truth)))
    assert found.ci[0] < found.log_probability < found.ci[1] and not found.extrapolated
    assert found.acceptance > 0.1 and max(found.levels) < 30


def test_ball_at_the_origin_and_scale_of_the_prior():
    deviation = torch.full((6,), 0.3)
    found = multilevel_splitting(lambda theta: theta.square().sum(1), deviation, 0.01, states=400, seed=0)
    assert found.log_probability == pytest.approx(stats.chi2.logcdf(0.01 / 0.09, 6), abs=0.7)
    assert multilevel_splitting(tail, deviation, -0.3, seed=0).log_probability == pytest.approx(
        stats.norm.logsf(1), abs=0.3
    )


def test_a_level_that_everything_reaches_and_one_that_nothing_does():
    assert multilevel_splitting(tail, 1.0, 100.0, 2).log_probability == 0
    never = multilevel_splitting(lambda theta: theta.square().sum(1), 1.0, -1.0, 2, states=50, max_levels=3)
    assert never.log_probability == -math.inf and never.extrapolated and never.levels == (3,) * 4


def test_the_same_seed_gives_the_same_number():
    found = [multilevel_splitting(tail, 1.0, -3.0, 2, seed=seed).log_probability for seed in (5, 5, 6)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": None}, "dimension: is not given"),
        ({"prior_std": torch.tensor([1.0, -1.0])}, "prior_std"),
        ({"states": 20}, "out of range"),
        ({"runs": 1}, "out of range"),
        ({"score": lambda theta: theta}, "score: gave"),
        ({"score": lambda theta: theta[:, 0] * math.nan}, "or NaN"),
    ],
)
def test_errors_name_the_input(options, message):
    with pytest.raises(InputError, match=message):
        multilevel_splitting(**{"score": tail, "prior_std": 1.0, "level": -1.0, "dimension": 2, **options})
