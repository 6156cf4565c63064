import math

import pytest

from unseen.reports.notation import (
    adjusted,
    bounds,
    count,
    duration,
    listed,
    p_value,
    percent,
    points,
    shortened,
)
from unseen.studies.statistics import Comparison

NAN = math.nan


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.8731), "87.3%"),
        (percent(1, 0), "100%"),
        (percent(NAN), "–"),
        (percent(None), "–"),
        (bounds(0.841, 0.899), "84.1–89.9"),
        (bounds(NAN, NAN), ""),
        (points(0.013), "+1.3"),
        (points(-0.1), "−10.0"),
        (points(-0.0001), "0.0"),
        (points(0.0001), "0.0"),
        (points(0.1), "+10.0"),
        (points(NAN), "–"),
        (p_value(0.0004), "< 0.001"),
        (p_value(0.0414), "0.041"),
        (duration(0.0402), "40 ms"),
        (duration(9.04), "9.0 s"),
        (duration(200), "3 min 20 s"),
        (duration(7500), "2 h 5 min"),
        (count(1, "seed"), "1 seed"),
        (count(1200, "example"), "1,200 examples"),
        (listed(["a"]), "a"),
        (listed(("a", "b", "c")), "a, b and c"),
        (shortened("abcdef", 4), "abc…"),
    ],
)
def test_written_form(written, expected):
    assert written == expected


def test_adjusted_p_values_leave_out_what_was_not_tested():
    tests = {n: Comparison(0, 0, 0, p) for n, p in (("a", 0.01), ("b", NAN), ("c", 0.04))}
    values = adjusted(tests)
    assert values["a"] == pytest.approx(0.02) and values["c"] == pytest.approx(0.04)
    assert math.isnan(values["b"])
