"""The model folder: weights as safetensors, everything else as JSON, a card to read. No code, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import unseen
from unseen.detection import Familiarity
from unseen.errors import InputError
from unseen.networks import build_network
from unseen.registry import Spec, detectors
from unseen.shifts.preprocessing import Preprocessing
from unseen.training.model_card import model_card
from unseen.training.predictor import Predictor

FORMAT = 1
WEIGHTS, DESCRIPTION, CARD = "weights.safetensors", "model.json", "README.md"


def save(predictor: Predictor, folder: str | Path) -> Path:
    """Write `folder` as a whole or not at all; an older model folder there is replaced."""
    folder = Path(folder)
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise InputError(f"folder {str(folder)!r}", "exists and holds no model", "Choose another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"folder {str(folder)!r}", f"cannot be written ({error.strerror})") from None
    try:
        _write(predictor, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / "model")
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        raise InputError(f"folder {str(folder)!r}", f"cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load(folder: str | Path) -> Predictor:
    """The predictor that `save` wrote, on the CPU. Raises when a file is missing, changed or too new."""
    folder = Path(folder)
    description = _read_description(folder)
    weights = _read_weights(folder, description["weights_sha256"])
    preprocessing = Preprocessing.from_json(description["preprocessing"])
    classes = tuple(description["classes"])
    with torch.random.fork_rng():
        network = build_network(Spec.of(description["network"]), preprocessing.shape, len(classes))
    network.load_state_dict(_part(weights, "network."))
    predictor = Predictor(network, preprocessing, classes, facts=description["training"])
    stored = description["familiarity"]
    if stored is not None:
        spec = Spec.of(stored["detector"])
        detector = detectors.build(spec).restore(_part(weights, "detector."))
        predictor.familiarity = Familiarity(spec, detector, stored["threshold"], stored["coverage"])
    return predictor.eval()


def _write(predictor: Predictor, folder: Path) -> None:
    weights = {f"network.{name}": value for name, value in predictor.network.state_dict().items()}
    familiarity = predictor.familiarity
    if familiarity is not None:
        weights |= {f"detector.{name}": value for name, value in familiarity.detector.state_dict().items()}
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    description: dict[str, Any] = {
        "format": FORMAT,
        "library": f"unseen {unseen.__version__}",
        "network": predictor.network.spec.to_json(),
        "preprocessing": predictor.preprocessing.to_json(),
        "classes": list(predictor.classes),
        "familiarity": None
        if familiarity is None
        else {
            "detector": familiarity.spec.to_json(),
            "threshold": familiarity.threshold,
            "coverage": familiarity.coverage,
        },
        "training": predictor.facts,
        "weights_sha256": _hash(folder / WEIGHTS),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    (folder / CARD).write_text(model_card(description))


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"model folder {str(folder)!r}",
            f"has no {DESCRIPTION}",
            "Give the folder that `unseen run` wrote as model/.",
        )
    try:
        description = json.loads(path.read_text())
        version = description["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"file {str(path)!r}", "is not a model description", "Restore it from a backup."
        ) from None
    if version > FORMAT:
        raise InputError(
            f"model folder {str(folder)!r}",
            f"has format {version} ({description.get('library')}); this version reads up to {FORMAT}",
            "Upgrade: pip install -U unseen.",
        )
    return description


def _read_weights(folder: Path, expected: str) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"model folder {str(folder)!r}", f"has no {WEIGHTS}", "Restore it from a backup.")
    if _hash(path) != expected:
        raise InputError(
            f"file {str(path)!r}",
            "is not the one that was saved (its hash differs)",
            "It was changed or damaged: restore it from a backup.",
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"file {str(path)!r}", f"is not a safetensors file ({error})") from None


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
