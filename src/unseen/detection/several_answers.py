"""Scores of several answers to one input: by dropout, or by the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError, nearest
from unseen.networks import Bank, Network
from unseen.networks.hypotheses import Hypotheses
from unseen.networks.taps import dropouts, dropping
from unseen.registry import detectors

By = Literal["confidence", "entropy", "information", "discrepancy"]


class SeveralAnswers(Detector):
    """Scores (N, M, C) logits of M answers, kept under `name`.

    by  "confidence": largest probability of the mean answer; "entropy": minus the mean answer's entropy;
        "information": minus the mutual information of answer and answerer, how much they disagree;
        "discrepancy": minus the sum over classes of the difference of two answers' probabilities, mean over pairs
        (Yu & Aizawa 2019, arXiv 1908.04951: the score of the objective `mcd`, whose network has two heads)
    """

    needs_logits = True
    name: str

    def __init__(self, by: By = "confidence"):
        super().__init__()
        if by not in get_args(By):
            raise InputError("by", f"is {by!r}", nearest(by, get_args(By)))
        self.by = by

    def score(self, bank: Bank) -> Tensor:
        require_finite(bank.logits, "logits")
        each = torch.log_softmax(self.seen(bank, self.name), -1)
        if self.by == "discrepancy":
            return -_mean_difference(each.exp())
        mean = each.exp().mean(1)
        if self.by == "confidence":
            return mean.amax(1)
        entropy = torch.special.entr(mean).sum(1)
        return -entropy if self.by == "entropy" else torch.special.entr(each.exp()).sum(2).mean(1) - entropy


def _mean_difference(answers: Tensor) -> Tensor:
    """(N,) mean over pairs of M answers (N, M, C) of sum_k |p_k - q_k|, from 0 to 2.

    In order, the i-th of M values is the larger one of i pairs and the smaller one of M - 1 - i.
    """
    count = answers.shape[1]
    signs = 2 * torch.arange(count, device=answers.device) - (count - 1)
    return (answers.sort(1).values * signs[:, None]).sum((1, 2)) / max(1, count * (count - 1) // 2)


@detectors.register(
    "mc-dropout",
    summary="Largest probability of the mean answer under dropout",
    paper="Gal & Ghahramani 2016, arXiv 1506.02142",
    search={"by": ("choice", ["confidence", "entropy", "information"])},
)
class MonteCarloDropout(SeveralAnswers):
    """`passes` more forward passes, each with units dropped that `seed` draws: the same ones for every input."""

    def __init__(self, passes: int = 20, by: By = "confidence", seed: int = 0):
        super().__init__(by)
        if passes < 2:
            raise InputError("passes", f"are {passes}", "Give two at least.")
        self.passes, self.seed = passes, seed
        self.name = f"mc-dropout({passes}, {seed})"

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        if not dropouts(network):
            raise InputError(
                "mc-dropout", "needs a network with dropout, and this one has none", "Train mlp(dropout=0.2)."
            )
        found = []
        for number in range(self.passes):
            with dropping(network, self.seed * self.passes + number):
                found.append(network(inputs).float())
        return {self.name: torch.stack(found, 1)}


@detectors.register(
    "deep-ensemble",
    summary="Largest probability of the mean answer of several networks",
    paper="Lakshminarayanan et al. 2017, arXiv 1612.01474",
    search={"by": ("choice", ["confidence", "entropy", "information"])},
)
class DeepEnsemble(SeveralAnswers):
    """The answers are those of a network's hypotheses (`heads`, `members`), or of `join_members`."""

    name = "members"

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        if not isinstance(network, Hypotheses):
            raise InputError(
                "deep-ensemble",
                "reads the answers of several networks, and there is one",
                "Join the outputs of several: unseen.detection.several_answers.join_members([bank, ...]).",
            )
        return {self.name: network.all_logits(inputs).float().movedim(0, 1)}


def join_members(banks: Sequence[Bank]) -> Bank:
    """One bank of the outputs of M networks for the same N inputs, for `deep-ensemble`.

    Its logits are the log of the mean probabilities, its features all members' side by side; it has no head.
    Raises `InputError` for fewer than two banks, or banks of other inputs or classes.
    """
    if len(banks) < 2:
        raise InputError("members", f"are {len(banks)}", "Give the outputs of two networks at least.")
    if len({bank.logits.shape for bank in banks}) > 1:
        raise InputError("members", "differ in inputs or classes", "Give outputs for the same inputs.")
    first = banks[0]
    for bank in banks[1:]:
        for a, b in ((first.ids, bank.ids), (first.labels, bank.labels)):
            if a is not None and b is not None and not torch.equal(a, b):
                raise InputError("members", "were given other inputs", "Give outputs for the same inputs.")
    each = torch.stack([bank.logits.float() for bank in banks], 1)
    return Bank(
        torch.cat([bank.features for bank in banks], 1),
        torch.log_softmax(each, -1).exp().mean(1).clamp(min=torch.finfo(torch.float32).tiny).log(),
        first.labels,
        first.domain,
        first.ids,
        layers={DeepEnsemble.name: each},
        domains=first.domains,
    )
