"""ADRMX: features are invariant plus domain features; invariant ones predict, also with another domain's added."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.dann import reverse_gradient
from unseen.objectives.head_statistics import full_precision
from unseen.objectives.targets import likeliest_class
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

FLOOR = 1e-5  # of denominators and logarithms, as in the authors' code


def contrast(
    features: Tensor, labels: Tensor, domain: Tensor, share: float = 0.5, temperature: float = 0.07
) -> Tensor:
    """Supervised contrastive loss of features (B, F) in which pairs of one domain count `share`, others 1 - share.

    Mean, over examples with another of their class (labels (B,)), of the mean over these of
    -log(weighted similarity / sum of all weighted similarities); zero when there is none.
    """
    unit = nn.functional.normalize(features, dim=1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    within = domain.unsqueeze(1) == domain
    weights = torch.where(within, share, 1 - share) * others
    similar = weights * (unit @ unit.T / temperature).exp()
    shares = similar / (similar.sum(1, keepdim=True) + FLOOR)
    positive = (labels.unsqueeze(1) == labels) & others
    counts = positive.sum(1)
    each = -((shares + FLOOR).log() * positive).sum(1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)


def partners_across_domains(labels: Tensor, domain: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the position of a partner of the same class and another domain, and whether (B,) there is one.

    It is the next such example after one's own place in `order` (B,), a permutation, read in a circle.
    """
    count = len(labels)
    distance = order - order.unsqueeze(1)
    distance = torch.where(distance < 0, distance + count, distance)
    allowed = (labels.unsqueeze(1) == labels) & (domain.unsqueeze(1) != domain)
    nearest = distance.masked_fill(~allowed, count).min(1)
    return nearest.indices, nearest.values < count


@objectives.register(
    "adrmx",
    summary="Additive disentanglement: invariant plus domain features, remixed across domains",
    paper="Demirel et al. 2023, arXiv 2308.06624",
)
class ADRMX(Objective):
    """Features f = invariant + domain features d; with i = f - d, the sum of these losses:

    label, invariant    cross-entropy of the class from f by the network's head, and from i by a second head
    domain              domain_weight * cross-entropy of the domain from d
    remix               remix_weight * cross-entropy of the class from i + d', d' of an example of the same class
                        and another domain
    contrast            contrast_weight * `contrast` of f and of i
    adversary           cross-entropy of a discriminator of the domain from i, which i resists with
                        adversarial_weight (gradient reversal, as in `dann`)

    Predictions are the head's on f, as in the authors' code, where it alone is called the network. Defaults are
    theirs (they search the learning rate only). Different here: d is a two-layer map of f, where they train a
    second network; heads are linear; discriminator and network take one joint step instead of turns (two of
    three of them the discriminator's); every example is remixed, not one a class.

    partner_seed  partners are a function of it and of the training step
    """

    needs_domains = True
    needs_features = True

    def __init__(
        self,
        domain_weight: float = 1.0,
        remix_weight: float = 1.0,
        contrast_weight: float = 1.0,
        adversarial_weight: float = 0.75,
        width: int = 64,
        partner_seed: int = 0,
    ):
        super().__init__()
        for name, value in (
            ("domain_weight", domain_weight),
            ("remix_weight", remix_weight),
            ("contrast_weight", contrast_weight),
            ("adversarial_weight", adversarial_weight),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(name, f"is {value}", "Give a finite number from 0.")
        self.domain_weight, self.remix_weight = domain_weight, remix_weight
        self.contrast_weight, self.adversarial_weight = contrast_weight, adversarial_weight
        self.width, self.partner_seed = width, partner_seed

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        self.domain_part = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features)
        )
        self.invariant_head = nn.Linear(features, classes)
        self.domain_head = nn.Linear(features, domains)
        self.discriminator = nn.Sequential(
            nn.Linear(features, self.width), nn.ReLU(), nn.Linear(self.width, domains)
        )

    def partners(self, batch: Batch) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(derive_seed(self.partner_seed, batch.step))
        order = torch.from_numpy(random.permutation(len(batch))).to(batch.domain.device)
        return partners_across_domains(likeliest_class(batch.y), batch.domain, order)

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        of_domain = self.domain_part(features)
        invariant = features - of_domain
        partner, found = self.partners(batch)
        remixed = example_losses(model.head(invariant + of_domain[partner]), batch)
        guess = self.discriminator(reverse_gradient(invariant, self.adversarial_weight))
        labels = likeliest_class(batch.y)
        with torch.autocast(features.device.type, enabled=False):
            contrasts = [contrast(full_precision(z), labels, batch.domain) for z in (features, invariant)]
        parts = {
            "label": example_losses(model.head(features), batch).mean(),
            "invariant": example_losses(self.invariant_head(invariant), batch).mean(),
            "domain": self.domain_weight * nn.functional.cross_entropy(self.domain_head(of_domain), batch.domain),
            "remix": self.remix_weight * (remixed * found).sum() / found.sum().clamp(min=1),
            "contrast": self.contrast_weight * (contrasts[0] + contrasts[1]),
            "adversary": nn.functional.cross_entropy(guess, batch.domain),
        }  # fmt: skip
        return Loss(torch.stack(list(parts.values())).sum(), parts)
