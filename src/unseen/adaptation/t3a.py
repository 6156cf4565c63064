"""T3A: class templates from the surest features so far, without gradients (Iwasawa & Matsuo 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.adaptation.base import Adaptation, State
from unseen.adaptation.output_losses import softmax_entropy
from unseen.errors import InputError
from unseen.networks import Network
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs


def surest_of_each_class(entropy: Tensor, labels: Tensor, keep: int) -> Tensor:
    """Positions, in ascending order, of the `keep` examples of lowest entropy (S,) of each class in labels (S,)."""
    order = entropy.argsort(stable=True)
    ranked = nn.functional.one_hot(labels[order])
    rank = (ranked.cumsum(0) * ranked).sum(1)
    return order[rank <= keep].sort().values


@adaptation.register(
    "t3a",
    summary="Class templates are means of the head's weights and the surest features of the stream",
    paper="Iwasawa & Matsuo 2021, NeurIPS, Test-time classifier adjustment module",
    search={"keep": ("choice", [1, 5, 20, 50, 100])},
)
class T3A(Adaptation):
    """Logits are products of features with each class's template.

    keep   M: features of lowest entropy that each class remembers, from 1; the paper searches 1 to 100 and all
    Biases of the head count for the pseudo-labels and entropies, not for the answer, as in the authors' code. Weight
    vectors support their own classes, as the paper has it (in the authors' code, the class that the head gives them).
    """

    needs_head = True
    network: Network

    def __init__(self, network: nn.Module, keep: int = 100, *, seed: int = 0):
        if keep < 1:
            raise InputError("keep", f"is {keep}", "Give a number of features from 1, such as 100.")
        self.keep = keep
        super().__init__(network, seed=seed)

    @torch.no_grad()
    def begin(self) -> State:
        """The first support of each class is its weight vector in the head."""
        weights = self.network.head.weight.detach().clone()
        return {
            "features": weights,
            "labels": torch.arange(len(weights), device=weights.device),
            "entropy": softmax_entropy(self.network.head(weights)),
        }

    @torch.no_grad()
    def answer(self, x: Inputs) -> Tensor:
        features = self.network.featurizer(x)
        logits = self.network.head(features)
        known = self.memory
        new = {"features": features, "labels": logits.argmax(1), "entropy": softmax_entropy(logits)}
        joined = {name: torch.cat([known[name], value.detach()]) for name, value in new.items()}
        # what is dropped now would never come back: entropies of supports do not change
        kept = surest_of_each_class(joined["entropy"], joined["labels"], self.keep)
        self.memory = {name: value[kept] for name, value in joined.items()}
        supports = nn.functional.normalize(self.memory["features"], dim=1)
        templates = torch.zeros_like(self.network.head.weight).index_add_(0, self.memory["labels"], supports)
        return features @ nn.functional.normalize(templates, dim=1).T
