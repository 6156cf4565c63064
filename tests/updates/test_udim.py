"""UDIM against its steps written out by autograd, and against what its released code gets wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError, TrainingDiverged
from unseen.networks import Network
from unseen.objectives import Loss
from unseen.objectives.erm import ERM
from unseen.objectives.head_inconsistency import head_inconsistency
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.shifts.arrays import from_arrays
from unseen.testing import check_update
from unseen.training.data import TrainingData
from unseen.training.fit import train
from unseen.training.learner import Learner
from unseen.training.system import TrainingSystem
from unseen.updates.udim import UDIM

ACTIVE = "warmup_steps=0"


@pytest.mark.parametrize("spec", ["udim", "udim(base='sagm(rho=0.1)', warmup_steps=3)"])
def test_the_contract_holds_and_stacks_are_refused(spec):
    assert "UDIM: reads the outputs of one network" in check_update(spec).facts["stacked"]


def adversarial(problem, rho, rho_x, sharp=True):
    """x~ after one step, example by example normalised, written out."""
    network, batch = problem.system.network, problem.batch
    x = batch.x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(network(x), batch.y)
    if sharp:
        gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        loss = loss + rho * torch.cat([g.flatten() for g in gradients]).norm()
    (slope,) = torch.autograd.grad(loss, x)
    return (x + rho_x * x.norm(dim=1, keepdim=True) * slope / slope.norm(dim=1, keepdim=True)).detach()


def penalty_gradient(problem, worst, variance=1.0, norm=1.0, loss=0.0, domains=3):
    network, batch = problem.system.network, problem.batch
    pairs = []
    for x in (batch.x, worst):
        features = network.featurizer(x)
        pairs.append((features, network.head(features)))
    domain = batch.domain if domains > 1 else torch.zeros_like(batch.domain)
    found = head_inconsistency(*pairs, batch.y, domain, domains)
    cost = nn.functional.cross_entropy(pairs[1][1], batch.y)
    total = variance * found.variance + norm * found.norm + loss * cost
    gradients = torch.autograd.grad(total, list(network.parameters()))
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("sharp", [True, False])
def test_it_follows_sam_plus_the_gradient_of_the_inconsistency(problem, sharp):
    worst = adversarial(problem, 0.3, 0.5, sharp)
    theta, g = problem.theta, problem.grad(problem.theta)
    expected = problem.grad(theta + 0.3 * g / g.norm()) + penalty_gradient(problem, worst, 2.0, 3.0, 0.5)
    spec = UDIM("sam(rho=0.3)", rho_x=0.5, sharp=sharp, variance_weight=2.0, norm_weight=3.0,
                loss_weight=0.5, warmup_steps=0)  # fmt: skip
    torch.testing.assert_close(problem.direction(spec), expected)


@pytest.mark.parametrize("base", ["sam", "asam", "fsam", "gsam", "sagm", "gam", "tram-x"])
def test_it_adds_to_whatever_the_base_follows(base, problem, make_problem):
    alone = make_problem().direction(base)
    rho = updates.build(base).rho
    extra = penalty_gradient(problem, adversarial(problem, rho, 0.2))
    torch.testing.assert_close(problem.direction(f"udim(base={base!r}, {ACTIVE})"), alone + extra)


def test_the_clean_direction_of_sam_is_measured_on_x(problem):
    """Without weights UDIM is its base: x~ has no part in the ascent of the parameters."""
    theta, g = problem.theta, problem.grad(problem.theta)
    spec = f"udim(base='sam(rho=0.3)', rho_x=5.0, variance_weight=0, norm_weight=0, {ACTIVE})"
    torch.testing.assert_close(problem.direction(spec), problem.grad(theta + 0.3 * g / g.norm()))


def test_domains_together_or_apart(problem, make_problem):
    apart, together = (
        make_problem().direction(f"udim(per_domain={flag}, {ACTIVE})") for flag in (True, False)
    )
    worst = adversarial(problem, 0.05, 0.2)
    torch.testing.assert_close(
        apart - together, penalty_gradient(problem, worst) - penalty_gradient(problem, worst, domains=1)
    )


def test_the_base_is_alone_in_the_warm_up(problem, make_problem):
    torch.testing.assert_close(problem.direction("udim(warmup_steps=1)"), make_problem().direction("sam"))
    loss = problem.rule(f"udim({ACTIVE})").step(problem.system, problem.batch)
    assert {"variance", "norm", "adversarial"} <= set(loss.parts)


def test_nothing_flows_back_through_the_search_and_statistics_see_x_alone(problem):
    def system():
        torch.manual_seed(0)
        return TrainingSystem(
            Network(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), 5, 3).double(), ERM()
        )

    with torch.random.fork_rng():
        found, expected = system(), system()
    rule = updates.build(f"udim({ACTIVE})").bind(found, torch.optim.SGD(found.parameters(), lr=0.1))
    rule.step(found, problem.batch)
    expected(problem.batch)
    for name, value in expected.named_buffers():
        assert torch.equal(value, dict(found.named_buffers())[name]), name
    with rule.perturbed(problem.batch) as worst:
        assert not worst.x.requires_grad and not torch.equal(worst.x, problem.batch.x)


def test_an_own_perturbation(problem, make_problem):
    def brighter(network, batch):
        return replace(batch, x=batch.x + 1)

    expected = penalty_gradient(problem, problem.batch.x + 1) + make_problem().direction("sam")
    torch.testing.assert_close(problem.direction(UDIM(perturb=brighter, warmup_steps=0)), expected)


def image_batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 8, 8, generator=generator)
    return Batch(x=x, y=torch.arange(8) % 2, domain=torch.arange(8) % 2, domains=2)


@pytest.mark.parametrize(
    "network", ["cnn(width=4)", "transformer(width=8, depth=1, heads=2)", "mlp(width=8)"]
)
@pytest.mark.parametrize("spec", ["udim", "udim-style"])
def test_images(network, spec):
    """Attention needs its second derivative, which fused kernels lack."""
    from unseen.networks import build_network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = TrainingSystem(build_network(network, (3, 8, 8), 2), ERM())
    rule = updates.build(spec, warmup_steps=0).bind(system, torch.optim.Adam(system.parameters(), lr=1e-3))
    for _ in range(2):
        loss = rule.step(system, image_batch())
    assert all(torch.isfinite(p).all() for p in system.parameters())
    assert loss.parts["adversarial"] > loss.total and loss.parts["variance"] > 0


def test_vectors_have_no_style(problem):
    with pytest.raises(InputError, match="needs images"):
        problem.direction(f"udim-style({ACTIVE})")


@pytest.mark.parametrize("objective", ["erm", "irm", "mixup", "r3f", "groupdro", "trpo", "coral"])
@pytest.mark.parametrize("averaging", [None, "ema", "swad"])
def test_it_composes_with_objectives_and_averaging_and_resumes(objective, averaging, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(48, 5)).astype("float32")
    data = TrainingData(from_arrays(x, np.tile([0, 1], 24), np.repeat([0, 1, 2], 16)).split("2"))
    learner = Learner(
        objective=objective, update="udim(warmup_steps=1)", averaging=averaging, network="mlp(width=4, depth=1)",
        steps=4, batch_size=4, evaluations=4, keep="last",
    )  # fmt: skip
    result = train(learner, data, seed=1)
    assert all(torch.isfinite(value).all() for value in result.state.values())
    assert any(row["metric"] == "loss/variance" for row in result.history)


def test_the_state_is_the_bases(problem, make_problem):
    spec = "udim(base='tram', warmup_steps=1)"
    rule = problem.rule(spec)
    for step in range(3):
        problem.batch.step = step
        rule.step(problem.system, problem.batch)
    other = make_problem()
    other.batch.step = problem.batch.step
    other.system.load_state_dict(problem.system.state_dict())
    resumed = other.rule(spec)
    resumed.load_state_dict(rule.state_dict())
    for _ in range(2):
        rule.step(problem.system, problem.batch)
        resumed.step(other.system, other.batch)
    assert torch.equal(problem.theta, other.theta)


def test_gradients_are_averaged_over_processes(problem, make_problem, tmp_path):
    alone = make_problem().direction(f"udim({ACTIVE})")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        torch.testing.assert_close(problem.direction(f"udim({ACTIVE})"), alone)
    finally:
        torch.distributed.destroy_process_group()


def test_a_move_that_is_not_finite_is_told(problem):
    problem.batch.x[0, 0] = torch.inf
    with pytest.raises(TrainingDiverged, match="perturbed inputs is not finite at step 0"):
        problem.direction(f"udim({ACTIVE})")


@pytest.mark.parametrize(("options", "sentence"), [
    ({"base": "plain"}, "is not sharpness-aware"),
    ({"base": "udim"}, "is not sharpness-aware"),
    ({"base": "sam(rho=0.0)"}, "has a radius of 0"),
    ({"rho_x": 0.0}, "not a positive length"),
    ({"rho_x": float("nan")}, "not a positive length"),
    ({"norm_weight": -1.0}, "Give weights from 0"),
    ({"perturb": "colour"}, "Choose one of pixel, style"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        UDIM(**options)


def test_a_head_that_is_not_linear_is_refused():
    system = nn.Module()
    system.network = nn.Module()
    system.network.head = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(InputError, match="UDIM has closed forms"):
        UDIM().bind(system, torch.optim.SGD(system.parameters(), lr=0.1))


def test_batch_normalisation_of_a_single_example_is_refused():
    system = nn.Module()
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    system.network = Network(body, 8, 2)
    rule = UDIM(warmup_steps=0).bind(system, torch.optim.SGD(system.parameters(), lr=0.1))
    one = Batch(
        torch.rand(1, 1, 6, 6), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1
    )

    def loss(batch):
        return Loss(nn.functional.cross_entropy(system.network(batch.x), batch.y))

    with pytest.raises(InputError, match="batch: is of one example"):
        rule.step(loss, one)
    system.eval()
    assert torch.isfinite(rule.step(loss, one).total)


def test_parameters_that_only_the_objective_has_move_as_the_base_says(problem):
    problem.system.objective.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def loss(batch):
        own = problem.system(batch)
        return Loss(own.total + problem.system.objective.extra.square().sum(), own.parts)

    problem.rule(f"udim({ACTIVE})").step(loss, problem.batch)
    assert (problem.system.objective.extra < 1).all()
