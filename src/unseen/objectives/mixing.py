"""Mixers: pure functions of a batch and a generator that give mixed inputs, soft targets and the share lambda.

One lambda a batch. Everything random is drawn from the given generator on its own device and then moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.objectives.targets import class_probabilities
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.shift import count_rows


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) cross-entropy -sum_k targets_k log softmax(logits)_k of each example; logits and targets (B, C)."""
    if logits.shape != targets.shape or not targets.is_floating_point():
        raise InputError(
            "soft targets",
            f"are {targets.dtype} of shape {tuple(targets.shape)} for logits of shape {tuple(logits.shape)}",
            "Give floating-point probabilities of the logits' shape.",
        )
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def beta_share(alpha: float, generator: torch.Generator) -> float:
    """lambda ~ Beta(alpha, alpha), in [0, 1]. Raises `InputError` unless alpha > 0."""
    check_alpha(alpha)
    # numpy's generator takes a seed, torch.distributions does not
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def draw_mixture(alpha: float, examples: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A lambda ~ Beta(alpha, alpha) as "share", float64 without dimensions, and a permutation (B,) as "partner"."""
    share = torch.tensor(beta_share(alpha, generator), dtype=torch.float64)
    return {"share": share, "partner": torch.randperm(examples, generator=generator, device=generator.device)}


def blend_with(x: Inputs, targets: Tensor, share: Tensor, partner: Tensor) -> tuple[Inputs, Tensor]:
    """Convex combinations of inputs (B, ...) and of targets (B, C) with those of their partners, as drawn."""

    def mixed(values: Tensor) -> Tensor:
        return share * values + (1 - share) * values[partner]

    return map_tensors(mixed, x), mixed(targets)


def mixup(
    x: Inputs, targets: Tensor, alpha: float, generator: torch.Generator, partner: Tensor | None = None
) -> tuple[Inputs, Tensor, float]:
    """Convex combinations of pairs (Zhang et al. 2018, arXiv 1710.09412): mixed inputs, soft targets, lambda.

    x        (B, ...) or a dict of such tensors
    targets  (B, C) probabilities
    partner  (B,) rows to mix with; None permutes the batch
    """
    return _mix_pairs(blend, x, targets, alpha, generator, partner)


def cutmix(
    x: Tensor, targets: Tensor, alpha: float, generator: torch.Generator, partner: Tensor | None = None
) -> tuple[Inputs, Tensor, float]:
    """A rectangle of a partner's image pasted in (Yun et al. 2019, arXiv 1905.04899); x (B, channels, H, W)."""
    return _mix_pairs(paste_rectangle, x, targets, alpha, generator, partner)


def masking(
    x: Inputs, targets: Tensor, alpha: float, generator: torch.Generator, partner: Tensor | None = None
) -> tuple[Inputs, Tensor, float]:
    """Random values taken from a partner: CutMix for tables (Kadra et al. 2021, arXiv 2106.11189); x (B, ...)."""
    return _mix_pairs(swap_values, x, targets, alpha, generator, partner)


def mix_outliers(
    x: Inputs,
    y: Tensor,
    outliers: Inputs,
    classes: int,
    *,
    mix: str = "mixup",
    alpha: float = 1.0,
    generator: torch.Generator,
) -> tuple[Inputs, Tensor, float]:
    """Examples mixed with outliers, whose target is uniform: steps 3 and 4 of MixOE (Zhang et al. 2023).

    x         (B, ...); a rectangle of the *outlier* is pasted into it by "cutmix", which reads images alone
    y         (B,) labels in [0, classes), or (B, C) probabilities
    outliers  (U, ...) with U >= B, of which the first B are mixed in, in their order
    mix       "mixup", "cutmix" or "masking"
    Returns mixed inputs, targets lambda y + (1 - lambda) / C (B, C), and lambda.
    Raises `InputError` for fewer outliers than examples, another shape, labels that are no classes, C < 2.
    """
    if mix not in MIXERS:
        raise InputError(f"mix {mix!r}", "is not known", nearest(mix, MIXERS))
    if classes < 2:
        raise InputError("classes", f"are {classes}", "Mixing towards uncertainty needs at least two.")
    if not y.is_floating_point() and len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise InputError(
            "labels",
            f"lie in {int(y.min())}..{int(y.max())}",
            f"Number them from 0 to {classes - 1}.",
        )
    count = len(y)
    if count_rows(outliers) < count:
        raise InputError(
            "outliers", f"are {count_rows(outliers)} for {count} examples", "Give at least as many outliers."
        )
    mixed, share = MIXERS[mix](
        x, map_tensors(lambda t: t[:count], outliers), beta_share(alpha, generator), generator
    )
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    return mixed, share * class_probabilities(y, classes, dtype) + (1 - share) / classes, share


def blend(first: Inputs, second: Inputs, share: float, generator: torch.Generator) -> tuple[Inputs, float]:
    """share * first + (1 - share) * second, and the share."""
    return _pairwise(lambda a, b: share * a + (1 - share) * b, first, second), share


def paste_rectangle(
    first: Inputs, second: Inputs, share: float, generator: torch.Generator
) -> tuple[Inputs, float]:
    """`first` with one rectangle of `second`, and the share of `first` that is left after clipping at the border.

    The rectangle has sides floor(H sqrt(1 - share)) and floor(W sqrt(1 - share)), halved and doubled as whole
    pixels, and a uniform centre.
    """
    if isinstance(first, dict) or first.dim() != 4:
        what = "a dict" if isinstance(first, dict) else f"of shape {tuple(first.shape)}"
        raise InputError("inputs of cutmix", f"are {what}", "Give images (B, channels, height, width).")
    sides = []
    for size in first.shape[2:]:
        half = int(size * (1 - share) ** 0.5) // 2
        centre = int(torch.randint(size, (1,), generator=generator, device=generator.device))
        sides.append(slice(max(centre - half, 0), min(centre + half, size)))
    rows, columns = sides

    def paste(image: Tensor, other: Tensor) -> Tensor:
        image = image.clone()
        image[:, :, rows, columns] = other[:, :, rows, columns]
        return image

    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return _pairwise(paste, first, second), 1 - area / (first.shape[2] * first.shape[3])


def swap_values(
    first: Inputs, second: Inputs, share: float, generator: torch.Generator
) -> tuple[Inputs, float]:
    """`first` with the same random values of all examples taken from `second`, and the share that is left.

    Each value stays with probability `share`.
    """
    if isinstance(first, dict):
        raise InputError("inputs of masking", "are a dict", "Give one tensor (B, ...).")
    kept = torch.rand(first.shape[1:], generator=generator, device=generator.device) < share
    mask = kept.to(first.device)
    return _pairwise(lambda a, b: torch.where(mask, a, b), first, second), float(kept.float().mean())


MIXERS: dict[str, Callable[..., tuple[Inputs, float]]] = {
    "mixup": blend,
    "cutmix": paste_rectangle,
    "masking": swap_values,
}


def cross_modal_mix(
    image_features: Tensor, text_features: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Unit images mixed with the text of their own label: lambda u + (1 - lambda) t, of unit norm; and lambda.

    image_features, text_features  (B, D) of unit norm; text row i describes the label of image i, which stays
    (LAPT: Zhang et al. 2024, arXiv 2407.08966, cross-modal mixing)
    """
    check_unit("image features", image_features)
    check_unit("text features", text_features)
    mixed, share = blend(image_features, text_features, beta_share(alpha, generator), generator)
    return nn.functional.normalize(mixed, dim=-1), share  # type: ignore[arg-type]


def cross_distribution_mix(
    features: Tensor,
    targets: Tensor,
    is_negative: Tensor,
    alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, float]:
    """Each feature mixed with a random one of the other kind: unit features, soft targets and lambda.

    features     (B, D) of unit norm, of ID classes and of negative labels
    targets      (B, C) probabilities over both kinds of classes
    is_negative  (B,) bool: whether the label is a negative one
    (LAPT: Zhang et al. 2024, arXiv 2407.08966, cross-distribution mixing)
    Raises `InputError` for a batch of one kind alone: there is nothing to mix with.
    """
    check_unit("features", features)
    if not is_negative.any() or is_negative.all():
        lacking = "negative" if not is_negative.any() else "ID"
        raise InputError("batch", f"has no {lacking} example", "Draw batches with both kinds of labels.")
    share = beta_share(alpha, generator)
    partner = random_partners(is_negative.unsqueeze(1) != is_negative, generator)
    mixed, soft, share = _mix_pairs_at(blend, features, targets, share, generator, partner)
    return nn.functional.normalize(mixed, dim=-1), soft, share  # type: ignore[arg-type]


def random_partners(admissible: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) for each row of `admissible` (B, B) one of its True columns, uniformly; itself if there is none."""
    keys = torch.rand(admissible.shape, generator=generator, device=generator.device).to(admissible.device)
    chosen = keys.masked_fill(~admissible, -1).argmax(1)
    itself = torch.arange(len(admissible), device=admissible.device)
    return torch.where(admissible.any(1), chosen, itself)


def joined(first: Any, second: Any) -> Any:
    """The examples of two inputs one after the other."""
    if isinstance(first, dict):
        return {key: joined(value, second[key]) for key, value in first.items()}
    return torch.cat([first, second])


def logits_of_both(model: Network, first: Inputs, second: Inputs, together: bool) -> tuple[Tensor, Tensor]:
    """Logits of two inputs, in one pass (`together`) or in two: batch normalisation sees both at once, or each."""
    if not together:
        return model(first), model(second)
    count = count_rows(first)
    logits = model(joined(first, second))
    return logits[:count], logits[count:]


def check_alpha(alpha: float) -> None:
    """Raise `InputError` unless alpha, the parameter of Beta(alpha, alpha), is finite and above 0."""
    if not 0 < alpha < float("inf"):
        raise InputError(
            "alpha", f"is {alpha}", "Give a positive number: lambda is drawn from Beta(alpha, alpha)."
        )


def check_unit(what: str, features: Tensor) -> None:
    """Raise `InputError` unless every row of `features` (B, D) has norm one, up to rounding of half precision."""
    norms = features.detach().float().norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-2):
        raise InputError(
            what, f"have norms from {norms.min():.3g} to {norms.max():.3g}", "Divide each row by its norm."
        )


def _mix_pairs(
    mixer: Callable[..., tuple[Inputs, float]],
    x: Inputs,
    targets: Tensor,
    alpha: float,
    generator: torch.Generator,
    partner: Tensor | None,
) -> tuple[Inputs, Tensor, float]:
    share = beta_share(alpha, generator)
    if partner is None:
        partner = torch.randperm(len(targets), generator=generator, device=generator.device)
    return _mix_pairs_at(mixer, x, targets, share, generator, partner.to(targets.device))


def _mix_pairs_at(
    mixer: Callable[..., tuple[Inputs, float]],
    x: Inputs,
    targets: Tensor,
    share: float,
    generator: torch.Generator,
    partner: Tensor,
) -> tuple[Inputs, Tensor, float]:
    mixed, share = mixer(x, map_tensors(lambda t: t[partner], x), share, generator)
    return mixed, share * targets + (1 - share) * targets[partner], share


def _pairwise(function: Callable[[Tensor, Tensor], Tensor], first: Any, second: Any) -> Any:
    """`function` of each pair of tensors of two inputs alike. Raises `InputError` for examples of other shapes."""
    if isinstance(first, dict):
        if not isinstance(second, dict) or first.keys() != second.keys():
            raise InputError("inputs to mix", "have other parts", f"Give both {', '.join(first)}.")
        return {key: _pairwise(function, value, second[key]) for key, value in first.items()}
    if first.shape != second.shape:
        raise InputError(
            "inputs to mix",
            f"have shapes {tuple(first.shape)} and {tuple(second.shape)}",
            "Bring them to one shape.",
        )
    return function(first, second)
