"""SAR: sharpness-aware and reliable entropy minimisation with recovery (Niu et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.adaptation.base import State
from unseen.adaptation.output_losses import softmax_entropy
from unseen.adaptation.reliable_entropy import ReliableEntropy, mean_over, moving_average
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs

LAST_STAGES = ("layer4", "blocks.9", "blocks.10", "blocks.11", "featurizer.norm")
"""What the authors leave out, since changes there do most harm: the last stage of torchvision's and timm's ResNets, the
last blocks of timm's ViT-B, and the final normalisation of a ViT that is a Network's featurizer."""


@adaptation.register(
    "sar",
    summary="Tent on reliable examples, towards flat minima, with recovery from collapse",
    paper="Niu et al. 2023, arXiv 2302.12400",
    search={"learning_rate": ("log", 1e-5, 1e-2), "radius": ("log", 0.01, 0.5)},
)
class SAR(ReliableEntropy):
    """Defaults are the paper's for ResNet-50; for ViT it has a learning rate of 0.001.

    entropy_share  E_0 as a share of ln C: examples of at least this entropy are left out, before and after the climb
    radius         rho of the climb to the worst weights nearby
    recovery       e_m: when the moving average of the loss (nats) falls below, the predictions have collapsed, and
                   everything learnt is forgotten. The paper's value is for 1,000 classes; with few, sure predictions
                   are below it, so that nothing lasts: give less
    skip           dotted names of modules whose normalisation stays as it is; other architectures have other names
    After a recovery the moving average begins anew (in the authors' code it goes on, so that recoveries follow each
    other until it has risen).
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.00025,
        momentum: float = 0.9,
        entropy_share: float = 0.4,
        radius: float = 0.05,
        recovery: float = 0.2,
        skip: tuple[str, ...] = LAST_STAGES,
        steps: int = 1,
        prior: float = 0.0,
        *,
        seed: int = 0,
    ):
        self.radius, self.recovery = radius, recovery
        super().__init__(
            network,
            learning_rate=learning_rate,
            momentum=momentum,
            entropy_share=entropy_share,
            skip=skip,
            steps=steps,
            prior=prior,
            seed=seed,
        )

    def begin(self) -> State:
        return {"average": None}

    def answer(self, x: Inputs) -> Tensor:
        for _ in range(self.steps):
            logits = self.network(x)
            self._learn(x, logits)
        return logits

    def _learn(self, x: Inputs, logits: Tensor) -> None:
        threshold, entropy = self.threshold(logits), softmax_entropy(logits)
        reliable = entropy < threshold
        loss = mean_over(entropy, reliable)
        if loss is None:
            return
        parameters = list(self._parameters.values())
        before = [p.detach().clone() for p in parameters]
        gradients = _gradients(loss, parameters)
        scale = self.radius / (torch.stack([g.norm() for g in gradients]).norm() + 1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(scale * gradient)
        entropy = softmax_entropy(self.network(x))
        loss = mean_over(entropy, reliable & (entropy < threshold))
        if loss is not None:
            gradients = _gradients(loss, parameters)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        if loss is not None:
            self._step(gradients)
            self._recover(loss.item())

    def _step(self, gradients: tuple[Tensor, ...]) -> None:
        assert self.optimizer is not None
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _recover(self, loss: float) -> None:
        self.memory["average"] = moving_average(self.memory["average"], loss)
        if self.memory["average"] < self.recovery:
            self.reset()


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
