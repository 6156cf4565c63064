import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images, load_wine

from unseen.errors import InputError, UnseenWarning
from unseen.shifts import images
from unseen.shifts.arrays import from_arrays
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift


@pytest.fixture
def wine() -> pd.DataFrame:
    """178 wines, with a cellar for a domain, a year for a time and names for classes."""
    frame = load_wine(as_frame=True).frame
    frame["cultivar"] = frame.pop("target").map({0: "barolo", 1: "grignolino", 2: "barbera"})
    frame["cellar"] = np.resize(["north", "south", "east"], len(frame))
    frame["bottled"] = np.resize(["2019-05-01", "2020-05-01"], len(frame))
    return frame


@pytest.fixture
def photographs(tmp_path):
    """Crops of two photographs as domain/class/*.{jpg,png}: 2 domains, 2 classes, 3 images each."""
    root = tmp_path / "photographs"
    for name, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        for domain, ending in (("album", "jpg"), ("scan", "png")):
            (root / domain / name).mkdir(parents=True)
            for i in range(3):
                top = 40 * i + (100 if domain == "scan" else 0)
                Image.fromarray(picture[top : top + 60, 50:130]).save(root / domain / name / f"{i}.{ending}")
    return root


def read(call, *words: str) -> None:
    """The call must raise an InputError whose text has all the words."""
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "parquet", "feather"])
def test_every_table_format_gives_the_same_shift(tmp_path, wine, ending):
    path = tmp_path / f"wine.{ending}"
    if ending == "parquet":
        wine.to_parquet(path)
    elif ending == "feather":
        wine.to_feather(path)
    else:
        wine.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    shift = open_shift(path, label="cultivar", domain="cellar", time="bottled")
    assert (shift.kind, shift.name) == ("table", path.stem)
    assert shift.classes == ("barbera", "barolo", "grignolino") and shift.domains == (
        "east",
        "north",
        "south",
    )
    assert list(shift.inputs.columns) == list(load_wine().feature_names)
    np.testing.assert_allclose(shift.inputs.to_numpy(), load_wine().data)
    assert [shift.classes[i] for i in shift.labels.tolist()] == wine["cultivar"].tolist()
    assert [shift.domains[i] for i in shift.domain.tolist()] == wine["cellar"].tolist()
    assert set(shift.time.astype("datetime64[Y]").astype(str)) == {"2019", "2020"}
    assert open_shift(**shift.source).fingerprint == shift.fingerprint


def test_semicolons_and_spaces_after_separators_are_understood(tmp_path, wine):
    wine.to_csv(tmp_path / "a.csv", index=False, sep=";")
    (tmp_path / "b.csv").write_text("x, y, site\n1, a, s\n2, b, t\n")
    assert len(open_shift(tmp_path / "a.csv", label="cultivar", domain="cellar").inputs.columns) == 14
    shift = open_shift(tmp_path / "b.csv", label="y", domain="site")
    assert shift.classes == ("a", "b") and shift.domains == ("s", "t")


def test_features_group_and_text_choose_columns(wine):
    wine["note"] = "a wine from the " + wine["cellar"]
    shift = open_shift(wine, label="cultivar", domain="cellar", group="bottled", features=["alcohol", "hue"])
    assert list(shift.inputs.columns) == ["alcohol", "hue"] and shift.groups == ("2019-05-01", "2020-05-01")
    texts = open_shift(wine, label="cultivar", domain="cellar", text="note")
    assert texts.kind == "text" and texts.inputs[:2] == ["a wine from the north", "a wine from the south"]


def test_whole_floats_and_booleans_get_plain_names(wine):
    wine["grade"] = load_wine().target.astype(float)
    assert open_shift(wine, label="grade", domain="cellar").classes == ("0", "1", "2")
    wine["strong"] = wine["alcohol"] > 13
    assert open_shift(wine, label="strong", domain="cellar").classes == ("False", "True")


def test_misspelt_and_forgotten_columns_are_offered(tmp_path, wine):
    wine.to_csv(tmp_path / "wine.csv", index=False)
    path = tmp_path / "wine.csv"
    read(
        lambda: open_shift(path, label="cultivr", domain="cellar"),
        "label column 'cultivr'",
        "Did you mean 'cultivar'",
    )
    read(lambda: open_shift(path, label="cultivar", domain="Cellar"), "domain column 'Cellar'", "'cellar'")
    read(lambda: open_shift(path, label="cultivar"), "needs a domain column", "'hue'")
    read(
        lambda: open_shift(path, label="cultivar", domain="cellar", features=["alcool"]),
        "feature column 'alcool'",
        "'alcohol'",
    )


def test_one_column_cannot_have_two_roles(wine):
    read(lambda: open_shift(wine, label="cellar", domain="cellar"), "'cellar'", "both label and domain")
    read(
        lambda: open_shift(wine, label="cultivar", domain="cellar", features=["cultivar"]),
        "'cultivar'",
        "has another role",
    )
    wine.columns = [*wine.columns[:-1], "hue"]
    read(lambda: open_shift(wine, label="cultivar", domain="cellar"), "'hue'", "more than once")


@pytest.mark.parametrize("column", ["cultivar", "cellar"])
def test_missing_labels_and_domains_are_counted_or_skipped(tmp_path, wine, column):
    wine.loc[[4, 9, 30], column] = [None, "  ", "NA"]
    wine.to_csv(tmp_path / "wine.csv", index=False)

    def opened(**options):
        return open_shift(tmp_path / "wine.csv", label="cultivar", domain="cellar", **options)

    read(opened, f"column {column!r}", "missing in 3 of 178 rows", "rows 4, 9, 30", "skip_bad")
    with pytest.warns(UnseenWarning, match="3 of 178 rows lack .*4, 9, 30"):
        shift = opened(skip_bad=True)
    assert len(shift) == 175 and 4 not in shift.ids and shift.ids[-1] == 177
    assert len(shift.classes) == 3 and len(shift.domains) == 3


def test_a_measured_label_is_refused(wine):
    read(
        lambda: open_shift(wine, label="alcohol", domain="cellar"),
        "'alcohol'",
        "Regression is not supported",
        "cut",
    )
    wine["number"] = np.arange(len(wine)) * 3
    read(lambda: open_shift(wine, label="number", domain="cellar"), "measured quantity")


def test_unreadable_tables_say_why(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,b\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    (tmp_path / "latin.csv").write_bytes("a,b\né,1\n".encode("latin-1"))
    (tmp_path / "fake.parquet").write_text("not parquet")
    (tmp_path / "sheet.xlsx").write_text("")
    for name, words in {
        "empty.csv": ["empty.csv", "is empty"],
        "header.csv": ["header.csv", "has no rows"],
        "ragged.csv": ["ragged.csv", "line 3"],
        "latin.csv": ["latin.csv", "UTF-8"],
        "fake.parquet": ["fake.parquet", "cannot be read"],
        "sheet.xlsx": ["'.xlsx'", ".parquet"],
    }.items():
        read(lambda name=name: open_shift(tmp_path / name, label="a", domain="b"), *words)


def test_unknown_sources_offer_names_and_files(tmp_path, wine):
    wine.to_csv(tmp_path / "visits.csv", index=False)
    read(
        lambda: open_shift(str(tmp_path / "visit.csv"), label="a", domain="b"),
        "neither a file or folder that exists nor the name",
        "Near files",
        "visits.csv",
    )
    read(lambda: open_shift("digts(size=3)"), "'digts(size=3)'", "Did you mean", "'digits'")
    read(lambda: open_shift(str(tmp_path / "nowhere" / "a.csv")), "There is no folder")
    read(lambda: open_shift([1, 2]), "type list", "unseen.shifts.adapters")


def test_builtin_shifts_take_their_options_and_no_others():
    shift = open_shift("rotated-digits(size=40)")
    assert isinstance(shift, Shift) and shift.source == {"source": "rotated-digits(size=40)"}
    assert open_shift(shift) is shift
    read(lambda: open_shift("rotated-digits", label="y"), "option 'label'", "built-in shift 'rotated-digits'")
    read(lambda: open_shift("rotated-digits(sizes=40)"), "'sizes'", "Did you mean 'size'")
    read(lambda: open_shift(shift, skip_bad=True), "option 'skip_bad'")


def test_an_existing_path_wins_over_a_name(photographs, monkeypatch):
    photographs.rename(photographs.parent / "digits")
    monkeypatch.chdir(photographs.parent)
    assert open_shift("digits").domains == ("album", "scan")


def test_npz_round_trip_with_names(tmp_path):
    digits = load_digits()
    domain = np.arange(len(digits.target)) % 3
    path = tmp_path / "digits.npz"
    np.savez(
        path,
        x=digits.images.astype(np.uint8),
        y=digits.target,
        domain=domain,
        group=domain % 2,
        time=domain + 2000,
        ids=np.arange(len(domain)) + 5,
        classes=[f"digit {i}" for i in range(10)],
        domains=["ann", "bob", "cem"],
    )
    shift = open_shift(path)
    assert shift.kind == "image" and tuple(shift.inputs.shape) == (1797, 1, 8, 8)
    assert (
        shift.classes[3] == "digit 3"
        and shift.domains == ("ann", "bob", "cem")
        and shift.groups == ("0", "1")
    )
    assert shift.ids[0] == 5 and shift.time[1] == 2001
    assert shift.labels.tolist() == digits.target.tolist()
    assert open_shift(**shift.source).fingerprint == shift.fingerprint
    read(lambda: open_shift(path, label="y"), "option 'label'", "npz")


def test_npz_never_unpickles_and_names_missing_arrays(tmp_path):
    np.savez(tmp_path / "object.npz", x=np.array([{}, {}], dtype=object), y=[0, 1], domain=[0, 1])
    read(lambda: open_shift(tmp_path / "object.npz"), "object.npz", "no objects")
    np.savez(tmp_path / "names.npz", x=np.ones((2, 2)), y=[0, 1], domains=["a", "b"])
    read(lambda: open_shift(tmp_path / "names.npz"), "array 'domain'", "'domains'")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    read(lambda: open_shift(tmp_path / "broken.npz"), "broken.npz", "cannot be read")


def test_channels_are_found_in_front_and_behind():
    colour = np.stack([image[:32, :48] for image in load_sample_images().images])
    behind = from_arrays(colour, ["a", "b"], ["s", "t"]).inputs
    front = from_arrays(torch.from_numpy(colour).permute(0, 3, 1, 2), ["a", "b"], ["s", "t"]).inputs
    assert tuple(behind.shape) == (2, 3, 32, 48) and torch.equal(behind, front)
    read(lambda: from_arrays(colour[:, :3], ["a", "b"], ["s", "t"]), "(2, 3, 48, 3)", "cannot be told")


def test_arrays_become_float_and_strings_become_text():
    shift = from_arrays(load_digits().data[:4], [0, 1, 0, 1], [0, 0, 1, 1])
    assert shift.kind == "array" and shift.inputs.dtype == torch.float32
    assert from_arrays(["good", "bad"], [1, 0], ["a", "b"]).kind == "text"
    read(lambda: from_arrays(np.ones(3), [0, 1, 0], [0, 1, 1]), "x", "x[:, None]")
    read(lambda: from_arrays(np.ones((3, 2)), [0, 1], [0, 1, 1]), "y", "(2,)", "3 rows")
    read(lambda: from_arrays(np.ones((2, 2)), ["c", "a"], [0, 1], classes=["a", "b"]), "y", "'c'", "a, b")
    with pytest.warns(UnseenWarning, match="1 of 3 rows"):
        kept = from_arrays(torch.eye(3), [0, np.nan, 1], ["a", "b", "b"], skip_bad=True)
    assert (
        kept.inputs.tolist() == [[1, 0, 0], [0, 0, 1]] and kept.ids == [0, 2] and kept.classes == ("0", "1")
    )


def test_image_folder_follows_domainbed(photographs):
    shift = open_shift(photographs)
    assert shift.kind == "image" and len(shift) == 12
    assert shift.domains == ("album", "scan") and shift.classes == ("china", "flower")
    assert shift.ids[0] == "album/china/0.jpg" and shift.ids[-1] == "scan/flower/2.png"
    assert (shift.inputs.size, shift.inputs.channels) == ((60, 80), 3)
    row = shift.ids.index("scan/flower/1.png")
    expected = load_sample_images().images[1][140:200, 50:130].transpose(2, 0, 1)
    np.testing.assert_array_equal(shift.take(torch.tensor([0, row]))[1], expected)
    assert shift.counts().to_numpy().tolist() == [[3, 3], [3, 3]]


def test_images_are_scaled_to_one_size(photographs):
    assert tuple(open_shift(photographs, image_size=32).take(torch.tensor([3])).shape) == (1, 3, 32, 32)
    assert open_shift(photographs, image_size=(20, 30)).inputs.size == (20, 30)
    read(lambda: open_shift(photographs, image_size=0), "image_size")
    wide = load_sample_images().images[0]
    for i in range(8):
        Image.fromarray(wide).save(photographs / "scan" / "china" / f"large{i}.png")
    for i in range(8):
        Image.fromarray(wide).save(photographs / "album" / "china" / f"large{i}.png")
    # the median is 427 x 640, and 640 may be at most 224
    assert open_shift(photographs).inputs.size == (149, 224)


def test_resized_images_fit_another_model(photographs):
    inputs = open_shift(photographs).inputs
    small = inputs.resized(1, (16, 24))
    assert tuple(small.take(torch.tensor([0, 5])).shape) == (2, 1, 16, 24) and inputs.channels == 3
    assert small.fingerprint != inputs.fingerprint


def test_decoded_images_are_the_same_from_memory_and_from_files(photographs, monkeypatch):
    kept = open_shift(photographs).inputs
    rows = torch.tensor([7, 2, 2, 11])
    first = kept.take(rows)
    opened = []
    monkeypatch.setattr(type(kept), "open", lambda self, row: opened.append(row))
    assert torch.equal(kept.take(rows), first) and not opened
    monkeypatch.undo()
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    lazy = open_shift(photographs).inputs
    assert torch.equal(lazy.take(rows), first) and lazy._pixels is None
    assert torch.equal(lazy.select(rows).take(torch.tensor([0, 3])), first[[0, 3]])
    copy = pickle.loads(pickle.dumps(kept))
    assert copy._pixels is None and torch.equal(copy.take(rows), first)


def test_fingerprint_survives_copying_and_sees_changes(photographs, tmp_path):
    before = open_shift(photographs).fingerprint
    moved = photographs.rename(tmp_path / "elsewhere")
    assert open_shift(moved).fingerprint == before
    assert open_shift(moved, image_size=16).fingerprint != before
    Image.open(moved / "scan/china/0.png").rotate(180).save(moved / "scan/china/0.png")
    assert open_shift(moved).fingerprint != before


def test_grey_sixteen_bit_and_transparent_images():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    deep = images.to_pixels(Image.fromarray(ramp), (16, 16), 1)
    np.testing.assert_array_equal(deep[0].ravel(), np.arange(256))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (images.to_pixels(clear, (4, 4), 3) == 255).all()


def test_phone_photographs_stand_upright(tmp_path):
    turned = Image.fromarray(load_sample_images().images[0][:40, :60])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned.save(tmp_path / "phone.jpg", exif=exif)
    with Image.open(tmp_path / "phone.jpg") as image:
        assert images.upright_size(image) == (60, 40)
        upright = images.to_pixels(image, (60, 40), 3)
    expected = np.rot90(np.asarray(turned), -1).transpose(2, 0, 1)
    assert np.abs(upright.astype(int) - expected).mean() < 6


def test_empty_and_corrupt_images_are_named_or_skipped(photographs):
    (photographs / "scan/china/empty.png").touch()
    read(lambda: open_shift(photographs), "empty.png", "the file is empty", "skip_bad")
    (photographs / "album/flower/text.jpg").write_text("not a picture")
    read(lambda: open_shift(photographs), "text.jpg", "not an image", "and so 1 more")
    whole = (photographs / "scan/flower/2.png").read_bytes()
    (photographs / "scan/flower/2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UnseenWarning, match="3 image.s. cannot be decoded and were left out: .*empty.png"):
        shift = open_shift(photographs, skip_bad=True)
    assert len(shift) == 11 and "scan/flower/2.png" not in shift.ids
    assert tuple(shift.take(torch.arange(11)).shape) == (11, 3, 60, 80)


def test_a_cut_off_image_is_named_when_it_is_taken(photographs):
    path = photographs / "album/china/1.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 4 // 5])
    shift = open_shift(photographs)
    read(lambda: shift.take(torch.arange(3)), "1.jpg", "cannot be decoded", "skip_bad")
    assert len(shift.take(torch.tensor([0, 2]))) == 2


def test_other_files_are_counted_and_hidden_files_passed_over(photographs):
    (photographs / "README.txt").write_text("two photographs")
    (photographs / "scan/china/notes.csv").write_text("a,b")
    (photographs / "scan/.DS_Store").touch()
    (photographs / "scan/tree").mkdir()
    with pytest.warns(UnseenWarning) as caught:
        assert len(open_shift(photographs)) == 12
    text = "\n".join(str(one.message) for one in caught)
    assert "2 file(s) that are not domain/class/image were ignored" in text
    assert "'README.txt'" in text and "'scan/china/notes.csv'" in text and ".DS_Store" not in text
    assert "1 class folder(s) hold no image: 'scan/tree'" in text


def test_other_layouts_are_explained(tmp_path, photographs):
    (tmp_path / "nothing").mkdir()
    read(lambda: open_shift(tmp_path / "nothing"), "is empty", "domain/class/image.jpg")
    read(lambda: open_shift(photographs / "scan"), "none in a class folder", "'china/0.png'", "domain/class")
    (tmp_path / "nothing" / "visits.csv").write_text("a,b")
    read(lambda: open_shift(tmp_path / "nothing"), "holds no images", "'visits.csv'")
    read(lambda: open_shift(photographs, domain="scan"), "option 'domain'", "an image folder")


def test_opening_good_data_is_silent(photographs, wine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_shift(photographs)
        open_shift(wine, label="cultivar", domain="cellar", time="bottled")
