import math
from statistics import NormalDist, stdev

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.eqrm import EQRM, kernel_quantile


def slow_quantile(risks, quantile):
    """Bisection on the mixture of normal distributions, in plain Python."""
    width = 1.06 * stdev(risks) * len(risks) ** -0.2
    low, high = min(risks) - 20 * width, max(risks) + 20 * width
    for _ in range(200):
        middle = (low + high) / 2
        reached = sum(NormalDist(risk, width).cdf(middle) for risk in risks) / len(risks)
        low, high = (middle, high) if reached < quantile else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.75, 0.99])
def test_quantile_and_its_gradient_are_those_of_the_density_estimate(quantile, generator):
    risks = torch.rand(5, generator=generator).double().requires_grad_()
    found = kernel_quantile(risks, quantile)
    assert float(found.detach()) == pytest.approx(slow_quantile(risks.tolist(), quantile), abs=1e-9)
    (gradient,) = torch.autograd.grad(found, risks)
    for i in range(5):
        higher, lower = risks.tolist(), risks.tolist()
        higher[i] += 1e-5
        lower[i] -= 1e-5
        slope = (slow_quantile(higher, quantile) - slow_quantile(lower, quantile)) / 2e-5
        assert float(gradient[i]) == pytest.approx(slope, abs=1e-6)


def test_loss_is_the_mean_before_and_the_quantile_after_burn_in(model, batch, built):
    risks = [nn.functional.cross_entropy(model(p.x), p.y) for p in map(batch.of_domain, range(3))]
    objective = built("eqrm(quantile=0.9, warmup_steps=10)")
    assert float(objective(model, batch).total.detach()) == pytest.approx(
        slow_quantile([float(r.detach()) for r in risks], 0.9)
    )
    batch.step = 9
    torch.testing.assert_close(objective(model, batch).total, torch.stack(risks).mean())
    assert [step for step in range(30) if objective.resets_optimizer_at(step)] == [10]


def test_absent_and_equal_risks():
    risks, present = torch.tensor([0.3, 0.0, 0.9]), torch.tensor([1.0, 0.0, 1.0])
    assert float(kernel_quantile(risks, 0.8, present)) == pytest.approx(
        slow_quantile([0.3, 0.9], 0.8), abs=1e-5
    )
    for values in (torch.full((3,), 0.4), torch.tensor([0.4])):
        values.requires_grad_()
        found = kernel_quantile(values, 0.75)
        assert float(found.detach()) == pytest.approx(0.4, abs=1e-4)
        assert torch.isfinite(torch.autograd.grad(found, values)[0]).all()


def test_a_higher_quantile_weighs_the_worse_domains_more():
    risks = torch.tensor([0.2, 0.5, 1.5], dtype=torch.double, requires_grad=True)
    pulls = [torch.autograd.grad(kernel_quantile(risks, q), risks)[0] for q in (0.1, 0.5, 0.75, 0.99)]
    worst = [float(pull[2]) for pull in pulls]
    assert worst == sorted(worst) and worst[-1] > 1
    for pull in pulls:  # all risks higher by one: the quantile is higher by one
        assert math.isclose(float(pull.sum()), 1, rel_tol=1e-6)


def test_errors():
    for quantile in (0.0, 1.0):
        with pytest.raises(InputError, match="quantile: is"):
            EQRM(quantile=quantile)
    with pytest.raises(InputError, match="warmup_steps: is -1"):
        EQRM(warmup_steps=-1)
