"""NMTune: tune frozen features so that label noise of their pretraining does less harm."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.registry import objectives
from unseen.shifts import Batch


def consistency_loss(tuned: Tensor, pretrained: Tensor) -> Tensor:
    """Mean squared error of tuned and pretrained features (N, D), both scaled to length 1.

    The pretrained features are the fixed target: no gradient flows into them. A mean over D, so it is 2 / D
    times one minus the cosine. Chen et al. 2024, eq. 3.
    """
    target = nn.functional.normalize(pretrained.detach(), dim=1)
    return nn.functional.mse_loss(nn.functional.normalize(tuned, dim=1), target)


def offdiag_covariance(features: Tensor) -> Tensor:
    """Squared off-diagonal entries of the covariance of `features` (N, D), summed and divided by D.

    Raises InputError for N < 2. Small where dimensions are decorrelated. Chen et al. 2024, eq. 4.
    """
    if len(features) < 2:
        raise InputError("features", f"have {len(features)} example", "A covariance needs at least two.")
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (len(features) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]


def dominant_singular_loss(features: Tensor, top_k: int = 5) -> Tensor:
    """Minus the mean share of the `top_k` largest singular values of `features` (N, D) in their sum.

    Not centred, as in the published code, so the mean example takes part. The paper's eq. 5 has the largest
    value alone. Features that are all zero have no direction: their loss is a constant. Raises InputError for a
    top_k outside 1..min(N, D). Computed in float32 at least: half precision has no singular values.
    """
    most = min(features.shape)
    if not 1 <= top_k <= most:
        raise InputError("top_k", f"is {top_k}", f"Give 1 to min(N, D), here {most}.")
    with torch.autocast(features.device.type, enabled=False):
        wide = features if features.dtype == torch.float64 else features.float()
        wide = torch.where((wide == 0).all(), torch.ones_like(wide), wide)
        values = torch.linalg.svdvals(wide)  # its gradient, unlike that of `svd`, needs no gap between values
    return -(values[:top_k] / values.sum()).mean()


@objectives.register(
    "nmtune",
    summary="Stay near the frozen features, decorrelate them, keep their dominant directions",
    paper="Chen et al. 2024, arXiv 2309.17002",
    search={"covariance": ("log", 4e-3, 4e-1), "singular": ("log", 1e-4, 1e-2)},
)
class NMTune(Objective):
    """Cross-entropy + `consistency` x `consistency_loss` + `covariance` x `offdiag_covariance` + `singular` x
    `dominant_singular_loss`, on the tuned features Z of the batch. Made for the network `residual-tuner`,
    whose inputs are frozen features.

    Inputs may be {"weak": F, "strong": F'}, features of two views of each example: cross-entropy, covariance
    and singular values then read both, and the tuned strong view stays near the frozen weak one. A single
    view is both.

    With a featurizer whose output is not shaped like its input nothing frozen is known to stay near to:
    `consistency` is then left out, with an UnseenWarning. A batch smaller than two has no covariance, and of
    one smaller than `top_k` all singular values are dominant.
    """

    needs_features = True

    def __init__(
        self, consistency: float = 1.0, covariance: float = 0.04, singular: float = 1e-3, top_k: int = 5
    ):
        super().__init__()
        for name, value in (("consistency", consistency), ("covariance", covariance), ("singular", singular)):
            if not value >= 0:
                raise InputError(name, f"is {value}", "Give a weight from 0.")
        if top_k < 1:
            raise InputError("top_k", f"is {top_k}", "Give a whole number from 1.")
        self.consistency, self.covariance, self.singular = consistency, covariance, singular
        self.top_k = top_k

    def forward(self, model: Network, batch: Batch) -> Loss:
        if isinstance(batch.x, dict):
            weak, strong = batch.x["weak"], batch.x["strong"]
            tuned = model.featurizer(torch.cat([weak, strong]))  # one pass: both share batch statistics
            first, second = model.head(tuned).chunk(2)
            risk = (example_losses(first, batch).mean() + example_losses(second, batch).mean()) / 2
        else:
            weak, tuned = batch.x, model.featurizer(batch.x)
            risk = example_losses(model.head(tuned), batch).mean()
        parts = {"risk": risk} | self._regularizers(tuned, weak.flatten(1))
        weights = {"risk": 1.0} | {name: getattr(self, name) for name in parts if name != "risk"}
        return Loss(torch.stack([weights[name] * part for name, part in parts.items()]).sum(), parts)

    def _regularizers(self, tuned: Tensor, frozen: Tensor) -> dict[str, Tensor]:
        """Those with a weight, each before it is weighted."""
        parts = {}
        if self.consistency and tuned.shape[1] == frozen.shape[1]:
            parts["consistency"] = consistency_loss(tuned[-len(frozen) :], frozen)
        elif self.consistency:
            warnings.warn(
                f"objective 'nmtune': consistency is left out, since features ({tuned.shape[1]}) are not shaped "
                f"like inputs ({frozen.shape[1]}); the network residual-tuner keeps the shape",
                UnseenWarning,
                stacklevel=3,
            )
        if self.covariance and len(tuned) > 1:
            parts["covariance"] = offdiag_covariance(tuned)
        if self.singular:
            parts["singular"] = dominant_singular_loss(tuned, min(self.top_k, *tuned.shape))
        return parts
