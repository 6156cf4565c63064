"""Generalized category discovery: labels of some classes, and a pool in which there are others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from unseen.detection.base import require_finite
from unseen.discovery.number_of_classes import NumberOfClasses, estimate_num_classes
from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.networks import Bank
from unseen.networks.modes import evaluating
from unseen.networks.prototypes import PrototypeBank
from unseen.objectives.protogcd import UNLABELLED, ProtoGCDLoss
from unseen.objectives.views import two_views
from unseen.registry import Spec, detectors
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

Views = Callable[[Inputs, torch.Generator], Inputs]
"""Inputs (B, ...) and the source of randomness to two views of each, (B, 2, ...)."""
BLOCK = 1024
"""Examples that are encoded at a time."""


class PrototypeClassifier(nn.Module):
    """Encoder, one learned prototype a class, and a projector of three layers for contrastive losses."""

    def __init__(self, encoder: nn.Module, features: int, classes: int, hidden: int, projection: int):
        super().__init__()
        self.encoder = encoder
        self.prototypes = PrototypeBank(classes, 1, features, momentum=None)
        self.projector = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, projection),
        )  # fmt: skip

    def features(self, x: Inputs) -> Tensor:
        """(B, D) unit vectors."""
        return nn.functional.normalize(self.encoder(x).float(), dim=1)

    def forward(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Cosines (B, K) to the prototypes, and projections (B, E), unit vectors."""
        encoded = self.encoder(x).float()
        cosines = nn.functional.normalize(encoded, dim=1) @ self.prototypes.vectors.T
        return cosines, nn.functional.normalize(self.projector(encoded), dim=1)


class GeneralizedCategoryDiscovery:
    """Finds old and new classes in unlabelled examples, given labels of the old ones (ProtoGCD: Ma et al. 2025).

    encoder     inputs to features (B, D), trained in place where its parameters have requires_grad; None takes the
                inputs as features
    n_old       number of classes that labels name, 0 to n_old - 1
    n_new       number of new classes, or "auto": `estimate_num_classes` of the encoder's features [reconstructed]
    objective   `ProtoGCDLoss` with its options, or `simgcd_loss`
    views       draws two views of each input; flip=False for digits: functools.partial(two_views, flip=False)
    hidden, projection
                sizes of the projector
    epochs, batch_size, learning_rate, weight_decay
                SGD with momentum 0.9, the rate falling to a thousandth by a cosine; no decay of biases and norms.
                Half of a batch has labels, on average
    progress    called as progress(epochs done, epochs)

    After `fit`: model (`PrototypeClassifier`), n_classes, estimate (`NumberOfClasses`, where n_new is "auto").
    The last weights are kept: which epoch was best could only be told by labels that nobody has.
    """

    model: PrototypeClassifier
    n_classes: int
    estimate: NumberOfClasses | None = None

    def __init__(
        self,
        encoder: nn.Module | None = None,
        n_old: int = 1,
        n_new: int | Literal["auto"] = "auto",
        objective: ProtoGCDLoss | None = None,
        *,
        views: Views = two_views,
        hidden: int = 2048,
        projection: int = 256,
        epochs: int = 200,
        batch_size: int = 128,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-5,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ):
        if n_old < 1:
            raise InputError("n_old", f"is {n_old}", "Give the number of classes that have labels.")
        if n_new != "auto" and (not isinstance(n_new, int) or n_new < 1):
            raise InputError("n_new", f"is {n_new!r}", "Give a whole number from 1, or 'auto'.")
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(name, f"is {value}", "Give a whole number from 1.")
        self.encoder = nn.Identity() if encoder is None else encoder
        self.n_old, self.n_new, self.objective = n_old, n_new, objective or ProtoGCDLoss()
        self.views, self.hidden, self.projection = views, hidden, projection
        self.epochs, self.batch_size = epochs, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.seed, self.device, self.progress = seed, torch.device(device), progress

    def fit(self, labeled: tuple[Inputs, Tensor], unlabeled: Inputs) -> Self:
        """Learn from inputs with labels (M,), and from inputs of old and new classes without.

        Raises `InputError` for labels that are not of each old class, no unlabelled inputs, fewer inputs than
        prototypes and features that are not finite, `TrainingDiverged` for a loss that is not finite; warns of
        prototypes without an unlabelled example.
        """
        inputs, labels = labeled
        count, free = _length(inputs), _length(unlabeled)
        self._check(labels, count, free)
        self.encoder.to(self.device)
        x = _joined(inputs, unlabeled)
        y = torch.cat([labels.cpu(), torch.full((free,), UNLABELLED)])
        with torch.no_grad():
            features = nn.functional.normalize(require_finite(self._encoded(x), "features"), dim=1)
        if self.n_new == "auto":
            self.estimate = estimate_num_classes(
                features[count:], features[:count], labels.cpu(), seed=self.seed
            )
            self.n_classes = self.estimate.total
        else:
            self.n_classes = self.n_old + self.n_new
        if count + free < self.n_classes:
            problem = f"are {count + free}, for {self.n_classes} prototypes"
            raise InputError("examples", problem, "Give more examples, or fewer new classes.")
        with seeded(self.seed, 0):
            self.model = PrototypeClassifier(
                self.encoder, features.shape[1], self.n_classes, self.hidden, self.projection
            ).to(self.device)
        self._train(x, y, weight=torch.where(y == UNLABELLED, count / free, 1.0))
        used = torch.bincount(self.predict(unlabeled).cpu(), minlength=self.n_classes)
        empty = (used == 0).nonzero().flatten().tolist()
        if empty:
            warnings.warn(
                f"prototypes {empty} have no unlabelled example: there may be fewer classes than "
                f"{self.n_classes}",
                UnseenWarning,
                stacklevel=2,
            )
        return self

    def predict(self, x: Inputs) -> Tensor:
        """(N,) index of the nearest prototype: below n_old it is that old class, from there a discovered one."""
        return self.outputs(x).predictions

    def score(self, x: Inputs, detector: str | Spec = "msp") -> Tensor:
        """(N,) how familiar inputs are, higher is more: low for classes that are neither old nor in the pool.

        detector  one that needs no fitting: msp, max-logit, energy, margin or top-two-ratio
        """
        return detectors.build(detector).score(self.outputs(x))

    @torch.no_grad()
    def outputs(self, x: Inputs) -> Bank:
        """Unit features (N, D) and logits (N, K), cosines over the objective's temperature."""
        if not hasattr(self, "model"):
            raise InputError("GeneralizedCategoryDiscovery", "is not fitted", "Call fit first.")
        features = nn.functional.normalize(self._encoded(x), dim=1)
        vectors = self.model.prototypes.vectors.cpu()
        return Bank(features, features @ vectors.T / self.objective.temperature)

    def _encoded(self, x: Inputs) -> Tensor:
        blocks = torch.arange(_length(x)).split(BLOCK)
        with evaluating(self.encoder):
            return torch.cat([self.encoder(_rows(x, rows, self.device)).float().cpu() for rows in blocks])

    def _train(self, x: Inputs, y: Tensor, weight: Tensor) -> None:
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.dim() > 1]
        others = [p for p in self.model.parameters() if p.requires_grad and p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others},
        ]
        optimizer = torch.optim.SGD(groups, lr=self.learning_rate, momentum=0.9)
        steps = math.ceil(len(y) / self.batch_size)
        self.model.train()
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (
                    0.001 + 0.999 * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
                )
            for step in range(steps):
                generator = torch.Generator().manual_seed(derive_seed(self.seed, 1, epoch, step))
                rows = torch.multinomial(weight, self.batch_size, replacement=True, generator=generator)
                views = self.views(_rows(x, rows, self.device), generator)
                cosines, projections = self.model(map_tensors(lambda t: t.flatten(0, 1), views))
                loss = self.objective(
                    cosines.unflatten(0, (-1, 2)),
                    y[rows].to(self.device),
                    self.model.prototypes.vectors,
                    projections.unflatten(0, (-1, 2)),
                    (epoch + step / steps) / self.epochs,
                )
                if not bool(torch.isfinite(loss.total)):
                    raise TrainingDiverged(
                        f"the loss is {loss.total.item()} in epoch {epoch + 1}: lower "
                        f"learning_rate={self.learning_rate}"
                    )
                optimizer.zero_grad()
                loss.total.backward()
                optimizer.step()
            if self.progress is not None:
                self.progress(epoch + 1, self.epochs)
        self.model.eval()

    def _check(self, labels: Tensor, count: int, free: int) -> None:
        if not free:
            raise InputError("unlabeled", "has no examples", "Give a pool in which there may be new classes.")
        if labels.shape != (count,):
            raise InputError("labels", f"have shape {tuple(labels.shape)}", f"Give ({count},).")
        if not count:
            raise InputError("labeled", "has no examples", "Give some of every old class.")
        if labels.is_floating_point():
            raise InputError("labels", f"are {labels.dtype}", "Give whole numbers.")
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.n_old:
            raise InputError(
                "labels",
                f"go from {int(labels.min())} to {int(labels.max())}",
                f"Old classes are 0 to {self.n_old - 1}; examples of others belong to the unlabelled.",
            )
        missing = sorted(set(range(self.n_old)) - set(labels.tolist()))
        if missing:
            raise InputError("labels", f"name no example of old class(es) {missing}", "Give some of each.")


def _length(x: Inputs) -> int:
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def _rows(x: Inputs, rows: Tensor, device: torch.device) -> Inputs:
    return map_tensors(lambda tensor: tensor[rows].to(device), x)


def _joined(one: Inputs, other: Inputs) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: torch.cat([value, other[name]]) for name, value in one.items()}
    return torch.cat([one, other])  # type: ignore[list-item]
