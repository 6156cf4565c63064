"""The diagonal Fisher information of a classifier: how much each weight matters to its predictions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unseen.averaging import StateDict
from unseen.errors import InputError
from unseen.networks.modes import evaluating


def diagonal_fisher(model: nn.Module, batches: Iterable[Tensor]) -> StateDict:
    """Mean over examples of E_{y ~ p(y|x)} (d log p(y|x) / d theta)^2 (Matena & Raffel 2022, arXiv 2111.09832).

    The expectation over labels is exact: classes x examples gradients. `batches` has inputs (B, ...); the model
    gives logits (B, C) and is put to evaluation. Entries of the result are named as in `state_dict`; buffers,
    which have no gradient, get 1: they are averaged plainly.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def log_probability(values: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (values, buffers), (x[None],))
        return logits.log_softmax(-1)[0].gather(0, label[None])[0]

    def expected_square(x: Tensor) -> dict[str, Tensor]:
        logits = functional_call(model, (parameters, buffers), (x[None],))[0]
        labels = torch.arange(len(logits), device=x.device)
        slopes = vmap(grad(log_probability), in_dims=(None, None, 0))(parameters, x, labels)
        probability = logits.softmax(-1)
        return {name: torch.tensordot(probability, g.square(), dims=1) for name, g in slopes.items()}

    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = 0
    with evaluating(model):
        for x in batches:
            for example in x:  # one at a time: C gradients of the whole model are in memory
                for name, value in expected_square(example).items():
                    total[name] += value.detach()
            count += len(x)
    if not count:
        raise InputError("batches", "are empty", "Give one or more batches of inputs.")
    rest = {name: torch.ones_like(value) for name, value in model.state_dict().items() if name not in total}
    return {name: value / count for name, value in total.items()} | rest
