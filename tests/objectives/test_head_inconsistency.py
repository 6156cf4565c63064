"""UDIM's inconsistency against gradients of single examples, formed one by one."""

import pytest
import torch
from torch import nn

from unseen.objectives.head_inconsistency import head_inconsistency, per_example_head_gradients


def single_gradients(head, features, targets):
    rows = []
    for z, y in zip(features, targets, strict=True):
        loss = nn.functional.cross_entropy(head(z), y)
        rows.append(torch.autograd.grad(loss, list(head.parameters()), create_graph=True))
    return [torch.stack(tensors) for tensors in zip(*rows, strict=True)]


@pytest.fixture
def setting(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(5, 3).double()
    known = torch.randn(14, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    perturbed = torch.randn(14, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(3, (14,), generator=generator)
    return head, known, perturbed, targets


def slow(head, known, perturbed, targets):
    """The released code's computation: (variance distance over all coordinates, norm by tensor)."""
    distances, norm = [], 0
    for g, u in zip(
        single_gradients(head, known, targets), single_gradients(head, perturbed, targets), strict=True
    ):
        centre = g.mean(0)
        vs, vu = (g - centre).square().mean(0), (u - centre).square().mean(0)
        v = (vs + vu) / 2
        distances.append(torch.stack([(vs - v).square(), (vu - v).square()]).flatten(1))
        norm = norm + u.square().flatten(1).sum(1).mean() / u[0].numel()
    return torch.cat(distances, 1).mean(1).sum() / 2, norm


def test_closed_forms_are_what_single_gradients_give(setting):
    head, known, _, targets = setting
    gradients = per_example_head_gradients(known, head(known), targets)
    weight, bias = single_gradients(head, known, targets)
    torch.testing.assert_close(gradients, torch.cat([weight, bias.unsqueeze(2)], 2))


@pytest.mark.parametrize("bias", [True, False])
def test_inconsistency_and_its_gradients(setting, bias):
    head, known, perturbed, targets = setting
    if not bias:
        head.bias = None
    found = head_inconsistency(
        (known, head(known)), (perturbed, head(perturbed)), targets, torch.zeros(14).long(), 1, bias=bias
    )
    variance, norm = slow(head, known, perturbed, targets)
    torch.testing.assert_close(found.variance, variance)
    torch.testing.assert_close(found.norm, norm)
    leaves = [known, perturbed, *head.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found.variance + found.norm, leaves), torch.autograd.grad(variance + norm, leaves)
    )


def test_domains_are_compared_apart_and_summed(setting):
    head, known, perturbed, targets = setting
    domain = torch.arange(14) % 2
    found = head_inconsistency((known, head(known)), (perturbed, head(perturbed)), targets, domain, 3)
    parts = [slow(head, known[domain == d], perturbed[domain == d], targets[domain == d]) for d in (0, 1)]
    torch.testing.assert_close(found.variance, sum(p[0] for p in parts))
    torch.testing.assert_close(found.norm, sum(p[1] for p in parts))


def test_the_variance_is_around_the_known_mean(setting):
    """Around its own mean, a pure shift of the gradients would cost nothing: here it does."""
    head, known, _, _ = setting
    same, other = torch.zeros(14).long(), torch.ones(14).long()  # one class: the gradients all point one way
    moved = head_inconsistency((known, head(known)), (known, head(known)), same, same, 1)
    assert moved.variance == 0
    swapped = torch.tensor([[0.0, -1, 0, 0, 0]] * 14, dtype=torch.float64) * 3
    still = torch.tensor([[0.0, 2, 0, 0, 0]] * 14, dtype=torch.float64)
    shifted = head_inconsistency((still, head(still)), (swapped, head(swapped)), other, same, 1)
    own = per_example_head_gradients(swapped, head(swapped), other).var(0).sum()
    assert own < 1e-20 and shifted.variance > 1e-4  # no spread on either side, but another mean


def test_orders_of_magnitude(setting):
    """The variance part is of the fourth order in the gradient, the norm of the second."""
    head, known, perturbed, targets = setting
    at = []
    for factor in (1e-3, 1e-2):  # residuals stay while features (weights of the head are tiny then) shrink
        with torch.no_grad():
            head.weight.zero_()
        parts = head_inconsistency(
            (factor * known, head(factor * known)), (factor * perturbed, head(factor * perturbed)),
            targets, torch.zeros(14).long(), 1, bias=False,
        )  # fmt: skip
        at.append(parts)
    assert (at[1].variance / at[0].variance).item() == pytest.approx(1e4, rel=1e-3)
    assert (at[1].norm / at[0].norm).item() == pytest.approx(1e2, rel=1e-3)
