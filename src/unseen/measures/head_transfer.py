"""How far a head carries from one domain to another: distances of Hessians, and the worst head nearby."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unseen.errors import InputError, nearest
from unseen.networks import Bank
from unseen.objectives.head_statistics import head_statistics, hessian_products
from unseen.objectives.shares import DomainRows

Norm = Literal["spectral", "fro", "diag"]


def hessian_distance(bank: Bank, norm: Norm = "spectral", *, weight: Tensor | None = None) -> Tensor:
    """Distances (D, D) between the domains' Hessians of the risk in the linear softmax head, bias included.

    bank    features (N, F), logits (N, C) and domain (N,) into its D `domains`; labels play no role
    norm    "spectral" (largest absolute eigenvalue of the difference; half of it times r^2 bounds the
            `transfer_gap` within radius r of a head that is stationary on both, to second order), "fro"
            (Frobenius) or "diag" (Euclidean norm of the difference of the diagonals)
    weight  (N,) or None: weights of examples, such as inverse class frequencies, without which a difference
            in class balance alone makes a distance
    NaN where a domain has no example. Float64; only the Frobenius norm needs memory of the order of N^2.
    Source: Hemati et al. 2023, arXiv 2308.11778, theorem 1.
    """
    if norm not in ("spectral", "fro", "diag"):
        raise InputError(f"norm {norm!r}", "is not known", nearest(str(norm), ("spectral", "fro", "diag")))
    if bank.domain is None:
        raise InputError("bank", "does not say which domain each example is from", "Set its domain.")
    count = len(bank.domains) or int(bank.domain.max()) + 1
    if count < 2:
        raise InputError("bank", f"has {count} domain(s)", "A distance needs at least two.")
    features, logits, domain = bank.features.cpu().double(), bank.logits.cpu().double(), bank.domain.cpu()
    weight = torch.ones_like(features[:, 0]) if weight is None else weight.cpu().double()
    rows = DomainRows.of(domain, count, features.dtype)
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    probabilities = torch.softmax(logits, -1)
    if norm == "diag":
        statistics = head_statistics(
            features, logits, probabilities, domain, count, order=["hessian_diagonal"], weight=weight
        )
        diagonals = statistics.values["hessian_diagonal"].flatten(1)
        distances = torch.cdist(diagonals, diagonals)
    elif norm == "fro":
        distances = _frobenius(inputs, probabilities, rows.domains * weight)
    else:
        distances = torch.zeros(count, count, dtype=torch.double)
        for i in range(count):
            for j in range(i):
                if rows.present[i] and rows.present[j]:
                    difference = rows.domains[i] - rows.domains[j]
                    distances[i, j] = distances[j, i] = _spectral(inputs, probabilities, weight, difference)
    missing = rows.present == 0
    return distances.masked_fill(missing | missing.unsqueeze(1), float("nan"))


def _frobenius(inputs: Tensor, probabilities: Tensor, rows: Tensor) -> Tensor:
    """<H_i, H_j> sums (x_a . x_b)^2 <S_a, S_b> over pairs of examples, with S = diag p - p p'."""
    overlap, crossed = probabilities @ probabilities.T, probabilities @ probabilities.square().T
    curvatures = overlap - crossed - crossed.T + overlap.square()
    inner = rows @ ((inputs @ inputs.T).square() * curvatures) @ rows.T
    squares = inner.diagonal()
    distances = (squares + squares.unsqueeze(1) - 2 * inner).clamp(min=0).sqrt()
    return distances.fill_diagonal_(0)


def _spectral(inputs: Tensor, probabilities: Tensor, weight: Tensor, row: Tensor) -> float:
    """Largest absolute eigenvalue of the Hessian of the risk in which examples weigh `row` (N,)."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    shape = 1, probabilities.shape[1], inputs.shape[1]
    size = shape[1] * shape[2]

    def multiply(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(vector.reshape(shape))
        return hessian_products(inputs, probabilities, weight, row.unsqueeze(0), direction).numpy().ravel()

    start = np.random.default_rng(0).standard_normal(size)
    if not multiply(start).any():  # equal Hessians, for which Lanczos iterations have nowhere to go
        return 0.0
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    return float(abs(eigsh(operator, k=1, which="LM", v0=start, return_eigenvectors=False)[0]))


@dataclass(frozen=True)
class TransferGap:
    """The head within the radius for which the target suffers most beyond the source.

    value          excess risk on the target minus excess risk on the source, both against the given head
    source_excess  risk of that head on the source minus the given head's
    target_excess  the same on the target
    change         (C, F + 1) added to the given head's weights and bias
    """

    value: float
    source_excess: float
    target_excess: float
    change: Tensor


def transfer_gap(
    source: Bank, target: Bank, radius: float, *, steps: int = 100, starts: int = 4, seed: int = 0
) -> TransferGap:
    """Largest excess of the target's risk over the source's, over heads within `radius` of the given one.

    source, target  features, logits of the head in question, and labels
    radius          Euclidean, on weights and bias together; at a head that is stationary on both domains the
                    gap is at most radius^2 / 2 times their spectral `hessian_distance`, to second order
    steps, starts   of projected gradient ascent; a start is the gradient, further ones are random (`seed`)
    The problem is not concave: the value is a lower bound of the supremum. Never negative.
    Source: Zhang et al. 2021, arXiv 2106.03632, Algorithm 1; Hemati et al. 2023, arXiv 2308.11778, section 3.
    """
    if not radius > 0:
        raise InputError("radius", f"is {radius}", "Give a positive number.")
    for name, bank in (("source", source), ("target", target)):
        if bank.labels is None or len(bank) == 0:
            raise InputError(name, "has no labelled examples", "Give a bank with labels.")

    def excess(bank: Bank, change: Tensor) -> Tensor:
        """(starts,) risk with the changed heads minus the risk of the given one."""
        features, given = bank.features.cpu().double(), bank.logits.cpu().double()
        labels = bank.labels.cpu()  # type: ignore[union-attr]
        inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        logits = given + inputs @ change.transpose(1, 2)
        losses = cross_entropy(logits.transpose(1, 2), labels.expand(len(change), -1), reduction="none")
        return losses.mean(1) - cross_entropy(given, labels)

    def onto_sphere(change: Tensor) -> Tensor:
        return radius * change / change.flatten(1).norm(dim=1).clamp(min=1e-300).view(-1, 1, 1)

    generator = torch.Generator().manual_seed(seed)
    shape = starts, source.logits.shape[1], source.features.shape[1] + 1
    change = onto_sphere(torch.randn(shape, generator=generator, dtype=torch.double))
    change[0] = 0
    best, where = torch.zeros(starts, dtype=torch.double), torch.zeros_like(change)
    for step in range(steps + 1):
        change.requires_grad_()
        gap = excess(target, change) - excess(source, change)
        (slope,) = torch.autograd.grad(gap.sum(), change)
        with torch.no_grad():
            better = gap > best
            best = torch.where(better, gap, best)
            where = torch.where(better.view(-1, 1, 1), change, where)
            moved = change + (1 - step / (steps + 1)) * onto_sphere(slope)
            outside = moved.flatten(1).norm(dim=1).view(-1, 1, 1) > radius
            change = torch.where(outside, onto_sphere(moved), moved)
    winner = where[best.argmax()].unsqueeze(0)
    with torch.no_grad():
        on_source, on_target = float(excess(source, winner)), float(excess(target, winner))
    return TransferGap(on_target - on_source, on_source, on_target, winner.squeeze(0))
