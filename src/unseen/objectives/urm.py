"""URM: features that are uniformly distributed, for a discriminator that compares them with uniform noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.base import Loss, Objective, example_losses
from unseen.objectives.head_statistics import full_precision
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


def binary_loss(scores: Tensor, noise: bool) -> Tensor:
    """Mean of -log sigmoid(score) if the scores should tell noise, of -log(1 - sigmoid(score)) otherwise."""
    scores = full_precision(scores)
    return nn.functional.softplus(-scores if noise else scores).mean()


@objectives.register(
    "urm",
    summary="Uniformly distributed features, by a discriminator against uniform noise",
    paper="Krishnamachari et al. 2024, TMLR (Uniformly Distributed Feature Representations)",
    search={"strength": ("uniform", 0.0, 0.2), "layers": ("choice", [1, 2, 3])},
)
class URM(Objective):
    """Mean loss over all examples + strength * loss of the features as a generator + loss of a discriminator.

    The discriminator tells tanh(features) from noise ~ U(-1, 1); features are trained to pass for noise. Each
    player takes its own loss, in one joint step.
    strength    weight of both players' losses on the features, `urm_adv_lambda` of the authors
    width       of the discriminator, with `layers` hidden layers after its first
    noise_seed  noise is a function of it and of the training step

    Defaults are the authors'. They let the network end in tanh and so classify on tanh(features), and give
    the discriminator a learning rate of its own; here the network is not changed, and there is one optimizer.
    """

    needs_features = True

    def __init__(self, strength: float = 0.1, width: int = 100, layers: int = 1, noise_seed: int = 0):
        super().__init__()
        if not (strength >= 0 and width >= 1 and layers >= 0):
            raise InputError(
                "strength, width or layers",
                f"are {strength}, {width} and {layers}",
                "Give a strength from 0, a width from 1 and layers from 0.",
            )
        self.strength, self.width, self.layers, self.noise_seed = strength, width, layers, noise_seed

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        sizes = [features, *[self.width] * (1 + self.layers)]
        hidden = [layer for size in pairwise(sizes) for layer in (nn.Linear(*size), nn.LeakyReLU())]
        self.discriminator = nn.Sequential(*hidden, nn.Linear(self.width, 1))

    def forward(self, model: Network, batch: Batch) -> Loss:
        features = model.featurizer(batch.x)
        label = example_losses(model.head(features), batch).mean()
        squashed = torch.tanh(features)
        random = np.random.default_rng(derive_seed(self.noise_seed, batch.step))
        noise = torch.from_numpy(random.uniform(-1, 1, squashed.shape)).to(squashed)
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        real, made = self.discriminator(noise), self.discriminator(squashed.detach())
        told = binary_loss(real, True) + self.strength * binary_loss(made, False)
        passed = binary_loss(functional_call(self.discriminator, fixed, (squashed,)), True)
        total = label + self.strength * passed + told
        return Loss(total, {"label": label, "generator": passed, "discriminator": told})
