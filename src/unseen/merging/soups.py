"""Soups whose ingredients are chosen, or mixed, by a score on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unseen.averaging import RunningMean, StateDict
from unseen.errors import InputError
from unseen.merging.checkpoints import Checkpoint, check_same_tensors, open_checkpoint
from unseen.merging.memory import Source

Evaluate = Callable[[StateDict], float]
"""Score of a state on held-out data; higher is better. Load it into the network, recompute batch statistics."""


@dataclass(frozen=True)
class Soup:
    """The mean, which models are in it, and every score that was measured on the way."""

    state: StateDict
    members: tuple[int, ...]
    scores: tuple[float, ...]
    """Of each model by itself, in the order given."""
    score: float
    """Of the soup."""
    path: tuple[tuple[int, float, bool], ...] = field(default=(), repr=False)
    """(model tried, score of the soup with it, whether it stayed)."""


@dataclass(frozen=True)
class MixedSoup:
    """The mixture, the share of each model (of each layer, when learned by layer), the score after each step."""

    state: StateDict
    shares: Mapping[str, tuple[float, ...]]
    scores: tuple[float, ...]


@torch.no_grad()
def greedy_soup(
    models: Sequence[Source], evaluate: Evaluate, *, scores: Sequence[float] | None = None
) -> Soup:
    """Greedy soup (Wortsman et al. 2022, arXiv 2203.05482, recipe 1).

    Models in falling order of their held-out score; one is added if the mean's score does not fall. `scores`,
    if known, spare the first evaluations: then K - 1 are made of K models, else 2 K - 1. Beside the models two
    states are in memory; paths are read when it is their turn. Raises `InputError` for a score that is NaN.
    """
    opened = _open(models)
    if scores is None:
        scores = [float(evaluate(_state(model))) for model in opened]
    elif len(scores) != len(opened):
        raise InputError("scores", f"has {len(scores)} for {len(opened)} models", "Give one a model.")
    for model, score in zip(opened, scores, strict=True):
        if math.isnan(score):
            raise InputError(f"score of {model.label}", "is NaN", "Leave the model out.")
    order = sorted(range(len(opened)), key=lambda index: -scores[index])
    mean, best = RunningMean(), float(scores[order[0]])
    mean.add(_state(opened[order[0]]))
    members, path = [order[0]], []
    for index in order[1:]:
        candidate = RunningMean()
        candidate.add(mean.mean, mean.count)
        candidate.add(_state(opened[index]))
        score = float(evaluate(candidate.mean))
        path.append((index, score, score >= best))
        if score >= best:
            mean, best = candidate, score
            members.append(index)
    return Soup(mean.mean, tuple(members), tuple(float(s) for s in scores), best, tuple(path))


def learned_soup(
    models: Sequence[Source],
    evaluate: Callable[[StateDict], Tensor],
    *,
    steps: int = 50,
    learning_rate: float = 0.1,
    groups: Callable[[str], str] | None = None,
) -> MixedSoup:
    """Learned soup (Wortsman et al. 2022, arXiv 2203.05482): shares on the simplex by gradient ascent.

    evaluate  a differentiable score (minus a loss, say, through torch.func.functional_call); higher is better
    groups    the group of a tensor's name: each group has shares of its own; default one for all

    Shares are a softmax, start equal and follow AdamW; the best step's mixture is returned. All models are in
    memory, and one mixture beside them.
    """
    states = [_state(model) for model in _open(models)]
    names = list(states[0])
    group_of = {name: groups(name) if groups else "all" for name in names}
    logits = {
        group: torch.zeros(len(states), requires_grad=True) for group in dict.fromkeys(group_of.values())
    }
    optimizer = torch.optim.AdamW(logits.values(), lr=learning_rate, weight_decay=0.0)
    best: tuple[float, dict[str, Tensor]] | None = None
    scores = []
    for _ in range(steps):
        score = evaluate(_mix(states, group_of, logits))
        if not isinstance(score, Tensor) or not score.requires_grad:
            raise InputError("evaluate", "gives a score without gradient", "Use greedy_soup, or a loss.")
        scores.append(float(score.detach()))
        if best is None or scores[-1] > best[0]:
            best = scores[-1], {group: value.detach().clone() for group, value in logits.items()}
        optimizer.zero_grad()
        (-score).backward()
        optimizer.step()
    if best is None:
        raise InputError("steps", f"is {steps}", "Give a whole number from 1.")
    shares = {group: tuple(value.softmax(0).tolist()) for group, value in best[1].items()}
    with torch.no_grad():
        return MixedSoup(_mix(states, group_of, best[1]), shares, tuple(scores))


def _mix(states: Sequence[StateDict], group_of: Mapping[str, str], logits: Mapping[str, Tensor]) -> StateDict:
    shares = {group: value.softmax(0) for group, value in logits.items()}
    mixed = {}
    for name, value in states[0].items():
        if value.is_floating_point():
            share = shares[group_of[name]].to(value.device, value.dtype)
            mixed[name] = sum(s * state[name] for s, state in zip(share, states, strict=True))
        else:
            mixed[name] = value
    return mixed  # type: ignore[return-value]


def _open(models: Iterable[Source]) -> list[Checkpoint]:
    opened = [open_checkpoint(model, f"model {index}") for index, model in enumerate(models)]
    if not opened:
        raise InputError("models", "are none", "Give one or more.")
    check_same_tensors(opened)
    return opened


def _state(model: Checkpoint) -> StateDict:
    return {name: model.read(name) for name in model.tensors}
