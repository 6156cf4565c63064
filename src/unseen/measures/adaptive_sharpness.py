"""Sharpness relative to the size of the weights, of a whole network or of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unseen.errors import InputError
from unseen.measures.sharpness import Examples, parameters_restored
from unseen.networks.parameter_groups import Groups, grouped
from unseen.shifts.sampling import derive_seed

Loss = Callable[[Tensor, Tensor], Tensor]
SCALINGS = ("element", "layer", "none")


@dataclass(frozen=True)
class Sharpness:
    """Mean rise of the loss, its standard error (NaN of a single value), and the values that it is the mean of: one a
    sample of moved weights (average case), or one a batch (worst case)."""

    value: float
    error: float
    values: tuple[float, ...]


def sharpness(
    network: nn.Module,
    examples: Examples | Iterable[tuple[Any, Tensor]],
    rho: float,
    *,
    mode: Literal["average", "worst"] = "average",
    scaling: Literal["element", "layer", "none"] = "element",
    include: Callable[[str], bool] | None = None,
    loss: Loss = cross_entropy,
    logit_norm: float | None = 1.0,
    samples: int = 8,
    steps: int = 10,
    seed: int = 0,
) -> Sharpness:
    """How much the loss rises when trainable parameters w move by about `rho` times their scale c.

    average     mean over samples d ~ N(0, rho^2 c^2) of L(w + d) - L(w), on all examples
    worst       mean over batches of max L(w + d) - L(w) with |d| <= rho c in each entry: the best of `steps` steps
                of sign gradient ascent, so a lower bound, and never below 0
    scaling     c: "element" |w| of each entry, so that entries of 0 (pruned weights, fresh biases) do not move and
                rescaling a unit's inputs against its outputs changes nothing; "layer" the root mean square of
                the parameter; "none" 1
    include     which parameters move, by name; default all
    loss        mean over a batch, of (logits, labels)
    logit_norm  logits (..., C) are scaled to this length first, else confident networks are sharp; None: as they are
    seed        the draws of a parameter depend on the seed and its position alone: networks of one architecture
                and groups of parameters are compared under the same noise

    Raises `InputError` for a network in training mode (dropout and batch statistics would pass for sharpness) and
    examples that cannot be read twice or come in another order. Give batches to compare the same on all networks.
    Source: Andriushchenko et al. 2023, arXiv 2302.07011, equations 1 and 2.
    """
    _check(network, rho, mode, scaling, samples, steps, logit_norm)
    batches = list(repeatable(examples))
    moving = _moving(network, include)

    def mean_loss(part: Examples) -> Tensor:
        sums = []
        for x, y in part:
            logits = network(x)
            if logit_norm is not None:
                logits = logit_norm * logits / logits.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            sums.append(loss(logits, y) * len(y))
        return torch.stack(sums).sum() / sum(len(y) for _, y in part)

    with parameters_restored(network):
        scales = {index: _scale(parameter, scaling) for index, parameter in moving.items()}
        if mode == "worst":
            values = [_worst(mean_loss, [batch], moving, scales, rho, steps) for batch in batches]
        else:
            values = _average(mean_loss, batches, moving, scales, rho, samples, seed)
    found = torch.tensor(values, dtype=torch.float64)
    weights = torch.tensor([len(y) for _, y in batches] if mode == "worst" else [1] * samples).double()
    error = float(found.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return Sharpness(float((found * weights).sum() / weights.sum()), error, tuple(values))


def layerwise_sharpness(
    network: nn.Module,
    examples: Examples | Iterable[tuple[Any, Tensor]],
    rho: float,
    *,
    groups: Groups | None = None,
    **options: Any,
) -> dict[str, Sharpness]:
    """`sharpness` when only one group of parameters moves, by group; default by block of the names.

    options  of `sharpness`, but for `include`
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    found = {}
    for group, members in grouped(names, groups).items():
        found[group] = sharpness(network, examples, rho, include=set(members).__contains__, **options)
    return found


def repeatable(examples: Examples | Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
    """The batches; raises `InputError` when there are none or a second reading begins with other examples."""
    first = next(iter(examples), None)
    again = next(iter(examples), None)
    same = first is not None and again is not None and first[1].shape == again[1].shape
    if not same or not torch.equal(first[1], again[1]) or not _equal(first[0], again[0]):  # type: ignore[index]
        raise InputError(
            "examples",
            "are empty, can be read only once, or come in another order each time",
            "Give a list of batches, or a loader that does not shuffle.",
        )
    return iter(examples)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return torch.equal(a, b)


def _average(
    mean_loss: Callable[[Examples], Tensor],
    batches: Examples,
    moving: dict[int, nn.Parameter],
    scales: dict[int, Tensor],
    rho: float,
    samples: int,
    seed: int,
) -> list[float]:
    here = {index: parameter.detach().clone() for index, parameter in moving.items()}
    values = []
    with torch.no_grad():
        start = float(mean_loss(batches))
        for sample in range(samples):
            for index, parameter in moving.items():
                generator = torch.Generator().manual_seed(derive_seed(seed, sample, index))
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(here[index] + rho * scales[index] * noise)
            values.append(float(mean_loss(batches)) - start)
    return values


def _worst(
    mean_loss: Callable[[Examples], Tensor],
    batch: Examples,
    moving: dict[int, nn.Parameter],
    scales: dict[int, Tensor],
    rho: float,
    steps: int,
) -> float:
    here = {index: parameter.detach().clone() for index, parameter in moving.items()}
    losses = []
    for _ in range(steps):
        value = mean_loss(batch)
        losses.append(float(value.detach()))
        gradients = torch.autograd.grad(value, list(moving.values()), allow_unused=True)
        with torch.no_grad():
            for (index, parameter), gradient in zip(moving.items(), gradients, strict=True):
                if gradient is not None:
                    edge = rho * scales[index]
                    moved = parameter + 2 / steps * edge * gradient.sign()
                    parameter.copy_(moved.clamp(here[index] - edge, here[index] + edge))
    with torch.no_grad():
        losses.append(float(mean_loss(batch)))
        for index, parameter in moving.items():
            parameter.copy_(here[index])
    return max(losses) - losses[0]


def _scale(parameter: Tensor, scaling: str) -> Tensor:
    with torch.no_grad():
        if scaling == "element":
            return parameter.abs()
        if scaling == "layer":
            return parameter.square().mean().sqrt().expand_as(parameter).clone()
        return torch.ones_like(parameter)


def _moving(network: nn.Module, include: Callable[[str], bool] | None) -> dict[int, nn.Parameter]:
    found = {
        index: parameter
        for index, (name, parameter) in enumerate(network.named_parameters())
        if parameter.requires_grad and (include is None or include(name))
    }
    if not found:
        raise InputError("the network", "has no trainable parameter that is included", "Include some.")
    return found


def _check(
    network: nn.Module,
    rho: float,
    mode: str,
    scaling: str,
    samples: int,
    steps: int,
    logit_norm: float | None,
) -> None:
    if not rho > 0 or samples < 1 or steps < 1:
        raise InputError(
            f"rho {rho}, samples {samples}, steps {steps}", "are not positive", "Try 0.01, 8, 10."
        )
    if logit_norm is not None and not logit_norm > 0:
        raise InputError("logit_norm", f"is {logit_norm}", "Give a positive length, or None.")
    for name, value, known in (("mode", mode, ("average", "worst")), ("scaling", scaling, SCALINGS)):
        if value not in known:
            raise InputError(f"{name} {value!r}", "is not known", f"Choose one of {', '.join(known)}.")
    if any(module.training for module in network.modules()):
        raise InputError(
            "the network", "is in training mode, whose noise is no sharpness", "Call network.eval() first."
        )
