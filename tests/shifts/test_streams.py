import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.shifts.shift import Shift
from unseen.shifts.streams import (
    Stream,
    by_time,
    correlated,
    corruption_drift,
    hold_out_classes,
    mixed,
    ordered,
    recorded,
)

SIZES = (40, 60, 80)


@pytest.fixture(scope="module")
def shift():
    domain = torch.repeat_interleave(torch.tensor(SIZES))
    labels = torch.arange(180) % 4
    return Shift(
        name="toy",
        kind="array",
        inputs=torch.arange(180.0)[:, None],
        labels=labels,
        domain=domain,
        classes=("a", "b", "c", "d"),
        domains=("x", "y", "z"),
        time=np.arange(180)[::-1].copy(),
    )


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return Shift(
        name="pictures",
        kind="image",
        inputs=torch.randint(256, (30, 3, 16, 16), generator=generator, dtype=torch.uint8),
        labels=torch.arange(30) % 3,
        domain=torch.zeros(30),
        classes=("a", "b", "c"),
        domains=("all",),
    )


@pytest.mark.parametrize("arrive", [ordered, mixed, correlated])
def test_every_example_arrives_once_and_by_the_seed(arrive, shift):
    first, again, other = (arrive(shift, seed=seed) for seed in (0, 0, 1))
    assert sorted(first.rows.tolist()) == list(range(180))
    assert torch.equal(first.rows, again.rows) and not torch.equal(first.rows, other.rows)


def test_of_a_split_only_unseen_rows_arrive(shift):
    split = shift.split(["y", "z"])
    assert sorted(ordered(split).rows.tolist()) == list(range(40, 180))
    with pytest.raises(InputError, match="split: holds nothing out"):
        ordered(shift.split())
    with pytest.raises(InputError, match="domain 'x': has no example that could arrive"):
        ordered(split, ["x"])


def test_domains_arrive_in_the_given_order(shift):
    assert ordered(shift).domain.unique_consecutive().tolist() == [0, 1, 2]
    assert ordered(shift, ["z", "x"]).domain.unique_consecutive().tolist() == [2, 0]
    assert correlated(shift, ["y", "x"]).domain.unique_consecutive().tolist() == [1, 0]
    assert set(mixed(shift, ["z", "x"]).domain.tolist()) == {0, 2}


def test_a_blend_makes_the_change_gradual():
    domain = torch.repeat_interleave(torch.tensor([5000, 5000]))
    shift = Shift("two", "array", torch.zeros(10000, 1), domain, domain, ("a", "b"), ("x", "y"))
    abrupt, half = ordered(shift), ordered(shift, blend=0.5)
    assert abrupt.arrival == "ordered" and half.arrival == "gradual"
    assert not abrupt.domain[:5000].any() and abrupt.domain[5000:].all()
    share = half.domain.float().view(20, 500).mean(1)
    assert not share[:7].any() and bool((share[13:] == 1).all())
    # the two rates add up to one, so the share of the second rises linearly from 0.75 to 1.25 lengths
    expected = ((torch.arange(20) + 0.5) / 10 - 0.75).div(0.5).clamp(0, 1)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.07)


def runs(stream):
    return len(stream.labels.unique_consecutive())


def test_labels_come_in_runs_the_longer_the_smaller_the_concentration(shift):
    count = [runs(correlated(shift, concentration=c)) for c in (1e-3, 1.0)]
    assert count[0] < count[1] < runs(ordered(shift))
    assert count[0] <= 3 * 6  # about a run a class and domain


def test_batches_hold_everything_and_no_lone_example(shift):
    for size, expected in ((1, [1] * 180), (60, [60] * 3), (179, [180]), (89, [89, 89, 2]), (500, [180])):
        parts = ordered(shift, batch_size=size).batches()
        assert [len(p) for p in parts] == expected
    stream = ordered(shift, batch_size=179)
    assert torch.equal(torch.cat(stream.batches()), stream.rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_only_streams_of_single_examples_have_batches_of_one(length, size):
    shift = Shift("s", "array", torch.zeros(length, 1), [0] * length, [0] * length, ("a",), ("x",))
    parts = Stream(shift, torch.arange(length), size, "ordered").batches()
    assert sum(map(len, parts)) == length
    assert size == 1 or length == 1 or min(map(len, parts)) > 1


def test_time_sorts_and_is_checked(shift):
    stream = by_time(shift)
    assert stream.rows.tolist() == list(range(179, -1, -1)) and stream.arrival == "time"
    assert recorded(shift, [9, 5, 5, 2]).rows.tolist() == [9, 5, 5, 2]
    with pytest.raises(
        InputError, match=r"stream: is out of time order: example 2 is of 170, after one of 174.*by_time"
    ):
        recorded(shift, [8, 5, 9])
    untimed = Shift("s", "array", torch.zeros(2, 1), [0, 0], [0, 0], ("a",), ("x",))
    with pytest.raises(InputError, match="shift 's': has no time"):
        by_time(untimed)


def test_classes_stay_out_until_their_time(shift):
    whole = mixed(shift)
    late = hold_out_classes(whole, ["a", "c"], until=0.5)
    kept = [r for i, r in enumerate(whole.rows.tolist()) if i >= 90 or r % 4 in (1, 3)]
    assert late.rows.tolist() == kept
    assert set(hold_out_classes(whole, "a").labels.tolist()) == {1, 2, 3}
    with pytest.raises(InputError, match="class 'e': is not a class"):
        hold_out_classes(whole, "e")
    with pytest.raises(InputError, match="until: is 0"):
        hold_out_classes(whole, "a", until=0)
    with pytest.raises(InputError, match="stream: has no example"):
        hold_out_classes(whole, ["a", "b", "c", "d"])


def test_corruption_is_a_dial(pictures):
    drift = corruption_drift(pictures, ["fog", "contrast"], (0, 3, 5, 3))
    assert drift.domains == (
        "fog-0", "fog-3", "fog-5", "fog-3 (2)", "contrast-0", "contrast-3", "contrast-5", "contrast-3 (2)",
    )  # fmt: skip
    assert sorted(drift.inputs.row.tolist()) == list(range(30))  # each image once
    assert torch.equal(drift.labels, pictures.labels[drift.inputs.row])
    distance = [
        (drift.take(rows).float() - pictures.take(drift.inputs.row[rows]).float()).abs().mean()
        for rows in ((drift.domain == d).nonzero().squeeze(1) for d in range(8))
    ]
    assert distance[0] == distance[4] == 0 and distance[4] < distance[5] < distance[6]
    stream = ordered(drift, batch_size=4)
    assert stream.domain.unique_consecutive().tolist() == list(range(8))
    again = corruption_drift(pictures, ["fog", "contrast"], (0, 3, 5, 3))
    assert drift.fingerprint == again.fingerprint
    assert (
        drift.fingerprint != corruption_drift(pictures, ["fog", "contrast"], (0, 3, 5, 3), seed=1).fingerprint
    )


def test_stations_show_all_classes_alike(pictures):
    drift = corruption_drift(pictures, "fog", (1, 5))
    assert drift.counts().to_numpy().max() - drift.counts().to_numpy().min() == 0


def test_bad_streams_are_refused(shift, pictures):
    for arguments, message in (
        ({"batch_size": 0}, "batch_size: is 0"),
        ({"blend": 1.5}, "blend: is 1.5"),
        ({"order": ["x", "x"]}, "order: is .*Name different ones of x, y, z"),
        ({"order": ["q"]}, "domain 'q': has no example"),
    ):
        with pytest.raises(InputError, match=message):
            ordered(shift, **arguments)
    with pytest.raises(InputError, match="concentration: is 0"):
        correlated(shift, concentration=0)
    with pytest.raises(InputError, match="rows of the stream: are no rows"):
        Stream(shift, torch.tensor([180]), 1, "ordered")
    with pytest.raises(InputError, match="of kind 'array'.*Only images"):
        corruption_drift(shift, "fog")
    with pytest.raises(InputError, match="corruption 'fogg'.*Did you mean 'fog'"):
        corruption_drift(pictures, "fogg")
    with pytest.raises(InputError, match="severity: is 6"):
        corruption_drift(pictures, "fog", 6)
    with pytest.raises(InputError, match="are 31 stations for 30 images"):
        corruption_drift(pictures, "fog", [1] * 31)
