"""NPOS: outliers synthesised around the outermost features of each class, without a parametric density."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.gradient_rows import full_precision
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.class_queue import ClassQueue
from unseen.objectives.divdis import check_weights
from unseen.objectives.penalty import from_step
from unseen.objectives.targets import likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch


def neighbour_distances(points: Tensor, features: Tensor, filled: Tensor, k: int) -> Tensor:
    """(C, N) distance of points (C, N, D) to the k-th nearest of the features (C, S, D) of their class.

    filled  (C, S) 1.0 where there is a feature
    With fewer than k features it is the farthest one.
    """
    missing = (filled == 0).unsqueeze(1)
    distances = torch.cdist(points, features)
    nearest = distances.masked_fill(missing, torch.inf).kthvalue(min(k, features.shape[1]), -1).values
    return torch.minimum(nearest, distances.masked_fill(missing, 0).amax(-1))


def boundary_outliers(
    queue: ClassQueue, noise: Tensor, place: Tensor, *, k: int, boundary: int, sigma: float, keep: int
) -> Tensor:
    """(C, keep, D) unit vectors away from each class, near its edge.

    queue     unit features
    noise     (draws, D) standard normal
    place     (picks,) in [0, 1): which of the `boundary` features with the farthest k-th neighbour are picked
    Gaussian noise of deviation `sigma` is added to the picked ones, and of all sums those `keep` are kept whose
    k-th nearest feature of the class is farthest.
    """
    most = max(
        1, int(queue.held.max())
    )  # distances to places that nothing fills yet would be most of the cost
    features, filled = queue.values[:, :most], queue.filled[:, :most]
    outermost = neighbour_distances(features, features, filled, k + 1)  # a feature is its own nearest
    outermost = outermost.masked_fill(filled == 0, -torch.inf).argsort(-1, descending=True)
    ranks = (place * queue.held.clamp(1, boundary).unsqueeze(1)).long()
    picked = outermost.gather(1, ranks)
    centres = features.gather(1, picked.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    points = (centres.unsqueeze(2) + sigma * noise.to(centres.dtype)).flatten(1, 2)
    points = nn.functional.normalize(points, dim=-1)
    farthest = neighbour_distances(points, features, filled, k).topk(keep, dim=-1).indices
    return points.gather(1, farthest.unsqueeze(-1).expand(-1, -1, points.shape[-1]))


@objectives.register(
    "npos",
    summary="Outliers synthesised around the outermost features of each class are told from examples",
    paper="Tao et al. 2023, arXiv 2303.02966",
    search={"weight": ("log", 1e-2, 1.0), "sigma": ("log", 0.05, 0.5), "k": ("choice", [100, 200, 300, 400])},
)
class NPOS(Objective):
    """Cross-entropy + weight * logistic loss of telling unit features of examples from `boundary_outliers`.

    queue                 latest features of each class; at least a batch. Distances cost queue^2 a class and step
    k, boundary, sigma    see `boundary_outliers`
    picks, draws, keep    boundary features a class, noise around each, and outliers kept of all
    warmup_steps          updates with cross-entropy alone; the published code begins after 40 of 100 epochs
    Defaults are the published ones. The paper classifies by cosine with moving prototypes; here the network's own
    head does. The head that tells outliers is the objective's own and is not kept: what it gave the features is.
    """

    queue: ClassQueue
    needs_features = True

    def __init__(
        self,
        weight: float = 0.1,
        queue: int = 1000,
        k: int = 300,
        boundary: int = 200,
        sigma: float = 0.1,
        picks: int = 2,
        draws: int = 600,
        keep: int = 200,
        warmup_steps: int = 0,
    ):
        super().__init__()
        check_weights(weight)
        for name, value in {"k": k, "boundary": boundary, "picks": picks, "draws": draws}.items():
            if value < 1:
                raise InputError(name, f"is {value}", "Give at least 1.")
        if not 1 <= keep <= picks * draws:
            raise InputError("keep", f"is {keep}", f"Give a number from 1 to picks * draws, {picks * draws}.")
        if not sigma > 0:
            raise InputError("sigma", f"is {sigma}", "Give a positive number.")
        self.weight, self.size, self.warmup_steps = weight, queue, warmup_steps
        self.k, self.boundary, self.sigma = k, boundary, sigma
        self.picks, self.draws, self.keep = picks, draws, keep

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.features = features
        self.queue = ClassQueue(classes, self.size, features)
        self.teller = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 1))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch's `auxiliary` has the noise (draws, D) and the places (picks,) of outliers."""
        drawn = {
            "noise": torch.randn(self.draws, self.features, generator=generator, device=generator.device),
            "place": torch.rand(self.picks, generator=generator, device=generator.device),
        }
        return replace(batch, auxiliary={n: v.to(batch.domain.device) for n, v in drawn.items()})

    def forward(self, model: Network, batch: Batch) -> Loss:
        if not isinstance(batch.auxiliary, dict):
            raise InputError("objective 'npos'", "got a batch without noise", "Call prepare first.")
        features = model.featurizer(batch.x)
        risk = example_losses(model.head(features), batch).mean()
        unit = nn.functional.normalize(full_precision(features), dim=-1)
        if not batch.repeat:
            self.queue.push(unit.detach(), likeliest_class(batch.y))
        with torch.no_grad():
            outliers = boundary_outliers(
                self.queue,
                batch.auxiliary["noise"],
                batch.auxiliary["place"],
                k=self.k,
                boundary=self.boundary,
                sigma=self.sigma,
                keep=self.keep,
            )
        known = self.teller(unit).squeeze(-1)
        unknown = self.teller(outliers.to(unit.dtype)).squeeze(-1)
        there = (self.queue.held > 1).to(known.dtype).unsqueeze(1)
        losses = nn.functional.softplus(-known).sum() + (nn.functional.softplus(unknown) * there).sum()
        openness = losses / (len(known) + there.sum() * self.keep)
        weight = from_step(self.warmup_steps, batch.step, self.weight, 0.0)
        return Loss(risk + weight * openness, {"risk": risk, "openness": openness})
