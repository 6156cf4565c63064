"""A predictor as one ONNX file: for serving without Python, PyTorch or this library."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unseen
from unseen.detection import Familiarity
from unseen.errors import InputError, MissingExtra
from unseen.networks import Bank
from unseen.networks.low_rank_network import LowRankNetwork
from unseen.shifts.preprocessing import ImagePreprocessing
from unseen.training.predictor import Predictor


def export_onnx(predictor: Predictor, path: str | Path, *, familiarity: bool = True) -> Path:
    """Write `path` as a whole or not at all.

    Input: encoded inputs "x", what `predictor.preprocessing.encode(raw)` gives, in batches of any size: uint8
    images (N, channels, height, width), which the graph normalises itself; float32 (N, ...) for all else; for
    graphs one input each of "nodes", "adjacency" and "mask". Outputs: "logits" and "probabilities" (N, C), and,
    if the predictor has a sense of the familiar and `familiarity` asks for it, "familiarity" (N,) and "accept"
    (N,) bool. NaN in an input, an error in `predict`, gives NaN and is not accepted.

    The file's metadata holds "classes" and "preprocessing" as JSON, "library", and "detector", "threshold" and
    "coverage" beside a sense of the familiar. Raises `MissingExtra` without the packages of the extra `onnx`,
    `InputError` when the file cannot be written or would exceed the 2 GB that the format allows, and for a detector
    that needs more of the network than features and logits.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra("ONNX export", "onnx")
    path = Path(path)
    if familiarity and predictor.familiarity is not None and predictor.familiarity.detector.observes:
        raise InputError(
            f"detector {str(predictor.familiarity.spec)!r}",
            "needs more of the network than the graph holds: layers, gradients or further passes",
            "Give familiarity=False, or deploy another detector, such as knn.",
        )
    program = _program(predictor, predictor.familiarity if familiarity else None)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(program.model_proto.SerializeToString())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise InputError(
            f"file {str(path)!r}", problem, "Choose a place with room and write access."
        ) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
    return path


class _Deployed(nn.Module):
    """From encoded inputs to everything that `Predictor.predict` tells."""

    def __init__(self, predictor: Predictor, familiarity: Familiarity | None):
        super().__init__()
        network = predictor.network
        merged = network.merged() if isinstance(network, LowRankNetwork) else copy.deepcopy(network)
        self.network, self.preprocessing = merged, predictor.preprocessing
        self.familiarity = copy.deepcopy(familiarity)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        features = self.network.featurizer(self.preprocessing.finish(x))
        logits = self.network.head(features)
        outputs = logits, torch.softmax(logits, -1)
        if self.familiarity is None:
            return outputs
        score = self.familiarity.score(Bank(features, logits, head=self.network.head))
        return *outputs, score, score >= self.familiarity.threshold


def _program(predictor: Predictor, familiarity: Familiarity | None) -> Any:
    preprocessing = predictor.preprocessing
    dtype = torch.uint8 if isinstance(preprocessing, ImagePreprocessing) else torch.float32
    shape, batch = preprocessing.shape, torch.export.Dim.DYNAMIC
    if isinstance(shape, dict):
        x: Any = {name: torch.ones(2, *size) for name, size in shape.items()}
        names, dynamic = list(shape), {name: {0: batch} for name in shape}
    else:
        x = torch.zeros(2, *shape, dtype=dtype)
        names, dynamic = ["x"], {0: batch}
    outputs = ["logits", "probabilities"] + (["familiarity", "accept"] if familiarity is not None else [])
    module = _Deployed(predictor, familiarity).cpu().eval()
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if size > 2_000_000_000:
        raise InputError(
            "ONNX export",
            f"has {size / 1e9:.1f} GB of weights; an ONNX file holds 2",
            "Save the model instead.",
        )
    with _quiet(), _without_fast_attention():
        program = torch.onnx.export(
            module,
            kwargs={"x": x},  # as a last positional argument, a dict would be taken for keywords
            dynamo=True,
            input_names=names,
            output_names=outputs,
            dynamic_shapes={"x": dynamic},
            verbose=False,
        )
    assert program is not None  # torch.onnx gives None only for its older way of exporting
    facts = {
        "library": f"unseen {unseen.__version__}",
        "classes": json.dumps(predictor.classes),
        "preprocessing": json.dumps(preprocessing.to_json()),
    }
    if familiarity is not None:
        facts |= {
            "detector": str(familiarity.spec),
            "threshold": repr(familiarity.threshold),
            "coverage": repr(familiarity.coverage),
        }
    program.model.metadata_props.update(facts)
    return program


@contextlib.contextmanager
def _without_fast_attention() -> Iterator[None]:
    """PyTorch's fused transformer layer, which frozen weights would take, has no counterpart in ONNX."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about its own internals and about packages that are not needed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
