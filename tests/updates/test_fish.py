"""Fish against algorithm 1 of its paper."""

import pytest
import torch

from unseen.errors import InputError
from unseen.testing import check_update
from unseen.updates.domains import shuffled
from unseen.updates.fish import Fish


def test_the_contract_holds_alone_and_stacked(stacked_agrees):
    check_update("fish")
    assert stacked_agrees("fish")


@pytest.mark.parametrize("domains", [2, 3])
def test_the_walk_of_the_paper(make_problem, domains):
    problem = make_problem(domains)
    theta = walked = problem.theta
    for domain in shuffled(list(range(domains)), 4, problem.batch.step):
        walked = walked - problem.rate * problem.grad(walked, problem.batch.of_domain(domain))
    problem.rule("fish(meta_rate=0.3, seed=4)").step(problem.system, problem.batch)
    torch.testing.assert_close(problem.theta, theta + 0.3 * (walked - theta))


def test_the_whole_way_is_one_optimizer_step_per_domain(make_problem):
    problem, other = make_problem(2), make_problem(2)
    rule = problem.rule(Fish(meta_rate=1.0), torch.optim.Adam)
    rule.step(problem.system, problem.batch)
    optimizer = torch.optim.Adam(other.system.parameters(), lr=other.rate)
    for domain in shuffled([0, 1], 0, 0):
        optimizer.zero_grad()
        other.system(other.batch.of_domain(domain)).total.backward()
        optimizer.step()
    assert torch.equal(problem.theta, other.theta)


def test_the_loss_is_that_of_the_walk(problem):
    theta, losses = problem.theta, []
    for domain in shuffled([0, 1, 2], 0, 0):
        part = problem.batch.of_domain(domain)
        losses.append(problem.loss(theta, part))
        theta = theta - problem.rate * problem.grad(theta, part)
    found = problem.rule("fish").step(problem.system, problem.batch)
    torch.testing.assert_close(found.total, torch.stack(losses).mean())


def test_the_order_changes_from_step_to_step_and_repeats_for_a_seed():
    orders = [tuple(shuffled([0, 1, 2, 5], 1, step)) for step in range(40)]
    assert orders == [tuple(shuffled([0, 1, 2, 5], 1, step)) for step in range(40)]
    assert len(set(orders)) > 8 and all(sorted(order) == [0, 1, 2, 5] for order in orders)
    assert orders != [tuple(shuffled([0, 1, 2, 5], 2, step)) for step in range(40)]


def test_one_training_domain_is_refused(make_problem):
    problem = make_problem(1)
    with pytest.raises(InputError, match=r"'fish': compares .* only one. Train on at least two domains"):
        problem.rule("fish").step(problem.system, problem.batch)
