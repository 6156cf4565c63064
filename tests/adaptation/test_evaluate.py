"""Error along streams, and the patterns that the literature agrees on."""

import math

import numpy as np
import pytest
import torch

from unseen.adaptation.base import Adaptation
from unseen.adaptation.evaluate import (
    compare,
    error_by_domain,
    error_over_time,
    fingerprint,
    network_inputs,
    run_stream,
    source_batches,
)
from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.shift import Shift
from unseen.shifts.streams import correlated, corruption_drift, mixed, ordered
from unseen.training import Learner, fit


@pytest.fixture(scope="module")
def streams(world):
    return {
        "balanced": ordered(world.shift, ["other"]),
        "correlated": correlated(world.shift, ["other"], concentration=1e-3),
        "known and correlated": correlated(world.shift, ["known"], concentration=1e-3),
    }


@pytest.fixture(scope="module")
def errors(world, streams):
    methods = ["source", "bn-batch", "bn-mixed", "lame", "rotta", "tent(learning_rate=0.3)"]
    table = compare(world.network, methods, streams, world.preprocessing)
    return table.set_index(["method", "stream"])


def test_batch_statistics_help_on_balanced_batches(errors):
    assert errors.error["bn-batch", "balanced"] < errors.error["source", "balanced"] - 0.03


def test_batch_statistics_hurt_on_correlated_batches(errors):
    for stream in ("correlated", "known and correlated"):
        assert errors.error["bn-batch", stream] > errors.error["source", stream] + 0.03
        assert (
            errors.error["bn-batch", stream] > errors.error["bn-mixed", stream]
        )  # source statistics soften it


def test_lame_is_the_reverse(errors):
    assert errors.error["lame", "balanced"] > errors.error["source", "balanced"] + 0.03
    assert errors.error["lame", "correlated"] < errors.error["source", "correlated"] - 0.03


def test_rotta_is_made_for_correlated_streams(errors):
    assert errors.error["rotta", "correlated"] < errors.error["bn-batch", "correlated"] - 0.03
    assert errors.error["rotta", "balanced"] < errors.error["source", "balanced"]


def test_tent_collapses_on_correlated_streams_with_a_high_rate(errors):
    stream = "known and correlated"
    tent, source = errors.loc[("tent(learning_rate=0.3)", stream)], errors.loc[("source", stream)]
    assert tent.late_error > source.late_error + 0.3
    assert tent.late_classes < source.late_classes
    assert errors.error["tent(learning_rate=0.3)", "balanced"] < errors.error["source", "balanced"]


def test_reset_saves_tent_from_collapse(world, streams):
    stream = {"s": streams["known and correlated"]}
    table = compare(
        world.network, ["tent(learning_rate=0.3)"], stream, world.preprocessing, resets=["never", 3, "batch"]
    )
    never, some, batch = table.error
    assert batch < some < never


def test_a_table_says_what_its_numbers_depend_on(world, streams, small_network):
    table = compare(world.network, ["source"], {"s": streams["balanced"]}, world.preprocessing, seeds=(0, 1))
    assert list(table.seed) == [0, 1] and set(table.reset) == {"never"}
    row = table.iloc[0]
    assert row.examples == 1200 and row.batch_size == 64 and row.arrival == "ordered"
    assert row.data == world.shift.fingerprint and row.weights == fingerprint(world.network)
    assert row.refused == "" and 0 < row.error < 1
    assert fingerprint(small_network()) != row.weights


def test_what_a_method_refuses_stands_in_the_table(world, small_network):
    stream = {"one by one": ordered(world.shift, ["known"], batch_size=1)}
    table = compare(world.network, ["bn-batch", "eata"], stream, world.preprocessing)
    assert table.error.isna().all()
    assert "batch of one example" in table.refused[0] and "Fisher" in table.refused[1]
    table = compare(small_network("group"), ["bn-batch"], stream, world.preprocessing)
    assert "no batch normalisation" in table.refused[0]
    with pytest.raises(InputError, match="adaptation 'tnt'.*Did you mean 'tent'"):
        compare(world.network, ["tnt"], stream, world.preprocessing)
    with pytest.raises(InputError, match="option 'lr' of adaptation 'tent'"):
        compare(world.network, ["tent(lr=1)"], stream, world.preprocessing)


def test_methods_that_need_training_inputs_get_them(world, streams):
    source = source_batches(world.shift, torch.arange(600), world.preprocessing, examples=100, batch_size=32)
    assert [len(x) for x in source] == [32, 32, 32, 4]
    stream = {"balanced": streams["balanced"]}
    table = compare(world.network, ["eata"], stream, world.preprocessing, source=iter(source))
    assert table.refused[0] == "" and math.isfinite(table.error[0])


class Counter(Adaptation):
    """Predicts how many batches it has seen since it was reset."""

    def begin(self):
        return {"seen": 0}

    def answer(self, x):
        logits = torch.nn.functional.one_hot(torch.full((len(x),), self.memory["seen"] % 10), 10).float()
        self.memory["seen"] += 1
        return logits


@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        ("never", [0, 1, 2, 3, 4, 5]),
        ("batch", [0] * 6),
        (4, [0, 1, 2, 3, 0, 1]),
        ("domain", [0, 1, 0, 1, 2, 3]),
    ],
)
def test_resets_come_when_they_should(reset, expected, world):
    stream = ordered(world.shift, batch_size=300)  # 600 of the one domain, 1200 of the other
    outcomes = run_stream(Counter(world.network), stream, world.preprocessing, reset=reset)
    assert outcomes.groupby("batch").prediction.first().tolist() == expected


def test_a_run_starts_from_the_beginning(world, streams):
    method = adaptation.build("tent(learning_rate=0.01)", network=world.network)
    first, again = (run_stream(method, streams["balanced"], world.preprocessing) for _ in range(2))
    assert first.equals(again)


def test_outcomes_are_in_order_of_arrival(world):
    stream = mixed(world.shift, batch_size=100, seed=3)
    method = adaptation.build("source", network=world.network)
    outcomes = run_stream(method, stream, world.preprocessing)
    assert outcomes.row.tolist() == stream.rows.tolist()
    x = network_inputs(world.shift, stream.rows, world.preprocessing)
    with torch.no_grad():
        assert outcomes.prediction.tolist() == world.network(x).argmax(1).tolist()
    assert (outcomes.correct == (outcomes.prediction == outcomes.label)).all()
    running = error_over_time(outcomes, window=50)
    assert len(running) == len(stream) and running.iloc[0] == 1 - outcomes.correct[0]
    assert np.isclose(running.iloc[-1], 1 - outcomes.correct[-50:].mean())
    table = error_by_domain(outcomes)
    assert set(table.index) == {"known", "other"} and table.examples["known"] == 600
    assert np.isclose((table.error * table.examples).sum() / 1800, 1 - outcomes.correct.mean())


def test_bad_resets_and_windows_are_refused(world, streams):
    method = adaptation.build("source", network=world.network)
    for reset in ("often", 0, 1.5):
        with pytest.raises(InputError, match="reset: is .*'never', 'batch', 'domain'"):
            run_stream(method, streams["balanced"], world.preprocessing, reset=reset)
    outcomes = run_stream(method, streams["balanced"], world.preprocessing)
    with pytest.raises(InputError, match="window: is 0"):
        error_over_time(outcomes, 0)


def test_a_trained_predictor_meets_a_stream():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (240,), generator=generator)
    images = torch.randint(120, (240, 3, 8, 8), generator=generator, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        images[row, label] += 100
    domain = torch.arange(240) // 120
    shift = Shift("cameras", "image", images, labels, domain, tuple("rgb"), ("one", "two"))
    split = shift.split("two")
    predictor = fit(Learner(network="cnn(width=8)", steps=40, batch_size=32, learning_rate=0.01), split)
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    stream = ordered(corruption_drift(split, "brightness", (0, 2, 4)), batch_size=20)
    method = adaptation.build("tent(learning_rate=1e-3)", network=predictor)
    outcomes = run_stream(method, stream, predictor.preprocessing)
    table = error_by_domain(outcomes)
    assert list(table.index) == ["brightness-0", "brightness-2", "brightness-4"]
    assert table.error["brightness-0"] < 0.1
    assert all(torch.equal(value, before[name]) for name, value in predictor.state_dict().items())
