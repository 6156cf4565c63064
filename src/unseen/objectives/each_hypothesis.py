"""Every hypothesis of a network learns the labels by itself."""

from __future__ import annotations

from unseen.networks import Network
from unseen.networks.hypotheses import Hypotheses
from unseen.objectives.base import Loss, Objective
from unseen.objectives.divdis import labelled_risk
from unseen.objectives.erm import ERM
from unseen.registry import objectives
from unseen.shifts import Batch


@objectives.register(
    "each-hypothesis",
    summary="Mean of each hypothesis' own loss, for networks of several (layerwise-ensemble, heads, members)",
    paper="Roh et al. 2024, arXiv 2402.04644",
)
class EachHypothesis(Objective):
    """Cross-entropy averaged over hypotheses and examples, where ERM has that of the hypotheses' mean.

    It is divided by the number of hypotheses, lest more of them raise the learning rate. A network of one hypothesis
    learns by ERM.
    """

    carries_weights = True

    def forward(self, model: Network, batch: Batch) -> Loss:
        if not isinstance(model, Hypotheses):
            return ERM.forward(self, model, batch)  # type: ignore[arg-type]
        return Loss(labelled_risk(model.all_logits(batch.x), batch))
