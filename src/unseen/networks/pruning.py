"""Pruning: which weights are set to zero, and keeping them there while the others train on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError

Masks = dict[str, Tensor]
"""Name of a weight -> bool tensor of its shape, True where it is kept."""
Criterion = Callable[[str, Tensor], Tensor]
"""(name, weight) -> scores of its shape; the lowest are pruned."""


def prunable(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Weights of linear and convolutional layers (attention's projections, too) by name; tied ones once.

    Biases, normalisation and embeddings are not among them. `exclude` are regular expressions; a name in which one
    is found is left out.
    """
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            if own.endswith("_orig") and hasattr(module, own.removesuffix("orig") + "mask"):
                raise InputError(
                    f"weight {name!r}",
                    "is reparametrized by torch.nn.utils.prune, and not zero where it is pruned",
                    "Call torch.nn.utils.prune.remove on it first.",
                )
            tied = any(parameter is other for other in found.values())
            if _is_matrix(module, own) and not tied and not any(re.search(e, name) for e in exclude):
                found[name] = parameter
    return found


def _is_matrix(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and name == "weight"


@dataclass(frozen=True)
class Pruner:
    """Chooses what is pruned: `Pruner()(network, 0.9)` gives the masks, the network stays as it is.

    scope      "global": the lowest scores of all weights together; "layer": of each weight by itself
    criterion  "magnitude", "random" (needs a generator) or a function of (name, weight)
    exclude    regular expressions of names that stay dense
    """

    scope: Literal["global", "layer"] = "global"
    criterion: Literal["magnitude", "random"] | Criterion = "magnitude"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("scope", self.scope, ("global", "layer")),
            ("criterion", self.criterion, ("magnitude", "random")),
        ):
            if not callable(value) and value not in known:
                raise InputError(f"{name} {value!r}", "is not known", f"Choose {known[0]} or {known[1]}.")

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        sparsity: float,
        *,
        masks: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Masks:
        """Masks with the share `sparsity` in [0, 1) pruned: exactly round(sparsity x weights), ties or not.

        `masks` are those of an earlier phase: what they prune stays pruned and counts.
        """
        check_sparsity(sparsity)
        weights = prunable(model, self.exclude)
        if not weights:
            raise InputError("the network", "has no weight that may be pruned", "Exclude less.")
        scores = {}
        for name, weight in weights.items():
            score = self._scores(name, weight.detach(), generator)
            if masks is not None:
                if name not in masks or masks[name].shape != weight.shape:
                    raise InputError(
                        f"masks of {name!r}", "are missing or of another shape", "Are they of this network?"
                    )
                score = score.masked_fill(~masks[name].to(score.device), -torch.inf)
            scores[name] = score
        if self.scope == "layer":
            return {
                name: _kept(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()
            }
        kept = _kept(torch.cat([score.flatten() for score in scores.values()]), sparsity)
        parts = kept.split([score.numel() for score in scores.values()])
        return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}

    def _scores(self, name: str, weight: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.criterion == "magnitude":
            score = weight.abs()
        elif self.criterion == "random":
            if generator is None:
                raise InputError("random pruning", "got no generator", "Give a seeded torch.Generator.")
            score = torch.rand(weight.shape, generator=generator).to(weight.device)
        else:
            score = self.criterion(name, weight)  # type: ignore[operator]
        if score.shape != weight.shape or score.isnan().any():
            problem = f"have shape {tuple(score.shape)} for a weight of {tuple(weight.shape)}, or are NaN"
            raise InputError(f"scores of {name!r}", problem, "Give a finite number a weight.")
        return score.float()


def _kept(scores: Tensor, sparsity: float) -> Tensor:
    pruned = round(sparsity * scores.numel())
    if pruned < int((scores == -torch.inf).sum()):
        raise InputError(
            "sparsity", f"is {sparsity}, less than that of the masks", "Prune more in each phase."
        )
    # counted, not cut at a threshold, which would prune all that are equal to it
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.topk(scores.numel() - pruned, sorted=False).indices] = True
    return kept


def check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise InputError("sparsity", f"is {sparsity}", "Give the share of pruned weights, from 0 to below 1.")


def sparsity_schedule(sparsity: float, phases: int) -> list[float]:
    """Sparsity after each of P phases that prune the same share of what is left: 1 - (1 - s)^(p / P)."""
    check_sparsity(sparsity)
    if phases < 1:
        raise InputError("phases", f"are {phases}", "Give a whole number from 1.")
    return [*(1 - (1 - sparsity) ** (p / phases) for p in range(1, phases)), sparsity]


@torch.no_grad()
def prune(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of `model` to zero."""
    for parameter, mask in _masked_parameters(model, masks):
        parameter.masked_fill_(~mask, 0)


@contextmanager
def apply_masks(
    model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
) -> Iterator[nn.Module]:
    """Within, pruned weights are zero and stay exactly zero, whatever trains the model in place.

    Their gradients are zeroed as they arise, so momentum, second moments and gradient norms do not see them, and
    weight decay has nothing to act on. An optimizer that has made steps before remembers: give it, and what it
    keeps of the pruned weights is zeroed, too.
    """
    masked = _masked_parameters(model, masks)
    prune(model, masks)
    for parameter, mask in masked:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~mask, 0)
        for value in optimizer.state.get(parameter, {}).values() if optimizer is not None else ():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                value.masked_fill_(~mask, 0)
    hooks = [mask_gradient(parameter, mask) for parameter, mask in masked]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def mask_gradient(parameter: Tensor, mask: Tensor) -> torch.utils.hooks.RemovableHandle:
    """Zero the gradient of `parameter` where `mask` is False, from now on until the handle is removed."""
    return parameter.register_hook(lambda gradient: gradient.masked_fill(~mask, 0))


def _masked_parameters(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    parameters = dict(model.named_parameters())
    found = []
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != mask.shape or mask.dtype != torch.bool:
            raise InputError(
                f"mask {name!r}", "fits no parameter of the network", "Give bool tensors of its shapes."
            )
        found.append((parameter, mask.to(parameter.device)))
    return found
