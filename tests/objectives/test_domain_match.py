import copy
import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.domain_match import DomainMatch, discrepancy, pairwise_factor
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.training.system import TrainingSystem

B, SHAPE, F, C, D = 24, 6, 8, 3, 3
LATE = 10_000
PRESETS = ["vrex", "iga", "fishr", "coral", "hgp", "hutchinson", "irm"]


def network(seed=0):
    torch.manual_seed(seed)
    return Network(nn.Sequential(nn.Linear(SHAPE, F), nn.Tanh()), F, C).double()


def batch_of(generator, step=LATE, domains=D):
    return Batch(
        x=torch.randn(B, SHAPE, generator=generator).double(),
        y=torch.randint(C, (B,), generator=generator),
        domain=torch.arange(B) % domains,
        domains=domains,
        step=step,
    )


def built(name, **options):
    objective = objectives.build(name, **options)
    objective.setup(features=F, classes=C, domains=D)
    return objective.double()


def risks_and_gradients(model, batch):
    """Risk and head gradient of each domain and of the mean risk, with graphs, one domain at a time."""
    risks = [
        nn.functional.cross_entropy(model(part.x), part.y)
        for part in (batch.of_domain(d) for d in range(batch.domains))
    ]
    head = list(model.head.parameters())

    def gradient(risk):
        return torch.cat([g.flatten() for g in torch.autograd.grad(risk, head, create_graph=True)])

    risks.append(torch.stack(risks).mean())
    return risks, [gradient(risk) for risk in risks], gradient


def slow_vrex(model, batch):
    risks, _, _ = risks_and_gradients(model, batch)
    penalty = torch.stack([(risk - risks[-1]) ** 2 for risk in risks[:-1]]).mean()
    return risks[-1] + 10.0 * penalty


def slow_iga(model, batch):
    risks, gradients, _ = risks_and_gradients(model, batch)
    return risks[-1] + 1000.0 * sum((g - gradients[-1]).square().sum() for g in gradients[:-1]) / D


def slow_fishr(model, batch):
    risks, _, gradient = risks_and_gradients(model, batch)
    variances = []
    for d in range(D):
        part = batch.of_domain(d)
        losses = nn.functional.cross_entropy(model(part.x), part.y, reduction="none")
        variances.append(torch.stack([gradient(loss) for loss in losses]).var(0, unbiased=False))
    mean = torch.stack(variances).mean(0)
    return risks[-1] + 1000.0 * sum((v - mean).square().mean() for v in variances) / D


def slow_coral(model, batch):
    risks, _, _ = risks_and_gradients(model, batch)
    features = [model.featurizer(batch.of_domain(d).x) for d in range(D)]
    pairs = [
        (a.mean(0) - b.mean(0)).square().mean() + (a.T.cov() - b.T.cov()).square().mean()
        for a, b in itertools.combinations(features, 2)
    ]
    return risks[-1] + sum(pairs) / len(pairs)


def slow_hgp(model, batch):
    risks, gradients, _ = risks_and_gradients(model, batch)
    products = []
    for gradient in gradients:  # |g| grad |g| = H g
        norm = gradient.norm()
        slope = torch.autograd.grad(norm, list(model.head.parameters()), create_graph=True)
        products.append(norm * torch.cat([s.flatten() for s in slope]))
    penalties = [
        1e-4 * (h - products[-1].detach()).square().sum() + 5e-3 * (g - gradients[-1].detach()).square().sum()
        for h, g in zip(products[:-1], gradients[:-1], strict=True)
    ]
    return risks[-1] + sum(penalties) / D


def slow_hutchinson(model, batch):
    risks, gradients, _ = risks_and_gradients(model, batch)
    diagonals = []
    for gradient in gradients:
        rows = [
            torch.cat(
                [
                    r.flatten()
                    for r in torch.autograd.grad(entry, list(model.head.parameters()), create_graph=True)
                ]
            )
            for entry in gradient
        ]
        diagonals.append(torch.stack(rows).diagonal())
    penalties = [
        1e-3 * (h - diagonals[-1].detach()).square().sum()
        + 5e-3 * (g - gradients[-1].detach()).square().sum()
        for h, g in zip(diagonals[:-1], gradients[:-1], strict=True)
    ]
    return risks[-1] + sum(penalties) / D


def slow_irm(model, batch):
    risks, _, _ = risks_and_gradients(model, batch)
    penalties = []
    for d in range(D):
        part = batch.of_domain(d)
        scale = torch.ones((), dtype=torch.double, requires_grad=True)
        risk = nn.functional.cross_entropy(scale * model(part.x), part.y)
        penalties.append(torch.autograd.grad(risk, scale, create_graph=True)[0] ** 2)
    return risks[-1] + 100.0 * torch.stack(penalties).mean()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_equals_its_published_definition_by_double_backward(name, generator):
    model, batch = network(), batch_of(generator)
    loss = built(name)(model, batch).total
    slow = globals()[f"slow_{name}"](model, batch)
    torch.testing.assert_close(loss, slow)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(gradients, torch.autograd.grad(slow, list(model.parameters())))


@pytest.mark.parametrize("name", [*PRESETS, "hutchinson(probes=20)", "irm(unbiased=True)"])
def test_three_stacked_systems_under_vmap_equal_one_by_one(name, generator):
    systems, batches = [], [batch_of(generator) for _ in range(3)]
    for seed in range(3):
        systems.append(TrainingSystem(network(seed), built(name)))
    alone = copy.deepcopy(systems)
    expected = [system(batch).total for system, batch in zip(alone, batches, strict=True)]
    torch.stack(expected).sum().backward()
    parameters, buffers = stack_module_state(systems)
    skeleton = copy.deepcopy(systems[0]).to("meta")

    def total(parameters, buffers, x, y):
        batch = Batch(x=x, y=y, domain=batches[0].domain, domains=D, step=LATE)
        return functional_call(skeleton, (parameters, buffers), (batch,)).total

    x, y = torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches])
    losses = vmap(total)(parameters, buffers, x, y)
    torch.testing.assert_close(losses, torch.stack(expected))
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    for (key, _), found in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(found, torch.stack([s.get_parameter(key).grad for s in alone]))
    for key, stacked in buffers.items():
        torch.testing.assert_close(stacked, torch.stack([s.get_buffer(key) for s in alone]))


def test_pairwise_is_the_mean_over_pairs_of_present_domains(generator):
    values = torch.randn(5, 7, generator=generator).double()
    present = torch.tensor([1.0, 0, 1, 1, 1]).double()
    pairs = [(a - b).square().sum() for a, b in itertools.combinations(values[present > 0].unbind(), 2)]
    torch.testing.assert_close(
        discrepancy(values, present / 4) * pairwise_factor(present), torch.stack(pairs).mean()
    )


def test_detaching_the_reference_matters_only_for_the_pooled_one(generator):
    model, batch = network(), batch_of(generator)

    def gradient(**options):
        loss = DomainMatch(**options)(model, batch)
        return torch.autograd.grad(loss.parts["penalty"], model.featurizer[0].weight)[0]

    for detach in (True, False):
        torch.testing.assert_close(
            gradient(gradient=1.0, detach_reference=detach), gradient(gradient=1.0, reference="pooled")
        )
    options = {"hessian_gradient": 1.0, "reference": "pooled"}
    assert not torch.allclose(gradient(**options), gradient(**options, detach_reference=True))


def test_unbiased_irm_is_the_product_over_alternating_halves(generator):
    model, batch = network(), batch_of(generator)
    products = []
    for d in range(D):
        part = batch.of_domain(d)
        gradients = []
        for half in (slice(0, None, 2), slice(1, None, 2)):
            scale = torch.ones((), dtype=torch.double, requires_grad=True)
            risk = nn.functional.cross_entropy(scale * model(part.x[half]), part.y[half])
            gradients.append(torch.autograd.grad(risk, scale, create_graph=True)[0])
        products.append(gradients[0] * gradients[1])
    penalty = built("irm(unbiased=True)")(model, batch).parts["penalty"]
    torch.testing.assert_close(penalty, torch.stack(products).mean())


def test_moving_average_adds_earlier_variances_and_a_repeat_sees_the_same(generator):
    model, objective = network(), built("fishr(moving_average=0.9)")
    batches = [batch_of(generator) for _ in range(3)]
    plain = DomainMatch(gradient_variance=1.0)
    average = torch.zeros(D, C, F + 1).double()
    for batch in batches:
        variance = plain._statistics(model.head, model.featurizer(batch.x), model(batch.x), batch).values[
            "gradient_variance"
        ]
        shown = (0.9 * average + 0.1 * variance) / 0.1
        expected = (shown - shown.mean(0)).square().flatten(1).mean(1).mean()
        loss = objective(model, batch)
        torch.testing.assert_close(loss.parts["penalty"], expected)
        average = (0.9 * average + 0.1 * variance).detach()
        before = objective.average.clone()
        torch.testing.assert_close(objective(model, batch.again()).total, loss.total)
        assert torch.equal(objective.average, before)
    torch.testing.assert_close(objective.average, average)


def test_a_domain_that_is_missing_keeps_its_moving_average(generator):
    model, objective = network(), built("fishr")
    objective(model, batch_of(generator))
    before = objective.average.clone()
    batch = batch_of(generator)
    objective(model, batch.take(batch.domain != 1))
    assert torch.equal(objective.average[1], before[1])
    assert not torch.allclose(objective.average[0], before[0])


def test_schedule_switches_the_weight_resets_once_and_rescales(generator):
    model = network()
    objective = built("vrex(penalty_weight=50.0, warmup_steps=3, warmup_weight=0.5, rescale_loss=True)")
    for step, weight in ((0, 0.5), (2, 0.5), (3, 50.0), (9, 50.0)):
        batch = batch_of(generator, step)
        loss = objective(model, batch)
        expected = (loss.parts["risk"] + weight * loss.parts["penalty"]) / max(weight, 1.0)
        torch.testing.assert_close(loss.total, expected)
    assert [step for step in range(9) if objective.resets_optimizer_at(step)] == [3]
    assert not any(built("hgp").resets_optimizer_at(step) for step in range(9))
    assert not built("vrex(warmup_steps=3, warmup_weight=10.0)").resets_optimizer_at(3)


@pytest.mark.parametrize("name", PRESETS)
def test_identical_domains_have_no_penalty(name, generator):
    batch = batch_of(generator).of_domain(0)
    doubled = batch.take(torch.arange(len(batch)).repeat(2))
    doubled.domain = torch.arange(2).repeat_interleave(len(batch))
    penalty = built(name)(network(), doubled).parts["penalty"]
    if name == "irm":
        assert penalty > 0  # it asks for a stationary scale, not for equality
    else:
        torch.testing.assert_close(penalty, torch.zeros_like(penalty), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_weights_of_zero_remove_examples_from_the_gradient(name, generator):
    model, batch = network(), batch_of(generator)
    batch.weight = torch.ones(B).double()
    batch.weight[5] = 0
    batch.x.requires_grad_()
    gradient = torch.autograd.grad(built(name)(model, batch).total, batch.x)[0]
    assert not gradient[5].any() and gradient[6].any()


def test_a_nonlinear_head_goes_through_autograd(generator):
    model, batch = network(), batch_of(generator)
    linear = DomainMatch(hessian_gradient=1.0, gradient=1.0, reference="pooled")(model, batch)
    model.head = nn.Sequential(model.head)
    general = DomainMatch(hessian_gradient=1.0, gradient=1.0, reference="pooled")(model, batch)
    torch.testing.assert_close(general.parts, linear.parts)
    for name in ("fishr", "hutchinson(probes=3)"):
        with pytest.raises(InputError, match="closed forms"):
            built(name)(model, batch)


@pytest.mark.parametrize(
    ("name", "linear"),
    [*((name, True) for name in PRESETS), ("vrex", False), ("hgp", False), ("coral", False)],
)
def test_under_autocast_the_penalty_stays_in_single_precision(name, linear, generator):
    model = network().float()
    batch = batch_of(generator).map(lambda t: t.float() if t.is_floating_point() else t)
    exact = built(name).float()(model, batch).parts["penalty"]
    if not linear:
        model.head = nn.Sequential(model.head)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = built(name).float()(model, batch).parts["penalty"]
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, exact, rtol=0.1, atol=1e-3)


def test_a_penalty_that_is_nan_is_named_in_the_parts(generator):
    model, batch = network(), batch_of(generator)
    batch.x[0, 0] = float("nan")
    assert built("hgp")(model, batch).parts["penalty"].isnan()


def test_a_head_that_shares_weights_with_the_featurizer_is_refused(generator):
    model = Network(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), 3, 3)
    batch = Batch(x=torch.randn(6, 3, generator=generator), y=torch.arange(6) % 3, domain=torch.arange(6) % 2,
                  domains=2)  # fmt: skip
    built("hgp")(model, batch)
    model.featurizer[1].weight = model.head.weight
    with pytest.raises(InputError, match="head: shares its weight with the featurizer"):
        built("hgp")(model, batch)


def test_errors_name_what_is_wrong():
    with pytest.raises(InputError, match=r"no statistic to match"):
        DomainMatch()
    with pytest.raises(InputError, match=r"reference 'pool'.*'pooled'"):
        DomainMatch(loss=1.0, reference="pool")
    with pytest.raises(InputError, match=r"probes: is 0"):
        DomainMatch(hessian_diagonal=1.0, probes=0)
    with pytest.raises(InputError, match=r"factor of loss: is nan"):
        DomainMatch(loss=float("nan"))
    with pytest.raises(InputError, match=r"penalty weight: is -1"):
        DomainMatch(loss=1.0, penalty_weight=-1)
    with pytest.raises(InputError, match=r"warmup_steps: is -1"):
        DomainMatch(loss=1.0, warmup_steps=-1)
    with pytest.raises(InputError, match=r"moving_average: is 1"):
        DomainMatch(gradient_variance=1.0, moving_average=1.0)
    with pytest.raises(InputError, match=r"at least two domains"):
        discrepancy(torch.zeros(1, 3), torch.ones(1))
