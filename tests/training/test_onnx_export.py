import errno
import importlib
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError, MissingExtra
from unseen.registry import Spec, detectors
from unseen.shifts import Shift
from unseen.shifts.arrays import from_arrays
from unseen.shifts.shift import take
from unseen.shifts.tables import from_dataframe
from unseen.training import Learner, Predictor, fit
from unseen.training.data import TrainingData, network_outputs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
module = importlib.import_module("unseen.training.onnx_export")

LABELS, DOMAIN = torch.arange(120) % 3, torch.arange(120) // 3 % 4
GENERATOR = np.random.default_rng(0)
VECTORS = GENERATOR.normal(size=(120, 6)) + 2 * np.eye(3, 6)[LABELS]
INPUTS = {
    "array": VECTORS.astype("float32"),
    "image": GENERATOR.integers(0, 256, size=(120, 3, 8, 8), dtype=np.uint8),
    "table": pd.DataFrame(VECTORS, columns=list("abcdef")).assign(g=np.where(LABELS == 1, "u", "v")),
    "graph": {
        "nodes": torch.from_numpy(VECTORS).float().view(120, 3, 2),
        "adjacency": torch.ones(120, 3, 3) - torch.eye(3),
        "mask": torch.tensor([1.0, 1.0, 0.0]).repeat(120, 1),
    },
}
CLASSES = ("rot", "grün", "blau")


def trained(kind: str, detector: str | None = None, network: str = "auto") -> tuple[Predictor, object]:
    """A predictor of a small task, and encoded inputs for it."""
    if kind == "table":
        names = {"label": np.array(CLASSES)[LABELS], "place": DOMAIN.numpy()}
        shift = from_dataframe(INPUTS[kind].assign(**names), "label", "place")
    elif kind == "graph":
        shift = Shift("graphs", "graph", INPUTS[kind], LABELS, DOMAIN, CLASSES, tuple("abcd"))
    else:
        shift = from_arrays(INPUTS[kind], LABELS, DOMAIN, classes=CLASSES)
    split = shift.split(shift.domains[3])
    data = TrainingData(split)
    learner = Learner(network=network, steps=15, learning_rate=0.01, batch_size=16)
    predictor = fit(learner, split, data=data)
    if detector is not None:
        banks = (data.bank(predictor.network, role) for role in ("train", "validation"))
        predictor.know_familiar(detector, *banks, coverage=0.8)
    return predictor, data.stored


def check(predictor: Predictor, path, stored: object) -> None:
    """The file gives what the predictor gives, for batches of 1, 7 and 120."""
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    familiarity = predictor.familiarity
    for count in (1, 7, 120):
        part = take(stored, torch.arange(count))
        inputs = {
            name: value.numpy() for name, value in (part if isinstance(part, dict) else {"x": part}).items()
        }
        found = dict(zip(names, session.run(None, inputs), strict=True))
        bank = network_outputs(predictor.network, predictor.preprocessing, part)
        np.testing.assert_allclose(found.pop("logits"), bank.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.pop("probabilities"), bank.probabilities, rtol=1e-4, atol=1e-4)
        if familiarity is not None:
            scores, accept = familiarity.score(bank).numpy(), found.pop("accept")
            np.testing.assert_allclose(found.pop("familiarity"), scores, rtol=1e-4, atol=1e-4)
            # the threshold is the score of an example: rounding decides about that one
            on_it = np.isclose(scores, familiarity.threshold, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(accept | on_it, familiarity.accepts(bank).numpy() | on_it)
            assert count < 120 or 0.4 < accept[~on_it].mean() < 1
        assert not found


EXPORTED = [name for name in detectors.names() if not detectors.build(name).observes]


@pytest.mark.parametrize("detector", [*EXPORTED, "knn(k=5, largest=50)"])
def test_every_detector_gives_the_same_in_onnx(detector, tmp_path):
    predictor, stored = trained("array", detector, "linear")
    check(predictor, predictor.export_onnx(tmp_path / "model.onnx"), stored)


def test_detectors_that_need_more_than_a_graph_holds_are_refused(tmp_path):
    predictor, _ = trained("array", "knn")
    predictor.familiarity.spec, predictor.familiarity.detector = Spec("gram"), detectors.build("gram")
    with pytest.raises(InputError, match="'gram': needs more of the network than the graph holds"):
        predictor.export_onnx(tmp_path / "model.onnx")
    predictor.export_onnx(tmp_path / "model.onnx", familiarity=False)


@pytest.mark.parametrize(
    ("kind", "detector"), [("table", "mahalanobis"), ("image", "knn"), ("graph", "energy"), ("array", None)]
)
def test_every_kind_of_input_gives_the_same_in_onnx(kind, detector, tmp_path):
    predictor, stored = trained(kind, detector)
    check(predictor, predictor.export_onnx(tmp_path / "model.onnx"), stored)


def test_a_large_bank_is_searched_in_blocks(tmp_path):
    """More rows than a block of `kth_neighbour` holds: the loop over them is part of the graph."""
    predictor, stored = trained("array", "knn(k=3)", "linear")
    rows = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0))
    predictor.familiarity.detector.keep(bank=torch.nn.functional.normalize(rows, dim=1))
    bank = network_outputs(predictor.network, predictor.preprocessing, stored)
    predictor.familiarity.threshold = float(predictor.familiarity.score(bank).median())
    check(predictor, predictor.export_onnx(tmp_path / "model.onnx"), stored)


def test_what_is_written_beside_the_graph(tmp_path, capfd):
    predictor, stored = trained("array", "msp", "linear")
    path = predictor.export_onnx(str(tmp_path / "deep" / "model.onnx"))
    assert os.listdir(path.parent) == ["model.onnx"]
    assert capfd.readouterr() == ("", "")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["preprocessing"]) == predictor.preprocessing.to_json()
    assert float(facts["threshold"]) == predictor.familiarity.threshold
    assert (facts["detector"], facts["coverage"]) == ("msp", "0.8")
    (entry,) = model.graph.input
    assert entry.name == "x" and entry.type.tensor_type.shape.dim[0].dim_param
    without = onnx.load(predictor.export_onnx(path, familiarity=False))
    assert [output.name for output in without.graph.output] == ["logits", "probabilities"]
    assert "threshold" not in {entry.key for entry in without.metadata_props}
    assert not predictor.training and predictor.device.type == "cpu"

    broken = stored[:2].clone()
    broken[1] = float("nan")
    predictor.export_onnx(path)
    accept = onnxruntime.InferenceSession(path).run(["accept"], {"x": broken.numpy()})[0]
    assert not accept[1]


def test_a_failure_leaves_the_older_file(tmp_path, monkeypatch):
    predictor, _ = trained("array", None, "linear")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(InputError, match=r"model.onnx'?: cannot be written \(No space left on device\)"):
        predictor.export_onnx(path)
    assert path.read_bytes() == b"older" and os.listdir(tmp_path) == ["model.onnx"]


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    predictor, _ = trained("array", None, "linear")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"unseen\[onnx\]"):
        predictor.export_onnx(tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)
