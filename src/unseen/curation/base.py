"""The selector contract: a number for each example, and the rows that are kept by it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.example_gradients import cross_entropy, token_cross_entropy
from unseen.networks.gradient_methods import ExampleLoss
from unseen.networks.modes import evaluating
from unseen.shifts.batch import map_tensors
from unseen.shifts.shift import count_rows

By = Literal["domain", "class"]
Loss = Literal["labels", "tokens"] | ExampleLoss
"""`cross_entropy` of labels (N,), `token_cross_entropy` of tokens (N, T), or `loss(model, x, y) -> (n,)`."""


@dataclass(frozen=True)
class Pool:
    """N examples to choose from, as the model takes them.

    x       inputs, a tensor (N, ...) or a dict of such tensors
    y       labels (N,) int64; tokens (N, T) with -100 where there is no loss
    domain  (N,) int64 or None
    """

    x: Any
    y: Tensor
    domain: Tensor | None = None

    def __post_init__(self) -> None:
        count = count_rows(self.x)
        for name, values in (("y", self.y), ("domain", self.domain)):
            if values is not None and len(values) != count:
                raise InputError(name, f"has {len(values)} rows, x has {count}", "Give one an example.")

    @classmethod
    def of(cls, data: Pool | tuple[Any, ...]) -> Pool:
        """A pool as it is, or one of (x, y) or (x, y, domain)."""
        return data if isinstance(data, Pool) else cls(*data)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def examples(self) -> tuple[Any, Tensor]:
        return self.x, self.y

    def take(self, rows: Tensor) -> Pool:
        """The examples of these rows, or of a mask."""
        domain = None if self.domain is None else self.domain[rows]
        return Pool(map_tensors(lambda values: values[rows], self.x), self.y[rows], domain)

    def joined(self, other: Pool) -> Pool:
        """These examples, then those of another pool of the same form."""
        if (self.domain is None) != (other.domain is None):
            raise InputError("pools", "are with and without domains", "Give both domains, or none.")
        domain = (
            None if self.domain is None or other.domain is None else torch.cat([self.domain, other.domain])
        )
        x = (
            {name: torch.cat([self.x[name], other.x[name]]) for name in self.x}
            if isinstance(self.x, dict)
            else torch.cat([self.x, other.x])
        )
        return Pool(x, torch.cat([self.y, other.y]), domain)

    def groups(self, by: By | None) -> Tensor | None:
        """(N,) what each example is counted with: its domain, its class, or None for all together."""
        if by is None:
            return None
        if by not in ("domain", "class"):
            raise InputError(f"by {by!r}", "is not known", "Give 'domain', 'class' or None.")
        groups = self.domain if by == "domain" else self.y
        if groups is None or groups.dim() != 1:
            raise InputError(f"by {by!r}", f"needs a {by} of each example", f"Give a pool with a {by}.")
        return groups


class Selector(ABC):
    """Scores examples: `fit(model, data)`, then `select(scores, budget, by=...)` for the rows to keep.

    Subclasses define `scores`. The model, its gradients, its modes and global random state are left as they were.
    Examples with higher scores are kept first.
    """

    pool: Pool | None = None
    """What `fit` has seen last."""

    def fit(self, model: nn.Module | None, data: Pool | tuple[Any, ...]) -> Tensor:
        """(N,) float64 scores on the CPU, of at least two examples. Raises InputError where one is not finite."""
        pool = Pool.of(data)
        if len(pool) < 2:
            raise InputError("data", f"hold {len(pool)} example(s)", "There is no choice below two.")
        scores = self.scores(model, pool).detach().cpu().double()
        require_finite(scores, "score")
        self.pool = pool
        return scores

    @abstractmethod
    def scores(self, model: nn.Module | None, pool: Pool) -> Tensor:
        """(N,) what an example is worth: the highest are kept."""

    def select(self, scores: Tensor, budget: float, by: By | None = None) -> Tensor:
        """Rows to keep, ascending: the share `budget` in (0, 1] of highest scores, of each domain or class `by`."""
        if by is not None and self.pool is None:
            raise InputError(f"by {by!r}", "needs to know the data", "Call fit first.")
        groups = None if self.pool is None else self.pool.groups(by)
        return select(scores, budget, None if groups is None else groups.cpu())


def select(scores: Tensor, budget: float, groups: Tensor | None = None) -> Tensor:
    """Rows of the highest scores (N,), ascending: ceil(budget * n) of each group's n, ties by row number.

    budget  share that is kept, in (0, 1]
    groups  (N,) integers: as large a share of each group is kept; None for one group

    Raises InputError for a budget outside (0, 1], no example, and scores that are not finite.
    """
    if not 0 < budget <= 1:
        raise InputError("budget", f"is {budget}", "Give the share to keep, above 0 and at most 1.")
    scores = torch.as_tensor(scores)
    if scores.dim() != 1 or len(scores) == 0:
        raise InputError("scores", f"have shape {tuple(scores.shape)}", "Give one an example, (N,).")
    require_finite(scores, "score")
    if groups is None:
        groups = torch.zeros(len(scores), dtype=torch.int64)
    elif len(groups) != len(scores):
        raise InputError("groups", f"has {len(groups)} rows for {len(scores)} scores", "Give one an example.")
    kept = []
    for group in groups.unique().tolist():
        rows = (groups == group).nonzero()[:, 0]
        best = scores[rows].argsort(descending=True, stable=True)
        kept.append(rows[best[: math.ceil(budget * len(rows) - 1e-9)]])
    return torch.cat(kept).sort().values


def require_finite(values: Tensor, what: str) -> None:
    """Raise InputError with the numbers of the examples whose values are NaN or infinite."""
    wrong = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
    if wrong:
        shown = ", ".join(map(str, wrong[:10]))
        raise InputError(
            f"{what} of example {shown}", "is not finite", "Check these inputs and labels, or leave them out."
        )


def require_model(model: nn.Module | None, what: str) -> nn.Module:
    if model is None:
        raise InputError("model", "is None", f"Give the model by which {what} is told.")
    return model


def example_loss(loss: Loss) -> ExampleLoss:
    """The function that a name stands for; InputError for another name."""
    named: dict[Any, ExampleLoss] = {"labels": cross_entropy, "tokens": token_cross_entropy}
    if isinstance(loss, str) and loss not in named:
        raise InputError(f"loss {loss!r}", "is not known", "Give 'labels', 'tokens' or a function.")
    return named[loss] if isinstance(loss, str) else loss


def require_labels(pool: Pool, what: str, *, tokens: bool = False) -> None:
    """Raise InputError where y is not (N,) labels or, with `tokens`, not (N, T)."""
    if pool.y.dim() != (2 if tokens else 1):
        form = "tokens (N, T), of language models" if tokens else "labels (N,), of classifiers"
        raise InputError("y", f"has shape {tuple(pool.y.shape)}", f"{what} takes {form}.")


@torch.no_grad()
def per_example(
    model: nn.Module,
    pool: Pool,
    function: ExampleLoss = cross_entropy,
    *,
    what: str = "loss",
    size: int = 512,
) -> Tensor:
    """(N, ...) what `function(model, x, y)` gives for a pool's examples, `size` at a time, in evaluation mode.

    Raises InputError with the numbers of the examples where it is not finite; `what` is its name there.
    """
    device, parts = next(model.parameters()).device, []
    with evaluating(model):
        for start in range(0, len(pool), size):
            part = pool.take(torch.arange(start, min(start + size, len(pool))))
            x, y = (map_tensors(lambda values: values.to(device), tree) for tree in part.examples)
            parts.append(function(model, x, y))
    found = torch.cat(parts)
    require_finite(found, what)
    return found
