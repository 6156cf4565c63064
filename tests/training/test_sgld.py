import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from unseen.errors import InputError, TrainingDiverged
from unseen.training.sgld import SGLDEnsemble, prior_deviations


class Slope(nn.Module):
    """P(class 1 | x) = sigmoid(w x): a posterior of one number, which quadrature knows."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.stack([torch.zeros_like(x[..., 0]), self.w * x[..., 0]], -1)


X = torch.linspace(-2, 2, 40).unsqueeze(1)
Y = (torch.sigmoid(1.5 * X[:, 0]) > torch.rand(40, generator=torch.Generator().manual_seed(0))).long()


def exact(x, temperature=1.0):
    """Posterior mean and deviation of w, and P(class 1 | x), by quadrature."""
    signed = X[:, 0].numpy() * (2 * Y.numpy() - 1)

    def density(w):
        return math.exp((-np.logaddexp(0, -w * signed).sum() - w**2 / 8 + 20) / temperature)

    def mean(f):
        return integrate.quad(lambda w: f(w) * density(w), -3, 6)[0]

    total = mean(lambda w: 1.0)
    middle = mean(lambda w: w) / total
    return (
        middle,
        math.sqrt(mean(lambda w: (w - middle) ** 2) / total),
        mean(lambda w: 1 / (1 + math.exp(-w * x))) / total,
    )


def sampler(**options):
    return SGLDEnsemble(
        Slope,
        2.0,
        **{"lr": 0.03, "burn_in": 200, "thin": 5, "chains": 40, "samples": 40, "batch_size": 40, **options},
    )


def weights(fitted):
    return fitted._samples["w"].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_samples_are_of_the_posterior(temperature):
    fitted = sampler(temperature=temperature, thin=20).fit(X, Y)
    mean, deviation, probability = exact(1.0, temperature)
    assert weights(fitted).mean() == pytest.approx(mean, abs=0.05)
    assert weights(fitted).std() == pytest.approx(deviation, rel=0.12)
    assert fitted.predict_proba(torch.ones(1, 1))[0, 1] == pytest.approx(probability, abs=0.02)
    quality = fitted.diagnose(torch.ones(1, 1))
    assert quality.r_hat < 1.1 and 400 < quality.effective_samples <= 1600 * math.log10(1600)
    assert fitted.log_likelihoods_.shape == (40, 40) and fitted.diagnose().r_hat < 1.2


def test_batches_are_scaled_up_to_the_whole_data_set():
    """The trap: without N / |B| the posterior is far too wide."""
    _, deviation, _ = exact(1.0)
    assert weights(sampler(batch_size=20, lr=0.01).fit(X, Y)).std() == pytest.approx(deviation, rel=0.3)
    batches = [(X[i::4], Y[i::4]) for i in range(4)]
    given = sampler(lr=0.01).fit(batches, dataset_size=40)
    assert weights(given).std() == pytest.approx(deviation, rel=0.3)
    forgotten = sampler(lr=0.01, thin=20).fit(batches, dataset_size=10)
    assert weights(forgotten).std() > 1.4 * deviation
    again = sampler(lr=0.01).fit(iter(batches), dataset_size=40)
    assert weights(again) == pytest.approx(weights(given)), "a generator of batches is passed over repeatedly"
    with pytest.raises(InputError, match="dataset_size: is not given"):
        sampler().fit(batches)


def test_without_data_that_say_anything_it_samples_the_prior():
    silent = torch.zeros_like(X)
    assert weights(sampler(lr=1.0).fit(silent, Y)).std() == pytest.approx(2.0, rel=0.2)


def test_probabilities_are_averaged_over_chains_and_samples():
    fitted = sampler(chains=3, samples=4).fit(X, Y)
    members = fitted.member_probabilities(X)
    assert members.shape == (3, 4, 40, 2)
    w = weights(fitted)
    assert members[1, 2, :, 1] == pytest.approx(1 / (1 + np.exp(-w[1, 2] * X[:, 0].numpy())), rel=1e-4)
    assert fitted.predict_proba(X) == pytest.approx(members.mean((0, 1)))


def test_seeds():
    one, two, other = (weights(sampler(chains=2, samples=4, seed=seed).fit(X, Y)) for seed in (0, 0, 1))
    assert (one == two).all() and (one != other).all()


def test_priors():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(16, 5))
    assert prior_deviations(model, 0.5) == dict.fromkeys(dict(model.named_parameters()), 0.5)
    fan_in = prior_deviations(model, "fan-in")
    assert fan_in["0.weight"] == fan_in["0.bias"] == pytest.approx(18**-0.5)
    assert fan_in["2.weight"] == fan_in["2.bias"] == pytest.approx(0.25)


def test_a_step_that_is_too_large():
    with pytest.raises(TrainingDiverged, match="Lower lr"):
        SGLDEnsemble(lambda: nn.Linear(1, 2), 0.01, 1e3, 100, 1, 2).fit(X * 1e4, Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampler(temperature=0.0), "temperature: is 0"),
        (lambda: sampler(temperature=-1.0), "temperature: is -1"),
        (lambda: sampler(lr=0.0), "out of range"),
        (lambda: sampler(samples=0), "out of range"),
        (lambda: sampler().predict_proba(X), "is not fitted"),
        (lambda: sampler().fit(X, Y[:5]), "y: has 5 entries"),
        (lambda: SGLDEnsemble(Slope, 0.0, 0.1, 1, 1, 1).fit(X, Y), "prior_std: is 0"),
        (lambda: SGLDEnsemble(lambda: nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)), 1.0, 0.1, 1, 1, 1).fit(X, Y),
         "has BatchNorm"),
    ],
)  # fmt: skip
def test_errors_name_the_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
