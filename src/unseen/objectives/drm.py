"""DRM: a head for each training domain beside one for all; unlabelled inputs choose among them later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.combining import picked
from unseen.networks.domain_heads import DomainHeads, with_domain_heads
from unseen.networks.hypotheses import Hypotheses
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.registry import Spec, objectives
from unseen.shifts import Batch


@objectives.register(
    "drm",
    summary="A head for each training domain and one for all; unlabelled test inputs choose (steering)",
    paper="Zhang et al. 2023, arXiv 2208.08661",
)
class DRM(Objective):
    """Half the mean loss of each example's own head and half the loss `base` of the shared head (section 4).

    base           what the shared head and the features are trained with: "erm" (the paper), or a loss with a
                   penalty such as "coral" or "irm(penalty_weight=10)". It sees the features as its inputs.
    discriminator  hidden units of a network that learns to tell the domain from the features and leaves these as
                   they are: for `Steering(by="discriminator")`. 0 for none

    The trained model answers with the shared head, example by example, in predictions, model folder and ONNX file
    alike. Steering is asked for, because it takes a group of examples: see `unseen.networks.steering`, and for a
    predictor `unseen.training.steered`. A head whose domain a batch misses is not trained by it.
    """

    needs_domains = True

    def __init__(self, base: str | Spec = "erm", discriminator: int = 0):
        super().__init__()
        self.base_spec, self.discriminator = str(Spec.of(base)), discriminator
        self.base: Objective = objectives.build(base)
        _check_base(self.base, self.base_spec)
        self.carries_weights, self.needs_features = self.base.carries_weights, self.base.needs_features

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        return with_domain_heads(build(), domains, self.discriminator)

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.base.setup(features=features, classes=classes, domains=domains)

    def resets_optimizer_at(self, step: int) -> bool:
        return self.base.resets_optimizer_at(step)

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(model, DomainHeads)
        if batch.domains != model.domains:
            problem = f"are {batch.domains}, but the network has heads for {model.domains}"
            raise InputError("domains of the batch", problem, "Train on the domains that it was made for.")
        features = model.featurizer(batch.x)
        if not batch.repeat:
            model.remember(features, batch.domain, batch.weight)
        own = example_losses(picked(model.head.all_logits(features), batch.domain), batch).mean()
        shared = self.base(Hypotheses(nn.Identity(), model.head), replace(batch, x=features))
        total = (own + shared.total) / 2
        parts = {**shared.parts, "own": own, "shared": shared.total}
        if model.discriminator is not None:
            guess = model.discriminator(features.detach())
            parts["domain"] = _domain_loss(guess, batch)
            total = total + parts["domain"]
        return Loss(total, parts)


def _domain_loss(guess: torch.Tensor, batch: Batch) -> torch.Tensor:
    losses = nn.functional.cross_entropy(guess, batch.domain, reduction="none")
    return (losses if batch.weight is None else losses * batch.weight).mean()


def _check_base(base: Objective, name: str) -> None:
    """Raise `InputError` for a base that needs more than features, labels and a head."""
    changed = [
        hook
        for hook in ("make_network", "prepare", "draw", "change", "begin", "finish")
        if getattr(type(base), hook) is not getattr(Objective, hook)
    ]
    if base.needs_unlabelled or base.needs_outliers:
        changed.append("it reads examples without labels or outliers")
    if changed:
        raise InputError(
            f"base {name!r} of drm",
            f"does more than add to the loss of features and head ({', '.join(changed)})",
            "Choose a penalty, such as coral, vrex or irm.",
        )
