import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.shifts.arrays import from_arrays
from unseen.shifts.generators import drift
from unseen.shifts.sequence import by_time, in_order, in_sequence
from unseen.shifts.tables import from_dataframe


def test_bins_of_time_are_even_and_in_order():
    shift = by_time(drift(domains=3, size=40), bins=6)
    assert torch.bincount(shift.domain).tolist() == [20] * 6
    assert shift.domains[0] == "1: 0 to 0.159664" and list(shift.domains) == sorted(shift.domains)
    for number in range(5):
        assert shift.time[shift.domain == number].max() < shift.time[shift.domain == number + 1].min()


def test_examples_of_one_time_stay_together():
    frame = pd.DataFrame({
        "x": range(12), "y": [0, 1] * 6, "site": "a",
        "day": ["2020-01-01"] * 6 + ["2020-02-01"] * 4 + ["2021-05-03"] * 2,
    })  # fmt: skip
    shift = by_time(from_dataframe(frame, "y", "site", time="day"), bins=10)
    assert shift.domain.tolist() == [0] * 6 + [1] * 4 + [2] * 2
    assert shift.domains == (
        "01: 2020-01-01 to 2020-01-01",
        "02: 2020-02-01 to 2020-02-01",
        "03: 2021-05-03 to 2021-05-03",
    )
    with pytest.raises(InputError, match="1 different times"):
        by_time(from_dataframe(frame[:6], "y", "site", time="day"))


def test_domains_in_a_given_order():
    shift = from_arrays(
        np.arange(6.0)[:, None], [0, 1] * 3, ["day-10", "day-9", "day-10", "day-9", "day-8", "day-8"]
    )
    ordered = in_order(shift, ["day-8", "day-9", "day-10"])
    assert ordered.domain.tolist() == [2, 1, 2, 1, 0, 0] and ordered.domains == ("day-8", "day-9", "day-10")
    with pytest.raises(InputError, match="Did you mean 'day-8'"):
        in_order(shift, ["day-88", "day-9", "day-10"])
    with pytest.raises(InputError, match="Name each"):
        in_order(shift, ["day-8", "day-9"])


def test_data_sets_become_domains():
    first, second = drift(size=20, domains=2), drift(size=30, domains=2, seed=1)
    shift = in_sequence({"later": second, "last": first})
    assert shift.domains == ("later", "last") and torch.bincount(shift.domain).tolist() == [60, 40]
    torch.testing.assert_close(shift.inputs, torch.cat([second.inputs, first.inputs]))
    assert shift.time.tolist() == [1] * 60 + [2] * 40
    split = shift.split(after=1)
    assert split.train_domains == ("later",) and len(split.unseen) == 40
    with pytest.raises(InputError, match="two or more"):
        in_sequence({"one": first})
    other = from_arrays(np.zeros((2, 10)), ["x", "y"], [0, 0])
    with pytest.raises(InputError, match="has classes"):
        in_sequence({"a": first, "b": other})


def test_tables_must_agree_in_columns():
    frame = pd.DataFrame({"x": range(4), "y": [0, 1] * 2, "site": "a"})
    one = from_dataframe(frame, "y", "site")
    other = from_dataframe(frame.rename(columns={"x": "z"}), "y", "site")
    assert list(in_sequence({"a": one, "b": one}).inputs["x"]) == [0, 1, 2, 3] * 2
    with pytest.raises(InputError, match="different columns"):
        in_sequence({"a": one, "b": other})


def test_no_time():
    with pytest.raises(InputError, match="has no time"):
        by_time(from_arrays(np.zeros((2, 1)), [0, 1], [0, 1]))
