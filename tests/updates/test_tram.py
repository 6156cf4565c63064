"""TRAM against the equations of its paper, and against what its released code gets wrong."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from unseen.errors import InputError, TrainingDiverged
from unseen.networks import Network
from unseen.objectives import Loss
from unseen.objectives.continuous_inputs import input_noise
from unseen.objectives.erm import ERM
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.testing import check_update
from unseen.training.system import TrainingSystem
from unseen.updates.tram import TRAM

SPECS = ["tram", "tram-pretrained", "tram-x", "tram-fisher", "tram(reference='ema', decay=0.9)"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_contract_holds_and_stacks_are_refused_with_the_reason(spec):
    assert "reads the outputs of one network" in check_update(spec).facts["stacked"]


def probabilities(problem, theta, x=None):
    names = [name.removeprefix("network.") for name in problem.names]
    state = dict(zip(names, problem.split(theta), strict=True))
    with torch.no_grad():
        logits = functional_call(problem.system.network, state, (problem.batch.x if x is None else x,))
    return logits.softmax(-1)


def divergence(reference, now):
    return (reference * (reference.log() - now.log())).sum(1).mean()


def ascended_gradient(problem, theta, d, adaptive=True, eta=0.01):
    g = problem.grad(theta)
    t = theta.abs() + eta if adaptive else torch.ones_like(theta)
    return problem.grad(theta + d * t**2 * g / (t * g).norm())


@pytest.mark.parametrize("reference", ["previous", "pretrained", "ema"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_updates_of_the_paper(problem, reference, adaptive):
    metric = "adaptive" if adaptive else "euclidean"
    rule = problem.rule(TRAM(reference, metric, max_radius=None, scale=50.0, decay=0.6))
    thetas, average = [problem.theta], None
    for step in range(4):
        theta = thetas[-1]
        average = theta if average is None else average
        if step == 0:
            expected, d = problem.grad(theta), None
        else:
            at = {"previous": thetas[-2], "pretrained": thetas[0], "ema": average}[reference]
            d = divergence(probabilities(problem, at), probabilities(problem, theta))
            assert 50 * d > 1e-3
            expected = ascended_gradient(problem, theta, 50 * d, adaptive)
        loss = rule.step(problem.system, problem.batch)
        average = 0.6 * average + 0.4 * theta
        thetas.append(problem.theta)
        torch.testing.assert_close((theta - problem.theta) / problem.rate, expected)
        assert ("divergence" in loss.parts) == (step > 0)
        if step:
            torch.testing.assert_close(loss.parts["divergence"], d)
            torch.testing.assert_close(loss.parts["radius"], 50 * d)
            assert loss.parts["perturbed"] > loss.total


def test_noisy_inputs_are_the_reference_of_tram_x(problem):
    theta = problem.theta
    with input_noise(problem.system.network, problem.batch, 0.5, 7) as noised:
        x = noised.x
    assert 0.3 < (x - problem.batch.x).std() < 0.7
    d = divergence(probabilities(problem, theta, x), probabilities(problem, theta))
    expected = ascended_gradient(problem, theta, d)
    torch.testing.assert_close(problem.direction("tram-x(sigma=0.5, seed=7)"), expected)


def test_the_radius_is_capped(problem):
    expected = ascended_gradient(problem, problem.theta, 0.02)
    torch.testing.assert_close(problem.direction("tram-x(sigma=5.0, max_radius=0.02)"), expected)
    loss = problem.rule("tram-x(sigma=5.0, max_radius=0.02)").step(problem.system, problem.batch)
    assert loss.parts["radius"].item() == pytest.approx(0.02) and loss.parts["divergence"] > 0.02


def test_the_log_has_the_euclidean_length_of_the_perturbation(problem, monkeypatch):
    theta, seen = problem.theta, []
    rule = problem.rule("tram-x(sigma=1.0, min_radius=0.3)")
    again = rule.gradient_again
    monkeypatch.setattr(rule, "gradient_again", lambda *args: (seen.append(problem.theta), again(*args))[1])
    loss = rule.step(problem.system, problem.batch)
    torch.testing.assert_close(loss.parts["perturbation"], (seen[0] - theta).norm())
    assert loss.parts["radius"] >= 0.3


def test_radii_of_other_divergences_and_of_an_own_reference(problem, make_problem):
    shift = torch.tensor([1.0, 0, -1], dtype=torch.float64)
    rule = TRAM(lambda network, batch: network(batch.x) + shift, divergence="l2", max_radius=None)
    p = problem.system.network(problem.batch.x).detach()
    d = ((p + shift).softmax(1) - p.softmax(1)).square().sum(1).mean()
    expected = ascended_gradient(problem, problem.theta, d)
    torch.testing.assert_close(problem.direction(rule), expected)


def test_the_fisher_metric_comes_from_noisy_inputs(problem):
    theta, g = problem.theta, problem.grad(problem.theta)
    with input_noise(problem.system.network, problem.batch, 0.5, 0) as noised:
        fisher = problem.grad(theta, noised) ** 2
    inverse = torch.diag(1 / (1 + 9 * fisher))
    expected = problem.grad(theta + 0.3 * inverse @ g / (g @ inverse @ g).sqrt())
    torch.testing.assert_close(problem.direction("tram-fisher(rho=0.3, eta=9.0, sigma=0.5)"), expected)


def test_the_perturbation_is_along_the_scaled_gradient(problem, monkeypatch):
    """The released code multiplies no gradient in: its perturbation has the direction of theta^2 alone."""
    theta, g = problem.theta, problem.grad(problem.theta)
    seen = []
    rule = problem.rule("tram-x(sigma=1.0)")
    again = rule.gradient_again
    monkeypatch.setattr(rule, "gradient_again", lambda *args: (seen.append(problem.theta), again(*args))[1])
    rule.step(problem.system, problem.batch)
    moved, along = seen[0] - theta, (theta.abs() + 0.01) ** 2 * g
    torch.testing.assert_close(moved / moved.norm(), along / along.norm())
    torch.testing.assert_close((moved / (theta.abs() + 0.01)).norm(), rule.divergence)


def test_dropout_does_not_enter_the_divergence(problem):
    body = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.BatchNorm1d(5).eval())
    problem.system = TrainingSystem(Network(body, 5, 3).double(), ERM())
    body[2].eval()
    rule = problem.rule("tram")
    problem.rate = rule.optimizer.param_groups[0]["lr"] = 0.0  # so that outputs never move
    for _ in range(2):
        loss = rule.step(problem.system, problem.batch)
    assert loss.parts["divergence"] == 0
    assert body[1].training and not body[2].training


@pytest.mark.parametrize("spec", SPECS)
def test_resumed_training_goes_on_as_it_was(spec, problem, make_problem):
    rule = problem.rule(spec)
    for _ in range(3):
        rule.step(problem.system, problem.batch)
    other = make_problem()
    other.system.load_state_dict(problem.system.state_dict())
    resumed = other.rule(spec)
    resumed.load_state_dict(rule.state_dict())
    for _ in range(2):
        rule.step(problem.system, problem.batch)
        resumed.step(other.system, other.batch)
    assert torch.equal(problem.theta, other.theta)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 5), nn.Embedding(4, 5)

    def forward(self, x):
        ids = x["input_ids"]
        return (self.words(ids) + self.places(torch.arange(ids.shape[1]))).tanh().mean(1)


def token_batch():
    ids = torch.arange(24).reshape(6, 4) % 7
    x = {"input_ids": ids, "attention_mask": torch.ones(6, 4)}
    return Batch(x=x, y=torch.arange(6) % 3, domain=torch.arange(6) % 2, domains=2)


@pytest.mark.parametrize("spec", ["tram-x", "tram-fisher"])
def test_tokens_get_their_noise_on_their_embeddings(spec):
    system = TrainingSystem(Network(Tokens(), 5, 3), ERM())
    batch = token_batch()
    with input_noise(system.network, batch, 1.0, 0) as noised, torch.no_grad():
        first = system.network(noised.x)
        assert torch.equal(noised.x["attention_mask"], batch.x["attention_mask"])
    with torch.no_grad():
        assert not torch.allclose(first, system.network(batch.x))
    assert not system.network.featurizer.words._forward_hooks
    rule = updates.build(spec).bind(system, torch.optim.SGD(system.parameters(), lr=0.1))
    loss = rule.step(system, batch)
    assert torch.isfinite(loss.total) and (spec == "tram-fisher" or loss.parts["divergence"] > 0)


def test_structure_of_graphs_gets_no_noise():
    x = {"nodes": torch.zeros(2, 3, 4), "adjacency": torch.ones(2, 3, 3), "mask": torch.ones(2, 3)}
    batch = Batch(x=x, y=torch.zeros(2).long(), domain=torch.zeros(2).long(), domains=1)
    with input_noise(nn.Identity(), batch, 0.1, 0) as noised:
        assert noised.x["nodes"].std() > 0.05
        assert torch.equal(noised.x["adjacency"], x["adjacency"]) and torch.equal(noised.x["mask"], x["mask"])
    assert not batch.x["nodes"].any()


def test_inputs_without_a_place_for_noise_are_refused():
    with pytest.raises(InputError, match="no input is of floating point"):
        input_noise(nn.Identity(), token_batch(), 0.1, 0).__enter__()


def test_a_divergence_that_is_not_finite_is_told(problem):
    rule = problem.rule(TRAM("input_noise", sigma=float("inf")))
    problem.system.network.featurizer[1] = nn.Identity()
    with pytest.raises(TrainingDiverged, match="divergence from the reference 'input_noise' is"):
        rule.step(problem.system, problem.batch)


def test_what_cannot_be_is_refused(problem):
    with pytest.raises(InputError, match="Choose one of previous, pretrained, ema, input_noise"):
        TRAM(reference="initial")
    with pytest.raises(InputError, match="no range from zero or more upwards"):
        TRAM(min_radius=0.6)
    linear = nn.Linear(2, 2)
    with pytest.raises(InputError, match="finds no network in the Linear"):
        TRAM().bind(linear, torch.optim.SGD(linear.parameters(), lr=0.1))


def test_it_moves_parameters_of_the_objective_too(problem):
    problem.system.objective.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def loss(batch):
        own = problem.system(batch)
        return Loss(own.total + problem.system.objective.extra.square().sum(), own.parts)

    rule = problem.rule("tram")
    for _ in range(2):
        rule.step(loss, problem.batch)
    assert (problem.system.objective.extra < 1).all()
