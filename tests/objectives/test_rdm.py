import pytest
import torch
from torch import nn

from unseen.objectives.mmd import gaussian_gram, squared_mmd
from unseen.objectives.rdm import risk_distribution_penalties, squared_mmd_of_numbers

GAMMAS = [0.0001, 0.001, 0.01, 0.1, 1, 10, 100, 1000]


def slow_penalties(losses, domain):
    parts = [losses[domain == d] for d in range(3)]
    worst = max((part for part in parts if len(part)), key=lambda part: float(part.detach().mean()))

    def mean(one, other):
        return torch.stack(
            [sum(torch.exp(-g * (a - b) ** 2) for g in GAMMAS) for a in one for b in other]
        ).mean()

    matching = mean(worst, worst) + mean(losses, losses) - 2 * mean(worst, losses)
    return matching, worst.var() + losses.var()


def test_loss_is_risk_plus_both_penalties(model, batch, built, same_with_gradients):
    losses = nn.functional.cross_entropy(model(batch.x), batch.y, reduction="none")
    risk = sum(losses[batch.domain == d].mean() for d in range(3)) / 3
    matching, variance = slow_penalties(losses, batch.domain)
    found = built("rdm")(model, batch)
    same_with_gradients(found.total, risk + 5 * matching + 0.004 * variance)


def test_warm_up_has_the_risk_alone(model, batch, built):
    batch.step = 99
    loss = built("rdm")(model, batch)
    torch.testing.assert_close(loss.total, loss.parts["risk"])
    assert [step for step in range(200) if built("rdm").resets_optimizer_at(step)] == [100]


def test_a_missing_domain_is_not_the_worst_and_weights_of_zero_leave_out(batch, generator):
    losses = torch.rand(len(batch), generator=generator).double() - 2  # below the zero of an empty domain
    there = batch.domain != 1
    expected = slow_penalties(losses[there], batch.domain[there])
    torch.testing.assert_close(risk_distribution_penalties(losses[there], batch.domain[there], 3), expected)
    weighted = risk_distribution_penalties(losses, batch.domain, 3, there.double())
    torch.testing.assert_close(weighted, expected)


def test_penalty_falls_as_the_losses_of_domains_align(generator):
    losses, domain = torch.rand(60, generator=generator), torch.arange(60) % 3
    costs = [
        float(risk_distribution_penalties(losses + gap * (domain == 2), domain, 3)[0])
        for gap in (1.0, 0.3, 0.0)
    ]
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.2 * costs[0]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_each_pair_counts_as_in_the_whole_matrix(count, generator):
    values = torch.randn(count, generator=generator, dtype=torch.float64, requires_grad=True)
    difference = torch.randn(count, generator=generator, dtype=torch.float64)
    expected = squared_mmd(gaussian_gram(values.unsqueeze(1), GAMMAS), difference)
    found = squared_mmd_of_numbers(values, difference)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(total, values)[0] for total in (found, expected)), rtol=1e-6, atol=1e-9
    )
