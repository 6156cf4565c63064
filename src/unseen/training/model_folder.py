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
from unseen.training.reference import write_reference

FORMAT = 1
_ENTRIES = ("network", "preprocessing", "classes", "familiarity", "training", "weights_sha256")
WEIGHTS, DESCRIPTION, CARD = "weights.safetensors", "model.json", "README.md"
REFERENCE = "reference.safetensors"
"""What `unseen watch` compares a stream with: outputs and labels (no inputs) of up to 1,000 validation examples.

Not in every folder: models that were saved without one, or by an earlier version, can't watch. Deleting it harms
nothing else.
"""


def save(predictor: Predictor, folder: str | Path) -> Path:
    """Write `folder` as a whole or not at all; an older model folder there is replaced.

    Raises `InputError` when it cannot be written, or holds anything but a model: that would be lost.
    """
    folder = Path(folder)
    require_replaceable(folder)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        _write(predictor, new)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        problem = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        raise InputError(
            f"folder {str(folder)!r}", problem, "Choose a place with room and write access."
        ) from error
    finally:
        if temporary is not None:
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
    try:
        network.load_state_dict(_part(weights, "network."))
    except RuntimeError as error:
        raise InputError(
            f"model folder {str(folder)!r}",
            f"has weights that do not fit network {network.spec} ({str(error).splitlines()[-1].strip()})",
            f"{DESCRIPTION} was changed: restore it from a backup.",
        ) from None
    predictor = Predictor(network, preprocessing, classes, facts=description["training"])
    stored = description["familiarity"]
    if stored is not None:
        spec = Spec.of(stored["detector"])
        detector = detectors.build(spec).restore(_part(weights, "detector."))
        predictor.familiarity = Familiarity(spec, detector, stored["threshold"], stored["coverage"])
    if (folder / REFERENCE).is_file():
        predictor.reference = (folder / REFERENCE).resolve()
    return predictor.eval()


def require_replaceable(folder: Path) -> None:
    """Raise `InputError` when `folder` holds anything but a model, which `save` would delete."""
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    if found is None or (found and DESCRIPTION not in found):
        raise InputError(f"folder {str(folder)!r}", "exists and holds no model", "Choose another folder.")
    others = sorted(found - {WEIGHTS, DESCRIPTION, CARD, REFERENCE})
    if others:
        raise InputError(
            f"folder {str(folder)!r}",
            f"holds more than a model ({', '.join(map(repr, others[:5]))}), which saving would delete",
            "Choose another folder, or move them away.",
        )


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
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
    (folder / CARD).write_text(model_card(description), encoding="utf-8")
    shutil.copymode(folder / CARD, folder / WEIGHTS)  # safetensors makes files that only their owner can read
    if predictor.reference is not None:
        write_reference(predictor.reference, folder / REFERENCE)
        shutil.copymode(folder / CARD, folder / REFERENCE)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"model folder {str(folder)!r}",
            f"has no {DESCRIPTION}",
            "Give the folder that `unseen run` wrote as model/.",
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = int(description["format"])
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
    lacking = [name for name in _ENTRIES if name not in description]
    if lacking:
        raise InputError(f"file {str(path)!r}", f"lacks {', '.join(lacking)}", "Restore it from a backup.")
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
