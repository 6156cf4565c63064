"""matplotlib figures as inline SVG that takes its colours and its font from the page around it.

Figures are drawn in stand-in colours; in the SVG text each becomes a CSS variable, so one drawing serves light
and dark. Text stays text: it can be read aloud, searched and selected.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0505{i:02x}" for i in range(1, 9))
"""Eight colours that colour-blind readers can tell apart (after Okabe & Ito, 2008); the page defines them."""
ID, UNSEEN = SERIES[0], SERIES[1]
"""In every figure: familiar (in-distribution) in the first colour, unseen in the second."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", SURFACE: "--surface"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES, 1)
}
_PIXELS_PER_INCH = 72  # matplotlib's SVG unit is the point; the page shows one as a CSS pixel
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 12,
    "axes.titlesize": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, `width` x `height` CSS pixels, without a window and apart from pyplot's state."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Any, name: str, title: str, description: str) -> str:
    """An <svg> element. `name` makes its ids unique in the page; the same figure gives the same text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the font
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|[ \t]*\n[ \t]*", " ", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _for_page(tag[0], name), text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    opening = (
        f'<svg viewBox="0 0 {width} {height}" style="max-width: {float(width):.0f}px" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )
    return opening + text[text.index(">") + 1 :].strip()


def _for_page(tag: str, name: str) -> str:
    """One tag (never the text between tags) with ids of this figure, the page's font and its colours."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return tag
