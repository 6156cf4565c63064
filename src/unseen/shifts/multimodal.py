"""Examples of several sequences (words, sound, pictures): a shift of them, and their preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.shifts.coding import encode
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.shift import Shift, take


def from_modalities(x: Mapping[str, Any], y: Any, domain: Any, *, name: str = "modalities") -> Shift:
    """A shift from several arrays of N rows: {name: (N, T, D) numbers, or (N, T) whole numbers from 0, tokens}.

    y, domain  (N,) names or numbers. Token 0 means unknown.
    Raises `InputError` for arrays of another shape, negative tokens, and lengths that differ.
    """
    inputs: dict[str, Tensor] = {}
    for key, values in x.items():
        array = torch.as_tensor(np.asarray(values))
        if array.dim() == 2 and not array.is_floating_point():
            inputs[key] = array.long()
        elif array.dim() == 3:
            inputs[key] = array.float()
        else:
            raise InputError(
                f"modality {key!r}",
                f"has shape {tuple(array.shape)}, dtype {array.dtype}",
                "Give numbers (N, T, D), or whole numbers (N, T).",
            )
        if not inputs[key].is_floating_point() and bool((inputs[key] < 0).any()):
            raise InputError(f"modality {key!r}", "has negative tokens", "Number them from 0.")
    lengths = {key: len(values) for key, values in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(
            "modalities", f"have different numbers of rows: {lengths}", "Give one row an example."
        )
    labels, classes = encode(np.asarray(y), "y")
    domains, domain_names = encode(np.asarray(domain), "domain")
    return Shift(name, "multimodal", inputs, labels, domains, classes, domain_names)  # type: ignore[arg-type]


class MultimodalPreprocessing(Preprocessing):
    """Sequences by name: every coordinate of numbers is standardised over training examples and time; tokens stay."""

    kind = "multimodal"

    def __init__(
        self, shape: dict[str, list[int]], mean: dict[str, list[float]], deviation: dict[str, list[float]]
    ):
        self.shape, self.mean, self.deviation = shape, mean, deviation

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor) -> Self:
        inputs = take(shift.inputs, rows)
        numbers = {name: x.double().flatten(0, 1) for name, x in inputs.items() if x.is_floating_point()}
        deviation = {}
        for name, values in numbers.items():
            spread = values.std(0, correction=0)
            spread[spread < 1e-8 * values.abs().amax(0).clamp(min=1e-12)] = 1  # constant: nothing to scale
            deviation[name] = spread.tolist()
        mean = {name: values.mean(0).tolist() for name, values in numbers.items()}
        return cls({name: list(x.shape[1:]) for name, x in inputs.items()}, mean, deviation)

    def encode(self, inputs: Any) -> dict[str, Tensor]:
        if set(inputs) != set(self.shape):
            raise InputError(
                "modalities", f"are {sorted(inputs)}", f"The model was trained on {sorted(self.shape)}."
            )
        encoded = {}
        for name, shape in self.shape.items():
            values = torch.as_tensor(np.asarray(inputs[name]))
            if list(values.shape[1:]) != shape:
                raise InputError(
                    f"modality {name!r}",
                    f"has examples of shape {tuple(values.shape[1:])}",
                    f"The model was trained on {tuple(shape)}.",
                )
            if name not in self.mean:
                encoded[name] = values.long()
                continue
            if not bool(torch.isfinite(values).all()):
                raise InputError(
                    f"modality {name!r}", "has NaN or infinite values", "Fill what is missing with the mean."
                )
            mean, deviation = (
                torch.tensor(v[name], dtype=torch.float64) for v in (self.mean, self.deviation)
            )
            encoded[name] = ((values.double() - mean) / deviation).float()
        return encoded
