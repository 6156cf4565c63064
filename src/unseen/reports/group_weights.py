"""Which examples a method weighs up: weights of training examples by group, as a table and as a figure.

result = train(Learner(objective="l2r"), data)
weights = result.objective["values.values"][data.split.train].softmax(0)
weights_by_group(weights, shift.group[data.split.train], shift.groups)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unseen.errors import InputError

_COLOUR = "#0072b2"


def weights_by_group(weights: Any, group: Any, names: Sequence[str] = ()) -> pd.DataFrame:
    """A row for each group that has examples, of weights (N,) from 0 and numbers of groups (N,) from 0.

    examples       number of them
    mean           mean weight, where that of all examples is 1
    share          of all weight, in [0, 1]
    effective      effective sample size of the group's weights over its examples, in (0, 1]; NaN without weight
    names          of the groups by number; without them they are called by their numbers
    Raises `InputError` for other shapes, weights that are negative, not finite or all 0, and groups without a name.
    """
    w, g, called = _checked(weights, group, names)
    rows = {}
    for number in np.unique(g):
        own = w[g == number]
        squares = float(np.square(own).sum())
        rows[called(number)] = (
            len(own),
            float(own.mean()),
            float(own.sum() / len(w)),
            float(own.sum() ** 2 / squares / len(own)) if squares else float("nan"),
        )
    columns = ["examples", "mean", "share", "effective"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group")


def plot_group_weights(weights: Any, group: Any, names: Sequence[str] = ()) -> Any:
    """A matplotlib figure: the weights of each group (quartiles and 5 to 95 %) and their mean, 1 for all examples.

    Arguments and errors as for `weights_by_group`.
    """
    from matplotlib.figure import Figure

    w, g, called = _checked(weights, group, names)
    present = np.unique(g)[::-1]  # the first group on top
    figure = Figure(figsize=(6, 1.2 + 0.5 * len(present)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="#999999", linewidth=1, linestyle=":")
    for row, number in enumerate(present):
        own = w[g == number]
        low, first, median, third, high = np.quantile(own, (0.05, 0.25, 0.5, 0.75, 0.95))
        axes.plot([low, high], [row, row], color=_COLOUR, linewidth=1.5)
        axes.plot([first, third], [row, row], color=_COLOUR, linewidth=9, alpha=0.35, solid_capstyle="butt")
        axes.plot([median], [row], "|", color=_COLOUR, markersize=11)
        axes.plot([own.mean()], [row], "D", color="#d55e00", markersize=6)
    axes.set_yticks(range(len(present)), [called(number) for number in present])
    axes.set_ylim(-0.6, len(present) - 0.4)
    axes.set_xlabel("weight (mean of all: 1); diamond: mean of the group")
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _checked(weights: Any, group: Any, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Weights of mean 1, numbers of groups, and what the group of a number is called."""
    w, g = np.asarray(weights, dtype=np.float64), np.asarray(group)
    if w.ndim != 1 or g.shape != w.shape or not len(w):
        problem = f"have shapes {w.shape} and {g.shape}"
        raise InputError("weights and group", problem, "Give one of each for every example.")
    if not np.isfinite(w).all() or w.min() < 0 or not w.any():
        raise InputError("weights", "are negative, not finite, or all 0", "Give finite numbers from 0.")
    if not np.issubdtype(g.dtype, np.integer) or g.min() < 0 or (len(names) and g.max() >= len(names)):
        problem = f"holds other numbers than those of {len(names)} names" if len(names) else "is not numbered"
        raise InputError("group", problem, "Number the groups from 0, as a shift's `group`.")
    return w / w.mean(), g, lambda number: names[number] if len(names) else str(number)
