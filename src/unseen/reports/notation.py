"""How numbers are written: the same in the report and in the terminal."""

from __future__ import annotations

import math

import numpy as np

from unseen.studies.statistics import Comparison, holm

ABSENT = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """0.8731 -> "87.3%"; a dash where there is no number."""
    return ABSENT if _absent(share) else f"{100 * share:.{digits}f}%"  # type: ignore[operator]


def bounds(low: float | None, high: float | None) -> str:
    """An interval of shares, "84.1–89.9"; empty where the data define none."""
    return "" if _absent(low) or _absent(high) else f"{100 * low:.1f}–{100 * high:.1f}"  # type: ignore[operator]


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign: "+1.3", "−0.4"."""
    if _absent(difference):
        return ABSENT
    return f"{100 * difference:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")  # type: ignore[operator]


def decimal(value: float | None, digits: int = 3) -> str:
    return ABSENT if _absent(value) else f"{value:.{digits}f}"


def p_value(p: float | None) -> str:
    if _absent(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"  # type: ignore[operator]


def duration(seconds: float) -> str:
    """ "40 ms", "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def count(number: int, thing: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def listed(names: list[str] | tuple[str, ...]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ABSENT


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def adjusted(comparisons: dict[str, Comparison]) -> dict[str, float]:
    """p-values by name, adjusted by Holm for being several; NaN stays NaN."""
    tested = [name for name, c in comparisons.items() if not math.isnan(c.p_value)]
    values = holm(np.array([comparisons[name].p_value for name in tested])) if tested else np.empty(0)
    return {name: math.nan for name in comparisons} | {
        name: float(value) for name, value in zip(tested, values, strict=True)
    }


def _absent(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
