"""The most confident mistakes of a learner on each unseen domain, shown as what the inputs are."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from unseen.reports.notation import count, shortened
from unseen.shifts import Shift
from unseen.studies.results import Results

SHOWN = 60
"""Examples in the whole report; every unseen domain gets its share, 3 to 8."""
LARGEST_SIDE = 112
MOST_COLUMNS = 12
MOST_CHARACTERS = 320


@dataclass(frozen=True)
class Mistake:
    """One example: what it is called, its label, what was predicted, with which probability (mean over seeds).

    image   a PNG data URI, or ""
    text    the (shortened) text, or what else can be said of the input
    values  the columns of a table's row
    """

    name: str
    label: str
    predicted: str
    confidence: float
    image: str = ""
    text: str = ""
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainMistakes:
    """The mistakes of one domain, most confident first; `wrong` of `n` examples were predicted wrong."""

    domain: str
    wrong: int
    n: int
    columns: tuple[str, ...]
    mistakes: tuple[Mistake, ...]


def confident_mistakes(results: Results, shift: Shift, method: str) -> list[DomainMistakes]:
    """Mistakes of the mean prediction over seeds, by its probability; domains without any are left out."""
    each = int(np.clip(SHOWN // max(1, len(results.unseen_domains)), 3, 8))
    found = []
    for domain in results.unseen_domains:
        if not results.has(method, domain):
            continue
        probabilities = results.probabilities(method, domain).mean(0)
        rows = results.rows(domain)
        predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        wrong = np.flatnonzero(predicted != results.labels[rows])
        if not len(wrong):
            continue
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:each]
        shown = torch.from_numpy(rows[worst].astype(np.int64))
        mistakes = tuple(
            Mistake(
                name=str(row if shift.ids is None else shift.ids[row]),
                label=shift.classes[int(shift.labels[row])],
                predicted=shift.classes[int(predicted[index])],
                confidence=float(confidence[index]),
                **content,
            )
            for row, index, content in zip(shown.tolist(), worst, _contents(shift, shown), strict=True)
        )
        columns = tuple(map(str, shift.inputs.columns[:MOST_COLUMNS])) if shift.kind == "table" else ()
        found.append(DomainMistakes(domain, len(wrong), len(rows), columns, mistakes))
    return found


def _contents(shift: Shift, rows: torch.Tensor) -> list[dict[str, Any]]:
    """What to show of each row: fields of `Mistake`."""
    inputs = shift.take(rows)
    if shift.kind == "image":
        return [{"image": _png(np.asarray(image))} for image in inputs]
    if shift.kind == "table":
        return [
            {"values": tuple(_cell(v) for v in row[:MOST_COLUMNS])}
            for row in inputs.itertuples(index=False, name=None)
        ]
    if shift.kind == "text":
        return [{"text": shortened(str(text), MOST_CHARACTERS)} for text in inputs]
    if shift.kind == "array":
        return [_array(np.asarray(array)) for array in inputs]
    nodes = next(iter(inputs.values())).shape[1] if isinstance(inputs, dict) else 0
    return [{"text": f"graph, padded to {count(nodes, 'node')}"}] * len(rows)


def _array(array: np.ndarray) -> dict[str, Any]:
    """An array shaped like an image is drawn, from its smallest to its largest value; else its numbers."""
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[0] in (1, 3) and min(array.shape[1:]) >= 4:
        low, high = float(array.min()), float(array.max())
        return {"image": _png((255 * (array - low) / ((high - low) or 1.0)).astype(np.uint8))}
    flat = array.ravel()
    numbers = ", ".join(f"{value:.3g}" for value in flat[:MOST_COLUMNS])
    return {"text": numbers + (f", … ({flat.size} values)" if flat.size > MOST_COLUMNS else "")}


def _png(image: np.ndarray) -> str:
    """uint8 (channels, height, width) as a data URI, its longer side at most `LARGEST_SIDE`."""
    from PIL import Image

    if image.shape[0] == 1:
        picture = Image.fromarray(image[0])
    else:
        picture = Image.fromarray(np.ascontiguousarray(image[:3].transpose(1, 2, 0)))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cell(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else shortened(str(value), 60)
