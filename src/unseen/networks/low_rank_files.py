"""Low-rank updates on disk: alone, or as the adapter folder that `peft` reads and writes."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.low_rank import (
    Layout,
    Updated,
    attach,
    is_conv1d,
    load_low_rank_state,
    low_rank_state,
    low_rank_updates,
    owner,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def save_low_rank(model: nn.Module, path: str | Path) -> Path:
    """Write the factors of all updates, and what they belong to, as one safetensors file."""
    path, updates = Path(path), _updates(model)
    places = {
        u.name: {**asdict(u.update.layout), "rank": u.update.rank, "groups": u.update.groups, "scale": u.update.scale}
        for u in updates
    }  # fmt: skip
    state = {name: value.cpu().contiguous() for name, value in low_rank_state(model).items()}
    _replace(path, lambda file: save_file(state, file, metadata={"low_rank": json.dumps(places)}))
    return path


def load_low_rank(model: nn.Module, path: str | Path) -> nn.Module:
    """Freeze `model` and give it the updates of a file that `save_low_rank` wrote; returns `model`."""
    try:
        with safe_open(path, "pt") as file:
            places = json.loads((file.metadata() or {})["low_rank"])
        state = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"file {str(path)!r}",
            f"holds no low-rank updates ({error})",
            "Give one that save_low_rank wrote.",
        ) from None
    _require_weights(model, places, str(path))
    model.requires_grad_(False)
    for name, place in places.items():
        layout = Layout(place["sections"], tuple(place["parts"]), place["transposed"])
        update = attach(*owner(model, name), layout, rank=place["rank"], groups=place["groups"])
        update.scale = place["scale"]
    load_low_rank_state(model, state)
    return model


def save_peft(model: nn.Module, folder: str | Path, *, base_model: str | None = None) -> Path:
    """Write updates as a LoRA adapter of `peft`: adapter_config.json and adapter_model.safetensors.

    A group becomes one update of its summed rank, which is the same function; updated thirds of a fused layer
    become one of the layer with zeros elsewhere. base_model is the name that peft notes for users of the folder.
    Raises `InputError` for `nn.MultiheadAttention`, whose projections peft cannot tell apart.
    """
    folder, state, ranks = Path(folder), {}, {}
    transposed = set()
    for name, weight, update in _updates(model):
        module, _ = owner(model, name)
        if isinstance(module, nn.MultiheadAttention):
            raise InputError(
                f"weight {name!r}",
                "is of nn.MultiheadAttention",
                "Save with save_low_rank, or merge the model.",
            )
        path = name.removesuffix(".weight")
        down, up = _as_one(update)
        if isinstance(module, nn.Conv2d):
            down, up = down.reshape(-1, *weight.shape[1:]), up[:, :, None, None]
        state[f"{_PREFIX}{path}.lora_A.weight"] = down.cpu().contiguous()
        state[f"{_PREFIX}{path}.lora_B.weight"] = up.cpu().contiguous()
        ranks[path] = len(down)
        transposed.add(update.layout.transposed)
    if len(transposed) > 1:
        raise InputError(
            "model", "has updates of transposed and of other weights", "Save with save_low_rank instead."
        )
    rank = max(ranks.values())
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base_model, "task_type": None, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": "|".join(map(re.escape, sorted(ranks))),  # a list would match ends of names
        "fan_in_fan_out": transposed.pop(), "init_lora_weights": True, "use_rslora": False,
        "rank_pattern": {f"^{re.escape(p)}": r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(p)}": r for p, r in ranks.items() if r != rank},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS, lambda file: save_file(state, file, metadata={"format": "pt"}))
    _replace(folder / CONFIG, lambda file: file.write_text(json.dumps(config, indent=2), encoding="utf-8"))
    return folder


@torch.no_grad()
def load_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Freeze `model` and give it the LoRA updates of a folder that `peft` saved; returns `model`.

    Dropout of the adapter is left out: it acts in training alone. Raises `InputError` for adapters of other kinds
    and for initialisations that change the base weights as well.
    """
    config, state = _read_peft(Path(folder))
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        path, _, factor = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if factor not in ("lora_A", "lora_B"):
            raise InputError(f"adapter {str(folder)!r}", f"holds {key!r}", "Give a LoRA of linear layers.")
        pairs.setdefault(path, {})[factor] = value
    _require_weights(model, [f"{path}.weight" for path in pairs], str(folder))
    model.requires_grad_(False)
    for path, pair in pairs.items():
        module, rank = model.get_submodule(path), len(pair["lora_A"])
        alpha = _pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
        alpha *= math.sqrt(rank) if config.get("use_rslora") else 1.0
        layout = Layout(transposed=is_conv1d(module))
        update = attach(module, "weight", layout, rank=rank, groups=1, alpha=alpha)
        update.down.copy_(pair["lora_A"].flatten(1)[None, None])
        update.up.copy_(pair["lora_B"].flatten(1)[None, None])
    return model


def _as_one(update: Any) -> tuple[Tensor, Tensor]:
    """Factors A (R, in) and B (sections * out, R) of the whole weight's update, the scale taken into B."""
    parts, groups, outputs, rank = update.up.shape
    down = update.down.detach().flatten(0, 2)
    up = down.new_zeros(update.layout.sections, outputs, parts, groups * rank)
    for index, section in enumerate(update.layout.parts):
        up[section, :, index] = update.scale * update.up.detach()[index].transpose(0, 1).flatten(1)
    return down, up.flatten(2).flatten(0, 1)


def _read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"adapter {str(folder)!r}", f"cannot be read ({error})", f"It needs {CONFIG} and {WEIGHTS}."
        ) from None
    start = str(config.get("init_lora_weights")).lower()
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise InputError(f"adapter {str(folder)!r}", "is no plain LoRA", "Load it with peft itself.")
    if start.startswith(_CHANGE_THE_BASE):
        raise InputError(
            f"adapter {str(folder)!r}",
            f"was initialised by {start}, which changes the base weights",
            "Convert it with peft's save_pretrained(path_initial_model_for_weight_conversion=...).",
        )
    return config, state


def _pattern(patterns: dict[str, Any] | None, path: str, default: float) -> float:
    """peft's rule: the first key that, as a regular expression, matches the path from some dot to its end."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return float(value)
    return float(default)


def _updates(model: nn.Module) -> list[Updated]:
    found = low_rank_updates(model)
    if not found:
        raise InputError(
            "model", "has no low-rank updates to save", "Inject them first, and save before merging."
        )
    return found


def _require_weights(model: nn.Module, names: Any, source: str) -> None:
    if low_rank_updates(model):
        raise InputError("model", "has low-rank updates already", "Give a model without them, or merge them.")
    own = dict(model.named_parameters())
    for name in names:
        if name not in own:
            raise InputError(
                f"updates of {source!r}",
                f"belong to {name!r}, which the model lacks",
                "Give the model that they were trained on.",
            )


def _replace(path: Path, write: Any) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
