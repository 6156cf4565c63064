"""Online adaptation: heads learn from their own answers to a stream without labels (DRM, Zhang et al. 2023)."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.hypotheses import Hypotheses
from unseen.networks.steering import Steered, Steering


def pseudo_label_loss(logits: Tensor, confidence: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Sum over heads of the mean cross-entropy on examples that are confident enough; 0 where none is.

    logits      (K, B, C)
    confidence  (K, B) or (B,), probability of the pseudo-label
    labels      (K, B) or (B,) pseudo-labels
    """
    sure = (confidence >= threshold).expand(logits.shape[:2]).to(logits.dtype)
    labels = labels.expand(logits.shape[:2])
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return ((losses.view_as(sure) * sure).sum(1) / sure.sum(1).clamp(min=1)).sum()


class OnlineAdapter:
    """A copy of a network of several heads that learns from each batch of a stream and then answers it.

    learning_rate  of Adam, such as a tenth of the training's
    steering       gives the answers, and the pseudo-labels: `Steering(by="shared")` those of the shared head,
                   `Steering(by="uniform")` those of all heads' mean, `Steering(gamma=1.0)` those of the mixture
    source         "steered" for these pseudo-labels, "own" lets every head believe its own answers
    parameters     "heads" or "all"; the network stays in evaluation mode, so batch statistics do not follow
    threshold      least probability of a pseudo-label that is learned from, in [0, 1]
    steps          updates for each batch, from 1
    episodic       start from the given network at every batch; otherwise what is learned stays, and the order of
                   the batches matters
    Confidences are probabilities of the steered mixture, which are not put through a softmax again.
    """

    def __init__(
        self,
        network: Hypotheses,
        *,
        learning_rate: float,
        steering: Steering = Steering(),
        source: Literal["steered", "own"] = "steered",
        parameters: Literal["heads", "all"] = "heads",
        threshold: float = 0.9,
        steps: int = 1,
        episodic: bool = False,
    ):
        if not isinstance(network, Hypotheses):
            raise InputError(f"network {type(network).__name__}", "has one head", "Train it with drm.")
        for name, value, known in (
            ("source", source, ("steered", "own")),
            ("parameters", parameters, ("heads", "all")),
        ):
            if value not in known:
                raise InputError(f"{name} {value!r}", "is not known", f"Use {' or '.join(known)}.")
        if not (learning_rate > 0 and 0 <= threshold <= 1 and steps >= 1):
            raise InputError(
                "learning_rate, threshold or steps",
                f"are {learning_rate}, {threshold} and {steps}",
                "Give a positive rate, a threshold in [0, 1] and steps from 1.",
            )
        self.network = copy.deepcopy(network).eval()
        self.steering, self.source, self.episodic = steering, source, episodic
        self.threshold, self.steps, self.learning_rate = threshold, steps, learning_rate
        adapted = self.network.head if parameters == "heads" else self.network
        self._adapted = [p for p in adapted.parameters() if p.requires_grad]
        self._initial = copy.deepcopy(self.network.state_dict())
        self.reset()

    def reset(self) -> None:
        """Forget all that was learned from the stream."""
        self.network.load_state_dict(self._initial)
        self.optimizer = torch.optim.Adam(self._adapted, lr=self.learning_rate)

    def answer(self, x: Any, group: Tensor | None = None) -> Steered:
        """Learn from inputs x (B, ...) as the network reads them, and answer them; group as in `Steering.answer`."""
        if self.episodic:
            self.reset()
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = self._loss(x, group)
                gradients = torch.autograd.grad(loss, self._adapted, allow_unused=True)
            if not any(g is not None and bool(g.any()) for g in gradients):
                break  # nobody is sure: Adam's momentum alone should not move the heads
            for parameter, gradient in zip(self._adapted, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        return self.steering.answer(self.network, x, group)

    def _loss(self, x: Any, group: Tensor | None) -> Tensor:
        features = self.network.featurizer(x)
        logits = self.network.head.all_logits(features)
        with torch.no_grad():
            if self.source == "own":
                confidence, labels = torch.softmax(logits, -1).max(-1)
            else:
                confidence, labels = self.steering.steer(self.network, features, group).probabilities.max(-1)
        return pseudo_label_loss(logits, confidence, labels, self.threshold)
