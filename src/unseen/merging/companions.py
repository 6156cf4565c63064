"""What belongs to the weights of a model folder: configuration, tokenizer, class names. Compared, then copied."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from unseen.errors import InputError, UnseenWarning
from unseen.merging.checkpoints import OWN_DESCRIPTION, OWN_WEIGHTS, Checkpoint, read_json
from unseen.merging.plan import Plan
from unseen.merging.recipe import TYPES

CONFIG = "config.json"
VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
TOKENIZER = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
OTHERS = (
    CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How configurations call the number of layers."""


def is_own(checkpoint: Checkpoint) -> bool:
    """Whether it is a model folder of this library."""
    folder = checkpoint.folder
    return folder is not None and (folder / OWN_DESCRIPTION).is_file() and (folder / OWN_WEIGHTS).is_file()


def check_companions(plan: Plan) -> None:
    """Raise `InputError` when classes stand in another order, token numbers mean other tokens, or the files that
    go with the result could not be written."""
    with_folder = [each for each in plan.checkpoints.values() if each.folder is not None]
    _check_classes(with_folder)
    _check_tokenizers(with_folder)
    own = [each for each in with_folder if is_own(each)]
    for other in own[1:]:
        _check_own(own[0], other)
    if CONFIG in companion_names(plan):
        _config(plan)


def companion_names(plan: Plan) -> list[str]:
    """Names of the files that `copy_companions` writes."""
    if is_own(plan.leading):
        return [OWN_DESCRIPTION]
    return sorted(_sources(plan))


def copy_companions(plan: Plan, out: Path, record: dict[str, Any]) -> None:
    """Write the leading model's files beside the merged weights, changed where the merge changed their truth."""
    if is_own(plan.leading):
        _write_json(out / OWN_DESCRIPTION, _description(plan, out, record))
        return
    for name, path in _sources(plan).items():
        if name == CONFIG:
            _write_json(out / CONFIG, _config(plan))
        else:
            part = out / f".{name}.part"
            shutil.copyfile(path, part)
            os.replace(part, out / name)


def _sources(plan: Plan) -> dict[str, Path]:
    tokenizer = plan.leading
    if plan.recipe.tokenizer not in (None, "base"):
        tokenizer = plan.checkpoints.get(plan.recipe.tokenizer or "", tokenizer)
        if plan.recipe.tokenizer not in plan.checkpoints:
            raise InputError(
                f"tokenizer_source {plan.recipe.tokenizer!r}", "is none of the models", "Name one, or base."
            )
    found = {}
    for checkpoint, names in ((plan.leading, OTHERS), (tokenizer, TOKENIZER)):
        for name in names if checkpoint.folder is not None else ():
            if (path := checkpoint.folder / name).is_file():  # type: ignore[operator]
                found[name] = path
    return found


def _config(plan: Plan) -> dict[str, Any]:
    config = read_json(plan.leading.folder / CONFIG)  # type: ignore[operator]
    if plan.recipe.dtype is not None:
        name = next(name for name, dtype in TYPES.items() if dtype == plan.recipe.dtype)
        config["dtype" if "dtype" in config else "torch_dtype"] = name
    if plan.layers is not None:
        known = [key for key in LAYERS if key in config]
        if not known:
            raise InputError(
                CONFIG, "does not say the number of layers", f"It should have one of {', '.join(LAYERS)}."
            )
        config[known[0]] = plan.layers
        if "layer_types" in config:
            config["layer_types"] = [kind for one in plan.recipe.slices for kind in _layer_types(plan, one)]
    return config


def _layer_types(plan: Plan, one: Any) -> list[str]:
    source = one.sources[0]
    kinds = read_json(plan.checkpoints[source.model].folder / CONFIG)["layer_types"]  # type: ignore[operator]
    return kinds[slice(*source.layers)]


def _description(plan: Plan, out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The detector is left out: it was fitted to the features of other weights."""
    description = read_json(plan.leading.folder / OWN_DESCRIPTION)  # type: ignore[operator]
    with (out / OWN_WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept = {key: value for key, value in description["training"].items() if key == "data"}
    changes = {"weights_sha256": digest, "familiarity": None, "training": {**kept, "merge": record}}
    return {**description, **changes}


def _check_classes(checkpoints: list[Checkpoint]) -> None:
    """All that name their classes against the first that does: one without names may stand between them."""
    named = [(each, names) for each in checkpoints if (names := _classes(each)) is not None]
    for other, b in named[1:]:
        first, a = named[0]
        if a == b:
            continue
        if sorted(a) == sorted(b):
            place = next(index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            problem = f"orders its classes otherwise than {first.label}: "
            problem += f"output {place} is {b[place]!r}, not {a[place]!r}"
            remedy = "Permute the rows of its head, or train it with the same order."
        else:
            differ = sorted(set(a) ^ set(b))
            problem = f"has other classes than {first.label} ({', '.join(map(repr, differ[:5]))} differ)"
            remedy = "Merge models of the same classes."
        raise InputError(f"model {other.label}", problem, remedy)


def _classes(checkpoint: Checkpoint) -> list[str] | None:
    """Names of the outputs, in order; None when nothing says them."""
    folder = checkpoint.folder or Path()
    if is_own(checkpoint):
        return [str(name) for name in read_json(folder / OWN_DESCRIPTION).get("classes", [])]
    labels = read_json(folder / CONFIG).get("id2label")
    if not labels:
        return None
    names = [labels[key] for key in sorted(labels, key=int)]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else [str(n) for n in names]


def _check_own(first: Checkpoint, other: Checkpoint) -> None:
    a, b = (read_json(each.folder / OWN_DESCRIPTION) for each in (first, other))  # type: ignore[operator]
    if a.get("network") != b.get("network"):
        raise InputError(
            f"model {other.label}", f"is another network than {first.label}", "Merge models of one network."
        )
    if a.get("preprocessing") != b.get("preprocessing"):
        warnings.warn(
            f"{first.label} and {other.label} prepare their inputs otherwise; the merged model does it as the "
            "first (or base) model",
            UnseenWarning,
            stacklevel=2,
        )


def _check_tokenizers(checkpoints: list[Checkpoint]) -> None:
    """All that have a vocabulary against the first that has it."""
    for name in VOCABULARIES:
        holders = [each for each in checkpoints if (each.folder / name).is_file()]  # type: ignore[operator]
        expected = _vocabulary(holders[0].folder / name) if len(holders) > 1 else None  # type: ignore[operator]
        for other in holders[1:]:
            if _vocabulary(other.folder / name) != expected:  # type: ignore[operator]
                raise InputError(
                    f"tokenizer of {other.label}",
                    f"differs from that of {holders[0].label} ({name}): the same row of the embedding is another token",
                    "Merge models of one tokenizer, or bring them to one vocabulary first.",
                )


def _vocabulary(path: Path) -> Any:
    """What decides which token a number is; the rest of tokenizer.json (padding, templates) may differ."""
    if path.name != "tokenizer.json":
        return hashlib.sha256(path.read_bytes()).digest()
    found = read_json(path)
    added = [(each.get("id"), each.get("content")) for each in found.get("added_tokens", [])]
    return found.get("model", {}).get("vocab"), sorted(added, key=str)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
