import json

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.shifts import Shift
from unseen.shifts.preprocessing import Preprocessing, fit_preprocessing


def table(frame: pd.DataFrame) -> Shift:
    row = np.arange(len(frame))
    return Shift("t", "table", frame, row % 2, row % 2, ("x", "y"), ("a", "b"))


FRAME = pd.DataFrame(
    {
        "age": [20.0, 30.0, np.nan, 50.0],
        "job": ["cook", "smith", "cook", None],
        "visit": pd.to_datetime(["2020-01-01", "2020-01-03", "2020-01-05", "2020-01-07"]),
        "member": [True, False, True, True],
    }
)


def again(preprocessing: Preprocessing) -> Preprocessing:
    return Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))


def test_tables_become_standardised_numbers_and_one_hot_columns():
    rows = torch.arange(4)
    made = fit_preprocessing(table(FRAME), rows)
    x = made.encode(FRAME)
    # age (imputed by the median 30), age missing, two jobs, visit, member
    assert made.shape == [6] and x.shape == (4, 6) and x.dtype == torch.float32
    age = np.array([20, 30, 30, 50.0])
    assert np.allclose(x[:, 0], (age - age.mean()) / age.std(), atol=1e-6)
    assert x[:, 1].tolist() == [0, 0, 1, 0]
    assert x[:, 2:4].tolist() == [[1, 0], [0, 1], [1, 0], [0, 0]]
    assert torch.allclose(x[:, 4], torch.tensor([-3.0, -1, 1, 3]) / 5**0.5)
    assert torch.equal(again(made).encode(FRAME), x)


def test_only_training_rows_are_looked_at():
    made = fit_preprocessing(table(FRAME), torch.tensor([0, 1]))
    assert made.columns[0]["mean"] == 25 and not made.columns[0]["has_missing"]
    with pytest.warns(UnseenWarning, match=r"column 'job': 4 of 4 values, such as 'pilot' \(row 0\)"):
        unknown = made.encode(FRAME.assign(job="pilot"))
    assert unknown[:, 1:3].abs().sum() == 0  # a job that training did not have


def test_tables_with_other_columns():
    made = fit_preprocessing(table(FRAME), torch.arange(4))
    with pytest.raises(InputError, match="lacks the column.*'age'.*Did you mean 'Age'"):
        made.encode(FRAME.rename(columns={"age": "Age"}))
    with pytest.warns(UnseenWarning, match="'extra' were not in training and are ignored"):
        same = made.encode(FRAME.assign(extra=1))
    assert torch.equal(same, made.encode(FRAME))
    with pytest.raises(InputError, match="column 'age': holds 'old' \\(row 2\\)"):
        made.encode(FRAME.assign(age=["1", "2", "old", "4"]))
    with pytest.raises(InputError, match="column 'age': has an infinite value in row 1"):
        made.encode(FRAME.assign(age=[1.0, np.inf, 2.0, 3.0]))


def test_columns_are_found_by_name_whatever_their_order():
    made = fit_preprocessing(table(FRAME), torch.arange(4))
    assert torch.equal(made.encode(FRAME[["member", "visit", "job", "age"]]), made.encode(FRAME))


def test_arrays_are_standardised_and_constant_columns_left_alone():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 4 + 2
    x[:, 1] = 7
    made = fit_preprocessing(
        Shift("s", "array", x, torch.arange(50) % 2, torch.arange(50) % 2, "xy", "ab"), torch.arange(50)
    )
    z = made.encode(x)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(z.std(0, correction=0), torch.tensor([1.0, 0, 1]), atol=1e-5)
    assert torch.equal(again(made).encode(x.numpy()), z)
    with pytest.raises(InputError, match="shape \\(4,\\).*\\(3,\\)"):
        made.encode(torch.zeros(2, 4))
    x[7, 0] = float("nan")
    with pytest.raises(InputError, match="1 row\\(s\\), first in row 7"):
        made.encode(x)


def test_images_are_normalised_batch_by_batch():
    x = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shift = Shift("s", "image", x, torch.arange(40) % 2, torch.arange(40) % 2, "xy", "ab")
    made = fit_preprocessing(shift, torch.arange(40))
    z = made.finish(made.encode(x))
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(3), atol=1e-2)
    assert torch.equal(again(made).finish(x), z)
    with pytest.raises(InputError, match=r"\(3, 9, 9\).*\(3, 8, 8\)"):
        made.encode(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
    with pytest.raises(InputError, match="dtype torch.float32"):
        made.encode(torch.zeros(1, 3, 8, 8))


def test_texts_keep_their_words():
    texts = ["red fox runs", "blue whale swims", "red whale", "blue fox jumps"]
    shift = Shift("s", "text", texts, [0, 1, 0, 1], [0, 0, 1, 1], "xy", "ab")
    made = fit_preprocessing(shift, torch.arange(4))
    z = made.encode(texts)
    assert z.shape == (4, made.shape[0]) and (z[0] != z[1]).any()
    assert torch.equal(again(made).encode(texts), z)
    assert made.encode(["words never seen"]).abs().sum() == 0
