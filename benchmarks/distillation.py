"""What a step of distillation costs, in ERM steps of the same student: teacher's outputs kept, or its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.steps import LEARNER, SETTINGS, Setting
from benchmarks.timing import Work, compare
from unseen.distillation import Term, distil, logit_kl
from unseen.networks import Network, build_network
from unseen.training.system import build_optimizer

TEACHER_FEATURES = 512
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of features, logits and the batch's examples."""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """CPU time of a step as a multiple of an ERM step's; `reference` runs a teacher like the student in each step."""
    settings = [Setting("MLP 8-4", "mlp(width=4, depth=1)", (8,), 2, 4)] if quick else SETTINGS
    return [row for setting in settings for row in _steps(setting, 1 if quick else 20)]


def _steps(setting: Setting, rounds: int) -> list[dict[str, Any]]:
    count = len(setting.data.split.shift)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 2, generator=generator)
    teacher = _network(setting).eval().requires_grad_(False)
    features = torch.randn(count, teacher.features, generator=generator)
    wider = torch.randn(count, TEACHER_FEATURES, generator=generator)
    x = setting.batch().x

    def by_logits(_: Tensor, own: Tensor, examples: Tensor) -> Tensor:
        return logit_kl(own, logits[examples], 2.0)

    def by_teacher(_: Tensor, own: Tensor, examples: Tensor) -> Tensor:
        return logit_kl(own, teacher(x), 2.0)

    def by_features(kept: Tensor, project: nn.Module | None = None) -> Loss:
        terms = [Term("logits", distance="kl", temperature=2.0), Term("features", project=project)]

        def loss(found: Tensor, own: Tensor, examples: Tensor) -> Tensor:
            taught = {"logits": logits[examples], "features": kept[examples]}
            return distil(terms, {"logits": own, "features": found}, taught)[0]

        return loss

    project = nn.Linear(TEACHER_FEATURES, teacher.features)
    projected = f"logits and {TEACHER_FEATURES} features kept, projected"
    seconds = compare(
        {
            "erm": _step(setting, None),
            "logits kept": _step(setting, by_logits),
            "logits and features kept": _step(setting, by_features(features)),
            projected: _step(setting, by_features(wider, project), project),
            "teacher": _step(setting, by_teacher),
        },
        rounds=rounds,
        seconds=0.02,
    )
    online = seconds["teacher"] / seconds["erm"]
    rows = []
    for name, target in (
        ("logits kept", "<= 1.15"),
        ("logits and features kept", "<= 1.15"),
        (projected, None),
    ):
        value = seconds[name] / seconds["erm"]
        rows.append(
            {
                "what": f"{name}: {setting}",
                "value": value,
                "unit": "x ERM",
                "reference": online,
                "ratio": online / value,
                "target": target,
            }
        )
    return rows


def _step(setting: Setting, loss: Loss | None, project: nn.Module | None = None) -> Work:
    """A step by labels and, with a loss, by what a teacher says of the batch's examples."""
    batch, network = setting.batch(), _network(setting)
    own = [] if project is None else list(project.parameters())
    optimizer = build_optimizer(LEARNER, [*network.parameters(), *own])

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        features = network.featurizer(batch.x)
        logits = network.head(features)
        total = nn.functional.cross_entropy(logits, batch.y)
        if loss is not None:
            total = total + loss(features, logits, batch.ids)
        total.backward()
        optimizer.step()

    return step


def _network(setting: Setting) -> Network:
    torch.manual_seed(0)
    return build_network(setting.network, setting.shape, 2)
