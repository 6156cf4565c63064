"""VL2V-ADiP at the paper's scale: an image folder, each domain left out in turn, and a teacher that is named."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from unseen.distillation.teachers import Teacher
from unseen.distillation.vision_language import VLDistiller
from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.dual_encoder import DualEncoder, dual_encoder
from unseen.papers.left_out_domains import image_folder, left_out_accuracy
from unseen.registry import Spec
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift
from unseen.training.data import TrainingData
from unseen.training.system import seeded

STAGES: dict[str, tuple[Any, ...]] = {"joint": ("joint",), "adip": ("align", "distill")}


def left_out(
    condition: str, seed: int, shift: Shift | None = None, encoder: DualEncoder | None = None, **settings: Any
) -> float:
    """Mean accuracy on domains that were left out.

    shift     default `image_folder`
    encoder   default the dual encoder that $UNSEEN_TEACHER names
    settings  of the learner, in place of 5,001 steps of Adam at 5e-5
    """
    shift = open_shift(image_folder()) if shift is None else shift
    if condition == "erm":
        found = left_out_accuracy(
            Spec("erm"), seed, shift, **{"averaging": "swad", "steps": 5001, **settings}
        )
        return float(np.mean(list(found.values())))
    encoder = named_teacher() if encoder is None else encoder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(encoder, torch.nn.Module):
        encoder.to(device)
    backbone = os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0")
    accuracy = []
    for name in shift.domains:
        data = TrainingData(shift.split(unseen=name, seed=seed))
        with seeded(seed):
            student = build_network(
                Spec.make("pretrained", name=backbone), data.preprocessing.shape, len(shift.classes)
            ).featurizer
        distiller = VLDistiller(
            student, Teacher(encoder, prepare=raw_images(data), cache=True), shift.classes,
            stages=STAGES[condition], averaging="swad", seed=seed, device=device, **settings,
        )  # fmt: skip
        network = distiller.fit(data)
        accuracy.append(float(data.bank(network, "unseen", device).correct.float().mean()))
    return float(np.mean(accuracy))


def raw_images(data: TrainingData) -> Any:
    """From images as the student reads them back to pixels in [0, 1], which the teacher's own rule takes."""
    rule: Any = data.preprocessing
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (rule.mean, rule.deviation))
    return lambda x: (x * deviation.to(x.device) + mean.to(x.device)).clamp(0, 1)


def named_teacher() -> DualEncoder:
    """The dual encoder that $UNSEEN_TEACHER names."""
    name = os.environ.get("UNSEEN_TEACHER")
    if not name:
        raise InputError(
            "UNSEEN_TEACHER", "is not set", 'Name a dual encoder, such as "open_clip:ViT-B-16/openai".'
        )
    return dual_encoder(name)
