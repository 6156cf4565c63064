"""PEGO: groups of low-rank updates, each orthogonal to the frozen weight and all to one another."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.networks.low_rank import low_rank_updates
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.penalty import PenaltySchedule
from unseen.registry import objectives
from unseen.shifts import Batch


def group_penalty(
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    norm: Literal["l1", "fro2"] = "l1",
    side: Literal["row", "column"] = "row",
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """How far updates dW_i = B_i A_i are from orthogonal to the weight W, and to one another: two scalars.

    weight     W (..., out, in), frozen; further leading dimensions are summed over
    down, up   A (..., N, r, in) and B (..., N, out, r). An update known only as a matrix goes in as A, with the
               identity as B.
    norm       "l1": sum of absolute entries; "fro2": of squared ones, which needs no matrix larger than out x r
    side       "row": W dW_i^T and dW_i dW_j^T, i < j (the paper's); "column": W^T dW_i and dW_i^T dW_j
    normalize  mean instead of sum over the entries of a matrix, so that a weight of the penalty fits any width:
               0.001 on sums of 768 x 768 is 590 on means (Hu et al. 2024, section 3.3)
    The products are formed through the thin factors: W A^T first, never dW.
    """
    if side == "column":  # of the transposed matrices, rows are columns
        weight, down, up = weight.mT, up.mT, down.mT
    entries = weight.shape[-2] ** 2 if normalize else 1
    preserve = _size(weight.unsqueeze(-3) @ down.mT, up, norm)
    first, second = torch.triu_indices(up.shape[-3], up.shape[-3], 1, device=up.device)
    inner = down[..., first, :, :] @ down[..., second, :, :].mT
    diversify = _size(up[..., first, :, :] @ inner, up[..., second, :, :], norm)
    return preserve / entries, diversify / entries


def _size(left: Tensor, right: Tensor, norm: str) -> Tensor:
    """Norm of left @ right^T, summed over leading dimensions."""
    if norm == "l1":
        return (left @ right.mT).abs().sum()
    return ((left.mT @ left) * (right.mT @ right)).sum()


def model_penalty(
    model: nn.Module,
    *,
    norm: Literal["l1", "fro2"] = "l1",
    side: Literal["row", "column"] = "row",
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """`group_penalty` summed over all weights of `model` with low-rank updates, for a training loop of your own.

    The weights are constants: gradients reach the updates alone. In single precision, under autocast too. Raises
    InputError where there are no updates.
    """
    updates = low_rank_updates(model)
    if not updates:
        raise InputError("model", "has no low-rank updates", "Inject them first (inject_low_rank).")
    with torch.autocast(updates[0].weight.device.type, enabled=False):  # sums over half a million entries
        found = [
            group_penalty(
                update.layout.matrices(weight.detach()).to(update.up.dtype),
                update.down,
                update.scale * update.up,
                norm=norm,
                side=side,
                normalize=normalize,
            )
            for _, weight, update in updates
        ]
        preserve, diversify = (torch.stack(values).sum() for values in zip(*found, strict=True))
    return preserve, diversify


@objectives.register(
    "pego",
    summary="Low-rank groups kept orthogonal to the frozen weights and to each other; for the network low-rank",
    paper="Hu et al. 2024, arXiv 2407.15085",
    search={"penalty_weight": ("log", 1e-4, 1e0)},
)
class PEGO(Objective):
    """Mean loss + weight * sum over updated matrices of (preserve * ... + diversify * ...), see `group_penalty`.

    Defaults are the paper's, for matrices of 768 x 768. The penalty is a sum of absolute entries, so it is as strong
    on smaller matrices when its weight is (768 / d)^2 times larger: 0.14 for d = 64.
    At first B = 0, where the penalty has its kink: its first gradient is exactly zero. Trains as erm, with a warning,
    where the network has no updates: `Learner(objective="pego", network="low-rank(groups=4)")` has some.
    """

    needs_features = True

    def __init__(
        self,
        penalty_weight: float = 1e-3,
        preserve: float = 1.0,
        diversify: float = 1.0,
        norm: Literal["l1", "fro2"] = "l1",
        side: Literal["row", "column"] = "row",
        normalize: bool = False,
    ):
        super().__init__()
        for name, value, choices in (("norm", norm, ("l1", "fro2")), ("side", side, ("row", "column"))):
            if value not in choices:
                raise InputError(f"{name} {value!r}", "is not known", f"Give one of {', '.join(choices)}.")
        for name, share in (("preserve", preserve), ("diversify", diversify)):
            if not share >= 0:
                raise InputError(name, f"is {share}", "Give a number from 0.")
        self.schedule = PenaltySchedule(penalty_weight)
        self.preserve, self.diversify = preserve, diversify
        self.norm, self.side, self.normalize = norm, side, normalize

    def forward(self, model: Network, batch: Batch) -> Loss:
        risk = example_losses(model(batch.x), batch).mean()
        if not low_rank_updates(model):
            warnings.warn(
                "objective 'pego': the network has no low-rank updates, so it trains as erm. "
                'Give it network="low-rank(groups=4)".',
                UnseenWarning,
                stacklevel=2,
            )
            return Loss(risk, {"risk": risk})
        preserve, diversify = model_penalty(
            model,
            norm=self.norm,  # type: ignore[arg-type]
            side=self.side,  # type: ignore[arg-type]
            normalize=self.normalize,
        )
        with torch.autocast(risk.device.type, enabled=False):
            loss = self.schedule.loss(risk, self.preserve * preserve + self.diversify * diversify, batch.step)
        loss.parts |= {"preserve": preserve, "diversify": diversify}
        return loss
