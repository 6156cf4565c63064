"""Weights of examples under which the columns of an embedding are independent, not linearly alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.objectives.example_weights import Table, effective_sample_size
from unseen.shifts.sampling import derive_seed

Form = Literal["covariance", "paper"]
SMALLEST_BATCH = 4
CONSTANT = 1e-6
"""Standard deviation below which a column counts as constant."""


def fourier_features(z: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, d, Q) random functions sqrt(2) cos(omega z + phi) of each column of z (B, d), Q = `count` a column.

    Omega is standard normal and phi uniform in [0, 2 pi), drawn anew for every column (Rahimi & Recht 2007);
    columns are standardised before, and constant ones become constant functions.
    """
    deviation = z.std(0, correction=0)
    z = (z - z.mean(0)) / torch.where(deviation > CONSTANT, deviation, torch.inf)
    shape = z.shape[1], count
    omega = torch.randn(shape, generator=generator).to(z)
    phi = (2 * torch.pi * torch.rand(shape, generator=generator)).to(z)
    return 2**0.5 * torch.cos(z.unsqueeze(2) * omega + phi)


def pair_dependence(functions: Tensor, weights: Tensor, form: Form = "covariance") -> Tensor:
    """(d, d) squared Frobenius norms of the weighted cross-covariances of functions (N, d, Q), weights mean 1.

    form  "covariance": sum_n w_n (u_n - u)(v_n - v) / N with weighted means, which is a covariance under w;
          "paper": the weight stands inside both brackets, so it enters squared (StableNet's equation)
    """
    count, columns, each = functions.shape
    flat, weights = functions.flatten(1), weights.unsqueeze(1)
    if form == "covariance":
        centred = flat - (weights * flat).mean(0)
        covariance = (weights * centred).T @ centred / count
    else:
        centred = weights * flat
        centred = centred - centred.mean(0)
        covariance = centred.T @ centred / (count - 1)
    return covariance.square().view(columns, each, columns, each).sum((1, 3))


def weighted_hsic_rff(
    z: Tensor,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    features: int = 5,
    generator: torch.Generator,
    form: Form = "covariance",
) -> Tensor:
    """Sum over pairs i < j of columns of z (B, d) of their dependence under weights (B,) of mean 1: a scalar.

    mask  (d, d) bool: the pairs that count, None for all. Zero in the limit of many features if and only if
          the pairs are independent (L2R-GNN, equation of the clustered objective; HSIC of random features)
    """
    weights = torch.ones(len(z)).to(z) if weights is None else weights
    found = pair_dependence(fourier_features(z, features, generator), weights, form)
    return (found if mask is None else found * mask).triu(1).sum()


def correlations(z: Tensor) -> Tensor:
    """(d, d) Pearson correlations of the columns of z (B, d); zero for constant ones."""
    centred = z - z.mean(0)
    norms = torch.linalg.vector_norm(centred, dim=0)
    centred = centred / torch.where(norms > CONSTANT * len(z) ** 0.5, norms, torch.inf)
    return centred.T @ centred


def cluster_by_stability(parts: Sequence[Tensor], clusters: int, seed: int = 0) -> Tensor:
    """(d,) clusters of columns whose correlation is the same in all parts (n_l, d), numbered from 0.

    Columns i and j are Dis(i, j) apart: the standard deviation of their correlation over the parts; k-means on
    the rows of Dis.
    """
    if len(parts) < 2:
        raise InputError("parts", f"are {len(parts)}", "Stability needs at least two.")
    found = torch.stack([correlations(part) for part in parts])
    return cluster_rows(found.std(0, correction=0), clusters, seed)


def cluster_rows(distance: Tensor, clusters: int, seed: int) -> Tensor:
    """(d,) k-means clusters of the rows of `distance` (d, d)."""
    from sklearn.cluster import KMeans

    check_clusters(clusters, distance.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct rows than clusters, while an embedding is new
        model = KMeans(clusters, n_init=4, random_state=seed % 2**31).fit(distance.double().cpu().numpy())
    return torch.from_numpy(model.labels_).long().to(distance.device)


def check_clusters(clusters: int | Sequence[int], columns: int) -> None:
    """Raise `InputError` unless 2 to `columns` clusters, or a label for each column, are given."""
    count = clusters if isinstance(clusters, int) else len(set(clusters))
    if not isinstance(clusters, int) and len(clusters) != columns:
        problem = f"label {len(clusters)} columns, but the embedding has {columns}"
        raise InputError("clusters", problem, "Give one number for each.")
    if not 2 <= count <= columns:
        problem = f"are {count} for {columns} columns, which leaves no pair of clusters to decorrelate"
        raise InputError("clusters", problem, f"Give 2 to {columns}, or None for every pair of columns.")


class DecorrelationReweighter(nn.Module):
    """Weights (B,) of mean 1 under which columns of an embedding (B, d) in different clusters are independent.

    clusters       None: every pair of columns counts (StableNet); labels of the columns; or their number, with
                   the labels from `set_clusters`
    rff            Q, random Fourier features of each column
    steps          gradient steps (momentum 0.9) on v, where w = B softmax(v); the last half at a tenth of the rate
    learning_rate  of these steps
    balance        factor of mean(w^2), which keeps weights near uniform
    queue          K, remembered batches that are decorrelated together with the new one
    decay          momentum with which a remembered batch is renewed, in [0, 1): z <- decay z + (1 - decay) new
    form           see `pair_dependence`

    What is minimised is the *mean* squared covariance over pairs and functions plus balance * mean(w^2), with
    steps that do not shrink with the batch, so settings keep their meaning for other d, Q and B. StableNet's
    sums with Q = 1, rate 1 and lambda_p 70 at d = 512 and B = 256 are learning_rate 7.3 and balance 2e-6.
    The embedding is never differentiated: an encoder could otherwise reach independence by collapsing.
    """

    mask: Tensor
    seen: Tensor

    def __init__(
        self,
        clusters: int | Sequence[int] | None = None,
        *,
        rff: int = 5,
        steps: int = 20,
        learning_rate: float = 1.0,
        balance: float = 1e-4,
        queue: int = 1,
        decay: float = 0.9,
        form: Form = "covariance",
    ):
        super().__init__()
        for name, value, least in (("rff", rff, 1), ("steps", steps, 1), ("queue", queue, 0)):
            if value < least:
                raise InputError(name, f"is {value}", f"Give a whole number from {least}.")
        if not learning_rate > 0 or not balance >= 0:
            problem = f"are {learning_rate} and {balance}"
            raise InputError("learning_rate and balance", problem, "Give a positive number and one from 0.")
        if not 0 <= decay < 1:
            raise InputError("decay", f"is {decay}", "Give a number from 0 to below 1.")
        if form not in ("covariance", "paper"):
            raise InputError("form", f"is {form!r}", nearest(form, ("covariance", "paper")))
        if isinstance(clusters, int) and clusters < 2:
            raise InputError(
                "clusters", f"are {clusters}", "Give at least 2, or None for every pair of columns."
            )
        self.clusters, self.rff, self.steps, self.learning_rate = clusters, rff, steps, learning_rate
        self.balance, self.queue, self.decay, self.form = balance, queue, decay, form
        self.register_buffer("mask", torch.ones(0, 0, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.past, self.past_weights = Table(), Table()

    def setup(self, columns: int, batch_size: int, device: torch.device | str = "cpu") -> None:
        """Make room for an embedding of `columns` columns and batches of `batch_size` examples."""
        if columns < 2:
            raise InputError("embedding", f"has {columns} column", "Decorrelation needs at least two.")
        self.mask = torch.ones(columns, columns, dtype=torch.bool, device=device)
        if self.clusters is not None:
            check_clusters(self.clusters, columns)
        if isinstance(self.clusters, Sequence):
            self.set_clusters(torch.tensor(self.clusters, device=device))
        self.past.fill(torch.zeros(self.queue, batch_size, columns), device)
        self.past_weights.fill(torch.zeros(self.queue, batch_size), device)
        self.seen.zero_()

    def set_clusters(self, labels: Tensor) -> None:
        """Count only pairs of columns whose labels (d,) differ."""
        self.mask.copy_(labels.unsqueeze(0) != labels.unsqueeze(1))

    def weights(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) weights of mean 1 for an embedding z (B, d); it joins the remembered batches.

        generator  of the random features; default one that depends on the number of batches seen
        """
        if z.dim() != 2 or len(z) < SMALLEST_BATCH or not bool(torch.isfinite(z).all()):
            problem = (
                f"has shape {tuple(z.shape)}" if z.dim() != 2 or len(z) < SMALLEST_BATCH else "is not finite"
            )
            raise InputError("embedding", problem, f"Give finite numbers (B, d), B from {SMALLEST_BATCH}.")
        if not self.mask.numel():
            self.setup(z.shape[1], len(z), z.device)
        if z.shape[1] != self.mask.shape[0]:
            problem = f"has {z.shape[1]} columns, but the remembered batches have {self.mask.shape[0]}"
            raise InputError("embedding", problem, "Make a new reweighter for another embedding.")
        constant = int((z.std(0, correction=0) <= CONSTANT).sum())
        if constant:
            warnings.warn(
                f"embedding: {constant} constant column(s) are left out", UnseenWarning, stacklevel=2
            )
        if generator is None:
            generator = torch.Generator().manual_seed(derive_seed(int(self.seen)))
        found = mean_one(self.solve(z, torch.zeros(len(z)).to(z), generator))
        if not bool(torch.isfinite(found).all()):
            problem = f"{self.learning_rate:g} leads to weights that are not finite"
            raise InputError("learning_rate", problem, "Lower it, or balance.")
        self.remember(z, found)
        return found

    def solve(self, z: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) values v, improved from `start`, whose weights are `mean_one(v)`; remembers nothing."""
        z = z.detach()
        past = self.past.values[: int(self.seen)] if z.shape == self.past.values.shape[1:] else z.new_zeros(0)
        known = self.past_weights.values[: len(past)].flatten().to(z)
        everything = torch.cat([z, past.flatten(0, 1).to(z)]) if len(past) else z
        functions = fourier_features(everything, self.rff, generator)
        pairs = self.mask.triu(1)
        scale = self.rff**2 * pairs.sum()
        v = start.detach().clone().to(z)
        speed = torch.zeros_like(v)
        for step in range(self.steps):
            with torch.enable_grad():
                v.requires_grad_()
                w = mean_one(v)
                dependence = pair_dependence(functions, torch.cat([w, known]), self.form)
                goal = (dependence * pairs).sum() / scale + self.balance * w.square().mean()
                (gradient,) = torch.autograd.grad(goal, v)
            rate = self.learning_rate * (1.0 if step < (self.steps + 1) // 2 else 0.1)
            speed = 0.9 * speed + len(v) * gradient
            v = v.detach() - rate * speed
        return v - v.mean()

    def remember(self, z: Tensor, weights: Tensor) -> None:
        """Renew the oldest remembered batch; one of another size is not kept."""
        if not self.queue or z.shape != self.past.values.shape[1:]:
            return
        slot = int(self.seen) % self.queue
        decay = self.decay if int(self.seen) >= self.queue else 0.0
        for kept, new in ((self.past.values, z), (self.past_weights.values, weights)):
            kept[slot] = decay * kept[slot] + (1 - decay) * new.detach()
        self.seen.add_(1)


def mean_one(v: Tensor) -> Tensor:
    """(B,) weights B softmax(v)."""
    return len(v) * torch.softmax(v, 0)


def warn_of_few(weights: Tensor) -> None:
    """Warn when weights (B,) leave less than a tenth of the examples in effect."""
    if float(effective_sample_size(weights)) < 0.1 * len(weights):
        warnings.warn(
            "decorrelation: the weights leave less than 10 % of the examples in effect. If two features always "
            "occur together no weights can part them; raise balance.",
            UnseenWarning,
            stacklevel=3,
        )
