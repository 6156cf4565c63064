import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unseen.errors import InputError
from unseen.shifts.arrays import from_arrays
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.tables import from_dataframe
from unseen.training.data import TrainingData
from unseen.watch.arrivals import Arrivals, open_arrivals

FRAME = pd.DataFrame({
    "a": np.arange(24.0), "when": pd.date_range("2024-01-01", periods=24).astype(str),
    "label": list("xy") * 12, "place": list("pqrs") * 6,
})  # fmt: skip


@pytest.fixture(scope="module")
def of_tables() -> Preprocessing:
    shift = from_dataframe(FRAME.drop(columns="when"), "label", "place")
    return TrainingData(shift.split("s")).preprocessing


@pytest.fixture(scope="module")
def of_images() -> Preprocessing:
    images = np.random.default_rng(0).integers(0, 255, (24, 1, 8, 8), dtype=np.uint8)
    shift = from_arrays(images, np.arange(24) % 2, np.arange(24) // 2 % 4)
    return TrainingData(shift.split("3")).preprocessing


@pytest.mark.parametrize("examples, size, sizes", [
    (60, 20, [20, 20, 20]), (70, 20, [20, 20, 20, 10]), (69, 20, [20, 20, 29]), (7, 20, [7]), (25, 20, [25])
])  # fmt: skip
def test_a_small_rest_joins_the_chunk_before(examples, size, sizes):
    inputs, names = np.arange(examples), [str(i) for i in range(examples)]
    parts = list(Arrivals(inputs, names).chunks(size))
    assert [len(part) for part, _ in parts] == sizes
    assert np.concatenate([part for part, _ in parts]).tolist() == list(range(examples))
    assert [name for _, part in parts for name in part] == names


def test_a_chunk_of_next_to_nothing():
    with pytest.raises(InputError, match="chunk: is 9"):
        next(Arrivals(np.arange(30), list("abc") * 10).chunks(9))


# ---- time ----


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather"])
def test_times_in_order_pass_and_rows_keep_theirs(ending, of_tables, tmp_path):
    path = tmp_path / f"stream.{ending}"
    getattr(FRAME, f"to_{ending}")(path, **({} if ending == "feather" else {"index": False}))
    arrivals = open_arrivals(path, of_tables, time="when")
    assert "when" not in arrivals.inputs  # the model was trained without it: nothing to warn of
    [(first, names), (second, _)] = arrivals.chunks(12)
    assert first.a.tolist() == list(range(12)) and second.a.tolist() == list(range(12, 24))
    assert names[-1] == "11"


@pytest.mark.parametrize("change, words", [
    ({5: "2023-12-31"}, "goes back at row 5: 2023-12-31.* comes after 2024-01-05"),
    ({7: None}, "is missing in row 7"),
    ({7: "yesterday"}, "cannot be read"),
])  # fmt: skip
def test_times_out_of_order_name_the_row(change, words, of_tables, tmp_path):
    frame = FRAME.copy()
    for row, value in change.items():
        frame.loc[row, "when"] = value
    frame.to_csv(tmp_path / "stream.csv", index=False)
    with pytest.raises(InputError, match=words):
        open_arrivals(tmp_path / "stream.csv", of_tables, time="when")


def test_a_time_that_is_not_there(of_tables, tmp_path):
    FRAME.to_csv(tmp_path / "stream.csv", index=False)
    with pytest.raises(InputError, match="time 'wen': is not in .* Did you mean 'when'"):
        open_arrivals(tmp_path / "stream.csv", of_tables, time="wen")


def test_arrays_have_times_too(of_images, tmp_path):
    x = np.zeros((20, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "s.npz", x=x, t=np.r_[np.arange(10), 3, np.arange(11, 20)], short=np.arange(3))
    with pytest.raises(InputError, match="goes back at row 10: 3 comes after 9"):
        open_arrivals(tmp_path / "s.npz", of_images, time="t")
    with pytest.raises(InputError, match="one for each of the 20"):
        open_arrivals(tmp_path / "s.npz", of_images, time="short")
    with pytest.raises(InputError, match="is not in"):
        open_arrivals(tmp_path / "s.npz", of_images, time="u")


def test_a_folder_by_name_and_by_time(of_images, tmp_path):
    for i in range(12):
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(path)
        os.utime(path, (1e9 - i, 1e9 - i))  # the last one came first
    by_name = open_arrivals(tmp_path, of_images)
    by_time = open_arrivals(tmp_path, of_images, time="modified")
    assert by_name.names == [f"{i:02}.png" for i in range(12)]
    assert by_time.names == by_name.names[::-1]
    [(chunk, names)] = by_time.chunks(12)
    assert [int(chunk.open(row).getpixel((0, 0))) for row in range(12)] == [int(name[:2]) for name in names]
    with pytest.raises(InputError, match="Files have --time modified"):
        open_arrivals(tmp_path, of_images, time="when")


def test_texts_with_times(tmp_path):
    frame = pd.DataFrame({"words": [f"word {i}" for i in range(24)], "t": range(24), "note": "x"})
    shift = from_dataframe(frame.assign(label=FRAME.label, place=FRAME.place), "label", "place", text="words")
    preprocessing = TrainingData(shift.split("s")).preprocessing
    frame.to_csv(tmp_path / "stream.csv", index=False)
    arrivals = open_arrivals(tmp_path / "stream.csv", preprocessing, time="t", text="words")
    assert [part for part, _ in arrivals.chunks(12)][1] == [f"word {i}" for i in range(12, 24)]
