import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unseen.errors import InputError, UnseenWarning
from unseen.shifts.new_inputs import open_inputs
from unseen.shifts.preprocessing import (
    ArrayPreprocessing,
    ImagePreprocessing,
    TablePreprocessing,
    TextPreprocessing,
)

ARRAY = ArrayPreprocessing([3], [0.0] * 3, [1.0] * 3)
IMAGE = ImagePreprocessing([1, 8, 8], [0.5], [0.2])
TABLE = TablePreprocessing([{"name": "a", "type": "category", "categories": ["x", "y"]}])
TEXT = TextPreprocessing(["red"], [1.0])


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather"])
def test_tables(tmp_path, ending):
    frame = pd.DataFrame({"a": ["x", "y"], "b": [1, 2]})
    path = tmp_path / f"new.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else getattr(frame, f"to_{ending}")(path)
    inputs, names = open_inputs(path, TABLE)
    pd.testing.assert_frame_equal(inputs, frame, check_dtype=False)
    assert names == ["0", "1"]


def test_texts_need_their_column_named_unless_it_is_the_only_one(tmp_path):
    pd.DataFrame({"note": ["red car", None], "id": [1, 2]}).to_csv(tmp_path / "two.csv", index=False)
    pd.DataFrame({"note": ["red car"]}).to_csv(tmp_path / "one.csv", index=False)
    assert open_inputs(tmp_path / "two.csv", TEXT, "note")[0] == ["red car", ""]
    assert open_inputs(tmp_path / "one.csv", TEXT, "other")[0] == ["red car"]
    with pytest.raises(InputError, match=r"text column 'nota'.*Did you mean 'note'"):
        open_inputs(tmp_path / "two.csv", TEXT, "nota")
    with pytest.raises(InputError, match=r"needs a text column.*'note', 'id'"):
        open_inputs(tmp_path / "two.csv", TEXT)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 1, 8, 8), (4, 8, 8, 1)])
def test_images_in_an_npz_become_channels_first(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    inputs, names = open_inputs(tmp_path / "x.npz", IMAGE)
    assert torch.equal(inputs, torch.from_numpy(x.reshape(4, 1, 8, 8)))
    assert IMAGE.encode(inputs) is inputs and names == ["0", "1", "2", "3"]


def test_arrays_in_an_npz(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "x.npz", x=x)
    assert np.array_equal(open_inputs(tmp_path / "x.npz", ARRAY)[0], x)


@pytest.mark.parametrize(
    "x", [np.array(["a"]), np.array([{}], dtype=object), np.zeros((0, 3)), np.float64(1)]
)
def test_arrays_that_hold_no_numbers(tmp_path, x):
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(InputError, match=r"x\.npz"):
        open_inputs(tmp_path / "x.npz", ARRAY)


def test_npz_files_that_are_none(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"x\.npz.*cannot be read"):
        open_inputs(tmp_path / "x.npz", ARRAY)
    np.savez(tmp_path / "y.npz", y=np.zeros(3))
    with pytest.raises(InputError, match=r"no array x \(it has y\)"):
        open_inputs(tmp_path / "y.npz", ARRAY)


@pytest.fixture
def folder(tmp_path):
    """Two images in different depths, one of them twice as large, and one that is cut off."""
    random = np.random.default_rng(0)
    (tmp_path / "in" / "side").mkdir(parents=True)
    for name, side in (("b.png", 8), ("side/a.png", 16), ("cut.png", 8)):
        pixels = random.integers(0, 255, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    cut = tmp_path / "in" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-50])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_image_folders_in_any_depth_have_the_size_of_the_model(folder):
    (folder / "cut.png").unlink()
    images, names = open_inputs(folder, IMAGE)
    assert names == ["b.png", "side/a.png"]
    assert images.take(torch.arange(2)).shape == (2, 1, 8, 8)
    one, name = open_inputs(folder / "b.png", IMAGE)
    assert name == ["b.png"] and torch.equal(one.take(torch.tensor([0])), images.take(torch.tensor([0])))


def test_bad_images_are_named_or_left_out(folder):
    images, _ = open_inputs(folder, IMAGE)
    with pytest.raises(InputError, match=r"cut\.png"):
        images.take(torch.arange(3))
    with pytest.warns(UnseenWarning, match=r"1 of 3 images cannot be decoded and were left out: 'cut\.png'"):
        images, names = open_inputs(folder, IMAGE, skip_bad=True)
    assert names == ["b.png", "side/a.png"] and len(images) == 2
    with pytest.raises(InputError, match="no image that can be decoded"):
        open_inputs(folder / "cut.png", IMAGE, skip_bad=True)


def test_data_of_another_kind_are_refused(folder, tmp_path):
    pd.DataFrame({"a": ["x"]}).to_csv(tmp_path / "t.csv", index=False)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3)))
    for path, model, wanted in (
        (folder, TABLE, "a table"),
        (folder, ARRAY, "npz"),
        (tmp_path / "t.csv", IMAGE, "a folder of images"),
        (tmp_path / "x.npz", TEXT, "text column"),
    ):
        with pytest.raises(InputError, match=f"does not fit the model.*{wanted}"):
            open_inputs(path, model)
    with pytest.raises(InputError, match="does not exist"):
        open_inputs(tmp_path / "none.csv", TABLE)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        open_inputs(tmp_path / "bare", IMAGE)
