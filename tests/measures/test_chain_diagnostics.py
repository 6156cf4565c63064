import math

import numpy as np
import pytest

from unseen.errors import InputError
from unseen.measures.chain_diagnostics import chain_sample_size, r_hat


def autoregressive(rho, chains=4, draws=4000, seed=0):
    random = np.random.default_rng(seed)
    noise = random.normal(size=(chains, draws)) * math.sqrt(1 - rho**2)
    values = np.empty((chains, draws))
    values[:, 0] = random.normal(size=chains)
    for t in range(1, draws):
        values[:, t] = rho * values[:, t - 1] + noise[:, t]
    return values


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_sample_size_of_autoregressions(rho):
    chains = autoregressive(rho)
    assert chain_sample_size(chains) == pytest.approx(chains.size * (1 - rho) / (1 + rho), rel=0.25)
    assert r_hat(chains) == pytest.approx(1, abs=0.02)


def test_chains_that_disagree_or_drift():
    chains = autoregressive(0.0, draws=200)
    apart = chains + np.arange(4)[:, None] * 3
    drifting = chains + np.linspace(0, 5, 200)
    for bad in (apart, drifting):
        assert r_hat(bad) > 1.3 and chain_sample_size(bad) < 40
    halves = apart.reshape(8, 100)
    within, between = halves.var(1, ddof=1).mean(), 100 * halves.mean(1).var(ddof=1)
    assert r_hat(apart) == pytest.approx(math.sqrt((99 / 100 * within + between / 100) / within))


def test_chains_that_do_not_move():
    assert r_hat(np.ones((2, 10))) == 1 and chain_sample_size(np.ones((2, 10))) == 20
    assert r_hat(np.repeat([[1.0], [2.0]], 10, 1)) == math.inf


def test_errors_name_the_input():
    with pytest.raises(InputError, match="3 draws"):
        r_hat(np.ones((2, 3)))
    with pytest.raises(InputError, match="shape"):
        chain_sample_size(np.ones(10))
