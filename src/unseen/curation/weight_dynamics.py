"""What training on one example does to the weights: how far they move, and how their norm changes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from unseen.curation.base import Pool, per_example, require_finite
from unseen.errors import InputError
from unseen.networks.example_gradients import ExampleGradients, cross_entropy
from unseen.networks.gradient_methods import ExampleLoss
from unseen.networks.modes import evaluating
from unseen.shifts.batch import map_tensors
from unseen.shifts.sampling import derive_seed

Layers = str | Sequence[str]


def weight_dynamics_scores(
    model: nn.Module,
    data: Pool | tuple[Any, ...],
    loss: ExampleLoss = cross_entropy,
    layers: Layers = "output",
    mode: Literal["static", "online"] = "static",
    optimizer: Literal["sgd", "adamw"] = "sgd",
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> pd.DataFrame:
    """A row an example: index, don, nod, loss and grad_norm, where W becomes W' by an update on it alone.

    don     sum over layers of |W| - |W'| (Frobenius): above zero where the example shrinks the weights
    nod     sum over layers of |W - W'|
    loss, grad_norm   of the example, at the weights that the update starts from; the norm in the layers

    layers  "output": the weight of the last linear layer, apart from an input embedding that shares its numbers;
            "all": every parameter; or patterns of their names
    mode    "static": every example is scored from the same weights by a step of SGD, in closed form in float64;
            "online": examples come one by one, in an order by `seed`, and each update stays, on a copy. `optimizer`
            and all parameters of the model take part

    The first step of AdamW is about as long for every example, so static scores take SGD. The model stays as it
    was. Raises InputError for fewer than two examples, names without a match, and what is not finite.
    Source: DONOD, arXiv 2504.14810, section 3 (as summarised elsewhere).
    """
    pool = Pool.of(data)
    if len(pool) < 2:
        raise InputError("data", f"hold {len(pool)} example(s)", "Give two at least.")
    if not learning_rate > 0:
        raise InputError("learning_rate", f"is {learning_rate}", "Give a number above 0.")
    if mode not in ("static", "online") or optimizer not in ("sgd", "adamw"):
        raise InputError(
            f"mode {mode!r} with optimizer {optimizer!r}",
            "is not known",
            "Give 'static' or 'online', and 'sgd' or 'adamw'.",
        )
    if mode == "static" and optimizer == "adamw":
        raise InputError(
            "optimizer 'adamw'",
            "moves the weights about as far for every example in its first step",
            "Take 'sgd', or mode 'online'.",
        )
    if mode == "online":
        return _online(model, pool, loss, layers, optimizer, learning_rate, seed)
    return _static(model, pool, loss, layers, learning_rate)


def output_layer(model: nn.Module) -> tuple[str, Any]:
    """Name and module of what makes the logits: a language model's output embeddings, else the last linear layer."""
    given = getattr(model, "get_output_embeddings", lambda: None)()
    linear = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    for name, each in model.named_modules():
        if given is not None and each is given:
            return name, each
    if not linear:
        raise InputError("layers 'output'", "finds no linear layer in the model", "Name the layers.")
    return linear[-1]


def _static(
    model: nn.Module, pool: Pool, loss: ExampleLoss, layers: Layers, learning_rate: float
) -> pd.DataFrame:
    with _watched(model, layers) as patterns, evaluating(model):
        gradients = ExampleGradients(model, loss, patterns)
        weights = {name: dict(model.named_parameters())[name].detach() for name in gradients.names}
        don: list[Tensor] = []
        nod: list[Tensor] = []
        squares: list[Tensor] = []
        for chunk in gradients.chunks(pool.examples):
            parts = []
            for name, rows in chunk.items():
                weight = weights[name]
                norm = weight.double().norm()
                square = rows.squared_norms().double()
                along = rows.along(weight.to(rows.like)).double()
                # |W|^2 - |W'|^2, and its division by |W| + |W'|, lose nothing to rounding; the norms' difference does
                fall = 2 * learning_rate * along - learning_rate**2 * square
                after = (norm**2 - fall).clamp(min=0).sqrt()
                total = norm + after
                parts.append((fall / total.where(total > 0, 1), learning_rate * square.sqrt(), square))
            for found, values in zip((don, nod, squares), zip(*parts, strict=True), strict=True):
                found.append(torch.stack(values).sum(0))
        losses = per_example(model, pool, loss)
    return _table(torch.cat(don), torch.cat(nod), losses, torch.cat(squares).sqrt())


def _online(
    model: nn.Module,
    pool: Pool,
    loss: ExampleLoss,
    layers: Layers,
    optimizer: str,
    learning_rate: float,
    seed: int,
) -> pd.DataFrame:
    learner = copy.deepcopy(model)
    learner.eval()  # no dropout, and batch normalisation by what it has: as in the static score
    for parameter in learner.parameters():
        parameter.requires_grad_(True)
    device = next(learner.parameters()).device
    with _watched(learner, layers) as patterns:
        names = ExampleGradients(learner, loss, patterns).names
        watched = [dict(learner.named_parameters())[name] for name in names]
        make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        rule = make(learner.parameters(), lr=learning_rate)
        found = torch.zeros(4, len(pool), dtype=torch.float64)
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        for row in torch.randperm(len(pool), generator=generator).tolist():
            part = pool.take(torch.tensor([row]))
            x, y = (map_tensors(lambda values: values.to(device), tree) for tree in part.examples)
            before = [each.detach().double() for each in watched]
            rule.zero_grad()
            value = loss(learner, x, y).sum()
            value.backward()
            square = sum(
                float(each.grad.double().square().sum()) for each in watched if each.grad is not None
            )
            rule.step()
            after = [each.detach().double() for each in watched]
            pairs = list(zip(before, after, strict=True))
            found[0, row] = sum(float(a.norm() - b.norm()) for a, b in pairs)
            found[1, row] = sum(float((a - b).norm()) for a, b in pairs)
            found[2, row], found[3, row] = float(value.detach()), square**0.5
            if not bool(torch.isfinite(found[:, row]).all()):
                raise InputError(
                    f"score of example {row}",
                    "is not finite after training on those before it",
                    "Check its inputs and label, or lower learning_rate.",
                )
    return _table(*found)


def _table(don: Tensor, nod: Tensor, loss: Tensor, norm: Tensor) -> pd.DataFrame:
    columns = {"don": don, "nod": nod, "loss": loss, "grad_norm": norm}
    for name, values in columns.items():
        require_finite(values, name)
    numbers = {name: values.detach().cpu().double().numpy() for name, values in columns.items()}
    return pd.DataFrame({"index": range(len(don)), **numbers})


@contextlib.contextmanager
def _watched(model: nn.Module, layers: Layers) -> Iterator[list[str]]:
    """Patterns of the names of the parameters that are watched, while these are parameters of their own."""
    if layers != "output":
        yield ["*"] if layers == "all" else [layers] if isinstance(layers, str) else list(layers)
        return
    name, layer = output_layer(model)
    tied = layer.weight
    layer.weight = nn.Parameter(
        tied.detach(), tied.requires_grad
    )  # the same numbers, but not the embedding's
    try:
        yield [f"{name}.weight" if name else "weight"]
    finally:
        layer.weight = tied
