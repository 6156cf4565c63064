"""LAME: correct the outputs, not the network: neighbours get like labels (Boudiaf et al. 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unseen.adaptation.base import Adaptation
from unseen.errors import InputError
from unseen.networks import Network
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs

TOLERANCE = 1e-8


def laplacian_objective(assignment: Tensor, log_probabilities: Tensor, affinity: Tensor) -> Tensor:
    """KL of the assignment (B, C) to the network's probabilities minus agreement with neighbours, summed.

    sum_i KL(z_i || q_i) - 1/2 sum_ij w_ij z_i . z_j, for an affinity w (B, B). (The paper leaves out the half, which
    scales w; with it, the paper's iteration is exactly the one that decreases this.)
    """
    divergence = torch.xlogy(assignment, assignment) - assignment * log_probabilities
    return divergence.sum() - (assignment * (affinity @ assignment)).sum() / 2


def laplacian_assignment(log_probabilities: Tensor, affinity: Tensor, most_steps: int = 100) -> Tensor:
    """log z (B, C) that minimises `laplacian_objective`, by the concave-convex iteration.

    Every step decreases the objective when `affinity` is symmetric and positive semi-definite.
    """
    result = log_probabilities
    last = float(laplacian_objective(result.exp(), log_probabilities, affinity))
    for _ in range(most_steps):
        result = (log_probabilities + affinity @ result.exp()).log_softmax(1)
        value = float(laplacian_objective(result.exp(), log_probabilities, affinity))
        if abs(last - value) <= TOLERANCE * abs(last):
            break
        last = value
    return result


def affinities(features: Tensor, kind: str, neighbours: int) -> Tensor:
    """(B, B) affinity of features (B, D), which are scaled to unit length.

    "knn": 1 for each of the nearest neighbours (not symmetric); "rbf": a Gaussian as wide as the mean distance to
    the nearest neighbour number `neighbours`, the example itself being the first; "linear": the cosine.
    """
    unit = nn.functional.normalize(features, dim=1)
    if kind == "linear":
        return unit @ unit.T
    distance = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "rbf":
        nearest = distance.topk(min(neighbours, len(unit)), largest=False).values
        width = nearest[:, -1].mean().clamp(min=1e-12)  # equal features have affinity one, not 0 / 0
        return (-distance.square() / (2 * width.square())).exp()
    distance.fill_diagonal_(torch.inf)
    index = distance.topk(min(neighbours, len(unit) - 1), largest=False).indices
    return torch.zeros_like(distance).scatter_(1, index, 1.0)


@adaptation.register(
    "lame",
    summary="Outputs of a batch are corrected so that neighbours in feature space agree",
    paper="Boudiaf et al. 2022, arXiv 2201.05718",
    search={"affinity": ("choice", ["knn", "rbf", "linear"]), "neighbours": ("choice", [1, 3, 5])},
)
class LAME(Adaptation):
    """Nothing is learnt and nothing remembered. Made for correlated streams; on balanced batches it may do harm.

    affinity     "knn", "rbf" or "linear", the three that the paper searches
    neighbours   of "knn" and "rbf", from 1; the paper's best over all settings is 5
    Answers are logarithms of the corrected probabilities.
    """

    needs_head = True
    network: Network

    def __init__(
        self,
        network: nn.Module,
        affinity: Literal["knn", "rbf", "linear"] = "knn",
        neighbours: int = 5,
        *,
        seed: int = 0,
    ):
        if affinity not in ("knn", "rbf", "linear"):
            raise InputError(f"affinity {affinity!r}", "is not known", "Use 'knn', 'rbf' or 'linear'.")
        if neighbours < 1:
            raise InputError("neighbours", f"are {neighbours}", "Give a number from 1, such as 5.")
        self.affinity, self.neighbours = affinity, neighbours
        super().__init__(network, seed=seed)

    @torch.no_grad()
    def answer(self, x: Inputs) -> Tensor:
        features = self.network.featurizer(x)
        log_probabilities = self.network.head(features).log_softmax(1)
        return laplacian_assignment(log_probabilities, affinities(features, self.affinity, self.neighbours))
