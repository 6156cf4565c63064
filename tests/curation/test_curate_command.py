import numpy as np
import pandas as pd
import pytest

from unseen.shifts.opening import open_shift
from unseen.shifts.tables import read_table

N = 60
LABELS = np.arange(N) % 3
DOMAINS = np.repeat(["a", "b"], N // 2)
X = (2 * np.eye(3)[LABELS] + np.random.default_rng(0).normal(size=(N, 3))).round(3)
FRAME = pd.DataFrame(X, columns=list("uvw")).assign(label=LABELS, place=DOMAINS, note="007")
OPTIONS = ("--keep", 0.3, "--steps", 5)
COLUMNS = ("--label", "label", "--domain", "place", "--features", "u,v,w")


def test_a_table_keeps_its_columns_and_texts(tmp_path, command):
    FRAME.to_csv(tmp_path / "data.csv", sep=";", index=False)
    out = tmp_path / "out"
    said = command(
        "curate", tmp_path / "data.csv", *COLUMNS, *OPTIONS, "--by", "random,small_loss", "-o", out
    )
    assert said.code == 0, said.out + said.err
    ids = pd.read_csv(out / "ids.csv")
    assert len(ids) == N and ids.kept.sum() == 18
    assert ids[ids.kept].groupby("domain").size().to_dict() == {"a": 9, "b": 9}
    kept = pd.read_csv(out / "data.csv", sep=";", dtype=str)
    whole = pd.read_csv(tmp_path / "data.csv", sep=";", dtype=str)
    pd.testing.assert_frame_equal(kept, whole[ids.kept.to_numpy()].reset_index(drop=True))
    assert set(kept.note) == {"007"}
    report = pd.read_csv(out / "report.csv")
    assert set(report.selector) == {"random", "small_loss"} and set(report.part) == {"all", "domain", "class"}
    assert "overlap" in said.out and "small_loss" in said.out
    assert sorted(path.name for path in out.iterdir()) == ["data.csv", "ids.csv", "report.csv"]


def test_rows_that_were_left_out_shift_nothing(tmp_path, command):
    frame = FRAME.copy()
    frame.loc[[0, 31], "label"] = np.nan
    frame.assign(label=frame.label.astype("Int64")).to_csv(tmp_path / "data.csv", index=False)
    out = tmp_path / "out"
    said = command("curate", tmp_path / "data.csv", *COLUMNS, *OPTIONS, "--skip-bad", "-o", out)
    assert said.code == 0, said.out + said.err
    ids = pd.read_csv(out / "ids.csv")
    rows = ids.id[ids.kept].to_numpy()
    assert len(ids) == N - 2 and not {0, 31} & set(rows)
    np.testing.assert_allclose(pd.read_csv(out / "data.csv")[list("uvw")], X[rows])


@pytest.mark.parametrize("index", [None, [f"row {i}" for i in range(N)]])
def test_parquet_stays_parquet(tmp_path, command, index):
    frame = FRAME if index is None else FRAME.set_axis(index)
    frame.to_parquet(tmp_path / "data.parquet")
    out = tmp_path / "out"
    said = command("curate", tmp_path / "data.parquet", *COLUMNS, *OPTIONS, "--within", "class", "-o", out)
    assert said.code == 0, said.out + said.err
    kept = pd.read_parquet(out / "data.parquet")
    assert kept.groupby("label").size().tolist() == [6, 6, 6] and (kept.dtypes == frame.dtypes).all()
    ids = pd.read_csv(out / "ids.csv")
    np.testing.assert_allclose(kept[list("uvw")], X[ids.kept.to_numpy()])
    if index is not None:
        assert kept.index.tolist() == ids.id[ids.kept].tolist()


def test_npz_keeps_its_arrays(tmp_path, command):
    path, out = tmp_path / "data.npz", tmp_path / "out"
    np.savez(path, x=X, y=LABELS, domain=DOMAINS, classes=np.array(["p", "q", "r"]), ids=np.arange(N) + 100)
    said = command("curate", path, *OPTIONS, "--by", "vendi_greedy", "-o", out)
    assert said.code == 0, said.out + said.err
    ids = pd.read_csv(out / "ids.csv")
    with np.load(out / "data.npz") as kept:
        assert kept["ids"].tolist() == ids.id[ids.kept].tolist() and kept["classes"].tolist() == [
            "p",
            "q",
            "r",
        ]
        np.testing.assert_array_equal(kept["x"], X[kept["ids"] - 100])
    assert len(open_shift(out / "data.npz")) == 18


def test_built_in_data_become_files_that_can_be_opened(tmp_path, command):
    said = command(
        "curate", "digits(size=60)", *OPTIONS, "--by", "el2n(prefer='easy')", "-o", tmp_path / "out"
    )
    assert said.code == 0, said.out + said.err
    whole, part = open_shift("digits(size=60)"), open_shift(tmp_path / "out" / "data.npz")
    assert len(part) < 0.4 * len(whole) and set(part.domains) == set(whole.domains)
    lost = set(whole.classes) - set(part.classes)
    assert ("keeps no example of class" in said.out) == bool(lost)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--keep", 1.5), "--keep"),
        (("--keep", 0), "--keep"),
        (("--keep", 0.3, "--by", "smal_loss"), "Did you mean 'small_loss'"),
        (("--keep", 0.3, "--within", "group"), "--within"),
        (("--keep", 0.3, "--by", "donod(layer=1)"), "option 'layer'"),
        (("--keep", 0.3, "--by", "perplexity", "--steps", 2), "tokens (N, T)"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(tmp_path, command, arguments, message):
    FRAME.to_csv(tmp_path / "data.csv", index=False)
    said = command("curate", tmp_path / "data.csv", *COLUMNS, *arguments, "-o", tmp_path / "out")
    assert said.code == 2 and message in said.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_write_to(tmp_path, command):
    FRAME.to_csv(tmp_path / "data.csv", index=False)
    said = command("curate", tmp_path / "data.csv", *COLUMNS, *OPTIONS, "-o", tmp_path / "data.csv")
    assert said.code == 2 and "is a file" in said.err.replace("\n", " ")


def test_the_data_themselves_are_never_replaced(tmp_path, command):
    FRAME.to_csv(tmp_path / "data.csv", index=False)
    said = command("curate", tmp_path / "data.csv", *COLUMNS, *OPTIONS, "-o", tmp_path)
    assert said.code == 2 and "where the data are" in said.err.replace("\n", " ")
    assert len(pd.read_csv(tmp_path / "data.csv")) == N


@pytest.mark.parametrize("ending", [".tsv", ".csv.gz"])
def test_other_text_tables_are_read_again_as_they_were(tmp_path, command, ending):
    path, out = tmp_path / f"data{ending}", tmp_path / "out"
    FRAME.to_csv(path, sep="\t" if ending == ".tsv" else ",", index=False)
    said = command("curate", path, *COLUMNS, *OPTIONS, "--by", "random", "-o", out)
    assert said.code == 0, said.out + said.err
    ids = pd.read_csv(out / "ids.csv")
    np.testing.assert_allclose(read_table(out / f"data{ending}")[list("uvw")], X[ids.kept.to_numpy()])


def test_of_a_folder_of_images_the_names_are_kept(tmp_path, command):
    from PIL import Image

    for row in range(16):
        folder = tmp_path / "images" / "ab"[row % 2] / "pq"[row // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    said = command("curate", tmp_path / "images", *OPTIONS, "--by", "random", "-o", tmp_path / "out")
    assert said.code == 0, said.out + said.err
    ids = pd.read_csv(tmp_path / "out" / "ids.csv")
    assert ids.kept.sum() == 6 and all((tmp_path / "images" / name).exists() for name in ids.id)
    assert "ids.csv names what to keep" in said.out.replace("\n", " ")
