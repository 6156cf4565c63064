"""The contract of test-time adaptation."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unseen.adaptation import Adaptation
from unseen.errors import InputError
from unseen.networks import Network
from unseen.registry import Spec, adaptation
from unseen.testing.contract import ContractReport, require, through_file
from unseen.training.system import seeded

CLASSES, BATCH, BATCHES, SIDE = 3, 16, 4, 8
NORMALISATIONS = ("batch", "group", "layer")
LABELS = torch.arange(BATCH) % CLASSES

Build = Callable[..., Adaptation]


def check_adaptation(method: str | Spec | Build, *, device: torch.device | str = "cpu") -> ContractReport:
    """Check that a method keeps the contract of `unseen.adaptation.Adaptation`.

    method  registered name or spec, or a callable (a class) that takes `network` and `seed` and gives an adaptation
    device  where network and inputs are
    The network is a small one for images, with batch, group and layer normalisation in turn. A method that refuses
    one with an InputError has nothing to adapt there, which stands in the report; it must take one at least.
    The fact `learns` says whether its state ever changed (a method may only correct its answers).
    Raises `ContractError`.
    """
    build, report = _builder(method)
    for normalisation in NORMALISATIONS:
        network = _network(normalisation).to(device)
        try:
            build(network=copy.deepcopy(network), seed=0)
        except InputError as error:
            report.facts[normalisation] = str(error)
            continue
        report.facts[normalisation] = True
        _check(report, build, network, f"with {normalisation} normalisation")
    takes_one = any(report.facts[name] is True for name in NORMALISATIONS)
    require(takes_one, report, f"takes no network: {report.facts[NORMALISATIONS[0]]}")
    _takes_no_labels(report, build(network=_accepted(report).to(device), seed=0))
    report.passed += ["network untouched", "reset is exact", "same seed, same answers", "exact resume"]
    report.passed += ["finite logits without gradient", "batch of one", "NaN is refused", "no labels"]
    return report


def _check(report: ContractReport, build: Build, network: Network, where: str) -> None:
    device = network.head.weight.device
    batches = [_batch(step, device) for step in range(BATCHES)]
    before = copy.deepcopy(network)
    random = torch.get_rng_state()
    first = _ready(build, network)
    start = copy.deepcopy(first.state_dict())
    answers = [_answer(report, first, x, where) for x in batches]
    report.facts["learns"] = report.facts.get("learns", False) or not _same(start, first.state_dict())

    same = _same(dict(before.state_dict()), dict(network.state_dict()))
    require(same, report, f"changes the weights or buffers of the network that it is given, {where}")
    modes = [m.training for m in network.modules()] == [m.training for m in before.modules()]
    flags = [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in before.parameters()]
    kinds = [type(m) for m in network.modules()] == [type(m) for m in before.modules()]
    no_gradients = all(p.grad is None for p in network.parameters())
    untouched = modes and flags and kinds and no_gradients
    require(untouched, report, f"leaves modes, layers or gradients of the network changed, {where}")
    require(torch.equal(random, torch.get_rng_state()), report, f"uses torch's global random state, {where}")

    first.reset()
    require(_same(start, first.state_dict()), report, f"has another state after reset than at first, {where}")
    again = [_answer(report, first, x, where) for x in batches]
    require(_same(answers, again), report, f"answers otherwise after reset, {where}")
    other = _ready(build, network)
    half = BATCHES // 2
    found = [_answer(report, other, x, where) for x in batches[:half]]
    state = through_file(other.state_dict(), report)
    found += [_answer(report, other, x, where) for x in batches[half:]]
    require(_same(answers, found), report, f"answers otherwise with the same seed, {where}")

    resumed = build(network=network, seed=3)
    resumed.load_state_dict(state)
    unbroken = _same(answers[half:], [_answer(report, resumed, x, where) for x in batches[half:]])
    require(unbroken, report, f"goes on otherwise from its state_dict than without a break, {where}")
    _takes_one(report, first, batches[0][:1], where)
    _refuses_nan(report, first, batches[0], where)


def _answer(report: ContractReport, method: Adaptation, x: Tensor, where: str) -> Tensor:
    given = x.clone()
    logits = method.adapt(x)
    require(isinstance(logits, Tensor), report, f"answers {type(logits).__name__} instead of Tensor, {where}")
    shape = tuple(logits.shape)
    require(shape == (len(x), CLASSES), report, f"answers {shape} to {len(x)} examples, {where}")
    require(not logits.requires_grad, report, f"answers logits that carry a gradient, {where}")
    require(bool(torch.isfinite(logits).all()), report, f"answers logits that are not finite, {where}")
    require(logits.device == x.device, report, f"moves logits to {logits.device}, {where}")
    require(torch.equal(given, x), report, f"changes its inputs, {where}")
    idle = not any(m.training for m in method.network.modules())
    require(idle, report, f"leaves its network in training mode, {where}")
    return logits


def _takes_one(report: ContractReport, method: Adaptation, x: Tensor, where: str) -> None:
    method.reset()
    try:
        _answer(report, method, x, f"{where}, for a batch of one")
    except InputError:
        report.facts["batch of one"] = "refused, " + where
        with torch.no_grad():
            other = torch.cat([x, -x])
        _answer(report, method, other, f"{where}, after a batch of one")  # refusing it broke nothing


def _refuses_nan(report: ContractReport, method: Adaptation, x: Tensor, where: str) -> None:
    method.reset()
    before, x = method.state_dict(), x.clone()
    x[2, 0] = float("nan")
    try:
        method.adapt(x)
    except InputError:
        require(_same(before, method.state_dict()), report, f"learns from a batch that it refuses, {where}")
        return
    require(False, report, f"answers NaN without an InputError, {where}")


def _takes_no_labels(report: ContractReport, method: Adaptation) -> None:
    needed = [p for p in inspect.signature(method.adapt).parameters.values() if p.default is p.empty]
    require(len(needed) == 1, report, "needs more than inputs to adapt: a stream has no labels")


def _builder(method: str | Spec | Build) -> tuple[Build, ContractReport]:
    if isinstance(method, (str, Spec)):
        return lambda **known: adaptation.build(method, **known), ContractReport(
            f"adaptation {str(method)!r}"
        )
    return method, ContractReport(f"adaptation {getattr(method, '__name__', repr(method))!r}")


def _ready(build: Build, network: Network) -> Adaptation:
    method = build(network=network, seed=3)
    if method.needs_source:
        method.prepare([_batch(step, network.head.weight.device, drift=0.0) for step in range(2)])
    return method


def _accepted(report: ContractReport) -> Network:
    return _network(next(name for name in NORMALISATIONS if report.facts[name] is True))


def _network(normalisation: str) -> Network:
    """Convolutions over images of bright quadrants, which the head tells apart."""
    layers = {
        "batch": lambda: nn.BatchNorm2d(8),
        "group": lambda: nn.GroupNorm(2, 8),
        "layer": lambda: nn.LayerNorm([8, SIDE, SIDE]),
    }
    with seeded(0), torch.enable_grad():
        featurizer = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            layers[normalisation](),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
        )
        network = Network(featurizer, 32, CLASSES)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for step in range(30):  # methods that learn from sure predictions must have some
            loss = nn.functional.cross_entropy(network(_batch(step, drift=0.0)), LABELS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
    return network.train()  # as training may leave it: adaptation is evaluation nevertheless


def _batch(step: int, device: torch.device | str = "cpu", drift: float = 1.0) -> Tensor:
    """Images (B, 3, 8, 8) with a bright quadrant, which is the class, brighter and noisier with `drift`."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator) * (0.3 + 0.3 * drift) + 0.2 * drift
    half = SIDE // 2
    for row, label in enumerate(LABELS.tolist()):
        top, left = half * (label // 2), half * (label % 2)
        x[row, :, top : top + half, left : left + half] += 1
    return x.to(device)


def _same(first: Any, second: Any) -> bool:
    """Equality of nested dicts, lists and tensors, bit by bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return set(first) == set(second) and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second
