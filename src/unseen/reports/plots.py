"""The report's figures, each as inline SVG. Colour means the same everywhere: first ID, second unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.reports.notation import percent, shortened
from unseen.reports.svg import GRID, ID, INK, MARKERS, MUTED, SERIES, SURFACE, UNSEEN, drawing, to_svg

WIDTH = 460
"""Of a figure in CSS pixels: two side by side on a screen, one on a phone with its text still legible."""
SMALL = 230
_ROW = 30


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot: ID and unseen accuracy with (low, high), NaN where there is no interval."""

    name: str
    id: tuple[float, float, float]
    unseen: tuple[float, float, float]
    strong: bool = False


def accuracy_dots(name: str, title: str, rows: Sequence[Dots]) -> str:
    """ID and unseen accuracy of every row, joined by a line that shows the gap."""
    with drawing(WIDTH, 76 + _ROW * len(rows)) as (figure, axes):
        for y, row in enumerate(rows):
            axes.plot([row.unseen[0], row.id[0]], [y, y], color=GRID, linewidth=4, solid_capstyle="round")
            for value, colour, offset in ((row.id, ID, -0.14), (row.unseen, UNSEEN, 0.14)):
                axes.plot(value[1:], [y + offset] * 2, color=colour, linewidth=1.6)
                hollow = {"markerfacecolor": SURFACE} if colour == ID else {}
                axes.plot(value[0], y + offset, "o", color=colour, markersize=6.5, **hollow)
        _label_rows(axes, [row.name for row in rows], [row.strong for row in rows])
        _share_axis(axes, "accuracy", [v for row in rows for v in (*row.id, *row.unseen)])
        _legend(
            figure,
            [("ID validation", {"color": ID, "markerfacecolor": SURFACE}), ("unseen", {"color": UNSEEN})],
        )
        described = "; ".join(
            f"{row.name}: ID {percent(row.id[0])}, unseen {percent(row.unseen[0])}" for row in rows
        )
        return to_svg(figure, name, title, described)


def estimate_dots(
    name: str, domains: Sequence[str], truth: Sequence[float], estimates: dict[str, Sequence[float]]
) -> str:
    """Per unseen domain the true accuracy (a bar) and what each label-free estimate said (marks)."""
    lines = (len(estimates) + 3) // 3
    with drawing(WIDTH, 60 + 20 * lines + _ROW * len(domains)) as (figure, axes):
        rows = np.arange(len(domains))
        axes.plot(truth, rows, "|", color=INK, markersize=20, markeredgewidth=2.6, zorder=3)
        entries: list[tuple[str, dict[str, Any]]] = [
            ("truth", {"color": INK, "marker": "|", "markersize": 12})
        ]
        for i, (estimate, values) in enumerate(estimates.items()):
            style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 6.5}
            axes.plot(values, rows, linestyle="", alpha=0.9, **style)
            entries.append((estimate, style))
        _label_rows(axes, domains)
        _share_axis(axes, "accuracy", [*truth, *(v for values in estimates.values() for v in values)])
        _legend(figure, entries, columns=3)
        described = "; ".join(f"{d}: truth {percent(t)}" for d, t in zip(domains, truth, strict=True))
        return to_svg(figure, name, "Accuracy estimated without labels, and the truth", described)


def reliability(name: str, curves: dict[str, Any]) -> str:
    """Accuracy against confidence for "ID validation" and "unseen" (`ReliabilityCurve`s)."""
    colours = {"ID validation": ID, "unseen": UNSEEN}
    with drawing(WIDTH, 330) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for title, curve in curves.items():
            style = {"color": colours[title], "marker": "o" if title == "unseen" else "s", "markersize": 5}
            axes.plot(curve.confidence, curve.accuracy, linewidth=1.8, **style)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
        _percent_ticks(axes.xaxis)
        _percent_ticks(axes.yaxis)
        axes.text(0.03, 0.95, "too cautious", color=MUTED, fontsize=11)
        axes.text(1.0, 0.03, "too confident", color=MUTED, fontsize=11, horizontalalignment="right")
        _legend(figure, [(title, {"color": colours[title]}) for title in curves])
        described = "Share of correct predictions by confidence; the diagonal is perfect calibration."
        return to_svg(figure, name, "Reliability of the probabilities", described)


def risk_coverage(name: str, coverage: NDArray[np.float64], curves: dict[str, NDArray[np.float64]]) -> str:
    """Error rate among accepted inputs against the share accepted, one line a way to rank them."""
    styles = [(UNSEEN, "-"), (SERIES[2], (0, (5, 2))), (ID, (0, (1, 1.5)))]
    with drawing(WIDTH, 330) as (figure, axes):
        entries = []
        for (title, risk), (colour, dashes) in zip(curves.items(), styles, strict=False):
            style = {"color": colour, "linestyle": dashes, "linewidth": 2}
            axes.plot(coverage, risk, **style)
            entries.append((title, {**style, "marker": ""}))
        axes.set(xlabel="share of inputs accepted, most familiar first", ylabel="error rate of accepted")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, max(0.02, 1.08 * max(float(np.nanmax(risk)) for risk in curves.values())))
        _percent_ticks(axes.xaxis)
        _percent_ticks(axes.yaxis)
        _legend(figure, entries, columns=1)
        described = "; ".join(f"{t}: error {percent(r[-1])} when all are accepted" for t, r in curves.items())
        return to_svg(figure, name, "Risk and coverage", described)


def familiarity_histogram(
    name: str, domain: str, familiar: NDArray[Any], unfamiliar: NDArray[Any], threshold: float
) -> str:
    """How familiar ID validation and one unseen domain look to a detector; a line marks the threshold."""
    both = np.concatenate([familiar, unfamiliar])
    low, high = np.quantile(both, [0.005, 0.995])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    edges = np.linspace(low, high, 31)
    with drawing(SMALL, 140) as (figure, axes):
        for scores, colour in ((familiar, ID), (unfamiliar, UNSEEN)):
            counts, _ = np.histogram(np.clip(scores, low, high), edges)
            axes.stairs(counts / len(scores), edges, color=colour, fill=True, alpha=0.35)
            axes.stairs(counts / len(scores), edges, color=colour, linewidth=1.4)
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.grid(visible=False)
        axes.set(yticks=[], xlabel="familiarity")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        accepted = percent(float((unfamiliar >= threshold).mean()), 0)
        described = f"{accepted} of the unseen domain's inputs score above the threshold."
        return to_svg(figure, name, f"Familiarity: ID validation and {domain}", described)


def training_curves(
    name: str, learner: str, runs: Sequence[tuple[NDArray[Any], NDArray[Any]]], lowest: float
) -> str:
    """ID validation accuracy by step: every run thin, their mean over the common steps thick."""
    with drawing(SMALL, 140) as (figure, axes):
        for steps, accuracy in runs:
            axes.plot(steps, accuracy, color=ID, linewidth=0.8, alpha=max(0.15, 0.6 / len(runs) ** 0.5))
        common = [step for step in runs[0][0] if all(step in steps for steps, _ in runs)]
        mean = [np.mean([accuracy[list(steps).index(step)] for steps, accuracy in runs]) for step in common]
        axes.plot(common, mean, color=ID, linewidth=2.4)
        axes.set(xlabel="step", ylim=(lowest, 1.02))
        axes.locator_params(axis="both", nbins=4)
        _percent_ticks(axes.yaxis)
        described = f"{len(runs)} runs; mean at the last common step {percent(mean[-1] if mean else None)}."
        return to_svg(figure, name, f"ID validation accuracy while training {learner}", described)


def _label_rows(axes: Any, names: Sequence[str], strong: Sequence[bool] | None = None) -> None:
    axes.set_yticks(range(len(names)), [shortened(name, 24) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    for label, bold in zip(axes.get_yticklabels(), strong or [], strict=False):
        label.set_fontweight("bold" if bold else "normal")


def _share_axis(axes: Any, label: str, values: Sequence[float]) -> None:
    """A horizontal axis of shares that shows all values and little more."""
    finite = [v for v in values if np.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = max(0.02, 0.06 * (high - low))
    axes.set_xlim(max(-0.015, low - margin), min(1.015, high + margin))
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=6)
    _percent_ticks(axes.xaxis)


def _percent_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))


def _legend(figure: Any, entries: Sequence[tuple[str, dict[str, Any]]], columns: int = 4) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=label, **{"marker": "o", "linestyle": "", "markersize": 6.5, **style})
        for label, style in entries
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(columns, len(entries)))
