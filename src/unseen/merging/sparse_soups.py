"""Sparse model soups: prune, train copies under one mask, average them, prune the average further."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.averaging import StateDict, estimate_batch_statistics, has_batch_statistics, snapshot
from unseen.errors import InputError
from unseen.merging.base import Method
from unseen.merging.checkpoints import check_same_tensors, open_checkpoint
from unseen.merging.geometry import compare
from unseen.merging.memory import merge_opened
from unseen.merging.soups import greedy_soup
from unseen.networks.pruning import (
    Masks,
    Pruner,
    apply_masks,
    check_sparsity,
    prunable,
    prune,
    sparsity_schedule,
)

Train = Callable[[nn.Module, Mapping[str, Any]], nn.Module]
"""(network, setting) -> the network trained further, itself or another of its form. Pruned weights of the network
that is given stay zero while it is called."""


@dataclass(frozen=True)
class PhaseRecord:
    """What one phase came to.

    pruned_norm  norm of what was pruned, as a share of the norm of all weights before, in [0, 1]
    distance     mean distance of the members' kept weights to their mean; 0 of a single member
    angle        mean angle between what two members learned since they were pruned, in degrees; 0 of one
    scores       of each member, if there is an `evaluate`
    chosen       the members that are averaged
    score        of the average, if there is an `evaluate`
    """

    sparsity: float
    pruned_norm: float
    settings: tuple[Mapping[str, Any], ...]
    distance: float
    angle: float
    scores: tuple[float, ...] | None
    chosen: tuple[int, ...]
    score: float | None


@dataclass(frozen=True)
class SparseResult:
    """The network, which weights it has, the phases, and the last phase's members (states)."""

    model: nn.Module
    masks: Masks
    history: tuple[PhaseRecord, ...]
    members: tuple[StateDict, ...] = field(repr=False)


@dataclass(frozen=True)
class SparseSoup:
    """Sparse model soups (Zimmer, Spiegel and Pokutta 2024, arXiv 2306.16788, algorithm 1).

    train        trains one member, see `Train`. A setting has a value of each entry of `vary`, and "phase" (from 0)
                 and "pruned_norm" of the phase. `unseen.training.retraining.retrainer` is one for learners.
    sparsity     share of weights that are zero in the end, in [0, 1)
    phases       in how many steps; each prunes the same share of what is left
    vary         what tells the members apart, one value a member: {"seed": (0, 1, 2), "weight_decay": ...}; one
                 value each is iterative magnitude pruning
    merge        "uniform", or "greedy" (needs `evaluate`): in falling order of scores, a member is added when the
                 score does not fall
    evaluate     score of a network on ID validation data, higher is better
    recalibrate  gives batches of training inputs: batch statistics of the average are estimated anew from them.
                 Needed by networks that have some.
    average      "every" phase; or the "last" alone: the earlier ones train the first member only
    reprune      members may come back with other zeros: their average is pruned again to the phase's sparsity
    """

    train: Train
    sparsity: float
    phases: int = 1
    vary: Mapping[str, Sequence[Any]] = field(default_factory=lambda: {"seed": (0, 1, 2)})
    pruner: Pruner = Pruner()
    merge: Literal["uniform", "greedy"] = "uniform"
    evaluate: Callable[[nn.Module], float] | None = None
    recalibrate: Callable[[], Iterable[Any]] | None = None
    average: Literal["every", "last"] = "every"
    reprune: bool = False

    def __post_init__(self) -> None:
        sparsity_schedule(self.sparsity, self.phases)
        for name, value, known in (
            ("merge", self.merge, ("uniform", "greedy")),
            ("average", self.average, ("every", "last")),
        ):
            if value not in known:
                raise InputError(f"{name} {value!r}", "is not known", f"Choose {known[0]} or {known[1]}.")
        if len({len(values) for values in self.vary.values()}) != 1 or not self.settings:
            counts = ", ".join(f"{name!r} {len(values)}" for name, values in self.vary.items()) or "nothing"
            raise InputError("vary", f"has {counts}", "Give one value a member to each, such as seeds.")
        if self.merge == "greedy" and self.evaluate is None:
            raise InputError("greedy merging", "has no evaluate", "Give a score on validation data.")

    @property
    def settings(self) -> list[dict[str, Any]]:
        """One a member."""
        return [dict(zip(self.vary, values, strict=True)) for values in zip(*self.vary.values(), strict=True)]

    def run(self, model: nn.Module, *, generator: torch.Generator | None = None) -> SparseResult:
        """Prune a trained network; `model` stays as it is. `generator` is for random pruning."""
        if has_batch_statistics(model) and self.recalibrate is None:
            raise InputError(
                "recalibrate",
                "is missing, but the network has batch statistics",
                "Give batches of training inputs.",
            )
        prunable(model)  # torch's reparametrized weights are refused before a copy of them fails
        model, masks, history = copy.deepcopy(model), None, []
        states: list[StateDict] = []
        for phase, sparsity in enumerate(sparsity_schedule(self.sparsity, self.phases)):
            masks = self.pruner(model, sparsity, masks=masks, generator=generator)
            pruned_norm = _pruned_norm(model, masks)
            prune(model, masks)
            start = snapshot(model)
            alone = self.average == "last" and phase < self.phases - 1
            settings = self.settings[:1] if alone else self.settings
            given = [{**each, "phase": phase, "pruned_norm": pruned_norm} for each in settings]
            states = [self._member(model, start, masks, setting) for setting in given]
            scores, chosen, state = self._merged(model, states)
            model.load_state_dict(state)
            if self.reprune:
                masks = self.pruner(model, sparsity, generator=generator)
                prune(model, masks)
            self._settle(model)
            distance, angle = candidate_geometry(states, masks, base=start)
            history.append(
                PhaseRecord(
                    sparsity=sparsity,
                    pruned_norm=pruned_norm,
                    settings=tuple(settings),
                    distance=distance,
                    angle=angle,
                    scores=scores,
                    chosen=chosen,
                    score=None if self.evaluate is None else float(self.evaluate(model)),
                )
            )
        assert masks is not None
        return SparseResult(model, masks, tuple(history), tuple(states))

    def _member(
        self, model: nn.Module, start: StateDict, masks: Masks, setting: Mapping[str, Any]
    ) -> StateDict:
        model.load_state_dict(start)
        with apply_masks(model, masks):
            trained = self.train(model, setting)
        if not isinstance(trained, nn.Module):
            raise InputError("train", f"gives a {type(trained).__name__}", "Return the trained network.")
        state = snapshot(trained)
        check_same_tensors([open_checkpoint(start, "the network"), open_checkpoint(state, "the trained one")])
        if not self.reprune:
            check_zeros(state, masks, f"the member of {setting}")
        return state

    def _merged(
        self, model: nn.Module, states: list[StateDict]
    ) -> tuple[tuple[float, ...] | None, tuple[int, ...], StateDict]:
        everyone = tuple(range(len(states)))
        if self.evaluate is None:
            return None, everyone, _mean(states)
        evaluate = self.evaluate

        def score(state: StateDict) -> float:
            model.load_state_dict(state)
            self._settle(model)
            return float(evaluate(model))

        scores = [score(state) for state in states]
        if self.merge == "uniform":
            return tuple(scores), everyone, _mean(states)
        soup = greedy_soup(states, score, scores=scores)
        return tuple(scores), soup.members, soup.state

    def _settle(self, model: nn.Module) -> None:
        if has_batch_statistics(model):
            assert self.recalibrate is not None
            estimate_batch_statistics(model, self.recalibrate)


def adaptive_rate(pruned_norm: float, pruned_share: float, training_share: float) -> float:
    """Where retraining's linear decay begins, as a share in (0, 1] of the largest rate of dense training (ALLR).

    max(r / sqrt(q), E / T), at most 1: what pruning took from the weights' norm, or how long retraining is.

    pruned_norm     r of the phase, as a setting and `PhaseRecord` have it
    pruned_share    q, the share of the remaining weights that the phase prunes, in (0, 1]: 1 - (1 - s)^(1 / P)
    training_share  E / T, epochs of retraining for each of dense training, > 0
    Zimmer, Spiegel and Pokutta 2023, arXiv 2111.00843.
    """
    if not (0 <= pruned_norm <= 1 and 0 < pruned_share <= 1 and training_share > 0):
        raise InputError(
            "pruned_norm, pruned_share, training_share",
            f"are {pruned_norm}, {pruned_share}, {training_share}",
            "Give numbers in [0, 1], (0, 1] and above 0.",
        )
    return min(1.0, max(pruned_norm / pruned_share**0.5, training_share))


def check_zeros(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], label: str = "the state") -> None:
    """Raise `InputError` unless every weight that the masks prune is zero: only then a mean is as sparse."""
    for name, mask in masks.items():
        moved = int((state[name][~mask.to(state[name].device)] != 0).sum())
        if moved:
            raise InputError(
                label,
                f"has {moved} pruned entries of {name!r} that are not zero",
                "Train the network that is given, or keep its zeros; with reprune=True the average is pruned again.",
            )


@torch.no_grad()
def candidate_geometry(
    states: Sequence[StateDict], masks: Mapping[str, Tensor], *, base: StateDict
) -> tuple[float, float]:
    """Mean distance of states to their mean, and mean angle (degrees) between two of them seen from `base`.

    Over the weights that have masks. (0, 0) for a single state.
    """
    if len(states) < 2:
        return 0.0, 0.0
    weights = [{name: state[name] for name in masks} for state in states]
    distance = compare([*weights, _mean(weights)]).distance[-1, :-1].mean()
    angles = compare(weights, base={name: base[name] for name in masks}).angle
    rows, columns = torch.triu_indices(len(states), len(states), offset=1)
    return float(distance), float(angles[rows, columns].mean())


@torch.no_grad()
def reprune(
    models: Sequence[nn.Module], sparsity: float, *, pruner: Pruner = Pruner()
) -> tuple[StateDict, Masks]:
    """Mean of models with different zeros, pruned again to `sparsity`: the baseline IMP-RePrune.

    Batch statistics are the models' mean: estimate them anew.
    """
    check_sparsity(sparsity)
    if not models:
        raise InputError("models", "are none", "Give one or more.")
    mean = copy.deepcopy(models[0])
    mean.load_state_dict(_mean([model.state_dict() for model in models]))
    masks = pruner(mean, sparsity)
    prune(mean, masks)
    return snapshot(mean), masks


def _mean(states: Sequence[Mapping[str, Tensor]]) -> StateDict:
    opened = [open_checkpoint(state, f"member {index}") for index, state in enumerate(states)]
    return merge_opened(Method.of("uniform_soup"), opened)


def _pruned_norm(model: nn.Module, masks: Masks) -> float:
    weights = prunable(model)
    total = sum(float(weights[name].detach().double().square().sum()) for name in masks)
    kept = sum(float(weights[name].detach().double()[mask].square().sum()) for name, mask in masks.items())
    return (max(0.0, 1 - kept / total) ** 0.5) if total else 0.0
