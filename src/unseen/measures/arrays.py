"""What callers pass to measures (NumPy arrays, tensors of any device, lists), as checked float64 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.errors import InputError


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of anything array-like; tensors are detached and moved to the CPU, floats as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def as_numbers(subject: str, values: Any, dimensions: int = 1) -> NDArray[np.float64]:
    """Float64 array with `dimensions` axes, not empty and without NaN (infinities may pass)."""
    array = as_array(values)
    if array.dtype.kind not in "fiub":
        raise InputError(subject, f"has values of type {array.dtype}", "Give numbers.")
    if array.ndim != dimensions:
        raise InputError(
            subject,
            f"has shape {array.shape}",
            f"Give an array of {dimensions} dimension(s), not {array.ndim}.",
        )
    if array.size == 0:
        raise InputError(subject, f"is empty (shape {array.shape})", "Give at least one example.")
    array = array.astype(np.float64)
    missing = np.isnan(array)
    if missing.any():
        first = ", ".join(str(i) for i in np.argwhere(missing)[0])
        raise InputError(
            subject,
            f"has {missing.sum()} NaN of {array.size} values, the first at index {first}",
            "Find out why they are undefined, or leave these examples out.",
        )
    return array


def as_correct(subject: str, values: Any, dimensions: int = 1) -> NDArray[np.float64]:
    """Correctness per example: booleans, 0/1, or shares in [0, 1]."""
    array = as_numbers(subject, values, dimensions)
    if array.min() < 0 or array.max() > 1:
        raise InputError(
            subject, f"has values in [{array.min():g}, {array.max():g}]", "Give booleans or shares in [0, 1]."
        )
    return array


def as_probabilities(subject: str, values: Any) -> NDArray[np.float64]:
    """Class probabilities, (N, C) with C >= 2; rows sum to one within 1e-2 (half precision)."""
    array = as_numbers(subject, values, 2)
    if array.shape[1] < 2:
        raise InputError(subject, f"has shape {array.shape}", "Give one column per class, two at least.")
    if array.min() < 0 or np.abs(array.sum(1) - 1).max() > 1e-2:
        raise InputError(subject, "has rows that are not probabilities", "Apply softmax to logits first.")
    return array


def as_labels(subject: str, values: Any, examples: int, classes: int) -> NDArray[np.int64]:
    """Class indices, (examples,), each in [0, classes)."""
    array = as_numbers(subject, values)
    same_length(subject, array, "the predictions", examples)
    if (array != np.floor(array)).any() or array.min() < 0 or array.max() >= classes:
        raise InputError(
            subject,
            f"has values in [{array.min():g}, {array.max():g}] that are not all classes of the predictions",
            f"Give integers from 0 to {classes - 1}.",
        )
    return array.astype(np.int64)


def same_length(subject: str, array: NDArray[Any], other: str, expected: int) -> None:
    """Refuse arrays that do not speak of the same examples."""
    if len(array) != expected:
        raise InputError(
            subject,
            f"has {len(array)} entries, but {other} {expected}",
            "Give one for each example, in the same order.",
        )
