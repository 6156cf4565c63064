"""Training a layerwise ensemble on a frozen backbone that is passed only once."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError, TrainingDiverged
from unseen.networks.layerwise_ensemble import LayerwiseEnsemble
from unseen.shifts.batch import map_tensors

Labelled = tuple[Any, Tensor]


def fit_cached(
    ensemble: LayerwiseEnsemble,
    x: Any,
    y: Tensor,
    *,
    validation: Labelled | None = None,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    tap_weights: Tensor | None = None,
    evaluate_every: int = 20,
    patience: int | None = None,
    seed: int = 0,
) -> LayerwiseEnsemble:
    """Train task model and adapting layers together by AdamW, in place; the backbone reads each input once.

    x, y         inputs (N, ...) or a dict of them, and targets, on the ensemble's device
    validation   in-distribution inputs and targets: the weights of the least loss on them are kept
    tap_weights  (K,) of the taps' losses, summing to one; None for equal ones
    patience     stop after so many evaluations without a lower validation loss, or None
    Raises `InputError` when the backbone is tuned too, or gives another output for the same input (random
    augmentation or dropout inside), for targets that do not fit, and `TrainingDiverged`.
    """
    if not ensemble.caches:
        raise InputError(
            "backbone", "is tuned, too, so that its outputs change", "Train it with fit, or leave it frozen."
        )
    _check_targets(ensemble, x, y)
    if validation is not None:
        _check_targets(ensemble, *validation)
    if tap_weights is not None and tap_weights.shape != (ensemble.head.count,):
        raise InputError(
            "tap_weights",
            f"have shape {tuple(tap_weights.shape)}",
            f"Give one a tap: ({ensemble.head.count},).",
        )
    device = ensemble.head.mixture.device
    taps = cached_taps(ensemble, x)
    held = None if validation is None else cached_taps(ensemble, validation[0])
    views = ensemble.featurizer
    trained = [p for p in ensemble.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    best, state, since = float("inf"), None, 0
    ensemble.train()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < min(batch_size, len(y)):
            order = torch.cat([order, torch.randperm(len(y), generator=generator)])
        rows, order = order[:batch_size].to(device), order[batch_size:]
        z = views.task_features(map_tensors(partial(torch.index_select, dim=0, index=rows), x))
        loss = ensemble.loss(
            ensemble.head.all_logits(views.views([t[rows] for t in taps], z)), y[rows], tap_weights
        )
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the loss is {float(loss.detach())} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if validation is not None and held is not None and (step + 1) % evaluate_every == 0:
            with torch.no_grad():
                ensemble.eval()
                outputs = ensemble.head.all_logits(views.views(held, views.task_features(validation[0])))
                score = float(ensemble.loss(outputs, validation[1], tap_weights))
                ensemble.train()
            since += 1
            if score < best:
                best, since = score, 0
                state = copy.deepcopy({k: v for k, v in ensemble.state_dict().items() if "backbone" not in k})
            if patience is not None and since >= patience:
                break
    if state is not None:
        ensemble.load_state_dict(state, strict=False)
    return ensemble.eval()


def _check_targets(ensemble: LayerwiseEnsemble, x: Any, y: Tensor) -> None:
    count, outputs = len(next(iter(x.values())) if isinstance(x, dict) else x), ensemble.head.out_features
    if len(y) != count or not count:
        raise InputError("targets", f"are {len(y)} for {count} inputs", "Give one an input.")
    if ensemble.task == "classification" and not 0 <= int(y.min()) <= int(y.max()) < outputs:
        problem = f"go from {int(y.min())} to {int(y.max())} for {outputs} classes"
        raise InputError("targets", problem, f"Number the classes from 0 to {outputs - 1}.")


@torch.no_grad()
def cached_taps(ensemble: LayerwiseEnsemble, x: Any, batch_size: int = 512) -> list[Tensor]:
    """(N, D_l) of each tap, from one pass; the first inputs pass twice, to see that the backbone is a function."""
    count = len(next(iter(x.values())) if isinstance(x, dict) else x)

    def outputs(start: int, size: int) -> list[Tensor]:
        part = map_tensors(lambda t: t[start : start + size], x)
        return list(ensemble.featurizer.tap_outputs(part).values())

    for one, other in zip(outputs(0, 8), outputs(0, 8), strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
            raise InputError(
                "backbone",
                "gives another output for the same input",
                "Leave random augmentation and dropout out of it, or train without the cache.",
            )
    parts = [outputs(start, batch_size) for start in range(0, count, batch_size)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]
