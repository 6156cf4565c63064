"""Sharpness-aware rules against their papers' equations, written over one flat parameter vector."""

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.erm import ERM
from unseen.registry import updates
from unseen.testing import check_update
from unseen.training.system import TrainingSystem
from unseen.updates.perturbed import PerturbedStep


@pytest.mark.parametrize("name", ["sam", "asam", "fsam", "gsam", "sagm", "gam"])
def test_the_contract_holds_alone_and_stacked(name):
    assert check_update(name).facts["stacked"] is True


def orthogonal_part(vector, to):
    return vector - (vector @ to) / (to @ to) * to


def test_sam(problem):
    theta, g = problem.theta, problem.grad(problem.theta)
    expected = problem.grad(theta + 0.3 * g / g.norm())
    torch.testing.assert_close(problem.direction("sam(rho=0.3)"), expected)


def test_asam(problem):
    theta, g = problem.theta, problem.grad(problem.theta)
    t = theta.abs() + 0.02
    expected = problem.grad(theta + 0.7 * t**2 * g / (t * g).norm())
    torch.testing.assert_close(problem.direction("asam(rho=0.7, eta=0.02)"), expected)


def test_fisher_sam(problem):
    theta, g = problem.theta, problem.grad(problem.theta)
    inverse = torch.diag(1 / (1 + 50 * g**2))
    expected = problem.grad(theta + 0.4 * inverse @ g / (g @ inverse @ g).sqrt())
    torch.testing.assert_close(problem.direction("fsam(rho=0.4, eta=50.0)"), expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_gsam_follows_the_radius_of_the_learning_rate(problem, steps):
    rule = problem.rule("gsam(rho=0.5, rho_min=0.1, alpha=0.3)")
    for step in range(steps):
        problem.rate = rule.optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        theta, g = problem.theta, problem.grad(problem.theta)
        radius = 0.1 + 0.4 * problem.rate / 0.1
        there = problem.grad(theta + radius * g / g.norm())
        rule.step(problem.system, problem.batch)
    expected = there - 0.3 * orthogonal_part(g, there)
    torch.testing.assert_close((theta - problem.theta) / problem.rate, expected)


def test_gsam_goes_on_with_the_highest_learning_rate_when_resumed(problem, make_problem):
    rule, other = problem.rule("gsam(rho=0.5)"), make_problem()
    rule.step(problem.system, problem.batch)
    resumed = other.rule("gsam(rho=0.5)")
    other.system.load_state_dict(problem.system.state_dict())
    resumed.load_state_dict(rule.state_dict())
    for each, at in ((rule, problem), (resumed, other)):
        each.optimizer.param_groups[0]["lr"] = 0.02
        each.step(at.system, at.batch)
    assert torch.equal(problem.theta, other.theta)


def test_sagm(problem):
    theta, g = problem.theta, problem.grad(problem.theta)
    there = problem.grad(theta + 0.3 * g / g.norm() - 0.05 * g)
    torch.testing.assert_close(problem.direction("sagm(rho=0.3, alpha=0.05)"), (g + there) / 2)


def test_gam(problem):
    theta, r, rho, alpha, beta, gamma = problem.theta, 0.05, 0.3, 0.6, 0.7, 0.2
    g0 = problem.grad(theta)
    g1 = problem.grad(theta + r * g0 / g0.norm())
    growth = (g1 - g0) / r
    star = theta + rho * growth / growth.norm()
    g2 = problem.grad(star)
    g3 = problem.grad(star + r * g2 / g2.norm())
    v = alpha * g1 + (1 - alpha) * g3
    expected = v - gamma * orthogonal_part(beta * g0 + (1 - beta) * g2, v)
    spec = f"gam(rho={rho}, difference={r}, alpha={alpha}, beta={beta}, gamma={gamma})"
    torch.testing.assert_close(problem.direction(spec), expected)


def test_gam_moves_to_where_the_gradient_norm_is_larger(problem):
    theta = problem.theta
    g0 = problem.grad(theta)
    g1 = problem.grad(theta + 0.02 * g0 / g0.norm())
    star = theta + 0.05 * (g1 - g0) / (g1 - g0).norm()
    assert problem.grad(star).norm() > g0.norm()


def test_the_limit_acts_on_the_gradient_that_is_followed(problem):
    direction = problem.direction("sam(rho=0.3)", clip=0.01)
    torch.testing.assert_close(direction.norm(), torch.tensor(0.01, dtype=torch.float64))


def test_running_statistics_see_the_first_pass_only(problem):
    def system():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None), nn.BatchNorm1d(5))
        body[2].track_running_stats = False  # frozen by the user: stays so
        return TrainingSystem(Network(body, 5, 3).double(), ERM())

    with torch.random.fork_rng():
        found, expected = system(), system()
    rule = updates.build("sam").bind(found, torch.optim.SGD(found.parameters(), lr=0.1))
    rule.step(found, problem.batch)
    expected(problem.batch)
    for name, value in expected.named_buffers():
        assert torch.equal(value, dict(found.named_buffers())[name]), name
    assert [m.track_running_stats for m in found.modules() if isinstance(m, nn.BatchNorm1d)] == [True, False]


def test_parameters_without_a_gradient_stay_as_they_are(problem):
    problem.system.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    for name in ("sam", "asam", "fsam", "gsam", "sagm", "gam"):
        problem.rule(name).step(problem.system, problem.batch)
    assert torch.equal(problem.system.extra.detach(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sam", "asam", "fsam", "tram", "tram-x", "tram-fisher"])
def test_a_gradient_that_reaches_no_parameter_is_told(problem, name):
    problem.system.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.SGD([problem.system.extra], lr=0.1)
    rule = updates.build(name).bind(problem.system, optimizer)
    with pytest.raises(InputError, match="reaches none of the 1 parameters"):
        for _ in range(2):  # TRAM's first update is a plain one
            rule.step(problem.system, problem.batch)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"rho": 0.1, "metric": "fischer"}, "Choose one of euclidean, adaptive, fisher"),
    ({"rho": -0.1}, "below zero"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        PerturbedStep(**options)
