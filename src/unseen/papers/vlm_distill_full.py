"""Open-vocabulary distillation at the paper's scale: an image folder whose every second class is never seen."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from unseen.distillation.environments import Environments
from unseen.distillation.open_vocabulary import OpenVocabDistiller
from unseen.distillation.student_training import outputs
from unseen.distillation.teachers import Teacher
from unseen.networks import build_network
from unseen.networks.dual_encoder import DualEncoder
from unseen.networks.zero_shot import TEMPLATES
from unseen.papers.left_out_domains import image_folder
from unseen.papers.vl2v_full import named_teacher, raw_images
from unseen.papers.vlm_distill_runs import LOSSES
from unseen.registry import Spec
from unseen.shifts import Batch
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift
from unseen.training.data import TrainingData
from unseen.training.system import seeded


def new_classes(
    condition: str, seed: int, shift: Shift | None = None, encoder: DualEncoder | None = None, **settings: Any
) -> dict[str, float]:
    """Class-averaged accuracy on held-out images of the seen classes and on the other classes.

    shift     default `image_folder`
    encoder   default the dual encoder that $UNSEEN_TEACHER names
    settings  of the learner, in place of `unseen.distillation.open_vocabulary.DEFAULTS`
    """
    shift = open_shift(image_folder()) if shift is None else shift
    encoder = named_teacher() if encoder is None else encoder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(encoder, nn.Module):
        encoder.to(device)
    data = TrainingData(shift.split(unseen=None, seed=seed))
    teacher = Teacher(encoder, prepare=raw_images(data))
    texts = teacher.texts(shift.classes, TEMPLATES)
    backbone = os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0")
    with seeded(seed):
        spec = Spec.make("pretrained", name=backbone)
        student = build_network(spec, data.preprocessing.shape, texts.shape[1])  # its head is the last layer
    # labels are numbered anew: even classes are seen
    train = _renumbered(data, data.split.train, 0)
    distiller = OpenVocabDistiller(
        student, teacher, texts[::2], LOSSES[condition], seed=seed, device=device, **settings
    )
    distiller.fit(train)
    found = {}
    for metric, parity, rows in (
        ("seen", 0, data.split.validation),
        ("new", 1, torch.arange(len(shift))),
    ):
        network = distiller.zero_shot(texts[parity::2].to(device))
        logits, labels = outputs(network, _renumbered(data, rows, parity))
        right = (logits.argmax(1) == labels).float()
        found[metric] = float(torch.stack([right[labels == c].mean() for c in labels.unique()]).mean())
    return found


def _renumbered(data: TrainingData, rows: torch.Tensor, parity: int) -> Environments:
    """The rows whose class number is even (0) or odd (1), labels halved."""
    rows = rows[data.split.shift.labels[rows] % 2 == parity]

    def get(positions: torch.Tensor) -> Batch:
        batch = data.batch(rows[positions], 0)
        batch.y = batch.y // 2
        return batch

    return Environments(get, torch.zeros(len(rows), dtype=torch.int64), ("all",))
