"""Coherence of gradients: how many examples gain from a step that one of them asks for.

Source: Chatterjee & Zielinski 2022, arXiv 2203.10036.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks.example_gradients import Data, ExampleGradients, cross_entropy
from unseen.networks.gradient_methods import ExampleLoss

NEAR_ZERO = 0.01


@dataclass(frozen=True)
class Coherence:
    """Of the gradients g of m examples in some parameters.

    examples      m
    squared_mean  |E g|^2
    mean_squared  E |g|^2
    """

    examples: int
    squared_mean: float
    mean_squared: float

    @property
    def alpha(self) -> float:
        """|E g|^2 / E |g|^2 in [0, 1]: 1 iff all are equal, 1/m if orthogonal; NaN if all are zero."""
        return self.squared_mean / self.mean_squared if self.mean_squared > 0 else math.nan

    @property
    def m_coherence(self) -> float:
        """m alpha in [0, m]: 1 is the orthogonal limit (each for itself), below 1 gradients cancel."""
        return self.examples * self.alpha

    @property
    def unbiased_alpha(self) -> float:
        """alpha over pairs of different examples, (m alpha - 1) / (m - 1): 0 in expectation if independent."""
        return (self.m_coherence - 1) / (self.examples - 1)


@dataclass(frozen=True)
class CoherenceReport:
    """Coherence of the selected parameters together, of each of them and each layer, and of each group of examples.

    whole           all selected parameters, all examples
    parameters      by name of parameter
    layers          by name of layer (the parameter's name without its last part): the whole alpha is the mean
                    of these, weighted by `shares`
    groups          by name of group, all selected parameters
    inner_products  (G, G) float64 of the groups' mean gradients
    norms           (N,) of the examples' gradients
    """

    whole: Coherence
    parameters: dict[str, Coherence]
    layers: dict[str, Coherence]
    groups: dict[str, Coherence]
    inner_products: Tensor
    norms: Tensor = field(repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """Each layer's share of E |g|^2."""
        total = self.whole.mean_squared
        return {n: c.mean_squared / total if total > 0 else math.nan for n, c in self.layers.items()}

    @property
    def cosines(self) -> Tensor:
        """(G, G) cosines between the groups' mean gradients; NaN where one is zero."""
        norms = self.inner_products.diagonal().sqrt()
        return self.inner_products / torch.outer(norms, norms)

    @property
    def near_zero(self) -> float:
        """Share of examples (such as those already fitted) whose gradient has less than 1 % of the
        root mean square norm: these dilute alpha."""
        return float((self.norms < NEAR_ZERO * self.norms.square().mean().sqrt()).float().mean())


def coherence(
    gradients: ExampleGradients, data: Data, groups: Sequence[Any] | Tensor | None = None
) -> CoherenceReport:
    """Exact coherence of the examples of `data` in one pass, with memory of one gradient a group.

    groups  a name for each of the N examples (domain, class, clean or noisy): also gives the groups' own
            coherence and the inner products of their means; without it there is one group, "all"

    A mean over all examples near a minimum of the loss on these very examples vanishes whatever generalizes:
    compare early in training, or at equal loss. Raises InputError for fewer than two examples in all or in a
    group; warns when all gradients are zero.
    """
    names, index = _index(groups)
    sums: dict[str, Tensor] = {}
    squares: dict[str, list[Tensor]] = {name: [] for name in gradients.names}
    seen = 0
    for chunk in gradients.chunks(data):
        count = len(next(iter(chunk.values())))
        if index is not None and seen + count > len(index):
            raise InputError("groups", f"name {len(index)} examples, but there are more", "Name each.")
        member = torch.zeros(count, dtype=torch.long) if index is None else index[seen : seen + count]
        indicator = nn.functional.one_hot(member, len(names)).T
        for name, rows in chunk.items():
            found = rows.sums(indicator.to(rows.like)).double()
            sums[name] = sums[name] + found if name in sums else found
            squares[name].append(rows.squared_norms().double())
        seen += count
    if index is not None and seen != len(index):
        raise InputError("groups", f"name {len(index)} examples, but there are {seen}", "Name each.")
    member = torch.zeros(seen, dtype=torch.long) if index is None else index
    sizes = torch.bincount(member, minlength=len(names))
    if sizes.min() < 2:
        raise InputError(
            "coherence",
            f"of {int(sizes.min())} example in {names[int(sizes.argmin())]!r}",
            "Give two or more.",
        )
    return _report(names, member, sizes, sums, {name: torch.cat(parts) for name, parts in squares.items()})


def _report(
    names: list[str], member: Tensor, sizes: Tensor, sums: dict[str, Tensor], squares: dict[str, Tensor]
) -> CoherenceReport:
    count = len(member)
    parameters = {
        name: Coherence(count, float(total.sum(0).square().sum()) / count**2, float(squares[name].mean()))
        for name, total in sums.items()
    }
    layers = {
        layer: _together([own for name, own in parameters.items() if _layer(name) == layer])
        for layer in dict.fromkeys(map(_layer, sums))
    }
    each = torch.stack(list(squares.values())).sum(0).cpu()
    divisors = sizes.double()
    products = sum((flat @ flat.T).cpu() for flat in (total.flatten(1) for total in sums.values()))
    products = products / torch.outer(divisors, divisors)
    means = torch.zeros_like(divisors).index_add_(0, member, each) / divisors
    groups = {
        name: Coherence(int(sizes[g]), float(products[g, g]), float(means[g])) for g, name in enumerate(names)
    }
    whole = _together(list(layers.values()))
    if whole.mean_squared == 0:
        warnings.warn("all gradients are zero: coherence is undefined (NaN)", UnseenWarning, stacklevel=3)
    return CoherenceReport(whole, parameters, layers, groups, products, each.sqrt())


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _together(parts: Sequence[Coherence]) -> Coherence:
    """Of all coordinates of several disjoint sets of parameters."""
    return Coherence(
        parts[0].examples, sum(p.squared_mean for p in parts), sum(p.mean_squared for p in parts)
    )


def _index(groups: Sequence[Any] | Tensor | None) -> tuple[list[str], Tensor | None]:
    """Names of the groups, in order of first appearance, and each example's index among them."""
    if groups is None:
        return ["all"], None
    labels = [str(g) for g in (groups.tolist() if hasattr(groups, "tolist") else groups)]
    names = list(dict.fromkeys(labels))
    places = {name: index for index, name in enumerate(names)}
    return names or ["all"], torch.tensor([places[label] for label in labels], dtype=torch.long)


def alignment(gradients: ExampleGradients, data: tuple[Any, Any]) -> Tensor:
    """(N,) <g, mean g> / |g|^2 of each example: how much it gains from the common step, per unit of its own.

    The mean of the examples, weighted by |g|^2, is alpha. NaN for a zero gradient. Two passes.
    """
    mean, _ = gradients.mean_and_square(data)
    norms = gradients.norms(data)
    return gradients.along(data, mean) / norms.square().where(norms > 0, torch.nan)


def microbatch_coherence(means: Sequence[Mapping[str, Tensor]], size: int, examples: int) -> Coherence:
    """Coherence of single examples from mean gradients of k micro-batches, without per-example gradients.

    means     k >= 2 gradients by name, each the mean of `size` examples that no other holds
    examples  m, which m-coherence refers to

    Unbiased in |E g|^2 and E |g|^2 for examples drawn independently: micro-batch means have the same mean and a
    1/size of the variance. An estimate of |E g|^2 may come out below zero.
    """
    if len(means) < 2:
        raise InputError("micro-batches", f"are {len(means)}", "Give two or more.")
    if size < 1 or examples < 2:
        raise InputError("size and examples", f"are {size} and {examples}", "Give 1 and 2 or more.")
    count = len(means)
    rows = [torch.cat([mean[name].flatten().double() for name in means[0]]) for mean in means]
    squared = sum(float(row.square().sum()) for row in rows) / count
    squared_grand = float((torch.stack(rows).sum(0) / count).square().sum())
    signal = (count * squared_grand - squared) / (count - 1)
    return Coherence(examples, signal, signal + size * (squared - signal))


def batch_coherence(alpha: float, size: int) -> float:
    """alpha of the means of `size` independent examples, k alpha / (1 + (k - 1) alpha)."""
    return size * alpha / (1 + (size - 1) * alpha)


class CoherenceCurve:
    """Coherence of a fixed sample along training: call it with (step, module) after (or before) each step.

    data        (x, y) of the sample, such as some thousand training examples
    groups      as for `coherence`
    every       steps between measurements
    loss, parameters
                as for `ExampleGradients`

    `records` holds (step, report), `rows()` one flat dict a measurement, ready for a table.
    """

    def __init__(
        self,
        data: tuple[Any, Any],
        groups: Sequence[Any] | Tensor | None = None,
        *,
        every: int = 1,
        loss: ExampleLoss = cross_entropy,
        parameters: str | Sequence[str] = "*",
    ):
        if every < 1:
            raise InputError("every", f"is {every}", "Give a number of steps from 1.")
        self.data, self.groups, self.every = data, groups, every
        self.loss, self.parameters = loss, parameters
        self.records: list[tuple[int, CoherenceReport]] = []

    def __call__(self, step: int, module: nn.Module) -> None:
        if step % self.every == 0:
            gradients = ExampleGradients(module, self.loss, self.parameters)
            self.records.append((step, coherence(gradients, self.data, self.groups)))

    def rows(self) -> list[dict[str, float]]:
        """step, m_coherence, near_zero, and m_coherence of each layer and (if given) group, a dict a record."""
        found = []
        for step, report in self.records:
            row = {
                "step": step,
                "m_coherence": report.whole.m_coherence,
                "near_zero": report.near_zero,
                **{f"layer {name}": each.m_coherence for name, each in report.layers.items()},
            }
            if self.groups is not None:
                row |= {f"group {name}": each.m_coherence for name, each in report.groups.items()}
            found.append(row)
        return found
