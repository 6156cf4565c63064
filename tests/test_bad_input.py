"""What a user reads when something is wrong: the input, the problem, the remedy; and nothing half-written."""

import json
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

SMALL = ("--steps", 5, "--seeds", 1, "--learners", "erm")
TABLE = ("--label", "sex", "--domain", "island", "--skip-bad")


@pytest.fixture
def refused(command, tmp_path, monkeypatch):
    """Run `unseen run ARGUMENTS`: it must end with code 2, before anything is trained or left behind."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        said = command("run", *arguments)
        assert said.code == 2, (said.out, said.err)
        assert " 0:00:0" not in said.out, "there was a progress bar"
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return read(said.err)

    return run


def read(message: str) -> str:
    """A message as one line."""
    message = re.sub(r"[\s│╭╮╰╯─]+", " ", message)
    assert "Traceback" not in message
    return message


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


@pytest.fixture
def table(tmp_path):
    """A function that writes a table of 120 rows, with changed columns, and returns the path."""

    def write(name: str = "table.csv", rows: int = 120, **columns: object) -> Path:
        random = np.random.default_rng(0)
        place = np.arange(rows) % 3
        frame = pd.DataFrame({
            "size": random.normal(size=rows).round(6),
            "weight": random.normal(size=rows).round(6),
            "ill": np.where(random.random(rows) < 0.5, "yes", "no"),
            "hospital": np.array(["Akron", "Bonn", "Cork"])[place],
        }).assign(**columns)  # fmt: skip
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


ILL = ("--label", "ill", "--domain", "hospital", *SMALL)


# Options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--learners", "corl"), ("'corl'", "'coral'")),
        (("--learners", "irm(penalty=3)"), ("'penalty'", "'irm'", "'penalty_weight'")),
        (("--learners", "erm(3"), ("erm(3", "name(key=value, ...)")),
        (("--learners", "erm+irm"), ("erm+irm", "two")),
        (("--learners", "erm,erm"), ("same one twice",)),
        (("--learners", ","), ("learners",)),
        (("--detector", "knm"), ("detector 'knm'", "'knn'")),
        (("--detector", "knn(n=3)"), ("option 'n'", "knn")),
        (("--coverage", "1.5"), ("coverage", "1.5", "at most 1")),
        (("--coverage", "0"), ("coverage", "above 0")),
        (("--workers", "0"), ("workers", "0", "from 1")),
        (("--steps", "-5"), ("steps", "-5", "from 1")),
        (("--steps", "many"), ("--steps", "integer")),
        (("--batch-size", "0"), ("batch_size", "0", "from 1")),
        (("--learning-rate", "-1"), ("learning_rate", "-1", "positive")),
        (("--learning-rate", "nan"), ("learning_rate", "nan", "positive")),
        (("--weight-decay", "-1"), ("weight_decay", "-1", "from 0")),
        (("--clip", "0"), ("clip", "0.0", "norm")),
        (("--patience", "0"), ("patience", "0", "from 1")),
        (("--schedule", "cosin"), ("schedule 'cosin'", "'cosine'")),
        (("--seeds", "0"), ("seeds", "0", ">= 1")),
        (("--search", "-1"), ("search", "-1", ">= 0")),
        (("--rule", "id"), ("rule 'id'", "id-validation")),
        (("--engine", "lokal"), ("engine 'lokal'", "local")),
        (("--network", "mpl"), ("network 'mpl'", "'mlp'")),
        (("--network", "mlp(widht=3)"), ("'widht'", "mlp")),
        (("--network", "cnn"), ("cnn", "image")),
        (("--backbone", "efficientnet"), ("efficientnet", "lite0")),
        (("--precision", "17"), ("precision '17'", "32-true")),
        (("--accelerator", "gpuu"), ("accelerator 'gpuu'", "cpu")),
        (("--devices", "0"), ("devices", "0", "devices=1")),
        (("--unseen", "Dreem"), ("'Dreem'", "'Dream'")),
        (("--after", "2008"), ("after", "time")),
        (("--time", "year", "--after", "soon"), ("after", "soon", "2007")),
        (("--label", "sexx"), ("'sexx'", "'sex'")),
        (("--domain", "isle"), ("domain column 'isle'", "'island'")),
        (("--group", "specie"), ("group column 'specie'", "'species'")),
        (("--features", "bill_lenght_mm,year"), ("'bill_lenght_mm'", "'bill_length_mm'")),
        (("--domain", "sex"), ("'sex'", "both label and domain")),
        (("--image-size", "32"), ("image_size", "table")),
        (("--plugin", "nowhere.py"), ("'nowhere.py'", "not a file")),
        (("--wrong", "1"), ("--wrong",)),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_training(options, parts, refused, penguin_study):
    says(refused(penguin_study.data, *TABLE, *SMALL, "--out", "o", *options), *parts)


def test_a_plugin_that_cannot_be_loaded_is_named(refused, penguin_study, tmp_path):
    (tmp_path / "broken.py").write_text("import unseen\nunseen.nothing_of_that_name\n")
    says(refused(penguin_study.data, *TABLE, "--plugin", "broken.py"), "broken.py", "nothing_of_that_name")


def test_two_plugins_of_one_name_are_told_apart(refused, penguin_study, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text("")
    plugins = ("--plugin", "one/same_name.py", "--plugin", "two/same_name.py")
    says(refused(penguin_study.data, *TABLE, *plugins), "two/same_name.py", "one/same_name.py", "Rename")


def test_a_missing_optional_package_names_its_extra(refused, penguin_study, monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else there(name, *a)
    )
    says(refused(penguin_study.data, *TABLE, "--engine", "ray"), "'ray'", "unseen[scale]")


def test_built_in_data_of_a_missing_package_name_its_extra(refused, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "palmerpenguins", None)
    says(refused("penguins"), "penguins", "unseen[data]")


# Files -----------------------------------------------------------------------------------------------------


def test_names_that_are_nothing_are_met_with_near_ones(refused, table):
    table("visits.csv")
    says(refused("vsits.csv", *ILL), "vsits.csv", "visits.csv")
    says(refused("digts", *SMALL), "'digts'", "'digits'")
    says(refused("digits(sise=3)", *SMALL), "'sise'", "'size'")
    says(refused("digits", *ILL), "'label'", "digits")


def test_files_that_are_not_tables(refused, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("ill,hospital,x\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)) * 4)
    (tmp_path / "ragged.csv").write_text("ill,hospital\na,b\na,b,c,d\n")
    (tmp_path / "prose.csv").write_text("This is a letter.\nIt has no columns.\n")
    (tmp_path / "fake.parquet").write_text("ill,hospital\n1,2\n")
    (tmp_path / "fake.feather").write_text("ill,hospital\n1,2\n")
    (tmp_path / "notes.docx").write_text("x")
    says(refused("empty.csv", *ILL), "empty.csv", "is empty", "header")
    says(refused("header.csv", *ILL), "header.csv", "no rows")
    says(refused("binary.csv", *ILL), "binary.csv", "UTF-8")
    says(refused("ragged.csv", *ILL), "ragged.csv", "line 3")
    says(refused("prose.csv", *ILL), "'ill'", "prose")
    says(refused("fake.parquet", *ILL), "fake.parquet", "cannot be read")
    says(refused("fake.feather", *ILL), "fake.feather", "cannot be read")
    says(refused("notes.docx", *ILL), "notes.docx", ".csv")


def test_columns_must_be_named(refused, table):
    says(refused(table(), *SMALL), "label", "'ill'")
    says(refused(table(), "--label", "ill", *SMALL), "domain", "'hospital'")


class Trap:
    """Unpickling this writes a file."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_pickled_objects_are_refused_and_never_unpickled(refused, tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    trap = np.array([Trap()] * 20, dtype=object)
    np.savez("objects.npz", x=x, y=trap, domain=np.arange(20) % 2)
    np.savez("nothing.npz", x=x, y=np.arange(20) % 2)
    Path("fake.npz").write_text("no zip")
    says(refused("objects.npz", *SMALL), "objects.npz", "Object arrays", "no objects")
    assert not Path("unpickled").exists()
    says(refused("nothing.npz", *SMALL), "'domain'", "nothing.npz")
    says(refused("fake.npz", *SMALL), "fake.npz", "numpy.savez")
    np.savez("nan.npz", x=np.where(x > 2, np.nan, x), y=np.arange(20) % 2, domain=np.arange(20) // 10)
    if np.isnan(np.load("nan.npz")["x"]).any():
        says(refused("nan.npz", *SMALL), "'x'", "NaN or infinite")


# Tables ----------------------------------------------------------------------------------------------------


def test_tables_that_cannot_be_learned_from(refused, table):
    rows = np.arange(120)
    mixed = np.where(rows == 7, "n/k", (rows / 7).astype(str))
    infinite = np.where(rows == 5, np.inf, rows / 7)
    gaps = np.where(rows == 3, None, np.where(rows % 2, "yes", "no"))
    absent = np.where(rows % 3 == 0, "rare", np.where(rows % 2, "yes", "no"))
    says(refused(table(hospital="Akron"), *ILL), "only one", "'Akron'", "tells places")
    says(refused(table(ill="yes"), *ILL), "only one class", "'yes'")
    says(refused(table(ill=[f"p{row}" for row in rows]), *ILL), "120 classes", "two rows")
    says(refused(table(ill=rows / 7), *ILL), "'ill'", "measured quantity", "pandas.cut")
    says(refused(table(hospital=[f"h{row}" for row in rows]), *ILL), "domains", "120", "several rows")
    says(refused(table(ill=absent), *ILL), "'rare'", "no example to train on", "Akron")
    says(refused(table(weight=mixed), *ILL), "'weight'", "mixes", "'n/k' in row 7")
    says(refused(table(weight=infinite), *ILL), "'weight'", "infinite", "row 5")
    says(refused(table(ill=gaps), *ILL), "label column 'ill'", "1 of 120", "row 3", "--skip-bad")


def test_doubtful_tables_are_warned_about(command, table, tmp_path):
    rows = np.arange(120)
    path = table(still=1, given_away=np.where(np.random.default_rng(0).random(120) < 0.5, 1, 0))
    frame = pd.read_csv(path)
    frame["outcome_code"] = (frame.ill == "yes") * 3
    frame["site_number"] = rows % 3
    frame.loc[4, "weight"] = np.nan
    frame.loc[1] = frame.loc[0].copy()
    frame.loc[1, ["hospital"]] = "Bonn"
    frame.loc[1, ["site_number"]] = 1
    frame.loc[2, "ill"] = None
    frame.drop(columns="site_number").to_csv(path, index=False)
    said = command("run", path, *ILL, "--skip-bad", "--unseen", "Cork", "--out", tmp_path / "o")
    assert said.code == 0, said.err
    out = read(said.out)
    says(out, "1 of 120 rows lack", "never vary: 'still'", "'outcome_code': alone predicts the label")
    says(out, "1 of", "cells are empty: 'weight' (1)", "2 of 119 have an exact copy in another domain")
    frame.dropna().to_csv(path, index=False)
    said = command("run", path, *ILL, "--unseen", "Cork", "--out", tmp_path / "p")
    says(read(said.out), "'site_number': has one value for each domain")


# Images ----------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    """Two domains, two classes, eight images of each."""
    random = np.random.default_rng(0)
    for domain in ("day", "night"):
        for label, light in (("cat", 60), ("dog", 200)):
            place = tmp_path / "images" / domain / label
            place.mkdir(parents=True)
            for number in range(8):
                pixels = (light + random.normal(size=(12, 12)) * 20).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "images"


def test_images_that_cannot_be_decoded(refused, command, images, tmp_path):
    (images / "day" / "cat" / "0.png").write_bytes(b"")
    says(refused("images", *SMALL), "day/cat/0.png", "empty", "--skip-bad")
    whole = (images / "day" / "cat" / "1.png").read_bytes()
    (images / "day" / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    says(refused("images", *SMALL), "day/cat/0.png", "--skip-bad")
    (images / "night" / "dog" / "3.png").write_text("this is no image")
    (images / "night" / "dog" / "notes.txt").write_text("this neither")
    says(refused("images", *SMALL), "night/dog/3.png", "not an image")
    (images / "night" / "cat" / "7.png").write_bytes((images / "day" / "cat" / "7.png").read_bytes())
    said = command("run", images, *SMALL, "--unseen", "night", "--skip-bad", "--out", tmp_path / "o")
    assert said.code == 0, said.err
    out = read(said.out)
    says(out, "2 image(s) cannot be decoded and were left out", "30 examples", "'night/dog/notes.txt'")
    says(out, "2 of 30 have an exact copy in another domain")


def test_folders_laid_out_wrongly(refused, images, tmp_path):
    layout = "domain/class/image"
    says(refused(images / "day", *SMALL), "none in a class folder inside a domain folder", layout)
    (tmp_path / "bare").mkdir()
    says(refused("bare", *SMALL), "'bare'", "is empty", layout)
    shutil.copy(__file__, tmp_path / "bare" / "code.py")
    says(refused("bare", *SMALL), "holds no images", "code.py", layout)
    shutil.rmtree(images / "night")
    says(refused("images", *SMALL), "only one", "'day'")
    says(refused("images", *ILL), "'label'", "image folder")


# Folders that cannot be written ----------------------------------------------------------------------------


def test_output_folders_that_cannot_be_written(refused, command, penguin_study, tmp_path):
    (tmp_path / "file").write_text("mine")
    data = (penguin_study.data, *TABLE, *SMALL)
    says(refused(*data, "--out", "file"), "'file'", "cannot be written", "--out")
    says(refused(*data, "--out", "file/below"), "'file/below'", "cannot be written")
    (tmp_path / "o" / "model").mkdir(parents=True)
    (tmp_path / "o" / "model" / "thesis.txt").write_text("mine")
    says(refused(*data, "--out", "o"), "o/model", "holds no model", "another folder")
    other = (
        penguin_study.data,
        "--label",
        "species",
        "--domain",
        "year",
        "--features",
        "body_mass_g",
        *SMALL,
    )
    says(refused(*other, "--out", penguin_study.folder), "other data", "--out")
    if os.geteuid() != 0:  # nothing is read-only for root
        (tmp_path / "locked").mkdir(mode=0o500)
        says(refused(*data, "--out", "locked"), "'locked'", "Permission denied", "--out")


def test_a_full_disk_is_told_and_leaves_no_half_model(command, penguin_study, tmp_path):
    """A limit on the size of files stands in for a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "new.csv").write_bytes(penguin_study.data.read_bytes())
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        trained = command("run", penguin_study.data, *TABLE, *SMALL, "--out", tmp_path / "o")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        predicted = command("predict", penguin_study.model, tmp_path / "new.csv", "-o", tmp_path / "p.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert trained.code == predicted.code == 2
    says(read(trained.err), str(tmp_path / "o"), "cannot be")
    says(read(predicted.err), "p.csv", "cannot be written", "File too large")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.csv", "o"]
    assert not any("model" in p.name or "report" in p.name for p in (tmp_path / "o").iterdir())
    again = command("run", penguin_study.data, *TABLE, *SMALL, "--out", tmp_path / "o")
    assert again.code == 0, "with room, the same command goes on"


# A loss that becomes NaN -----------------------------------------------------------------------------------


def test_a_loss_that_becomes_nan_stops_the_run_and_names_the_step(command, penguin_study, tmp_path):
    options = ("--steps", 40, "--seeds", 1, "--learning-rate", "1e30", "--unseen", "Dream")
    said = command("run", penguin_study.data, *TABLE, *options, "--learners", "erm", "--out", tmp_path / "o")
    assert said.code == 2
    says(read(said.err), "erm", "step", "of 40", "Lower the learning rate")
    assert not (tmp_path / "o" / "model").exists() and not (tmp_path / "o" / "report.html").exists()


# Models and new data ---------------------------------------------------------------------------------------


@pytest.fixture
def model(penguin_study, tmp_path) -> Path:
    return Path(shutil.copytree(penguin_study.model, tmp_path / "model"))


def test_models_that_cannot_be_trusted(command, model, penguin_study, tmp_path):
    def refusal(folder: object) -> str:
        said = command("predict", folder, penguin_study.data, "-o", tmp_path / "p.csv")
        assert said.code == 2 and not (tmp_path / "p.csv").exists()
        return read(said.err)

    weights, description = model / "weights.safetensors", model / "model.json"
    whole, text = weights.read_bytes(), description.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    says(refusal(model), "weights.safetensors", "hash differs", "backup")
    weights.write_bytes(whole[: len(whole) // 2])
    says(refusal(model), "weights.safetensors", "backup")
    weights.unlink()
    says(refusal(model), "model", "has no weights.safetensors")
    weights.write_bytes(whole)
    description.write_text(json.dumps({**json.loads(text), "format": 99, "library": "unseen 9.0"}))
    says(refusal(model), "format 99", "unseen 9.0", "Upgrade")
    description.write_text("{")
    says(refusal(model), "model.json", "not a model description")
    description.unlink()
    says(refusal(model), "has no model.json", "unseen run")
    says(refusal(tmp_path / "nowhere"), "nowhere", "model")


def test_new_data_that_do_not_fit_the_model(command, penguin_study, images, tmp_path):
    new = pd.read_csv(penguin_study.data)
    out = tmp_path / "p.csv"

    def predict(data: object) -> str:
        said = command("predict", penguin_study.model, data, "-o", out)
        assert said.code == 2 and not out.exists(), said
        return read(said.err)

    new.drop(columns="year").to_csv(tmp_path / "fewer.csv", index=False)
    new.assign(body_mass_g="heavy").to_csv(tmp_path / "words.csv", index=False)
    new.assign(year=np.inf).to_csv(tmp_path / "infinite.csv", index=False)
    (tmp_path / "empty.csv").write_text("")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 7)))
    says(predict(tmp_path / "fewer.csv"), "'year'", "lacks")
    says(predict(tmp_path / "words.csv"), "'body_mass_g'", "'heavy'", "row 0", "number")
    says(predict(tmp_path / "infinite.csv"), "'year'", "infinite", "row 0")
    says(predict(tmp_path / "empty.csv"), "empty.csv", "is empty")
    says(predict(tmp_path / "x.npz"), "x.npz", "a table")
    says(predict(images), "images", "a table")
    says(predict(tmp_path / "nowhere.csv"), "nowhere.csv", "does not exist")

    said = command("predict", penguin_study.model, penguin_study.data, "-o", out)
    assert said.code == 0, "columns that were not in training are ignored"
    says(read(said.out), "'island', 'sex'", "not in training", "ignored")
    said = command("predict", penguin_study.model, penguin_study.data, "-o", tmp_path / "p.xlsx")
    assert said.code == 2
    says(read(said.err), "p.xlsx", ".csv or .parquet")
    said = command("predict", penguin_study.model, penguin_study.data, "-o", tmp_path / "no" / "p.csv")
    assert said.code == 2
    says(read(said.err), "p.csv", "cannot be written")


# Other verbs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("list", "objektives"), ("'objektives'", "'objectives'")),
        (("report", "."), ("'.'", "results.sqlite", "unseen run")),
        (("reproduce", "lm-infinit"), ("'lm-infinit'", "'lm-infinite'")),
        (("reproduce", "lm-infinite", "--seeds", 2), ("seeds", "2", "at least 3")),
        (("predict",), ("model",)),
        (("rum", "x.csv"), ("rum", "run")),
    ],
)
def test_other_verbs(arguments, parts, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command(*arguments)
    assert said.code == 2, said
    says(read(said.err), *parts)
    assert not list(tmp_path.iterdir())


def test_a_wrong_rule_for_a_report_leaves_the_report_as_it_is(command, penguin_study):
    before = (penguin_study.folder / "report.html").read_bytes()
    said = command("report", penguin_study.folder, "--rule", "orakle")
    assert said.code == 2
    says(read(said.err), "'orakle'", "'oracle'")
    assert (penguin_study.folder / "report.html").read_bytes() == before
