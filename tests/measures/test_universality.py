import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from unseen.errors import InputError
from unseen.measures.universality import (
    flatness_weight,
    hypothesis_weight,
    kl_to_truth,
    mixture_predict,
    rare_hypothesis_weight,
    universal_regret_bound,
)

random = np.random.default_rng(0)
TRUTH = random.dirichlet(np.ones(3), 8)
MEMBERS = random.dirichlet(np.ones(3), (50, 8))
KL = kl_to_truth(TRUTH, MEMBERS)


def test_divergence_by_a_plain_loop():
    slow = [
        np.mean(
            [
                sum(p * math.log(p / q) for p, q in zip(a, b, strict=True))
                for a, b in zip(TRUTH, m, strict=True)
            ]
        )
        for m in MEMBERS
    ]
    assert pytest.approx(slow) == KL
    assert kl_to_truth(TRUTH, TRUTH[None])[0] == pytest.approx(0, abs=1e-12)
    noiseless = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    assert np.isfinite(kl_to_truth(noiseless, MEMBERS)).all()


def test_weights_of_samples_and_of_a_finite_class():
    eps = float(np.quantile(KL, 0.3))
    sampled = hypothesis_weight(KL, eps)
    assert sampled.log_weight == pytest.approx(math.log(0.3), abs=0.1) and not sampled.censored
    assert sampled.ci[0] < sampled.log_weight < sampled.ci[1]
    uniform = hypothesis_weight(KL, eps, np.full(50, -math.log(50)))
    assert uniform.log_weight == pytest.approx(sampled.log_weight) and uniform.ci[0] == uniform.ci[1]
    prior = special.log_softmax(random.normal(size=50))
    assert hypothesis_weight(KL, eps, prior).log_weight == pytest.approx(
        math.log(np.exp(prior)[eps >= KL].sum())
    )


def test_the_trap_plain_sampling_stops_at_the_number_of_samples_and_splitting_does_not():
    """A Gaussian location family: KL of N(0, 1) from N(theta, 1) in six dimensions is |theta|^2 / 2."""

    def divergence(theta):
        return theta.square().sum(1) / 2

    eps, deviation = 0.02, torch.full((6,), 1.0)
    samples = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    plain = hypothesis_weight(divergence(samples), eps)
    assert (
        plain.censored
        and plain.log_weight == -math.inf
        and plain.ci[1] == pytest.approx(-math.log(2000), abs=1.5)
    )
    rare = rare_hypothesis_weight(divergence, deviation, eps, seed=0)
    assert rare.log_weight == pytest.approx(stats.chi2.logcdf(2 * eps, 6), rel=0.06) and not rare.censored


def test_bound_is_the_least_over_all_radii_and_is_kept_by_the_mixture():
    n = 20
    found = universal_regret_bound(KL, n)
    grid = np.linspace(KL.min(), KL.max(), 5000)
    assert found.bound == pytest.approx(min(e - math.log((e >= KL).mean()) / n for e in grid), rel=1e-3)
    assert found.bound <= universal_regret_bound(KL, n, grid).bound
    assert universal_regret_bound(KL, n, [KL.min() / 2]).bound == math.inf
    total = []
    for _ in range(400):
        counts = random.multinomial(n, (TRUTH / 8).ravel())
        likelihoods = np.log(MEMBERS).reshape(50, -1) @ counts
        total.append(counts @ np.log(TRUTH).ravel() - special.logsumexp(likelihoods) + math.log(50))
    assert np.mean(total) / n <= found.bound + 3 * np.std(total) / n / 20


def test_useless_hypotheses_cost_ln_2_and_a_larger_class_of_the_same_weight_nothing():
    n, padded = 64, np.concatenate([KL, np.full(50, 30.0)])
    assert universal_regret_bound(padded, n).bound == pytest.approx(
        universal_regret_bound(KL, n).bound + math.log(2) / n
    )
    assert universal_regret_bound(np.tile(KL, 30), n).bound == pytest.approx(
        universal_regret_bound(KL, n).bound
    )


def test_mixture_is_bayes_rule():
    likelihoods, prior = random.normal(size=50) * 3, special.log_softmax(random.normal(size=50))
    posterior = np.exp(likelihoods) * np.exp(prior)
    wanted = (posterior[:, None, None] * MEMBERS).sum(0) / posterior.sum()
    assert mixture_predict(likelihoods, MEMBERS, prior) == pytest.approx(wanted)
    assert mixture_predict(likelihoods - 5000, MEMBERS, prior) == pytest.approx(wanted)
    one = np.full(50, -math.inf)
    one[7] = -2.0
    assert mixture_predict(one, MEMBERS) == pytest.approx(MEMBERS[7])


def bowl(curvature):
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, lambda m: curvature * m.weight.square().sum()


def test_flatness_of_a_bowl_is_the_volume_of_its_ball():
    model, loss = bowl(10.0)  # 10 r^2 <= 0.1 up to r = 0.1
    model.train()
    found = flatness_weight(model, loss, 0.5, tolerance=0.1)
    assert found.log_share == pytest.approx(4 * math.log(0.1 / 0.5), abs=0.01)
    assert found.distances == pytest.approx(np.full(50, 0.1), rel=1e-3) and found.effective == pytest.approx(
        50, rel=0.01
    )
    assert model.training and not model.weight.any(), "the model is left as it was"
    flat = flatness_weight(*bowl(0.01), 0.5)
    assert flat.log_share == 0 and flat.ci == (0, 0)
    assert flatness_weight(*bowl(1.0), 0.5).log_share > found.log_share


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_to_truth(TRUTH, np.where(MEMBERS > 0.5, MEMBERS, 0)), "not probabilities"),
        (lambda: kl_to_truth(TRUTH, np.eye(3)[np.zeros((2, 8), dtype=int)]), "the divergence is infinite"),
        (lambda: kl_to_truth(TRUTH, MEMBERS[:, :4]), "probabilities: have shape"),
        (lambda: hypothesis_weight(KL, 0.0), "eps: is 0"),
        (lambda: hypothesis_weight(KL, 0.1, np.zeros(50)), "log_prior: sums to exp"),
        (lambda: hypothesis_weight(KL, 0.1, np.zeros(4)), "log_prior: has 4 entries"),
        (lambda: hypothesis_weight(-KL, 0.1), "kl: has negative values"),
        (lambda: universal_regret_bound(np.full(3, np.inf), 4), "infinite for every"),
        (lambda: universal_regret_bound(KL, 0), "n: is 0"),
        (lambda: mixture_predict(np.full(50, -np.inf), MEMBERS), "rule every member out"),
        (lambda: mixture_predict(np.zeros(50), MEMBERS * 3), "not probabilities"),
        (lambda: mixture_predict(np.zeros(4), MEMBERS), "member_probs: has 50"),
        (lambda: mixture_predict(np.zeros(50), MEMBERS, np.ones(50)), "log_prior: sums"),
        (lambda: flatness_weight(*bowl(1.0), 0.0), "too small"),
        (lambda: rare_hypothesis_weight(lambda t: t[:, 0], torch.ones(2), -1.0), "eps: is -1"),
    ],
)
def test_errors_name_the_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
