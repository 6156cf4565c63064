"""RoTTA: robust batch normalisation, a class-balanced memory and a timely teacher (Yuan et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unseen.adaptation.augmentations import Augment
from unseen.adaptation.base import GradientAdaptation, State
from unseen.adaptation.memory_bank import Item, remember
from unseen.adaptation.named_augmentations import find_augmentation
from unseen.adaptation.normalisation import RobustBatchNorm, exchange_batch_norms
from unseen.adaptation.output_losses import soft_cross_entropy, softmax_entropy
from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.batch import Inputs, map_tensors


@adaptation.register(
    "rotta",
    summary="A teacher with moving batch statistics learns from a class-balanced memory",
    paper="Yuan et al. 2023, arXiv 2303.13899",
    search={"learning_rate": ("log", 1e-5, 1e-2), "rate": ("choice", [0.01, 0.05, 0.1])},
)
class RoTTA(GradientAdaptation):
    """Made for correlated streams. Defaults are the paper's, whose networks have batch normalisation only.

    teacher_rate        nu: share of the student in the teacher after an update
    rate                alpha: weight of a batch in the moving statistics
    memory_size         examples remembered
    update_every        examples between updates
    age_weight, uncertainty_weight  lambda_t and lambda_u of the memory
    augment             strong change of inputs for the student: a name of `AUGMENTATIONS` or a function
    The answer is the teacher's, whose statistics are as the memory made them: single examples and correlated
    batches are no harm.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        teacher_rate: float = 0.001,
        rate: float = 0.05,
        memory_size: int = 64,
        update_every: int = 64,
        age_weight: float = 1.0,
        uncertainty_weight: float = 1.0,
        augment: str | Augment = "images",
        *,
        seed: int = 0,
    ):
        if not (0 < teacher_rate <= 1 and 0 <= rate <= 1 and memory_size >= 1 and update_every >= 1):
            raise InputError(
                "teacher_rate, rate, memory_size or update_every",
                f"are {teacher_rate}, {rate}, {memory_size} and {update_every}",
                "Give rates in (0, 1] and numbers from 1.",
            )
        self.teacher_rate, self.rate, self.memory_size = teacher_rate, rate, memory_size
        self.update_every, self.augment = update_every, find_augmentation(augment)
        self.weights = {"age_weight": age_weight, "uncertainty_weight": uncertainty_weight}
        super().__init__(network, learning_rate=learning_rate, optimizer="adam", momentum=momentum, seed=seed)

    def _configure(self) -> None:
        exchange_batch_norms(self.network, lambda layer: RobustBatchNorm(layer, self.rate))
        self._robust = {n: m for n, m in self.network.named_modules() if isinstance(m, RobustBatchNorm)}
        super()._configure()

    def changing(self) -> dict[str, Tensor]:
        statistics = {
            f"{name}.{own}": getattr(layer, own)
            for name, layer in self._robust.items()
            for own in ("running_mean", "running_var")
        }
        return {**self._parameters, **statistics}

    def begin(self) -> State:
        return {"teacher": {n: v.clone() for n, v in self._source.items()}, "bank": [], "seen": 0}

    def answer(self, x: Inputs) -> Tensor:
        with torch.no_grad():
            logits = functional_call(self.network, self.memory["teacher"], (x,))
            entropy, labels = softmax_entropy(logits), logits.argmax(1)
        for row in range(len(logits)):
            item: Item = {
                "x": map_tensors(lambda t, row=row: t[row].clone(), x),  # type: ignore[misc]
                "label": int(labels[row]),
                "uncertainty": float(entropy[row]),
                "age": 0,
            }
            remember(
                self.memory["bank"],
                item,
                capacity=self.memory_size,
                classes=logits.shape[1],
                **self.weights,
            )
            self.memory["seen"] += 1
            if self.memory["seen"] % self.update_every == 0:
                self._learn()
        return logits

    def _learn(self) -> None:
        """One update from the memory: the student follows the teacher, the teacher the student's average."""
        bank = self.memory["bank"]
        x = _stack([item["x"] for item in bank])
        age = torch.tensor([item["age"] / self.memory_size for item in bank])
        changed = self.augment(x, self.generator)
        for layer in self._robust.values():
            layer.train()
        with torch.no_grad():
            targets = functional_call(self.network, self.memory["teacher"], (x,))
        student = self.network(changed)
        # the paper's timeliness: exp(-age) / (1 + exp(-age))
        self.descend((torch.sigmoid(-age).to(student) * soft_cross_entropy(student, targets)).mean())
        for layer in self._robust.values():
            layer.eval()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self.memory["teacher"][name].lerp_(parameter, self.teacher_rate)


def _stack(inputs: list[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {key: _stack([x[key] for x in inputs]) for key in inputs[0]}
    return torch.stack(inputs)
