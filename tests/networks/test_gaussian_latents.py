import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from unseen.errors import InputError
from unseen.networks.gaussian_latents import Gaussian, GaussianHead, RecurrentPrior, kl_gaussian


def drawn(generator, *shape):
    return Gaussian(*(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)))


def test_divergence_is_the_analytic_one(generator):
    first, second = drawn(generator, 5, 3), drawn(generator, 5, 3)

    def distribution(gaussian):
        return Independent(Normal(gaussian.mean, (gaussian.log_variance / 2).exp()), 1)

    torch.testing.assert_close(
        kl_gaussian(first, second), kl_divergence(distribution(first), distribution(second))
    )
    standard = Gaussian(torch.zeros(5, 3).double(), torch.zeros(5, 3).double())
    torch.testing.assert_close(kl_gaussian(first), kl_gaussian(first, standard))
    torch.testing.assert_close(kl_gaussian(first, first), torch.zeros(5).double())


def test_draws_have_the_mean_and_variance(generator):
    gaussian = Gaussian(torch.tensor([2.0]), torch.tensor([0.25]).log())
    values = gaussian.sample(torch.randn(20_000, 1, generator=generator))
    assert abs(float(values.mean()) - 2) < 0.02 and abs(float(values.std()) - 0.5) < 0.01


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_prior_of_a_domain_knows_the_domains_before_it_and_no_others(kind, generator):
    prior = RecurrentPrior(3, kind)
    means = torch.randn(4, 3, generator=generator, requires_grad=True)
    states = prior.states(means, torch.ones(4))
    assert states.shape == (4, 6)
    for domain in range(4):
        (slope,) = torch.autograd.grad(
            prior(states[domain]).mean.sum(), means, retain_graph=True, allow_unused=True
        )
        slope = torch.zeros_like(means) if slope is None else slope
        assert not slope[domain:].any() and slope[:domain].any(1).all()


def test_a_domain_that_is_not_known_is_what_the_prior_expects(generator):
    prior, means = RecurrentPrior(2, "gru"), torch.randn(3, 2, generator=generator)
    rolled = prior.states(means, torch.tensor([1.0, 0.0, 1.0]))
    expected = means.clone()
    expected[1] = prior(rolled[1]).mean
    torch.testing.assert_close(prior.states(expected, torch.ones(3)), rolled)


def test_shift_is_the_difference_that_the_attribute_makes(generator):
    prior = RecurrentPrior(2, "lstm", attributes=3)
    states, one_hot = torch.randn(3, 4, generator=generator), torch.eye(3)
    before, after = prior(states, one_hot).mean, prior(states, one_hot.roll(1, 0)).mean
    torch.testing.assert_close(prior.shift(one_hot.roll(1, 0) - one_hot), after - before)


def test_errors_and_bounds():
    with pytest.raises(InputError, match="prior 'mean'"):
        RecurrentPrior(2, "mean")
    head = GaussianHead(1, 2)
    assert head(torch.full((1, 1), 1e9)).log_variance.abs().max() <= 8
