"""KL matching: how far the softmax is from the typical softmax of every class."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unseen.detection.bank_parts import require_rows
from unseen.detection.base import Detector, require_finite
from unseen.networks import Bank
from unseen.registry import detectors


@detectors.register(
    "kl-matching",
    summary="KL divergence to the nearest of the classes' mean softmax",
    paper="Hendrycks et al. 2022, arXiv 1911.11132",
)
class KLMatching(Detector):
    """Minus the smallest KL(p | mean p of the examples predicted as class c), in nats.

    Needs no labels. Classes that are predicted for no training example have no typical softmax. The paper fits
    on held-out outputs, which are less confident than those that the network was trained on.
    """

    needs_logits = True
    log_typical: Tensor

    def fit(self, bank: Bank) -> Self:
        require_rows(bank)
        log_p = torch.log_softmax(require_finite(bank.logits, "logits").double(), -1)
        classes, group, counts = bank.predictions.unique(return_inverse=True, return_counts=True)
        # a mean of probabilities by their logarithms: a zero would make the divergence infinite
        where = group[:, None].expand_as(log_p)
        largest = log_p.new_full((len(classes), log_p.shape[1]), -torch.inf)
        largest = largest.scatter_reduce(0, where, log_p, "amax")
        sums = torch.zeros_like(largest).index_add_(0, group, (log_p - largest[group]).exp())
        self.keep(bank, log_typical=(largest + sums.log() - counts[:, None].log()).float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        log_p = torch.log_softmax(require_finite(bank.logits, "logits").float(), -1)
        p = log_p.exp()
        return (p @ self.log_typical.T - (p * log_p).sum(-1, keepdim=True)).amax(-1)
