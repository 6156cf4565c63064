"""Gradients of each example's loss: norms, inner products, means and random projections, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, nearest
from unseen.networks.gradient_methods import (
    ExampleLoss,
    LossOfParameters,
    Model,
    by_layers,
    by_loop,
    by_vmap,
    leaves,
    linear_layers,
)
from unseen.networks.gradient_rows import Rows
from unseen.networks.modes import evaluating
from unseen.networks.random_projection import Kind, RandomProjection
from unseen.shifts.batch import map_tensors

Data = tuple[Any, Any] | Iterable[tuple[Any, Any]]
"""(x, y), each a tensor or (nested) dict of tensors over N examples; or an iterable of such pairs."""

FLOATS_IN_CHUNK = 2**25


def cross_entropy(model: Model, x: Any, y: Tensor) -> Tensor:
    """(n,) cross-entropy of a classifier, for labels (n,) or soft targets (n, C)."""
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def token_cross_entropy(model: Model, x: Any, y: Tensor) -> Tensor:
    """(n,) mean negative log-likelihood of the tokens y (n, T) that are not -100, each given those before it.

    x is the model's input, tokens (n, T) or a dict of keyword arguments (as transformers' models take); the
    output is logits (n, T, V) or has them as `.logits`. An example without any such token has loss 0.
    """
    output = model(**x) if isinstance(x, dict) else model(x)
    logits = output.logits if hasattr(output, "logits") else output
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), y[:, 1:], reduction="none")
    return losses.sum(1) / (y[:, 1:] != -100).sum(1).clamp(min=1)


class ExampleGradients:
    """Per-example gradients of a module's loss in the parameters that `parameters` names.

    loss        `loss(model, x, y) -> (n,)`, such as `cross_entropy` or `token_cross_entropy`
    parameters  pattern of names ("head.*", "*.weight"), or several; frozen parameters count like others
    method      "linear": from inputs and output gradients of `nn.Linear` layers, whose outer products are
                multiplied out only where all coordinates are asked for; "vmap": `torch.func`, for all that it
                can trace; "loop": a backward pass an example, for all else; "auto": "linear" if all selected
                parameters are of linear layers, else "vmap"
    chunk       examples at a time; default: as many as make 2^25 numbers, 1024 at most

    The module is evaluated in evaluation mode (no dropout) and left as it was: parameters, their `.grad`,
    buffers and modes. Data are moved to its device, a chunk at a time. Results are on that device.

    Raises InputError for a pattern without a match, fewer than one example, a loss that is not (n,), batch
    normalisation in training mode (its gradient of an example depends on the others), and for losses or
    gradients that are not finite, by the number of the example.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: ExampleLoss = cross_entropy,
        parameters: str | Sequence[str] = "*",
        *,
        method: Literal["auto", "linear", "vmap", "loop"] = "auto",
        chunk: int | None = None,
    ):
        if method not in ("auto", "linear", "vmap", "loop"):
            raise InputError(f"method {method!r}", "is not known", "Give 'auto', 'linear', 'vmap' or 'loop'.")
        if chunk is not None and chunk < 1:
            raise InputError("chunk", f"is {chunk}", "Give a number of examples from 1, or None.")
        self.module, self.loss = module, loss
        self.names = _matching(module, [parameters] if isinstance(parameters, str) else parameters)
        known = dict(module.named_parameters())
        self.size = sum(known[name].numel() for name in self.names)
        self.chunk = chunk or max(1, min(1024, FLOATS_IN_CHUNK // self.size))
        self._layers = linear_layers(module, self.names)
        if method == "linear" and self._layers is None:
            raise InputError(
                "method 'linear'",
                f"is for linear layers that share no parameter, not for all of {', '.join(self.names[:4])}",
                "Choose parameters of linear layers, or method 'auto'.",
            )
        self.method = ("linear" if self._layers else "vmap") if method == "auto" else method

    def norms(self, data: Data) -> Tensor:
        """(N,) Euclidean norms."""
        return torch.cat([_squared_norms(chunk) for chunk in self.chunks(data)]).sqrt()

    def inner_products(self, data: Data, other: tuple[Any, Any] | None = None) -> Tensor:
        """(N, M) inner products with the gradients of the examples `other`, by default `data` itself.

        The other gradients are computed anew for each chunk of `data`: for large N take `projected`.
        """
        if other is None and not isinstance(data, tuple):
            raise InputError("data", "is an iterable, which can be read once", "Give (x, y), or `other`.")
        second = data if other is None else other
        return torch.cat([
            torch.cat([_sum(a[n].products(b[n]) for n in self.names) for b in self.chunks(second)], 1)
            for a in self.chunks(data)
        ])  # fmt: skip

    def along(self, data: Data, direction: dict[str, Tensor]) -> Tensor:
        """(N,) inner products with one direction, given by name of parameter."""
        return torch.cat([
            _sum(rows.along(direction[name].to(rows.like)) for name, rows in chunk.items())
            for chunk in self.chunks(data)
        ])  # fmt: skip

    def mean_and_square(self, data: Data) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean over examples of the gradient and of its square, coordinate by coordinate, float64 by name."""
        sums: dict[str, Any] = dict.fromkeys(self.names, 0.0)
        squares: dict[str, Any] = dict.fromkeys(self.names, 0.0)
        count = 0
        for chunk in self.chunks(data):
            for name, rows in chunk.items():
                sums[name] = sums[name] + rows.sums(rows.like.new_ones(1, len(rows)))[0].double()
                squares[name] = squares[name] + rows.sum_of_squares().double()
            count += len(rows)
        return {n: v / count for n, v in sums.items()}, {n: v / count for n, v in squares.items()}

    def flat(self, data: Data) -> Tensor:
        """(N, P) all gradients, parameter after parameter in the order of `names`: for small N times P."""
        return torch.cat([torch.cat([r.flat() for r in chunk.values()], 1) for chunk in self.chunks(data)])

    def projected(
        self, data: Data, dimension: int, seed: int, *, kind: Kind = "rademacher", unit: bool = False
    ) -> Tensor:
        """(N, k) random projections to `dimension` numbers, which keep inner products in expectation.

        kind  entries of the matrix, see `RandomProjection`: memory for it grows with neither N nor P
        unit  divide each row by its norm; a zero gradient then is an InputError

        Source: Johnson & Lindenstrauss 1984; of gradients Park et al. 2023 (TRAK), arXiv 2303.14186.
        """
        projection, parts = RandomProjection(dimension, seed, kind), []
        for chunk in self.chunks(data):
            first = chunk[self.names[0]]
            parts.append(first.like.new_zeros(len(first), dimension))
            for name, rows in chunk.items():
                projection.add(name, rows.flat(), into=parts[-1])
        return unit_rows(torch.cat(parts)) if unit else torch.cat(parts)

    def chunks(self, data: Data) -> Iterator[dict[str, Rows]]:
        """Gradients of one chunk of examples after the other: rows by name of parameter."""
        first = 0
        for x, y in [data] if isinstance(data, tuple) else data:
            sizes = {len(leaf) for tree in (x, y) for leaf in leaves(tree)}
            if len(sizes) != 1:
                raise InputError("data", f"has {sorted(sizes)} rows in its tensors", "Give one an example.")
            (size,) = sizes
            for start in range(0, size, self.chunk):
                part = itemgetter(slice(start, start + self.chunk))
                yield self._of(map_tensors(part, x), map_tensors(part, y), first + start)
            first += size
        if first == 0:
            raise InputError("data", "hold no example", "Give one at least.")

    def _of(self, x: Any, y: Any, first: int) -> dict[str, Rows]:
        device = next(self.module.parameters()).device
        x, y = (map_tensors(lambda t: t.to(device), tree) for tree in (x, y))
        losses = LossOfParameters(self.module, self.loss, self.names)
        _refuse_batch_statistics(self.module)
        with evaluating(self.module), torch.enable_grad():
            if self.method == "linear" and self._layers:
                rows, values = by_layers(losses, x, y, self._layers)
            else:
                rows, values = (by_vmap if self.method == "vmap" else by_loop)(losses, x, y)
        _require_finite(values, "loss", first)
        _require_finite(_sum(each.checksums() for each in rows.values()), "gradient", first)
        return rows


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (N, k) divided by their norms; InputError names those that are zero."""
    norms = rows.norm(dim=1, keepdim=True)
    zero = (norms[:, 0] == 0).nonzero()[:, 0].tolist()
    if zero:
        raise InputError(
            "gradients",
            f"are zero for {len(zero)} of {len(rows)} examples ({', '.join(map(str, zero[:10]))})",
            "Leave these out; in language models' examples see that not all tokens are masked.",
        )
    return rows / norms


def _refuse_batch_statistics(module: nn.Module) -> None:
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules()):
        raise InputError(
            "gradients of single examples",
            "are not defined with batch normalisation in training mode: each depends on the others",
            "Call module.eval() before, or take another normalisation.",
        )


def _matching(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    known = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            remedy = nearest(pattern, known) or "Give a module with parameters."
            raise InputError(f"parameters {pattern!r}", "match none of the module's", remedy)
    return tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _squared_norms(chunk: dict[str, Rows]) -> Tensor:
    return _sum(rows.squared_norms() for rows in chunk.values())


def _require_finite(values: Tensor, what: str, first: int) -> None:
    if not torch.isfinite(values.sum()):
        wrong = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
        shown = ", ".join(str(first + index) for index in wrong[:10])
        raise InputError(
            f"{what} of example {shown}", "is not finite", "Check these inputs and labels, or leave them out."
        )
