import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.shifts import Batch, Shift
from unseen.shifts.sampling import DomainSampler, derive_seed


def make(examples: int = 60, domains: int = 3, classes: int = 2, **more) -> Shift:
    row = torch.arange(examples)
    return Shift(
        "made",
        "array",
        torch.randn(examples, 4, generator=torch.Generator().manual_seed(1)),
        row % classes,
        row * domains // examples,
        tuple("xyz"[:classes]),
        tuple("abcd"[:domains]),
        **more,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(40, 80), st.floats(0.05, 0.5), st.integers(0, 5))
def test_a_split_divides_the_rows_without_overlap(domains, examples, validation, seed):
    shift = make(examples * domains, domains)
    split = shift.split("a", validation=validation, seed=seed)
    rows = torch.cat([split.train, split.validation, split.unseen])
    assert rows.sort().values.tolist() == list(range(len(shift)))
    assert set(shift.domain[split.unseen].tolist()) == {0}
    assert "a" not in split.train_domains
    for name in split.train_domains:  # every training domain is both trained on and validated on
        index = shift.domains.index(name)
        assert (shift.domain[split.train] == index).any() and (shift.domain[split.validation] == index).any()


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    shift = make()
    assert torch.equal(shift.split("a", seed=1).train, shift.split("a", seed=1).train)
    assert not torch.equal(shift.split("a", seed=1).train, shift.split("a", seed=2).train)


def test_time_splits_hold_out_what_is_later():
    shift = make(time=np.arange(60))
    split = shift.split(after=49)
    assert split.unseen.tolist() == list(range(50, 60))
    dates = make(time=np.datetime64("2020-01-01") + np.arange(60))
    assert dates.split(after="2020-02-19").unseen.tolist() == list(range(50, 60))
    with pytest.raises(InputError, match="no time here"):
        dates.split(after="soon")
    with pytest.raises(InputError, match="has no time"):
        make().split(after=3)


def test_bad_splits_say_what_is_wrong():
    shift = make()
    with pytest.raises(InputError, match="'bb'.*not a domain"):
        shift.split("bb")
    with pytest.raises(InputError, match="no domain left to train on"):
        shift.split(["a", "b", "c"])
    with pytest.raises(InputError, match="validation: is 1.5"):
        shift.split("a", validation=1.5)
    lonely = Shift(
        "s", "array", torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), "xy", "ab"
    )
    with pytest.raises(InputError, match="class 'y'.*no example to train on.*b"):
        lonely.split("b")


def test_a_shift_refuses_parts_that_do_not_fit():
    with pytest.raises(InputError, match="60 labels but 59 rows in 'domain'"):
        Shift("s", "array", torch.zeros(60, 1), torch.zeros(60), torch.zeros(59), ("x",), ("a",))
    with pytest.raises(InputError, match="label numbers from 0 to 2, but 2 label names"):
        Shift("s", "array", torch.zeros(3, 1), torch.arange(3), torch.zeros(3), ("x", "y"), ("a",))
    with pytest.raises(InputError, match="no examples"):
        Shift("s", "array", torch.zeros(0, 1), torch.zeros(0), torch.zeros(0), ("x",), ("a",))


def test_the_fingerprint_follows_the_content():
    shift = make()
    assert shift.fingerprint == make().fingerprint
    changed = make()
    changed.inputs[3, 2] += 1e-3
    assert changed.fingerprint != shift.fingerprint
    frame = pd.DataFrame({"u": [1, 2, 3, 4], "v": ["p", "q", "p", "q"]})
    table = Shift("t", "table", frame, [0, 1, 0, 1], [0, 0, 1, 1], "xy", "ab")
    other = Shift("t", "table", frame.assign(v=["p", "q", "p", "p"]), [0, 1, 0, 1], [0, 0, 1, 1], "xy", "ab")
    assert table.fingerprint != other.fingerprint


def test_a_subset_keeps_names_and_rows_together():
    shift = make(ids=[f"id{i}" for i in range(60)], group=torch.arange(60) % 2, groups=("g", "h"))
    part = shift.subset(torch.tensor([5, 50]))
    assert part.ids == ["id5", "id50"] and part.domains == shift.domains
    assert torch.equal(part.inputs, shift.inputs[[5, 50]]) and part.group.tolist() == [1, 0]


def test_a_batch_of_several_inputs_moves_as_one():
    batch = Batch(
        x={"image": torch.arange(8.0).view(4, 2), "sound": torch.arange(4.0)},
        y=torch.tensor([0, 1, 0, 1]),
        domain=torch.tensor([0, 0, 1, 1]),
        domains=2,
    )
    second = batch.of_domain(1)
    assert second.x["image"].tolist() == [[4, 5], [6, 7]] and second.x["sound"].tolist() == [2, 3]
    assert second.domains == 2 and len(second) == 2
    assert batch.again().repeat and not batch.repeat


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=4), st.integers(1, 17), st.integers(0, 3))
def test_the_sampler_visits_every_row_once_an_epoch(sizes, per_domain, seed):
    domain = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    rows = torch.randperm(len(domain), generator=torch.Generator().manual_seed(0)) + 100
    sampler = DomainSampler(rows, domain, per_domain, seed)
    steps = [sampler.rows(step) for step in range(max(sizes) + 2)]
    for index, size in enumerate(sizes):
        stream = torch.cat([s[index * per_domain : (index + 1) * per_domain] for s in steps])
        for epoch in range(len(stream) // size):
            seen = stream[epoch * size : (epoch + 1) * size].sort().values
            assert torch.equal(seen, rows[domain == index].sort().values)
    fresh = DomainSampler(rows, domain, per_domain, seed)  # any step, in any order, from a new sampler
    assert torch.equal(fresh.rows(len(steps) - 1), steps[-1]) and torch.equal(fresh.rows(0), steps[0])


def test_derived_seeds_differ_and_depend_on_order():
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900 and all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, 2) != derive_seed(2, 1)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_share_of_the_unseen_rows_gives_inputs_without_labels(share, seed):
    shift = make(90)
    split = shift.split(["a", "c"], unlabelled=share, seed=seed)
    again, plain = shift.split(["a", "c"], unlabelled=share, seed=seed), shift.split(["a", "c"], seed=seed)
    assert torch.equal(split.unlabelled, again.unlabelled)
    assert torch.equal(split.train, plain.train) and torch.equal(split.validation, plain.validation)
    apart = torch.cat([split.unseen, split.unlabelled]).sort().values
    assert torch.equal(apart, plain.unseen)  # each row either judges or is learned from
    for index in (0, 2):
        count = int((shift.domain[split.unlabelled] == index).sum())
        assert count == min(max(1, round(share * 30)), 29)
    assert torch.equal(split.rows("unlabelled"), split.unlabelled) and not len(plain.unlabelled)


def test_any_rows_can_be_without_labels():
    shift = make(60)
    split = shift.split("a", unlabelled=[3, 25, 59, 3])
    assert split.unlabelled.tolist() == [3, 25, 59]
    for role in ("train", "validation", "unseen"):
        assert not torch.isin(split.rows(role), split.unlabelled).any()
    assert shift.split(unlabelled=torch.arange(20)).train_domains == ("b", "c")  # all of "a" has no labels


def test_unlabelled_examples_that_cannot_be_are_refused():
    shift = make()
    for bad in (0.0, 1.0, 1, -0.5):
        with pytest.raises(InputError, match="fraction between 0 and 1"):
            shift.split("a", unlabelled=bad)
    with pytest.raises(InputError, match="of which there are none"):
        shift.split(unlabelled=0.5)
    for rows in ([], [60], [-1]):
        with pytest.raises(InputError, match="rows from 0 to 59"):
            shift.split("a", unlabelled=rows)
    with pytest.raises(InputError, match="'a'.*at least two"):
        make(6, 3).subset(torch.tensor([0, 2, 3, 4, 5])).split("a", unlabelled=0.5)


def test_unlabelled_inputs_belong_to_every_part_of_a_batch():
    batch = Batch(
        x=torch.arange(4.0), y=torch.arange(4) % 2, domain=torch.arange(4) // 2, domains=2,
        unlabelled={"image": torch.ones(7, 3)},
    )  # fmt: skip
    for part in (batch.take(torch.tensor([1])), batch.of_domain(0), batch.again()):
        assert part.unlabelled is batch.unlabelled
    assert batch.map(torch.neg).unlabelled is batch.unlabelled
    moved = batch.to("meta")
    assert moved.unlabelled["image"].device.type == moved.x.device.type == "meta"
    assert batch.unlabelled["image"].device.type == "cpu"
