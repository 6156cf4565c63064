"""Scores along the way from one model to another: curves, barriers, gains, layer by layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unseen.averaging import StateDict, estimate_batch_statistics, has_batch_statistics, snapshot
from unseen.errors import InputError, UnseenWarning, nearest
from unseen.merging.base import check_share
from unseen.merging.checkpoints import check_same_tensors, open_checkpoint
from unseen.networks.parameter_groups import Groups, grouped

ALPHAS = tuple(index / 10 for index in range(11))


@dataclass(frozen=True)
class Curve:
    """Scores (higher is better) at the shares `alphas` of the way."""

    alphas: tuple[float, ...]
    scores: tuple[float, ...]

    def barrier(self) -> float:
        """Largest fall of the score below the straight line between the ends, at least 0 (arXiv 2110.06296)."""
        return max(0.0, *(line - score for line, score in zip(self._line(), self.scores, strict=True)))

    def gain(self, alpha: float | None = None) -> float:
        """Score at the share `alpha`, by default the best of all, minus that of the better end."""
        score = max(self.scores) if alpha is None else self.scores[self._index(alpha)]
        return score - max(self.scores[self._first], self.scores[self._last])

    def fails(self) -> bool:
        """Whether the way is in vain: every score between the ends is below that of the better end."""
        between = [alpha for alpha in self.alphas if 0 < alpha < 1]
        return bool(between) and all(self.gain(alpha) < 0 for alpha in between)

    def best(self) -> float:
        """The share with the best score; the smallest of several."""
        return min(self.alphas, key=lambda a: (-self.scores[self.alphas.index(a)], a))

    def _line(self) -> list[float]:
        low, high = self.scores[self._first], self.scores[self._last]
        return [(1 - alpha) * low + alpha * high for alpha in self.alphas]

    @property
    def _first(self) -> int:
        return self._index(0.0)

    @property
    def _last(self) -> int:
        return self._index(1.0)

    def _index(self, alpha: float) -> int:
        if alpha not in self.alphas:
            raise InputError("curve", f"has no score at {alpha:g}", "Measure both ends.")
        return self.alphas.index(alpha)


@torch.no_grad()
def interpolate(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    alpha: float | Mapping[str, float],
    *,
    extrapolate: bool = False,
    into: StateDict | None = None,
) -> StateDict:
    """(1 - alpha) a + alpha b; `alpha` is one share, or one for each name (absent: 0).

    What is not floating point is a's. `into`, a state of the same form, is overwritten and returned.
    Raises `InputError` for states of other names or shapes, a share of a name that there is not, and one outside
    [0, 1] unless `extrapolate`.
    """
    check_same_tensors([open_checkpoint(a, "state a"), open_checkpoint(b, "state b")])
    shares = alpha if isinstance(alpha, Mapping) else dict.fromkeys(a, alpha)
    for name in shares:
        if name not in a:
            raise InputError(f"alpha of {name!r}", "is of no tensor", nearest(name, a))
    for share in set(shares.values()):
        check_share("alpha", share, extrapolate)
    if into is None:
        into = {name: torch.empty_like(value) for name, value in a.items()}
    for name, value in a.items():
        share = shares.get(name, 0.0)
        if share and value.is_floating_point():
            torch.lerp(value, b[name].to(value), share, out=into[name])
        else:
            into[name].copy_(value)
    return into


def interpolation_curve(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    evaluate: Callable[[StateDict], float],
    *,
    alphas: Sequence[float] = ALPHAS,
    extrapolate: bool = False,
    model: nn.Module | None = None,
    batches: Callable[[], Iterable[Any]] | None = None,
) -> Curve:
    """Score of (1 - alpha) a + alpha b at each share (WiSE-FT, arXiv 2109.01903; mode connectivity).

    One evaluation a share, and one state beside a and b, which every share overwrites: copy what you keep.
    Averaged weights have other batch statistics: with `model` and `batches` (its inputs) they are estimated
    anew at each share, the ends included, in the model, whose state is then what is evaluated and, at the end,
    what it was before.
    """
    _check(a, b, alphas, model, batches)
    buffer: StateDict = {}
    scores = []
    with _restored(model):
        for alpha in alphas:
            state = interpolate(a, b, alpha, extrapolate=extrapolate, into=buffer or None)
            buffer = state
            scores.append(_score(evaluate, _with_statistics(state, model, batches), alpha))
    return Curve(tuple(float(alpha) for alpha in alphas), tuple(scores))


def layerwise_curves(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    evaluate: Callable[[StateDict], float],
    *,
    alphas: Sequence[float] = ALPHAS,
    groups: Groups | None = None,
    anchor: str = "a",
    model: nn.Module | None = None,
    batches: Callable[[], Iterable[Any]] | None = None,
) -> dict[str, Curve]:
    """A curve for each group of tensors: only that group moves from a to b, the others stay at `anchor`.

    groups  the group of a tensor's name, or regular expressions by group; default the module that holds it. What is
            in no group rests.
    anchor  "a" or "b"

    Evaluations: groups x alphas.
    """
    if anchor not in ("a", "b"):
        raise InputError("anchor", f"is {anchor!r}", "Give 'a' or 'b'.")
    _check(a, b, alphas, model, batches)
    members = grouped(a, groups or (lambda name: name.rpartition(".")[0]))
    resting = 0.0 if anchor == "a" else 1.0
    buffer: StateDict | None = None
    curves = {}
    with _restored(model):
        for group, names in members.items():
            scores = []
            moving = set(names)
            for alpha in alphas:
                shares = {name: alpha if name in moving else resting for name in a}
                buffer = interpolate(a, b, shares, into=buffer)
                scores.append(_score(evaluate, _with_statistics(buffer, model, batches), alpha))
            curves[group] = Curve(tuple(alphas), tuple(scores))
    return curves


def _check(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], alphas: Sequence[float], model: Any, batches: Any
) -> None:
    if not len(alphas):
        raise InputError("alphas", "are none", "Give shares in [0, 1].")
    check_same_tensors([open_checkpoint(a, "state a"), open_checkpoint(b, "state b")])
    if (model is None) != (batches is None):
        raise InputError("model and batches", "come together", "Give both, or neither.")
    if model is None and any(name.endswith("running_mean") for name in a):
        warnings.warn(
            "the states have batch statistics, which are wrong between the ends: give model and batches",
            UnseenWarning,
            stacklevel=3,
        )


def _score(evaluate: Callable[[StateDict], float], state: StateDict, alpha: float) -> float:
    score = float(evaluate(state))
    if math.isnan(score):
        raise InputError(f"score at {alpha:g}", "is NaN", "Look at the states, or at what scores them.")
    return score


def _with_statistics(state: StateDict, model: nn.Module | None, batches: Any) -> StateDict:
    if model is None:
        return state
    model.load_state_dict(state)
    if has_batch_statistics(model):
        estimate_batch_statistics(model, batches)
    return model.state_dict()


def settled(
    state: StateDict, evaluate: Callable[[StateDict], float], model: nn.Module | None, batches: Any
) -> tuple[StateDict, float]:
    """A copy of the state, with batch statistics estimated anew if a model is given, and its score."""
    with _restored(model):
        ready = {name: value.clone() for name, value in _with_statistics(state, model, batches).items()}
        return ready, float(evaluate(ready))


class _restored:
    """Within, the model's state may change."""

    def __init__(self, model: nn.Module | None):
        self._model = model

    def __enter__(self) -> None:
        self._before = None if self._model is None else snapshot(self._model)

    def __exit__(self, *_: object) -> None:
        if self._model is not None and self._before is not None:
            self._model.load_state_dict(self._before)
