import json
import os
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unseen.errors import InputError
from unseen.watch import Watcher, records, write_watch

FILES = ["watch.csv", "watch.html", "watch.json"]


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    return digits.predictor.save(tmp_path_factory.mktemp("digits") / "model")


def test_a_drifting_stream_from_file_to_chart(digits, model, command, tmp_path):
    np.savez(
        tmp_path / "stream.npz", x=np.concatenate([digits.calm[:200], digits.moved[:200]]), t=np.arange(400)
    )
    out = tmp_path / "deep" / "out"
    said = command("watch", model, tmp_path / "stream.npz", "--chunk", 100, "--time", "t", "-o", out)
    assert said.code == 0, said.out + said.err
    assert sorted(path.name for path in out.iterdir()) == FILES
    record = json.loads((out / "watch.json").read_text())
    alarming = [bool(chunk["alarms"]) for chunk in record["chunks"]]
    assert alarming[2:] == [True, True] and sum(alarming[:2]) <= 1
    assert record["reference"]["examples"] == 300 and record["chunk"] == 100
    table = pd.read_csv(out / "watch.csv")
    assert table.examples.tolist() == [100] * 4 and table.alarms.notna().tolist() == alarming
    np.testing.assert_allclose(table["accuracy: cott"], [c["accuracy"]["cott"] for c in record["chunks"]])
    assert f"{sum(alarming)} of 4 chunks with an alarm" in said.out
    assert "alarm: features differ from the reference" in said.out
    page = (out / "watch.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<svg") == 3 and page.count("<tr>") == 5 and "features differ" in page
    again = command("watch", model, tmp_path / "stream.npz", "--chunk", 100, "-o", tmp_path / "again")
    assert again.code == 0
    assert (tmp_path / "again" / "watch.csv").read_bytes() == (out / "watch.csv").read_bytes()


def test_a_folder_that_fills(digits, model, command, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    for count in (12, 24):
        for i in range(count):
            image = digits.calm[i].transpose(1, 2, 0)
            Image.fromarray(image).save(folder / f"{i:03}.png")
        said = command("watch", model, folder, "--chunk", 12, "-o", tmp_path / "out")
        assert said.code == 0, said.out + said.err
        record = json.loads((tmp_path / "out" / "watch.json").read_text())
        assert len(record["chunks"]) == count // 12
    assert record["chunks"][1]["first"] == "012.png"


def test_a_table_of_penguins(penguin_study, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("watch", penguin_study.model, penguin_study.data, "--chunk", 60, "--time", "year")
    assert said.code == 2 and "goes back at row 152" in said.err
    frame = pd.read_csv(penguin_study.data)
    frame["body_mass_g"] += 4000.0 * (np.arange(len(frame)) >= 240)
    frame.to_csv("stream.csv", index=False)
    said = command("watch", penguin_study.model, "stream.csv", "--chunk", 60)
    assert said.code == 0, said.out + said.err
    record = json.loads((tmp_path / "runs" / "watch-stream" / "watch.json").read_text())
    assert record["chunks"][-1]["alarms"] and record["chunks"][-1]["accepted"] < 0.7


def test_an_older_model_folder_says_what_to_do(model, command, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(model, old)
    (old / "reference.safetensors").unlink()
    said = command("watch", old, tmp_path / "any.npz")
    assert said.code == 2 and "Run `unseen run` again" in said.err.replace("\n", " ")


def test_files_are_written_whole_or_not_at_all(digits, tmp_path, monkeypatch):
    watcher = Watcher(digits.predictor)
    with pytest.raises(InputError, match="has seen nothing"):
        write_watch(watcher, tmp_path, {})
    watcher.observe(digits.calm[:20])
    write_watch(watcher, tmp_path, {"stream": "first"})
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    watcher.observe(digits.calm[20:40])

    def full(path, text):
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.Path, "write_text", lambda path, text, encoding: full(path, text))
    with pytest.raises(InputError, match="No space left"):
        write_watch(watcher, tmp_path, {"stream": "second"})
    assert sorted(os.listdir(tmp_path)) == FILES
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_names_from_outside_cannot_write_the_page(digits, tmp_path):
    watcher = Watcher(digits.predictor)
    watcher.observe(digits.calm[:20], ["<script>alert(1)</script>"] * 20)
    page = write_watch(watcher, tmp_path, {"stream": "<b>"}).read_text()
    assert "<script" not in page and "<b>" not in page
