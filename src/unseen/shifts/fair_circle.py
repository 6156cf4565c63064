"""Generated people in domains on a half circle, whose counterfactuals under a sensitive attribute are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.registry import Spec
from unseen.shifts.shift import Shift

RADIUS, MEASURED = 1.5, 6
LABEL_NOISE = 0.05


@dataclass(frozen=True)
class People:
    """What nobody observes of N people: everything but the attribute that decides their inputs.

    semantic     (N, 2) standard normal; label 1 where half the first plus the second is above 0, the attribute's
                 effect on the first included
    environment  (N, 2) place on the circle of the domain, with a deviation of 0.3
    noise        (N, 6) of the measurement
    attribute    (N,) the actual one, 0 or 1
    effect       by which the attribute moves the first semantic quantity up (1) or down (0), in deviations
    mixing       two (4, 6) matrices from hidden quantities to inputs, linear and within a tanh
    """

    semantic: Tensor
    environment: Tensor
    noise: Tensor
    attribute: Tensor
    labels: Tensor
    domain: Tensor
    effect: float
    mixing: tuple[Tensor, Tensor]

    def inputs(self, attribute: Tensor | int, observed: bool = True) -> Tensor:
        """(N, 7) measurements and attribute had it been `attribute`, (N,) or one value; not `observed`: (N, 6)."""
        value = torch.as_tensor(attribute).expand(len(self.semantic)).float()
        sign = 2 * value - 1
        hidden = torch.cat([self.semantic, self.environment], 1)
        hidden = hidden + torch.stack([self.effect * sign, 0 * sign, 0.5 * self.effect * sign, 0 * sign], 1)
        linear, curved = self.mixing
        measured = hidden @ linear + torch.tanh(hidden @ curved) + self.noise
        return torch.cat([measured, value.unsqueeze(1)], 1) if observed else measured


def people(
    strength: float = 0.5, effect: float = 0.25, domains: int = 12, size: int = 500, seed: int = 0
) -> People:
    """The people of `fair_circle` with everything that is hidden; see there."""
    if domains < 2 or size < 20:
        raise InputError("domains and size", f"are {domains} and {size}", "Give from 2 and from 20.")
    if not (0 <= strength < math.inf and 0 <= effect < math.inf):
        raise InputError("strength and effect", f"are {strength} and {effect}", "Give numbers from 0.")
    generator = torch.Generator().manual_seed(seed)
    count, domain = domains * size, torch.arange(domains).repeat_interleave(size)
    mixing = (
        torch.randn(4, MEASURED, generator=generator) / 2,
        torch.randn(4, MEASURED, generator=generator),
    )
    semantic = torch.randn(count, 2, generator=generator)
    attribute = torch.randint(2, (count,), generator=generator)
    angle = math.pi * domain / (domains - 1)
    environment = strength * RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    environment = environment + 0.3 * torch.randn(count, 2, generator=generator)
    noise = 0.1 * torch.randn(count, MEASURED, generator=generator)
    wrong = torch.rand(count, generator=generator) < LABEL_NOISE
    first = semantic[:, 0] + effect * (2 * attribute - 1)
    labels = (first / 2 + semantic[:, 1] > 0) ^ wrong
    return People(semantic, environment, noise, attribute, labels.long(), domain, effect, mixing)


def fair_circle(
    strength: float = 0.5,
    effect: float = 0.25,
    domains: int = 12,
    size: int = 500,
    seed: int = 0,
    observed: bool = True,
) -> Shift:
    """A label from two semantic quantities, of which a binary attribute (`group`) moves one; domains in order.

    An environment, also moved a little by the attribute, goes round half a circle from the first domain to the
    last and says nothing of the label. Six inputs are a fixed random nonlinear map of these four quantities with
    noise 0.1, a seventh is the attribute; 5 % of the labels are wrong. Rule-made after the description of
    FairCircle by Lin et al. 2023, arXiv 2309.13005.

    strength  of the environment, from 0 (all domains one distribution)
    effect    of the attribute, from 0. At 0.25 it changes the probability of label 1 by 8 points, and who
              undoes it entirely loses 4 points of accuracy
    observed  False leaves the attribute out of the inputs
    """
    hidden = people(strength, effect, domains, size, seed)
    spec = Spec.make(
        "fair-circle", strength=strength, effect=effect, domains=domains, size=size, seed=seed, observed=observed
    )  # fmt: skip
    return Shift(
        name="fair-circle",
        kind="array",
        inputs=hidden.inputs(hidden.attribute, observed),
        labels=hidden.labels,
        domain=hidden.domain,
        classes=("0", "1"),
        domains=tuple(f"period-{number:02d}" for number in range(1, domains + 1)),
        group=hidden.attribute,
        groups=("0", "1"),
        time=np.asarray(hidden.domain) + 1,
        description="An environment goes round half a circle; an attribute moves what the label is made of.",
        source={"source": str(spec)},
    )
