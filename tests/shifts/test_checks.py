import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images, load_wine

from unseen.errors import InputError, UnseenWarning
from unseen.shifts.arrays import from_arrays
from unseen.shifts.checks import check_shift
from unseen.shifts.image_folders import open_image_folder
from unseen.shifts.tables import from_dataframe, read_table


@pytest.fixture
def wine() -> pd.DataFrame:
    frame = load_wine(as_frame=True).frame.rename(columns={"target": "cultivar"})
    frame["cellar"] = np.resize(["north", "south", "east"], len(frame))
    return frame


def said(shift) -> list[str]:
    """The warnings that a user reads; they must be what check_shift returns."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        findings = check_shift(shift)
    messages = [str(one.message) for one in caught]
    assert all(one.category is UnseenWarning for one in caught)
    assert messages == [str(finding) for finding in findings]
    return messages


def refused(shift, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_shift(shift)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def table(frame):
    return from_dataframe(frame, "cultivar", "cellar")


def test_good_data_pass_in_silence(wine):
    assert said(table(wine)) == []
    digits = load_digits()
    assert said(from_arrays(digits.images.astype(np.uint8), digits.target, np.arange(1797) % 2)) == []


def test_one_domain_needs_a_time(wine):
    wine["cellar"] = "north"
    refused(table(wine), "domains", "only one, 'north'", "time column")
    wine["year"] = np.resize([2019, 2020], len(wine))
    assert said(from_dataframe(wine, "cultivar", "cellar", time="year")) == []


def test_too_few_rows_for_the_classes_or_domains(wine):
    wine["name"] = [f"wine {i}" for i in range(len(wine))]
    refused(from_dataframe(wine, "name", "cellar"), "labels", "178 classes in only 178 rows")
    refused(from_dataframe(wine, "cultivar", "name"), "domains", "178 in only 178 rows")
    refused(table(wine[wine["cultivar"] == 1]), "labels", "only one class, '1'")


def test_classes_that_domains_lack_are_named(wine):
    one_sided = wine[~((wine["cultivar"] == 2) & (wine["cellar"] != "east"))]
    messages = said(table(one_sided))
    assert any("domain 'north': has no example of class '2'" in m for m in messages)
    assert any("domain 'south': has no example of class '2'" in m for m in messages)
    assert any("class '2': occurs in domain 'east' only" in m for m in messages)
    assert len(messages) == 3


def test_many_domains_that_lack_classes_share_one_warning(wine):
    wine["cellar"] = wine.index // 10  # the rows are sorted by class
    assert sum("18 lack one or more classes" in m for m in said(table(wine))) == 1


def test_a_class_without_examples_is_an_error():
    refused(
        from_arrays(np.eye(6), [0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1], classes=["a", "b", "c"]), "class 'c'"
    )


def test_empty_cells_are_counted(wine):
    wine.loc[[1, 2, 3], "hue"] = None
    wine.loc[7, "ash"] = None
    (message,) = said(table(wine))
    assert "4 of 2314 cells are empty: 'hue' (3), 'ash' (1)" in message and "median" in message


def test_infinite_cells_are_refused_with_column_and_row(wine):
    wine.loc[11, "hue"] = np.inf
    refused(table(wine), "column 'hue'", "1 infinite", "row 11")


def test_numbers_mixed_with_words_are_refused(tmp_path, wine):
    mixed = wine.assign(hue=wine["hue"].astype(object))
    mixed.loc[[5, 8], "hue"] = "unknown"
    refused(table(mixed), "column 'hue'", "176 numbers", "2 other values", "'unknown' in row 5")
    mixed.to_csv(tmp_path / "wine.csv", index=False)  # where the whole column is read as strings
    refused(table(read_table(tmp_path / "wine.csv")), "column 'hue'", "176 numbers", "'unknown' in row 5")
    objects = wine.assign(hue=[[i] for i in range(len(wine))])
    refused(table(objects), "column 'hue'", "holds objects such as [0]")


def test_codes_that_are_partly_numbers_are_categories(wine):
    wine["shelf"] = np.resize(["1", "2", "3a", "3b", "4"], len(wine))
    assert said(table(wine)) == []


def test_a_rare_word_among_few_numbers_is_told(wine):
    wine["shelf"] = np.resize(["1", "2", "3", "4"], len(wine))
    assert said(table(wine)) == []
    wine.loc[[7, 9], "shelf"] = "?"
    (message,) = said(table(wine))
    assert "column 'shelf'" in message and "categories, because '?' (row 7)" in message
    wine["shelf"] = wine["shelf"].replace({"?": "3a"})
    assert said(table(wine)) == []


def test_several_errors_are_told_at_once(wine):
    wine.loc[0, ["hue", "ash"]] = -np.inf
    wine["cellar"] = "north"
    refused(table(wine), "3 problems", "\n- domains", "\n- column 'ash'", "\n- column 'hue'")


def test_constant_and_identifying_columns_are_named(wine):
    wine["bottle"] = 0.75
    wine["barcode"] = [f"#{i}" for i in range(len(wine))]
    wine["line"] = np.arange(len(wine)) + 1
    constant, identifying = said(table(wine))
    assert "never vary: 'bottle'" in constant
    assert "2 column(s) differ in every row" in identifying and "'barcode', 'line'" in identifying


def test_columns_that_give_the_label_away_are_named(wine):
    rng = np.random.default_rng(0)
    wine["code"] = wine["cultivar"].map({0: "x", 1: "y", 2: "z"})
    wine["score"] = wine["cultivar"] + rng.uniform(0, 0.5, len(wine)) * 1e300
    wine["price"] = wine["cultivar"] * 10 + rng.uniform(0, 5, len(wine))
    messages = said(table(wine))
    assert len(messages) == 2
    for name in ("code", "price"):
        assert any(f"column {name!r}: alone predicts the label" in m for m in messages)


def test_columns_that_encode_the_domain_are_named(wine):
    wine["cellar_number"] = wine["cellar"].map({"north": 7, "south": 8, "east": 9})
    (message,) = said(table(wine))
    assert "column 'cellar_number': has one value for each domain" in message


def test_copies_across_domains_are_counted(wine):
    copied = wine.iloc[:3].assign(cellar=["south", "east", "north"])
    (message,) = said(table(pd.concat([wine, copied], ignore_index=True)))
    assert "6 of 181 have an exact copy in another domain, such as '0', '178'" in message
    everywhere = pd.concat([wine.assign(cellar="north"), wine.assign(cellar="south")], ignore_index=True)
    (message,) = said(table(everywhere))
    assert "356 of 356" in message


def test_equal_rows_of_few_categories_are_no_copies(wine):
    wine["strong"], wine["dark"] = wine["alcohol"] > 13, wine["hue"] > 1
    assert said(from_dataframe(wine, "cultivar", "cellar", features=["strong", "dark"])) == []


def test_arrays_with_nan_are_refused_with_the_index():
    digits = load_digits()
    x = digits.data.copy()
    x[[30, 40], 5] = np.nan, np.inf
    shift = from_arrays(x, digits.target, np.arange(1797) % 2)
    refused(shift, "array 'x'", "2 NaN or infinite", "2 row(s)", "[30, 5]")


def test_arrays_with_constant_columns_and_copies_are_warned_of():
    digits = load_digits()
    x = np.concatenate([digits.data, digits.data[:2]])
    domain = np.r_[np.zeros(1797), np.ones(2)].astype(int)
    domain[100:200] = 1
    messages = said(from_arrays(x, np.r_[digits.target, digits.target[:2]], domain))
    assert any("3 constant column(s): '0', '32', '39'" in m for m in messages)
    assert any("4 of 1799 have an exact copy" in m for m in messages)


def test_empty_texts_are_counted():
    texts = [f"text {i}" for i in range(10)] + [" ", ""]
    (message,) = said(from_arrays(texts, [0, 1] * 6, [0] * 5 + [1] * 7))
    assert "2 of 12 are empty (rows 10, 11" in message
    refused(from_arrays(["", " "] * 2, [0, 0, 1, 1], [0, 1, 0, 1]), "texts", "all empty")


@pytest.fixture
def photographs(tmp_path):
    for name, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        for d, domain in enumerate(("album", "scan")):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(picture[50 * d : 50 * d + 40, 40 * i : 40 * i + 40]).save(
                    tmp_path / domain / name / f"{i}.png"
                )
    return tmp_path


def test_image_folders_are_decoded_and_compared(photographs):
    assert said(open_image_folder(photographs)) == []
    (photographs / "scan/china/9.png").write_bytes((photographs / "album/china/1.png").read_bytes())
    (message,) = said(open_image_folder(photographs))
    assert "2 of 13 have an exact copy" in message and "'album/china/1.png', 'scan/china/9.png'" in message


def test_a_cut_off_image_is_found(photographs):
    path = photographs / "scan/flower/0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(open_image_folder(photographs), "0.png", "cannot be decoded", "skip_bad=True")


def test_a_class_folder_that_one_domain_lacks_is_named(photographs):
    for path in (photographs / "scan/flower").iterdir():
        path.unlink()
    (photographs / "scan/flower").rmdir()
    messages = said(open_image_folder(photographs))
    assert any("domain 'scan': has no example of class 'flower'" in m for m in messages)


def test_graph_tensors_are_checked_by_name():
    shift = from_arrays(np.eye(4), [0, 1, 0, 1], [0, 0, 1, 1])
    nodes = torch.rand(4, 3, 2)
    nodes[2, 1, 0] = torch.nan
    shift.kind, shift.inputs = (
        "graph",
        {"nodes": nodes, "adjacency": torch.rand(4, 3, 3), "mask": torch.ones(4, 3)},
    )
    refused(shift, "array 'nodes'", "[2, 1, 0]")
