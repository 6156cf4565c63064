"""How much hypotheses differ on unlabelled examples: losses on probabilities, lower is more diverse.

Pair losses take p and q (..., U, C) of two hypotheses and give (...); over K hypotheses see `pairwise`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError, nearest

PairLoss = Callable[[Tensor, Tensor], Tensor]
Reduction = Literal["mean", "closest"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "closest")


def mutual_information(p: Tensor, q: Tensor) -> Tensor:
    """Mutual information in nats of two predictions under the joint of the whole batch (DivDis, equation 2).

    The joint is the mean over examples of the outer products, so U must be well above C^2: small batches
    bias it upwards. It is never a mean of values of single examples, each of which is zero.
    """
    joint = p.mT @ q / p.shape[-2]
    apart = p.mean(-2).unsqueeze(-1) * q.mean(-2).unsqueeze(-2)
    smallest = torch.finfo(joint.dtype).tiny  # log(0) would be -inf, and 0 times it NaN
    return (joint * (joint.clamp(min=smallest).log() - apart.clamp(min=smallest).log())).sum((-2, -1))


def negative_l1(p: Tensor, q: Tensor) -> Tensor:
    """Minus the mean over examples of the L1 distance of two predictions, in [-2, 0]."""
    return -(p - q).abs().sum(-1).mean(-1)


def disagreement_loss(p: Tensor, q: Tensor, event: Literal["frozen", "trained"] = "frozen") -> Tensor:
    """-log of the probability that exactly one of two predictions is the class c, averaged over examples (D-BAT).

    event  c is the likeliest class of p ("frozen", the official code's default) or of q ("trained"). With two
           classes both give the paper's binary form; with more, the predictions may still share all other mass
    """
    if event not in ("frozen", "trained"):
        raise InputError(f"event {event!r}", "is not known", "Use frozen or trained.")
    chosen = (p if event == "frozen" else q).argmax(-1, keepdim=True)
    chosen = chosen.expand((*torch.broadcast_shapes(p.shape, q.shape)[:-1], 1))
    one = p.expand(*chosen.shape[:-1], p.shape[-1]).gather(-1, chosen).squeeze(-1)
    other = q.expand(*chosen.shape[:-1], q.shape[-1]).gather(-1, chosen).squeeze(-1)
    return -(one * (1 - other) + other * (1 - one) + 1e-7).log().mean(-1)


def disagreement_with_trained(p: Tensor, q: Tensor) -> Tensor:
    """`disagreement_loss` on the likeliest class of the hypothesis in training."""
    return disagreement_loss(p, q, "trained")


PAIR_LOSSES: dict[str, PairLoss] = {
    "mi": mutual_information,
    "l1": negative_l1,
    "d-bat": disagreement_loss,
    "d-bat-trained": disagreement_with_trained,
}


def pair_loss(name: str) -> PairLoss:
    """The pair loss of a name; `InputError` for an unknown one."""
    if name not in PAIR_LOSSES:
        raise InputError(f"diversity {name!r}", "is not known", f"Use one of {', '.join(PAIR_LOSSES)}.")
    return PAIR_LOSSES[name]


def pairwise(loss: PairLoss, probabilities: Tensor, reduction: Reduction = "mean") -> Tensor:
    """A pair loss over K hypotheses, a scalar; probabilities (K, U, C).

    reduction  "mean" over the K (K - 1) / 2 pairs, or "closest": each hypothesis with the one that it differs least
               from, mean over hypotheses ("min_each" of DivDis' official code). The same for two hypotheses
    """
    count = len(probabilities)
    if count < 2:
        raise InputError("hypotheses", f"are {count}", "A pair needs two.")
    check_reduction(reduction)
    first, second = torch.triu_indices(count, count, 1, device=probabilities.device)
    values = loss(probabilities[first], probabilities[second])
    if reduction == "mean":
        return values.mean()
    grid = values.new_full((count, count), -torch.inf)
    return grid.index_put((first, second), values).index_put((second, first), values).amax(1).mean()


def check_reduction(reduction: str) -> None:
    """Raise `InputError` for a reduction over pairs that there is not."""
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction {reduction!r}", "is not known", nearest(reduction, REDUCTIONS))


def prior_divergence(probabilities: Tensor, prior: Tensor) -> Tensor:
    """(...) KL(mean over U of p || prior) in nats: how far hypotheses are from the expected class shares.

    probabilities (..., U, C); prior (C,). Keeps a hypothesis from answering one class for all (DivDis, eq. 3).
    """
    mean = probabilities.mean(-2)
    smallest = torch.finfo(mean.dtype).tiny
    prior = prior.to(mean.dtype).clamp(min=torch.finfo(mean.dtype).eps)
    return (mean * (mean.clamp(min=smallest).log() - prior.log())).sum(-1)
