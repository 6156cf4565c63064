"""One page about a watch: three figures over the chunks, and the table with reasons."""

from __future__ import annotations

from typing import Any

from unseen.reports.page import html_page, html_table
from unseen.reports.svg import GRID, ID, MUTED, SERIES, SURFACE, UNSEEN, drawing, to_svg
from unseen.watch.watcher import Watcher

_STYLE = "td.words { color: var(--bad); min-width: 12em; }"
_COLUMNS = (
    "chunk",
    "from",
    "to",
    "examples",
    "familiarity",
    "accepted",
    "drift p",
    "effect",
    "accuracy",
    "alarms",
)
_CAPTIONS = {
    "shares": "Dashed: ID validation. Six estimates of accuracy without labels assume different things: far apart, "
    "none can be trusted; under a strong shift the truth can be below all.",
    "familiarity": "Dashed: ID validation.",
    "effect": "Maximum mean discrepancy; 0: as ID validation. Filled: a chunk with an alarm.",
}

Lines = dict[str, tuple[list[float], float | None, str]]
"""Name of a line -> its values by chunk, that of ID validation if there is one, colour."""


def page(watcher: Watcher, facts: dict[str, Any]) -> str:
    """A whole HTML page."""
    chunks, expected = watcher.chunks, watcher.expected
    alarming = sum(bool(chunk.alarms) for chunk in chunks)
    shares: Lines = {
        "accepted": ([c.accepted for c in chunks], expected["accepted"], ID),
        "highest estimate of accuracy": (
            [c.accuracy_range[1] for c in chunks],
            expected["accuracy"],
            SERIES[2],
        ),
        "lowest": ([c.accuracy_range[0] for c in chunks], None, UNSEEN),
    }
    familiarity: Lines = {
        "familiarity": ([c.familiarity for c in chunks], expected["familiarity"], SERIES[2])
    }
    effect: Lines = {"MMD": ([c.drift_effect for c in chunks], None, ID)}
    drawings: list[tuple[str, str, Lines]] = [
        ("shares", "Accepted share and estimated accuracy", shares),
        ("familiarity", "Mean familiarity", familiarity),
        ("effect", "Drift of the features: effect", effect),
    ]
    figures = "\n".join(
        f"<figure>{_figure(watcher, name, title, lines)}<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
        for name, title, lines in drawings
    )
    table = html_table(_COLUMNS, map(_cells, chunks), ["alarms"])
    heading = f"{alarming} of {len(chunks)} chunks with an alarm"
    return html_page("unseen watch", heading, facts, f"{figures}\n{table}", _STYLE)


def _figure(watcher: Watcher, name: str, title: str, lines: Lines) -> str:
    numbers = [chunk.number for chunk in watcher.chunks]
    alarming = [bool(chunk.alarms) for chunk in watcher.chunks]
    with drawing(900, 240) as (figure, axes):
        for label, (values, reference, colour) in lines.items():
            axes.plot(numbers, values, color=colour, linewidth=1.8, label=label)
            if reference is not None:
                axes.axhline(reference, color=colour, linewidth=1, linestyle=(0, (4, 3)))
            for filled in (False, True):
                chosen = [
                    (n, v) for n, v, alarm in zip(numbers, values, alarming, strict=True) if alarm == filled
                ]
                face = colour if filled else SURFACE
                if chosen:
                    axes.plot(
                        *zip(*chosen, strict=True), "o", color=colour, markerfacecolor=face, markersize=5
                    )
        axes.set(xlabel="chunk", title=title)
        axes.title.set_color(MUTED)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=GRID)
        if len(lines) > 1:
            axes.legend()
        described = "; ".join(
            f"{label}: {values[0]:.3g} to {values[-1]:.3g}" for label, (values, *_) in lines.items()
        )
        return to_svg(figure, f"watch-{name}", title, described)


def _cells(chunk: Any) -> tuple[str, ...]:
    return (
        str(chunk.number),
        chunk.first,
        chunk.last,
        str(chunk.examples),
        f"{chunk.familiarity:.4g}",
        f"{chunk.accepted:.1%}",
        f"{chunk.drift_p_value:.2g}",
        f"{chunk.drift_effect:.3f}",
        "{:.0%} to {:.0%}".format(*chunk.accuracy_range),
        "; ".join(chunk.alarms),
    )
