"""COCO's average precision of detected boxes, by the reference code of its authors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from unseen.errors import InputError, MissingExtra
from unseen.networks.centre_head import Found


def require_evaluator() -> None:
    """Raises MissingExtra where pycocotools is not installed: better before training than after."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise MissingExtra("average precision of boxes (package pycocotools)", "boxes") from None


def average_precision(
    found: Sequence[Found],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    crowd: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """AP, the mean over overlaps (IoU) of 0.5, 0.55, ..., 0.95, and AP50, both means over the classes that occur.

    found          what was detected in each of N images; the 100 greatest scores of each class count
    boxes, labels  what is there: for each image (n, 4) and (n,)
    crowd          for each image (n,) bool: a group of objects. What is found in it is neither right nor wrong
    Overlaps do not change when both axes are scaled, so shares of the image serve as well as pixels. Raises
    InputError when no image has a box that counts.
    """
    require_evaluator()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    true: list[dict[str, Any]] = []
    for image, (some, kinds) in enumerate(zip(boxes, labels, strict=True)):
        groups = [False] * len(some) if crowd is None else crowd[image].tolist()
        for box, kind, group in zip(some.double().tolist(), kinds.tolist(), groups, strict=True):
            true.append(_entry(len(true), image, box, kind) | {"iscrowd": int(group)})
    if all(entry["iscrowd"] for entry in true):
        raise InputError("boxes", "are none", "Average precision needs an image with a box.")
    said: list[dict[str, Any]] = []
    for image, each in enumerate(found):
        scores = each.scores.double().tolist()
        for box, kind, score in zip(each.boxes.double().tolist(), each.labels.tolist(), scores, strict=True):
            said.append(_entry(len(said), image, box, kind) | {"score": score})
    classes = sorted({entry["category_id"] for entry in true + said})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        for entries in (true, said):
            sides.append(COCO())
            sides[-1].dataset = {
                "images": [{"id": image} for image in range(len(boxes))],
                "categories": [{"id": kind} for kind in classes],
                "annotations": entries,
            }
            sides[-1].createIndex()
        judge = COCOeval(*sides, iouType="bbox")
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
        judge.params.maxDets = [100]
        judge.evaluate()
        judge.accumulate()
    # overlaps x recalls x classes; -1 for a class without a box
    precision = judge.eval["precision"][..., 0, 0]
    per_class = precision[:, :, (precision > -1).all((0, 1))]
    return {"AP": float(np.mean(per_class)), "AP50": float(np.mean(per_class[0]))}


def _entry(number: int, image: int, box: list[float], kind: int) -> dict[str, Any]:
    """An annotation; numbers start at 1, since the evaluator reads a match with number 0 as none."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return {
        "id": number + 1,
        "image_id": image,
        "category_id": kind,
        "bbox": [left, top, width, height],
        "area": width * height,
    }
