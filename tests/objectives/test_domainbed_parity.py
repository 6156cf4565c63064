"""Same weights, same minibatches: what DomainBed's code computes, and where and why ours differs.

Needs a checkout of github.com/facebookresearch/DomainBed, named by the environment variable UNSEEN_DOMAINBED.
"""

import contextlib
import copy
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unseen.averaging.base import snapshot
from unseen.averaging.swa import SWA
from unseen.networks import Network
from unseen.networks.domain_context import ContextFeaturizer, MarginalFeaturizer
from unseen.objectives import Objective
from unseen.objectives.adrmx import contrast
from unseen.objectives.sagnet import content_and_style, randomise_content, randomise_style
from unseen.objectives.transfer import adversarial_head
from unseen.registry import objectives, updates
from unseen.shifts import Batch
from unseen.training.system import TrainingSystem

STUBS = ("torchvision", "timm", "backpack")
INPUTS, CLASSES, DOMAINS, EACH, RATE, SHARE = 5, 3, 3, 9, 1e-2, 0.3


@pytest.fixture(scope="module")
def bed():
    """DomainBed's module of algorithms, in double precision and without what it imports but does not need here."""
    path = os.environ.get("UNSEEN_DOMAINBED")
    if not path or not (Path(path) / "domainbed" / "algorithms.py").exists():
        pytest.skip("UNSEEN_DOMAINBED does not name a checkout of facebookresearch/DomainBed")
    before, precision = dict(sys.modules), torch.get_default_dtype()
    for name in STUBS:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.models"] = sys.modules["torchvision"].models = types.ModuleType("models")
    sys.modules["backpack"] = None  # Fishr's gradients come from autograd below
    sys.path.insert(0, path)
    torch.set_default_dtype(torch.float64)
    try:
        from domainbed import algorithms, hparams_registry

        algorithms.backpack, algorithms.extend = contextlib.nullcontext, lambda module: module
        algorithms.default_hparams = hparams_registry.default_hparams
        yield algorithms
    finally:
        torch.set_default_dtype(precision)
        sys.path.remove(path)
        for name in [n for n in sys.modules if n.partition(".")[0] in ("domainbed", *STUBS)]:
            del sys.modules[name]
        sys.modules.update({n: module for n, module in before.items() if n.partition(".")[0] in STUBS})


@pytest.fixture
def patch(monkeypatch):
    """Randomness and devices that both sides share."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_: self)
    monkeypatch.setattr(nn.Module, "cuda", lambda self, *_: self)
    return monkeypatch


def minibatches(step: int = 0, domains: int = DOMAINS, shape: tuple[int, ...] = (INPUTS,)):
    generator = torch.Generator().manual_seed(step)
    parts = []
    for domain in range(domains):
        labels = torch.randint(CLASSES, (EACH,), generator=generator)
        labels[:CLASSES] = torch.arange(CLASSES)  # DomainBed's code expects every class in a batch
        parts.append((torch.randn(EACH, *shape, generator=generator) + 0.3 * domain, labels))
    return parts


def as_batch(parts, step: int = 0) -> Batch:
    x, y = (torch.cat(values) for values in zip(*parts, strict=True))
    domain = torch.arange(len(parts)).repeat_interleave(EACH)
    return Batch(x=x, y=y, domain=domain, domains=len(parts), step=step)


def theirs(bed, name: str, shape: tuple[int, ...] = (INPUTS,), domains: int = DOMAINS, **options: Any):
    settings = bed.default_hparams(name, "ColoredMNIST")
    settings |= {
        "mlp_width": 8,
        "mlp_depth": 3,
        "mlp_dropout": 0.0,
        "lr": RATE,
        "batch_size": EACH,
        **options,
    }
    torch.manual_seed(0)
    return bed.get_algorithm_class(name)(shape, CLASSES, domains, settings)


def network_of(algorithm) -> Network:
    """A network with copies of DomainBed's featurizer and classifier."""
    whole = getattr(algorithm, "network", None)
    featurizer = algorithm.featurizer if hasattr(algorithm, "featurizer") else whole.net[0]
    head = algorithm.classifier if hasattr(algorithm, "classifier") else whole.net[1]
    network = Network(copy.deepcopy(featurizer), head.in_features, CLASSES)
    network.head.load_state_dict(head.state_dict())
    return network


def ours(network: Network, objective: str | Objective, rule: str = "plain", domains: int = DOMAINS, eps=1e-8):
    objective = objectives.build(objective) if isinstance(objective, str) else objective
    objective.setup(features=network.features, classes=CLASSES, domains=domains)
    system = TrainingSystem(network, objective)
    optimizer = torch.optim.Adam(system.parameters(), lr=RATE, eps=eps)
    return system, updates.build(rule).bind(system, optimizer)


def total(result: dict[str, float]) -> float:
    return result.get("total_loss", result.get("loss", result.get("nll")))


@dataclass
class Case:
    """What is the same: DomainBed's options, ours by name, its loss from what it reports, and the alignment.

    align   called with DomainBed's algorithm, our system and the patcher, before the first step
    before  called with DomainBed's algorithm before each step
    """

    objective: str = "erm"
    options: dict[str, Any] = field(default_factory=dict)
    rule: str = "plain"
    loss: Callable[[Any, dict[str, float]], float] = lambda algorithm, result: total(result)
    align: Callable[..., None] = lambda algorithm, system, patch: None
    before: Callable[[Any], None] = lambda algorithm: None


def with_penalty(option: str) -> Callable[[Any, dict[str, float]], float]:
    return lambda algorithm, result: result["loss"] + algorithm.hparams[option] * result["penalty"]


def walk_in_order(algorithm, system, patch) -> None:
    patch.setattr("unseen.updates.fish.shuffled", lambda domains, seed, step: domains)


class FixedDraws:
    """In place of numpy's generator: every share is the same."""

    def beta(self, *_: float) -> float:
        return SHARE

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> np.ndarray:
        return np.linspace(low, high, int(np.prod(size))).reshape(size)

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


def fixed_draws(patch) -> None:
    patch.setattr(np.random, "default_rng", lambda seed: FixedDraws())
    patch.setattr(np.random, "beta", lambda a, b: SHARE)


def mix_with_the_next_domain(algorithm, system, patch) -> None:
    fixed_draws(patch)

    def order(count, **_):
        return torch.arange(count) if count == DOMAINS else torch.arange(count).roll(-EACH)

    patch.setattr(torch, "randperm", order)


def pair_with_the_next_of_the_class(algorithm, system, patch) -> None:
    """The next example of the same class: in a batch sorted by class, which theirs is, a roll within classes."""
    fixed_draws(patch)
    sort = torch.sort
    patch.setattr(torch, "sort", lambda values: sort(values, stable=True))
    patch.setattr(torch, "randperm", lambda count, **_: torch.arange(count).roll(-1))

    def partners(labels, order):
        partner = torch.zeros_like(labels)
        for label in labels.unique():
            members = (labels == label).nonzero().flatten()
            partner[members] = members.roll(-1)
        return partner

    patch.setattr("unseen.objectives.selfreg.partners_within_class", partners)
    layers = system.objective.perturb
    for own, other in zip(layers, algorithm.cdpl, strict=True):
        own.load_state_dict({k: v for k, v in other.state_dict().items() if k in own.state_dict()})
    algorithm.optimizer.add_param_group({"params": list(algorithm.cdpl.parameters())})


def same_sides(algorithm, system, patch) -> None:
    patch.setattr(np.random, "randint", lambda low, high: 4)
    side = (torch.arange(EACH) >= 4).long().repeat(DOMAINS)
    patch.setattr("unseen.objectives.causirl.random_sides", lambda domain, domains, seed: side)


def gradients_by_autograd(algorithm, system, patch) -> None:
    """BackPACK's per-example gradients of the classifier, slowly."""

    def gradients(logits, y):
        parameters = dict(algorithm.classifier.named_parameters())
        each = [
            torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
            for loss in nn.functional.cross_entropy(logits, y, reduction="none")
        ]
        return {n: torch.stack([g[i] for g in each]).flatten(1) for i, n in enumerate(parameters)}

    algorithm._get_grads = gradients


def head_only(algorithm, system, patch) -> None:
    """IGA without a featurizer: theirs then matches the gradients of what ours does, the head."""
    algorithm.featurizer, algorithm.classifier = nn.Identity(), nn.Linear(INPUTS, CLASSES)
    algorithm.network = nn.Sequential(algorithm.featurizer, algorithm.classifier)
    algorithm.optimizer = torch.optim.Adam(algorithm.network.parameters(), lr=RATE)
    system.network.featurizer = nn.Identity()
    system.network.head.weight = nn.Parameter(algorithm.classifier.weight.detach().clone())
    system.network.head.bias = nn.Parameter(algorithm.classifier.bias.detach().clone())


def heads_start_at_the_network(algorithm) -> None:
    for classifier in algorithm.clist:
        classifier.load_state_dict(algorithm.classifier.state_dict())


def classify_on_tanh(algorithm, system, patch) -> None:
    """Theirs ends the featurizer in tanh; the same network, cut before the tanh."""
    fixed_draws(patch)
    system.network.featurizer.activation = nn.Identity()
    system.network.head = nn.Sequential(nn.Tanh(), system.network.head)
    system.objective.discriminator.load_state_dict(
        dict(
            zip(
                system.objective.discriminator.state_dict(),
                algorithm.discriminator.state_dict().values(),
                strict=True,
            )
        )
    )
    patch.setattr(
        torch, "rand", lambda size, **_: torch.linspace(0, 1, int(np.prod(size))).view(size)
    )  # of which theirs makes a * u + b in [-1, 1]


CASES = {
    "ERM": Case(),
    "ERMPlusPlus": Case(rule="warm-start(head_steps=4)", options={"linear_steps": 3, "linear_lr": RATE}),
    "Fish": Case(rule="fish", align=walk_in_order, loss=lambda algorithm, result: None),
    "IRM": Case("irm(unbiased=True, warmup_steps=4)", {"irm_penalty_anneal_iters": 4}),
    "GroupDRO": Case("groupdro"),
    "Mixup": Case("mixup", align=mix_with_the_next_domain),
    "CORAL": Case("coral", loss=with_penalty("mmd_gamma")),
    "MMD": Case("mmd", loss=with_penalty("mmd_gamma")),
    "VREx": Case("vrex(warmup_steps=4)", {"vrex_penalty_anneal_iters": 4}),
    "RSC": Case("rsc"),
    "SD": Case("sd", loss=with_penalty("sd_reg")),
    "ANDMask": Case(rule="andmask"),
    "SANDMask": Case(rule="sandmask", options={"tau": 0.5}),
    "IGA": Case(f"iga(penalty_weight={5.0 * DOMAINS})", {"penalty": 5.0}, align=head_only,
                loss=with_penalty("penalty")),
    "SelfReg": Case("selfreg", align=pair_with_the_next_of_the_class),
    "Fishr": Case("fishr(warmup_steps=4)", {"penalty_anneal_iters": 4}, align=gradients_by_autograd),
    "TRM": Case("trm(warmup_steps=0, implicit_weight=0.0, step_size=0.0)",
                {"iters": 0, "cos_lambda": 0.0, "groupdro_eta": 0.0, "class_balanced": True},
                before=heads_start_at_the_network, loss=lambda algorithm, result: sum(result.values())),
    "IB_ERM": Case("ib-erm(warmup_steps=4)", {"ib_penalty_anneal_iters": 4}),
    "IB_IRM": Case("ib-irm(warmup_steps=0)", {"ib_penalty_anneal_iters": 0, "irm_penalty_anneal_iters": 0},
                   align=lambda algorithm, system, patch: unbiased_irm(patch)),
    "CAD": Case("cad(penalty_weight=0.7)", {"lmbda": 0.49}),  # theirs also multiplies by 0.1 / 0.07
    "CondCAD": Case("condcad(penalty_weight=0.7)", {"lmbda": 0.49}),
    "CausIRL_CORAL": Case("causirl-coral", align=same_sides, loss=with_penalty("mmd_gamma")),
    "CausIRL_MMD": Case("causirl-mmd", align=same_sides, loss=with_penalty("mmd_gamma")),
    "EQRM": Case("eqrm(warmup_steps=10)", {"eqrm_burnin_iters": 10}),
    "RDM": Case("rdm(warmup_steps=4)", {"rdm_penalty_anneal_iters": 4, "rdm_lr": RATE}),
    "URM": Case("urm", {"urm_discriminator_lr": RATE}, align=classify_on_tanh, loss=lambda a, result: None),
}  # fmt: skip
APART = {"MLDG", "DANN", "CDANN", "MTL", "SagNet", "ARM", "Transfer", "ADRMX"}  # have tests of their own


def unbiased_irm(patch) -> None:
    from unseen.objectives import information_bottleneck
    from unseen.objectives.irm import irm_penalty

    def halves(*arguments, **options):
        return irm_penalty(*arguments, **options, unbiased=True)

    patch.setattr(information_bottleneck, "irm_penalty", halves)


def test_every_algorithm_of_domainbed_is_compared(bed):
    assert set(bed.ALGORITHMS) == set(CASES) | APART


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_agree(name, bed, patch):
    case = CASES[name]
    algorithm = theirs(bed, name, **case.options)
    system, rule = ours(network_of(algorithm), case.objective, case.rule)
    case.align(algorithm, system, patch)
    rule.bind(system, torch.optim.Adam(system.parameters(), lr=RATE))
    for step in range(10):
        parts = minibatches(step)
        case.before(algorithm)
        expected = case.loss(algorithm, algorithm.update(parts))
        batch = system.objective.prepare(as_batch(parts, step), torch.Generator())
        if system.objective.resets_optimizer_at(step):
            rule.reset()
        found = rule.step(system, batch).total.detach()
        if expected is not None:
            assert float(found) == pytest.approx(expected, rel=1e-7, abs=1e-9), f"loss of step {step + 1}"
        if step in (0, 9):
            same_parameters(algorithm, system)


def same_parameters(algorithm, system, tolerance: float = 1e-7) -> None:
    expected = network_of(algorithm).state_dict()
    found = {name.replace("head.1.", "head."): value for name, value in system.network.state_dict().items()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


# ---- where the two differ on purpose: what agrees once the difference is taken away, and that it is one ----


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def train(algorithm, system, rule, steps: int = 10, domains: int = DOMAINS, shape=(INPUTS,)) -> list[tuple]:
    losses = []
    for step in range(steps):
        parts = minibatches(step, domains, shape)
        expected = total(algorithm.update(parts))
        losses.append((expected, float(rule.step(system, as_batch(parts, step)).total.detach())))
    return losses


def record_steps(*optimizers) -> list[list[torch.Tensor | None]]:
    """Optimizers that write down their gradients instead of moving anything: a list an update, in order."""
    steps = []

    def recorder(optimizer):
        def step():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            steps.append([None if p.grad is None else p.grad.clone() for p in parameters])

        return step

    for optimizer in optimizers:
        optimizer.step = recorder(optimizer)
    return steps


def gradients(*modules: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for module in modules for parameter in module.parameters()]


def test_mldg_trains_nothing_with_two_domains_at_its_defaults(bed):
    algorithm = theirs(bed, "MLDG", domains=2)
    before = snapshot(algorithm)
    assert total(algorithm.update(minibatches(domains=2))) == 0
    assert not moved(algorithm, before)
    system, rule = ours(network_of(algorithm), "erm", "mldg", domains=2)
    rule.step(system, as_batch(minibatches(domains=2)))
    assert moved(system.network, network_of(algorithm).state_dict())


def test_mldg_agrees_once_its_inner_step_is_the_papers(bed, patch):
    """Theirs calls it P - lr * Gi, but takes a step of Adam, whose first is lr * sign(Gi)."""
    found = []
    for inner in (torch.optim.SGD, torch.optim.Adam):
        algorithm = theirs(bed, "MLDG", domains=2, n_meta_test=1)
        algorithm.optimizer = torch.optim.Adam(algorithm.network.parameters(), lr=RATE, eps=1e-14)
        system, rule = ours(network_of(algorithm), "erm", "mldg", domains=2, eps=1e-14)
        with patch.context() as inside:
            inside.setattr(bed.torch.optim, "Adam", inner)
            inside.setattr(torch, "randperm", torch.arange)
            inside.setattr("unseen.updates.mldg.shuffled", lambda domains, seed, step: domains)
            train(algorithm, system, rule, domains=2)
        found.append((algorithm, system))
    same_parameters(*found[0], tolerance=1e-6)  # the gradient is half of ours, which Adam does not feel
    with pytest.raises(AssertionError):
        same_parameters(*found[1], tolerance=1e-6)


@pytest.mark.parametrize("name", ["DANN", "CDANN"])
def test_dann_has_the_gradients_of_both_turns_in_one_step(name, bed):
    objective = objectives.build(name.lower(), strength=0.7, warmup_steps=0)
    algorithm = theirs(bed, name, **{"lambda": objective.strength_at(0), "lr_g": RATE, "lr_d": RATE})
    network = network_of(algorithm)
    system, _ = ours(network, objective)
    system.objective.discriminator = copy.deepcopy(algorithm.discriminator)
    if name == "CDANN":
        system.objective.class_embedding.data.copy_(algorithm.class_embeddings.weight)
    system(as_batch(minibatches())).total.backward()
    untouched = snapshot(algorithm.featurizer)
    steps = record_steps(algorithm.gen_opt, algorithm.disc_opt)
    for _ in range(2):
        algorithm.update(minibatches())
    assert len(steps) == 2 and not moved(algorithm.featurizer, untouched)  # a turn moves one player only
    torch.testing.assert_close(gradients(network.featurizer, network.head), steps[0])
    expected = gradients(system.objective.discriminator)
    expected += [system.objective.class_embedding.grad] if name == "CDANN" else [None]
    torch.testing.assert_close(expected, steps[1])


def test_mtl_reads_noise_instead_of_its_embedding(bed):
    algorithm = theirs(bed, "MTL").eval()
    x = minibatches()[0][0]
    assert not torch.allclose(algorithm.predict(x), algorithm.predict(x))
    network = Network(MarginalFeaturizer(nn.Linear(INPUTS, 4), EACH), 8, CLASSES).eval()
    assert torch.equal(network(x), network(x))


def test_mtl_agrees_once_the_noise_is_gone(bed, patch):
    algorithm = theirs(bed, "MTL", mtl_ema=1.0)
    algorithm.optimizer.param_groups[0]["eps"] = 1e-14
    patch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self)
    featurizer = MarginalFeaturizer(copy.deepcopy(algorithm.featurizer), EACH)
    network = Network(featurizer, algorithm.classifier.in_features, CLASSES)
    network.head.load_state_dict(algorithm.classifier.state_dict())
    system, rule = ours(network, "erm", eps=1e-14)
    for expected, found in train(algorithm, system, rule):
        assert DOMAINS * found == pytest.approx(expected, rel=1e-6)  # theirs sums over the domains
    same = {f"featurizer.featurizer.{n}": v for n, v in algorithm.featurizer.state_dict().items()}
    same |= {f"head.{n}": v for n, v in algorithm.classifier.state_dict().items()}
    torch.testing.assert_close(network.state_dict(), same, rtol=1e-6, atol=1e-6, check_dtype=False)
    unseen = minibatches(99)[0][0]
    torch.testing.assert_close(network.eval()(unseen), algorithm.predict(unseen), rtol=1e-5, atol=1e-5)


def test_sagnet_has_the_gradients_of_its_three_turns_in_one_step(bed, patch):
    algorithm = theirs(bed, "SagNet")
    count, share = DOMAINS * EACH, torch.linspace(0, 1, DOMAINS * EACH).unsqueeze(1)
    order = torch.arange(count).roll(1)
    patch.setattr(torch, "rand", lambda *_: share)
    patch.setattr(torch, "randperm", lambda *_: order)
    features = torch.randn(count, 8)
    parts = content_and_style(features)
    torch.testing.assert_close(randomise_style(*parts, order, share), algorithm.randomize(features, "style"))
    torch.testing.assert_close(randomise_content(*parts, order), algorithm.randomize(features, "content"))

    network = Network(copy.deepcopy(algorithm.network_f), 8, CLASSES)
    network.head.load_state_dict(algorithm.network_c.state_dict())
    system, _ = ours(network, "sagnet")
    system.objective.style_head.load_state_dict(algorithm.network_s.state_dict())
    system.objective.random = lambda step, like: (share, order, order)
    loss = system(as_batch(minibatches()))
    loss.total.backward()
    steps = record_steps(algorithm.optimizer_f, algorithm.optimizer_c, algorithm.optimizer_s)
    result = algorithm.update(minibatches())
    assert float(loss.total.detach()) == pytest.approx(sum(result.values()))
    content, head, style, adversary = steps
    together = [one + other for one, other in zip(content, adversary, strict=True)]
    torch.testing.assert_close(gradients(network.featurizer), together)
    torch.testing.assert_close(gradients(network.head), head)
    torch.testing.assert_close(gradients(system.objective.style_head), style)


def test_arm_agrees_but_for_a_context_network_that_is_never_trained(bed):
    shape = (2, 6, 6)
    algorithm = theirs(bed, "ARM", shape=(2, 28, 28))
    known = {id(p) for group in algorithm.optimizer.param_groups for p in group["params"]}
    assert not known & {id(p) for p in algorithm.context_net.parameters()}  # the optimizer is older than it

    algorithm.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8), nn.ReLU())
    algorithm.classifier = nn.Linear(8, CLASSES)
    algorithm.network = nn.Sequential(algorithm.featurizer, algorithm.classifier)
    algorithm.optimizer = torch.optim.Adam(algorithm.network.parameters(), lr=RATE)
    context = copy.deepcopy(algorithm.context_net)
    network = Network(ContextFeaturizer(context, copy.deepcopy(algorithm.featurizer), EACH), 8, CLASSES)
    network.head.load_state_dict(algorithm.classifier.state_dict())
    system, rule = ours(network, "erm")
    trained = [*network.featurizer.featurizer.parameters(), *network.head.parameters()]
    rule.bind(system, torch.optim.Adam(trained, lr=RATE))
    for expected, found in train(algorithm, system, rule, shape=shape):
        assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(network.head.weight, algorithm.classifier.weight, rtol=1e-6, atol=1e-6)
    unseen = torch.cat([x for x, _ in minibatches(99, shape=shape)])
    torch.testing.assert_close(network.eval()(unseen), algorithm.eval().predict(unseen), rtol=1e-5, atol=1e-5)

    before = snapshot(context)
    system, rule = ours(network.train(), "erm")
    rule.step(system, as_batch(minibatches(shape=shape)))
    assert any(not torch.equal(before[name], p) for name, p in context.named_parameters())


def test_transfer_finds_the_same_adversary(bed):
    """Theirs uses it for the next batch, and takes two updates a step: the risk's, then the gap's."""
    algorithm = theirs(bed, "Transfer", d_steps_per_g=7, lr_d=0.5, delta=0.4)
    parts = minibatches()
    algorithm.update(parts)
    head, batch = algorithm.classifier, as_batch(parts)
    found = adversarial_head(
        algorithm.featurizer(batch.x), torch.cat([head.weight, head.bias.unsqueeze(1)], 1),
        batch.y, batch.domain, DOMAINS, radius=0.4, steps=7, rate=0.5,
    )  # fmt: skip
    adversary = algorithm.adv_classifier
    torch.testing.assert_close(found, torch.cat([adversary.weight, adversary.bias.unsqueeze(1)], 1))


def test_eqrm_agrees_in_value_but_not_in_gradient(bed):
    """Theirs differentiates the first bracket of a bisection, not the quantile."""
    algorithm = theirs(bed, "EQRM", eqrm_burnin_iters=0, eqrm_lr=RATE)
    network = network_of(algorithm)
    system, _ = ours(network, "eqrm(warmup_steps=0)")
    loss = system(as_batch(minibatches()))
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(total(algorithm.update(minibatches())), rel=1e-6)
    mine, other = network.head.weight.grad, algorithm.classifier.weight.grad
    assert not torch.allclose(mine, other, rtol=1e-2)


def test_adrmx_has_the_same_contrast_but_does_not_remix_the_wrong_examples(bed, patch):
    features, batch = torch.randn(DOMAINS * EACH, 8), as_batch(minibatches())
    expected = bed.SupConLossLambda(lamda=0.3)(features, batch.y, batch.domain)
    found = contrast(features, batch.y, batch.domain, share=0.3)
    count = len(batch)  # theirs divides by one more example than it has
    torch.testing.assert_close(found * count / (count + 1), expected)

    algorithm = theirs(bed, "ADRMX", mlp_width=8, mlp_depth=3, d_steps_per_g_step=0)
    remixed, whole = [], nn.functional.cross_entropy

    def recording(logits, target, **options):
        if len(logits) == 1:
            remixed.append(int(target))
        return whole(logits, target, **options)

    patch.setattr(bed.F, "cross_entropy", recording)
    patch.setattr(torch, "randperm", torch.arange)
    algorithm.update(minibatches())
    # one remix a class; but a position among the examples of a class is read as one in the batch
    assert remixed == [int(batch.y[0])] * CLASSES


def test_ermplusplus_averages_as_swa_does(bed):
    algorithm = theirs(bed, "ERMPlusPlus", linear_steps=-1, lars=False, freeze_bn=True)
    algorithm.sma_start_iter = 4  # its first average holds the third weights, too
    system, rule = ours(network_of(algorithm), "erm")
    average = SWA(start=0.2)
    average.setup(steps=10)
    for step in range(10):
        algorithm.update(minibatches(step))
        rule.step(system, as_batch(minibatches(step), step))
        average.observe(step, system.network, None)
    found = list(average.result().values())
    torch.testing.assert_close(found, list(algorithm.network_sma.state_dict().values()), rtol=1e-7, atol=1e-7)


def test_vrex_logs_the_last_domain_as_the_risk(bed):
    algorithm = theirs(bed, "VREx")
    system, _ = ours(network_of(algorithm), "vrex")
    parts, risk = minibatches(), float(system(as_batch(minibatches())).parts["risk"].detach())
    last = float(nn.functional.cross_entropy(algorithm.predict(parts[-1][0]), parts[-1][1]).detach())
    logged = algorithm.update(parts)["nll"]
    assert logged == pytest.approx(last) and logged != pytest.approx(risk)


def test_fishr_loses_its_moving_averages_when_saved(bed, patch):
    algorithm = theirs(bed, "Fishr", penalty_anneal_iters=0)
    gradients_by_autograd(algorithm, None, patch)
    system, rule = ours(network_of(algorithm), "fishr")
    rule.step(system, as_batch(minibatches()))
    algorithm.update(minibatches())
    assert algorithm.ema_per_domain[0].ema_data and not any("ema" in name for name in algorithm.state_dict())
    assert system.state_dict()["objective.average"].any()


def test_iga_matches_gradients_of_all_parameters_where_ours_matches_the_heads(bed):
    algorithm = theirs(bed, "IGA")
    system, _ = ours(network_of(algorithm), "iga")
    penalty = float(system(as_batch(minibatches())).parts["penalty"].detach())
    assert algorithm.update(minibatches())["penalty"] > DOMAINS * penalty > 0  # theirs sums over domains


def test_sandmask_trains_nothing_at_its_default_threshold(bed):
    algorithm = theirs(bed, "SANDMask")
    before = snapshot(algorithm.network)
    algorithm.update(minibatches())
    assert not moved(algorithm.network, before)
