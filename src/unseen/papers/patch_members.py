"""Ensembles whose members see different patches of the same digits: many small perceptrons trained as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.measures.ensemble_outcomes import EnsembleOutcomes, ensemble_outcomes
from unseen.papers.bang import BROKEN, COUNTS
from unseen.shifts.builtin.patched_digits import PIXELS, patched_digits
from unseen.shifts.sampling import derive_seed

PATCHES = 32
CLASSES, HIDDEN, BATCH, EPOCHS = 10, 32, 64, 10


@dataclass(frozen=True)
class Judged:
    """Logits (M, N, C) of M members on the same test digits at each probability, and the labels (N,)."""

    logits: dict[float, Tensor]
    labels: Tensor

    def accuracy(self, members: Sequence[int], broken: float) -> float:
        """Of the mean of the members' logits."""
        return float((self._classes(members, broken) == self.labels).double().mean())

    def outcomes(self, a: int, b: int, broken: float) -> EnsembleOutcomes:
        first, second, both = (self._classes(members, broken) for members in ([a], [b], [a, b]))
        return ensemble_outcomes(first, second, both, self.labels)

    def _classes(self, members: Sequence[int], broken: float) -> Tensor:
        return self.logits[broken][list(members)].mean(0).argmax(1)


def judged_members(
    seen: Sequence[Sequence[int]], seed: int, *, noise: float, patches: int = PATCHES, epochs: int = EPOCHS
) -> Judged:
    """Train a member for each list of patches in `seen` and judge all of them where patches are broken.

    Members differ in initial weights and in the order of examples. 160-32-10 perceptrons, Adam at 3e-3.
    """
    shift = patched_digits(broken=(0.0, *BROKEN), patches=patches, noise=noise, seed=seed)
    mask = torch.zeros(len(seen), 1, PIXELS + 3 * patches)
    mask[:, :, :PIXELS] = 1
    for member, columns in enumerate(seen):
        for patch in columns:
            mask[member, :, PIXELS + 3 * patch : PIXELS + 3 * patch + 3] = 1
    train = (shift.domain == 0).nonzero().squeeze(1)
    x, y = shift.inputs[train], shift.labels[train]
    weights = _initial(len(seen), x.shape[1], torch.Generator().manual_seed(derive_seed(seed, 1)))
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    for _ in range(epochs):
        order = torch.rand(len(seen), len(x), generator=generator).argsort(1)
        for rows in order.split(BATCH, 1):
            logits = _logits(weights, x[rows] * mask)
            # a sum over members: each has the gradient of its own mean loss
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), y[rows].flatten(), reduction="sum")
            optimizer.zero_grad()
            (loss / rows.shape[1]).backward()
            optimizer.step()
    found = {}
    with torch.no_grad():
        for index, probability in enumerate(BROKEN, start=1):
            found[probability] = _logits(weights, shift.inputs[shift.domain == index] * mask)
    return Judged(found, shift.labels[shift.domain == 1])


def _initial(members: int, inputs: int, generator: torch.Generator) -> list[Tensor]:
    """Weights and biases of M perceptrons, uniform as in `nn.Linear`."""
    shapes = {
        (members, inputs, HIDDEN): inputs,
        (members, 1, HIDDEN): inputs,
        (members, HIDDEN, CLASSES): HIDDEN,
        (members, 1, CLASSES): HIDDEN,
    }
    drawn = [(2 * torch.rand(shape, generator=generator) - 1) / fan**0.5 for shape, fan in shapes.items()]
    return [weight.requires_grad_() for weight in drawn]


def _logits(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    first, offset, second, last = weights
    return torch.baddbmm(last, torch.baddbmm(offset, x, first).relu(), second)


def patch_metrics(seed: int, *, noise: float, epochs: int = EPOCHS) -> dict[tuple[str, str], float]:
    """(condition, metric) -> value for all k: members of disjoint patches, their ensembles, and what is beside."""
    order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(derive_seed(seed, 3))).tolist()
    seen: list[list[int]] = []
    places: dict[tuple[int, str], list[int]] = {}

    def place(k: int, what: str, *members: list[int]) -> None:
        places[k, what] = list(range(len(seen), len(seen) + len(members)))
        seen.extend(members)

    for k in COUNTS:
        place(k, "first", order[:k])
        place(k, "again", order[:k])  # the same patches, other weights and order
        if 2 * k <= PATCHES:
            place(k, "second", order[k : 2 * k])
            place(k, "union", order[: 2 * k])
        if 4 * k <= PATCHES:
            place(k, "further", order[2 * k : 3 * k], order[3 * k : 4 * k])
    judged = judged_members(seen, seed, noise=noise, epochs=epochs)
    found: dict[tuple[str, str], float] = {}
    for k in COUNTS:
        (one,), (again,) = places[k, "first"], places[k, "again"]
        other = places.get((k, "second"), [again])[0]
        for p in BROKEN:
            at = f"k={k}, p={p:g}"
            found["member", at] = (judged.accuracy([one], p) + judged.accuracy([other], p)) / 2
            found["same patches", f"gain, {at}"] = judged.outcomes(one, again, p).gain
            if (k, "second") in places:
                outcomes = judged.outcomes(one, other, p)
                found["ensemble", at] = judged.accuracy([one, other], p)
                found["ensemble", f"gain, {at}"] = outcomes.gain
                found["ensemble", f"FFT, {at}"] = outcomes.rate("FFT")
                found["union", at] = judged.accuracy(places[k, "union"], p)
            if (k, "further") in places:
                found["four members", at] = judged.accuracy([one, other, *places[k, "further"]], p)
    return found


def one_cue_gain(seed: int, *, noise: float, epochs: int = EPOCHS) -> dict[float, float]:
    """Gain of two members where there is one patch, which both must see: no diversity is to be had."""
    judged = judged_members([[0], [0]], seed, noise=noise, patches=1, epochs=epochs)
    return {p: judged.outcomes(0, 1, p).gain for p in BROKEN}
