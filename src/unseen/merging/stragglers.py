"""Layers that spoil the way from one model to another, and what to do about them with ID data alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from unseen.averaging import StateDict
from unseen.errors import InputError
from unseen.merging.checkpoints import check_same_tensors, open_checkpoint
from unseen.merging.curves import ALPHAS, Curve, interpolate, layerwise_curves, settled
from unseen.merging.sparsify import sparsify
from unseen.networks.parameter_groups import Groups, grouped

KEEPS = (1.0, 0.5, 0.3, 0.1, 0.0)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def straggler_layers(
    curves: Mapping[str, Curve],
    *,
    k: int | None = 1,
    anchor: Literal["a", "b"] = "b",
) -> list[str]:
    """Groups whose own way costs the most score, the worst first.

    curves  of `layerwise_curves` with the same anchor, over shares that include the anchor's end; of ID data,
            if what they are used for is to be judged on other data
    k       how many; None: those whose fall is above mean + one deviation of all falls, maybe none
    Source: reconstructed after Abdollahpourrostam et al. 2024, arXiv 2410.16476, section 3.
    """
    resting = 0.0 if anchor == "a" else 1.0
    falls = {}
    for group, curve in curves.items():
        if resting not in curve.alphas:
            raise InputError(
                f"curve of {group!r}", f"has no score at {resting:g}", "Measure the anchor's end."
            )
        falls[group] = curve.scores[curve.alphas.index(resting)] - min(curve.scores)
    order = sorted(falls, key=lambda group: -falls[group])
    if k is None:
        values = torch.tensor(list(falls.values()), dtype=torch.float64)
        limit = float(values.mean() + values.std(correction=0))
        return [group for group in order if falls[group] > limit]
    if not 1 <= k <= len(order):
        raise InputError("k", f"is {k} of {len(order)} groups", "Give a number of groups, or None.")
    return order[:k]


@torch.no_grad()
def sparsify_update(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    keep: float,
    *,
    layers: Sequence[str] | None = None,
    groups: Groups | None = None,
) -> StateDict:
    """b with only the share `keep` of b - a, the largest in magnitude, in each of the named groups (default all);
    the rest of them is a's.

    Counted over a group, not over each of its tensors. Batch statistics and what is no floating point are b's.
    """
    check_same_tensors([open_checkpoint(a, "state a"), open_checkpoint(b, "state b")])
    if not 0 <= keep <= 1:
        raise InputError("keep", f"is {keep}", "Give a share in [0, 1].")
    known = grouped(_weights(a), groups)
    result = {name: value.clone() for name, value in b.items()}
    for group in known if layers is None else layers:
        if group not in known:
            raise InputError(f"group {group!r}", "is not known", f"There is: {', '.join(known)}.")
        names = known[group]
        deltas = [(b[name] - a[name]).flatten() for name in names]
        kept = sparsify(torch.cat(deltas), "magnitude", density=keep)
        for name, part in zip(names, kept.split([len(delta) for delta in deltas]), strict=True):
            # b itself where it is kept: a + (b - a) is not b in floating point
            part = part.view(a[name].shape)
            result[name] = torch.where(part != 0, b[name], a[name])
    return result


@dataclass(frozen=True)
class Repair:
    """An interpolated state whose stragglers' update is sparse.

    scores  ID score at `alpha` by share kept; 1 is the plain interpolation
    """

    state: StateDict = field(repr=False)
    layers: tuple[str, ...]
    keep: float
    alpha: float
    scores: Mapping[float, float]
    curves: Mapping[str, Curve] = field(repr=False)


def repair_interpolation(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    evaluate_id: Callable[[StateDict], float],
    *,
    alpha: float = 0.5,
    keeps: Sequence[float] = KEEPS,
    tolerance: float = 0.005,
    k: int | None = 1,
    groups: Groups | None = None,
    alphas: Sequence[float] = ALPHAS,
    model: Any = None,
    batches: Any = None,
) -> Repair:
    """(1 - alpha) a + alpha b with a sparse update of the straggler layers, chosen by ID scores alone.

    Stragglers: the `k` groups whose way alone, the others at b, costs the most ID score. Of the shares `keeps`
    the sparsest is taken whose ID score at `alpha` is within `tolerance` of the best. `model` and `batches` as in
    `interpolation_curve`. Evaluations: groups x alphas + keeps.
    Source: reconstructed after Abdollahpourrostam et al. 2024, arXiv 2410.16476 (sparsity in straggler layers).
    """
    known = grouped(_weights(a), groups)
    group_of = {name: group for group, names in known.items() for name in names}
    curves = layerwise_curves(
        a,
        b,
        evaluate_id,
        alphas=alphas,
        groups=group_of.get,
        anchor="b",
        model=model,
        batches=batches,
    )
    layers = straggler_layers(curves, k=k)
    scores, states = {}, {}
    for keep in keeps:
        sparse = sparsify_update(a, b, keep, layers=layers, groups=groups)
        states[keep], scores[keep] = settled(interpolate(a, sparse, alpha), evaluate_id, model, batches)
    if not scores:
        raise InputError("keeps", "are none", "Give shares in [0, 1].")
    best = max(scores.values())
    keep = min(keep for keep, score in scores.items() if score >= best - tolerance)
    return Repair(states[keep], tuple(layers), keep, alpha, scores, curves)


def _weights(state: Mapping[str, Tensor]) -> list[str]:
    return [n for n, v in state.items() if v.is_floating_point() and not n.endswith(_STATISTICS)]
