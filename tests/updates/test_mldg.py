"""MLDG against its paper's algorithm: the held-out gradient is that at the moved parameters."""

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives import Loss
from unseen.testing import check_update
from unseen.updates.domains import shuffled


@pytest.mark.parametrize("spec", ["mldg", "mldg(inner_rate=0.1, held_out=2)"])
def test_the_contract_holds_alone_and_stacked(spec, stacked_agrees):
    check_update(spec)
    assert stacked_agrees(spec)


def expected_direction(problem, held_out, inner_rate, beta, seed):
    order = shuffled(list(range(problem.batch.domains)), seed, problem.batch.step)
    inside, outside = order[:-held_out], order[-held_out:]

    def mean_gradient(theta, domains):
        return torch.stack([problem.grad(theta, problem.batch.of_domain(d)) for d in domains]).mean(0)

    first = mean_gradient(problem.theta, inside)
    return first + beta * mean_gradient(problem.theta - inner_rate * first, outside)


@pytest.mark.parametrize(("domains", "held_out"), [(2, 1), (3, 1), (3, 2)])
def test_one_step_of_the_paper(make_problem, domains, held_out):
    problem = make_problem(domains)
    expected = expected_direction(problem, held_out, 0.7, 2.0, 5)
    spec = f"mldg(beta=2.0, inner_rate=0.7, held_out={held_out}, seed=5)"
    torch.testing.assert_close(problem.direction(spec), expected)


def test_the_inner_rate_is_the_learning_rate_if_none_is_given(problem):
    expected = expected_direction(problem, 1, problem.rate, 1.0, 0)
    torch.testing.assert_close(problem.direction("mldg"), expected)


def test_at_least_one_domain_is_trained_on(make_problem):
    """Two training domains and two to hold out: the published benchmark code trains nothing here."""
    problem = make_problem(2)
    expected = expected_direction(problem, 1, 0.1, 1.0, 0)
    torch.testing.assert_close(problem.direction("mldg(inner_rate=0.1, held_out=2)"), expected)


def test_the_loss_is_that_before_the_change(problem):
    expected = problem.loss(problem.theta, problem.batch)
    found = problem.rule("mldg(inner_rate=1.0)").step(problem.system, problem.batch)
    torch.testing.assert_close(found.total, expected)


def test_parameters_that_only_one_side_uses_get_their_gradient(make_problem):
    problem = make_problem(2)
    first, second, unused = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(3))
    problem.system = nn.ParameterList([first, second, unused])
    last = shuffled([0, 1], 0, 0)[-1]

    def loss(batch):
        return Loss(second * 3 if (batch.domain == last).all() else first * 5)

    problem.rule("mldg(beta=2.0)").step(loss, problem.batch)
    assert (1 - first).item() == pytest.approx(0.1 * 5) and (1 - second).item() == pytest.approx(0.1 * 6)
    assert unused.item() == 1


@pytest.mark.parametrize(("spec", "sentence"), [
    ("mldg", "only one. Train on at least two domains"), ("mldg(held_out=0)", "leaves no domain"),
])  # fmt: skip
def test_what_cannot_be_is_refused(make_problem, spec, sentence):
    problem = make_problem(1)
    with pytest.raises(InputError, match=sentence):
        problem.rule(spec).step(problem.system, problem.batch)
