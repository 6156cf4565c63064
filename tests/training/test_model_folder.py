import errno
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import unseen
from unseen.errors import InputError
from unseen.registry import detectors
from unseen.shifts.arrays import from_arrays
from unseen.shifts.tables import from_dataframe
from unseen.training import Learner, Predictor, fit, model_folder
from unseen.training.data import TrainingData
from unseen.training.model_folder import load, save

SMALL = {"steps": 20, "learning_rate": 0.02, "batch_size": 16}


def trained(kind: str, detector: str | None, network: str = "auto") -> tuple[Predictor, object]:
    """A predictor of a small task, and raw inputs for it."""
    generator = np.random.default_rng(0)
    labels, domain = np.arange(120) % 3, np.arange(120) // 3 % 4
    x = generator.normal(size=(120, 6)).astype("float32")
    x[:, :3] += 3 * np.eye(3, dtype="float32")[labels]
    if kind == "table":
        frame = pd.DataFrame(x, columns=list("abcdef")).assign(g=np.array(["u", "v"])[labels % 2])
        frame.loc[::7, "b"] = np.nan
        frame["label"], frame["place"] = np.array(["x", "y", "z"])[labels], domain
        shift, raw = from_dataframe(frame, "label", "place"), frame.drop(columns=["label", "place"])
    elif kind == "image":
        raw = generator.integers(0, 100, size=(120, 1, 8, 8), dtype=np.uint8)
        raw[np.arange(120), 0, 2 * labels, :] = 255
        shift = from_arrays(raw, labels, domain)
    else:
        raw, shift = x, from_arrays(x, labels, domain, classes=["red", "green", "blue ✓"])
    split = shift.split("3")
    data = TrainingData(split)
    predictor = fit(Learner(network=network, **SMALL), split, data=data)
    if detector is not None:
        observers = [detectors.build(detector)]
        banks = (data.bank(predictor.network, r, observers=observers) for r in ("train", "validation"))
        predictor.know_familiar(detector, *banks, coverage=0.9)
    return predictor, raw


@pytest.fixture(scope="module")
def known() -> tuple[Predictor, object]:
    return trained("array", "knn")


def same(first: Predictor, second: Predictor, raw: object) -> None:
    pd.testing.assert_frame_equal(first.predict(raw), second.predict(raw), check_exact=True)


# ---- round trips ----


def test_a_fresh_process_predicts_the_same_bits(tmp_path):
    expected = {}
    for kind in ("array", "table", "image"):
        predictor, raw = trained(kind, "mahalanobis")
        predictor.save(tmp_path / kind)
        (raw.to_pickle if kind == "table" else lambda path, raw=raw: np.save(path, raw))(
            tmp_path / f"{kind}.npy"
        )
        expected[kind] = predictor.predict(raw)
    code = (
        "import sys, unseen, numpy, pandas, torch; torch.set_num_threads(1)\n"
        "for kind in ('array', 'table', 'image'):\n"
        "    path = sys.argv[1] + '/' + kind\n"
        "    read = pandas.read_pickle if kind == 'table' else numpy.load\n"
        "    unseen.load(path).predict(read(path + '.npy')).to_pickle(path + '.out')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    for kind, table in expected.items():
        pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / f"{kind}.out"), table, check_exact=True)
        assert {"familiarity", "accept"} < set(table.columns)


@pytest.mark.parametrize("detector", [None, *detectors.names(), "knn(k=3)"])
def test_every_detector_comes_back(detector, known, tmp_path):
    kind = "image" if detector == "rankfeat" else "array"
    network = {"mc-dropout": "mlp(dropout=0.2)", "deep-ensemble": "heads(of='mlp')"}.get(detector, "auto")
    predictor, raw = trained(kind, detector, network)
    loaded = unseen.load(predictor.save(tmp_path / "model"))
    same(predictor, loaded, raw)
    assert loaded.classes == (("0", "1", "2") if kind == "image" else ("red", "green", "blue ✓"))
    assert loaded.facts == json.loads(json.dumps(predictor.facts))
    assert (loaded.familiarity is None) == (detector is None)


def test_loading_draws_nothing_from_the_global_generator(known, tmp_path):
    folder = known[0].save(tmp_path / "model")
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_predictors_are_in_evaluation_mode(tmp_path):
    predictor, raw = trained("array", None, "mlp(dropout=0.5)")
    for one in (predictor, load(predictor.save(tmp_path / "model"))):
        assert not any(module.training for module in one.modules())
        first, second = (one.network(torch.ones(5, 6)) for _ in range(2))
        assert torch.equal(first, second)
        same(one, one, raw)
        assert not any(module.training for module in one.modules())


def test_only_what_is_needed_is_written(known, tmp_path):
    folder = known[0].save(tmp_path / "deep" / "model")
    assert sorted(os.listdir(folder)) == ["README.md", "model.json", "weights.safetensors"]
    assert os.listdir(folder.parent) == ["model"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "`blue ✓`" in card and "`knn`" in card and "90 % of in-distribution" in card
    others = [p.stat().st_mode & 0o444 for p in (folder, folder / "weights.safetensors")]
    assert all(mode == 0o444 & ~current_umask() for mode in others)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_card_tells_how_the_model_was_judged(tmp_path):
    predictor, _ = trained("array", None)
    row = {"domain": "3", "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    predictor.facts["evaluation"] = {"statement": "Judged elsewhere.", "unseen": [row]}
    card = (predictor.save(tmp_path / "model") / "README.md").read_text(encoding="utf-8")
    assert "Judged elsewhere." in card and "| 3 | 0.500 | 0.400 to 0.600 | 30 |" in card
    assert "When it abstains" not in card


# ---- writing ----


def test_saving_over_a_model_replaces_it(known, tmp_path):
    predictor, raw = trained("array", None)
    folder = known[0].save(tmp_path / "model")
    assert save(predictor, folder) == folder
    same(load(folder), predictor, raw)
    assert os.listdir(tmp_path) == ["model"]


def test_an_empty_folder_is_filled(known, tmp_path):
    (tmp_path / "model").mkdir()
    same(load(known[0].save(tmp_path / "model")), *known)


def test_what_is_no_model_is_not_overwritten(known, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "file"):
        with pytest.raises(InputError, match="exists and holds no model"):
            known[0].save(tmp_path / name)
    folder = known[0].save(tmp_path / "model")
    (folder / "predictions.csv").write_text("a,b")
    with pytest.raises(InputError, match=r"holds more than a model \('predictions.csv'\)"):
        known[0].save(folder)
    assert (folder / "predictions.csv").read_text() == "a,b"
    assert sorted(os.listdir(tmp_path)) == ["file", "model", "notes"]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("where", ["weights", "description", "move"])
def test_a_full_disk_leaves_what_was_there(known, tmp_path, monkeypatch, where, older):
    predictor, raw = known
    if older:
        predictor.save(tmp_path / "model")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*arguments, **options):
        raise full

    if where == "weights":
        monkeypatch.setattr(model_folder, "save_file", fail)
    elif where == "description":
        monkeypatch.setattr(model_folder, "model_card", fail)
    else:
        replace = os.replace
        new = lambda source, target: fail() if str(source).endswith("new") else replace(source, target)  # noqa: E731
        monkeypatch.setattr(os, "replace", new)
    with pytest.raises(InputError, match=r"model'?: cannot be written \(No space left on device\)"):
        predictor.save(tmp_path / "model")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["model"] if older else [])
    if older:
        same(load(tmp_path / "model"), predictor, raw)


def test_a_file_size_limit_is_told_and_leaves_nothing(known, tmp_path):
    """A true failure while writing, which safetensors reports in its own way."""
    known[0].save(tmp_path / "model")
    code = (
        "import resource, sys, unseen\n"
        "model = unseen.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: model.save(sys.argv[2])\n"
        "except unseen.errors.InputError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "copy"]
    told = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert "cannot be written" in told and "too large" in told
    assert os.listdir(tmp_path) == ["model"]


def test_a_place_that_cannot_be_written_is_told(known, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(model_folder.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        known[0].save(tmp_path / "model")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        known[0].save(tmp_path / "file" / "model")


# ---- reading ----


@pytest.fixture
def folder(known, tmp_path):
    return known[0].save(tmp_path / "model")


def rewrite(folder, **changes) -> None:
    description = json.loads((folder / "model.json").read_text())
    description.update(changes)
    kept = {name: value for name, value in description.items() if value != "gone"}
    (folder / "model.json").write_text(json.dumps(kept))


def test_a_newer_format_is_told(folder):
    rewrite(folder, format=2, library="unseen 9.0")
    with pytest.raises(InputError, match=r"format 2 \(unseen 9.0\).*reads up to 1.*Upgrade"):
        load(folder)


def test_changed_weights_are_refused(folder):
    path = folder / "weights.safetensors"
    weights = load_file(path)
    weights["network.head.bias"][0] += 1
    save_file(weights, path)
    with pytest.raises(InputError, match="its hash differs"):
        load(folder)
    path.write_bytes(b"none")
    rewrite(folder, weights_sha256=model_folder._hash(path))
    with pytest.raises(InputError, match="is not a safetensors file"):
        load(folder)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}"):
        load(folder)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"nowhere'?: has no model.json"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"format": null}', '{"format": "x"}', "\x00"])
def test_a_broken_description_is_told(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(InputError, match="is not a model description"):
        load(folder)


def test_a_description_that_lacks_or_changes_something_is_told(folder):
    rewrite(folder, network={"name": "mlp", "parameters": {"width": 7}})
    with pytest.raises(InputError, match=r"do not fit network mlp\(width=7\).*size mismatch"):
        load(folder)
    rewrite(folder, classes="gone", training="gone")
    with pytest.raises(InputError, match="lacks classes, training"):
        load(folder)


def test_a_detector_that_is_not_installed_is_named(folder):
    rewrite(folder, familiarity={"detector": {"name": "kn"}, "threshold": 0.0, "coverage": 0.9})
    with pytest.raises(InputError, match=r"detector 'kn'.*Did you mean 'knn'"):
        load(folder)
