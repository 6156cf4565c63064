"""The contract of detectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.detection import Detector
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.networks.hypotheses import Hypotheses, SharedHeads
from unseen.registry import detectors
from unseen.shifts.preprocessing import Preprocessing
from unseen.testing.contract import Buildable, ContractReport, builder, close, equal, require, through_file
from unseen.training.data import network_outputs

FEATURES, CLASSES, PER_CLASS, SIDE = 8, 3, 40, 3


def check_detector(detector: Buildable | Detector, *, device: torch.device | str = "cpu") -> ContractReport:
    """Check that a detector keeps the contract of `unseen.detection.Detector`.

    detector  registered name or spec, a callable without arguments that gives a new detector, or a detector
    device    where the outputs are that it is fitted on and scores
    Raises `ContractError`.
    """
    build, report = _builder(detector)
    observer = build()
    train, familiar, unfamiliar = (
        _observed(observer, kind, device) if observer.observes else _outputs(kind, device)
        for kind in ("train", "familiar", "unfamiliar")
    )

    before = copy.deepcopy(train)
    fitted = build()
    require(fitted.fit(train) is fitted, report, "does not return itself from fit")
    unchanged = all(torch.equal(getattr(before, n), getattr(train, n)) for n in _TENSORS)
    require(unchanged, report, "changes the outputs that it is fitted on")
    report.passed.append("fit returns self")

    random, state = torch.get_rng_state(), copy.deepcopy(fitted.state_dict())
    scores = _scores(report, fitted, familiar, "familiar inputs")
    high, low = (
        float(scores.median()),
        float(_scores(report, fitted, unfamiliar, "unfamiliar inputs").median()),
    )
    require(
        high > low,
        report,
        f"scores unfamiliar inputs higher ({low:.4g}) than familiar ones ({high:.4g}): higher means more familiar",
    )
    report.passed.append("higher is more familiar")

    require(torch.equal(scores, fitted.score(familiar)), report, "gives other scores when asked again")
    require(equal(state, fitted.state_dict()), report, "changes its state when it scores")
    again = build().fit(train).score(familiar)
    require(
        torch.equal(scores, again), report, "gives other scores when it is fitted again on the same outputs"
    )
    require(torch.equal(random, torch.get_rng_state()), report, "uses torch's global random state")
    report.passed.append("same outputs, same scores")

    _is_independent_of_the_batch(report, fitted, familiar, scores)
    restored = build().restore(through_file(fitted.state_dict(), report)).score(familiar)
    require(
        torch.equal(scores, restored), report, "gives other scores when it is restored from its state_dict"
    )
    report.passed.append("exact restore")
    _takes_every_precision(report, build, train, familiar, scores)
    if fitted.state_dict():
        _refuses_nan(report, build().fit, train, "is fitted on")
    _refuses_nan(report, fitted.score, familiar, "scores")
    report.passed.append("NaN is refused")
    return report


_TENSORS = ("features", "logits", "labels")


def _builder(detector: Buildable | Detector) -> tuple[Callable[[], Detector], ContractReport]:
    if isinstance(detector, Detector):  # a module is callable, but calling it does not make another one
        return lambda: copy.deepcopy(detector), ContractReport(f"detector {type(detector).__name__!r}")
    return builder(detectors, detector)


def _outputs(kind: str, device: torch.device | str) -> Bank:
    """Well-trained outputs: one cluster a class along its axis, as the head's logits see it.

    Unfamiliar inputs lie between the classes and off the plane that they span.
    """
    generator = torch.Generator().manual_seed({"train": 0, "familiar": 1, "unfamiliar": 2}[kind])
    labels = torch.arange(CLASSES * PER_CLASS) % CLASSES
    features = 0.3 * torch.randn(len(labels), FEATURES, generator=generator)
    if kind == "unfamiliar":
        features[:, -1] += 3
    else:
        features[:, :CLASSES] += 3 * nn.functional.one_hot(labels, CLASSES)
    head = nn.utils.skip_init(nn.Linear, FEATURES, CLASSES)  # draws nothing from the global generator
    with torch.no_grad():
        head.weight.copy_(2 * torch.eye(CLASSES, FEATURES))
        head.bias.zero_()
    head, features = head.to(device), features.to(device)
    return Bank(features, head(features).detach(), labels.to(device), head=head)


def _observed(detector: Detector, kind: str, device: torch.device | str) -> Bank:
    """The same of a whole network, for detectors that keep more of a pass: it averages small images over places.

    Places of an image differ at random and every class's channel is active, save in unfamiliar ones. The network
    drops units in training and has three heads, so that detectors find whatever they look for.
    """
    features, labels = (getattr(_outputs(kind, "cpu"), name) for name in ("features", "labels"))
    generator = torch.Generator().manual_seed(3)
    images = features[:, :, None, None].expand(-1, -1, SIDE, SIDE).clone()
    if kind != "unfamiliar":
        images += torch.randn(images.shape, generator=generator)
        images[:, :CLASSES] += 1
    layers = [nn.utils.skip_init(nn.Conv2d, FEATURES, FEATURES, 1, bias=False) for _ in range(2)]
    with torch.random.fork_rng():
        head = SharedHeads(3, FEATURES, CLASSES)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.eye(FEATURES)[:, :, None, None])
        head.weights.copy_(torch.eye(CLASSES, FEATURES) * torch.tensor([1.0, 2.0, 3.0])[:, None, None])
        head.biases.zero_()
    featurizer = nn.Sequential(*layers, nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Hypotheses(featurizer, head).to(device)
    bank = network_outputs(network, Preprocessing(), images.to(device), device, observers=[detector])
    moved = {name: value.to(device) for name, value in bank.layers.items()}
    return replace(
        bank,
        features=bank.features.to(device),
        logits=bank.logits.to(device),
        labels=labels.to(device),
        layers=moved,
    )


def _scores(report: ContractReport, detector: Detector, bank: Bank, what: str) -> Tensor:
    scores = detector.score(bank)
    require(isinstance(scores, Tensor), report, f"gives {type(scores).__name__} instead of Tensor")
    shape = tuple(scores.shape)
    require(shape == (len(bank),), report, f"gives scores of shape {shape} for {len(bank)} {what}")
    require(scores.dtype == torch.float32, report, f"gives {scores.dtype} instead of float32 for {what}")
    require(scores.device == bank.logits.device, report, f"moves scores to {scores.device}")
    require(not scores.requires_grad, report, "gives scores that carry a gradient")
    require(bool(torch.isfinite(scores).all()), report, f"gives scores that are not finite for {what}")
    return scores


def _is_independent_of_the_batch(
    report: ContractReport, fitted: Detector, bank: Bank, scores: Tensor
) -> None:
    backwards = torch.arange(len(bank) - 1, -1, -1)
    for rows, what in ((backwards, "in another order"), (torch.arange(5), "in a smaller batch")):
        found = _scores(report, fitted, bank.take(rows), f"inputs {what}")
        close(found, scores[rows.to(scores.device)], report, f"gives other scores {what}")
    alone = _scores(report, fitted, bank.take(torch.tensor([7])), "an input alone")
    close(alone, scores[7:8], report, "gives another score to an input alone")
    _scores(report, fitted, bank.take(torch.arange(0)), "no inputs at all")
    report.passed.append("scores do not depend on the rest of the batch")


def _takes_every_precision(
    report: ContractReport, build: Callable[[], Detector], train: Bank, bank: Bank, scores: Tensor
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-3), (torch.float16, 5e-2)):
        if dtype == torch.float64 and scores.device.type == "mps":
            continue  # has no float64
        detector = build().fit(_cast(train, dtype))
        found = _scores(report, detector, _cast(bank, dtype), f"outputs in {dtype}")
        close(found, scores, report, f"gives other scores for outputs in {dtype}", tolerance)
    report.passed.append("float64 and float16")


def _cast(bank: Bank, dtype: torch.dtype) -> Bank:
    layers = {name: value.to(dtype) for name, value in bank.layers.items()}
    return replace(bank, features=bank.features.to(dtype), logits=bank.logits.to(dtype), layers=layers)


def _refuses_nan(report: ContractReport, act: Callable[[Bank], object], bank: Bank, what: str) -> None:
    features, logits = bank.features.clone(), bank.logits.clone()
    features[2, 0] = logits[2, 0] = float("nan")
    try:
        act(replace(bank, features=features, logits=logits))
    except InputError:
        return
    require(False, report, f"{what} NaN without an InputError: see unseen.detection.require_finite")
