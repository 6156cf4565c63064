"""A bank in a folder: a .npy file for each of its parts, and bank.json, which says what they are."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.bank import Bank
from unseen.networks.row_files import RowFile, map_rows

FORMAT = 1
DESCRIPTION = "bank.json"
FLOATS = ("float32", "float16")
_ENTRIES = {"format", "network_hash", "data_hash", "domains", "parts"}
_NUMBERS = ("labels", "domain", "ids")
_OWN = re.compile(r"bank\.json|\d{3}\.npy|head_(weight|bias)\.npy")
"""Files that a bank consists of."""


def write_bank(
    folder: str | Path, parts: Iterable[Bank], rows: int, *, dtype: str = "float32", data: str | None = None
) -> Path:
    """Write N = `rows` examples that come part by part; no more than one part is in memory.

    parts  banks of one network's outputs, alike in what they hold
    dtype  of features and logits, see `Bank.save`
    data   hash of the inputs, for `Bank.open` to compare
    Everything is written into a hidden folder beside `folder`, which takes its name when it is whole; one that a
    killed process left behind is deleted by the next that writes there. Raises `InputError` as `Bank.save`, and for
    parts that differ, or are more or fewer than announced.
    """
    if dtype not in FLOATS:
        raise InputError("dtype", f"is {dtype!r}", "Choose 'float32' or 'float16'.")
    folder = Path(folder)
    _require_replaceable(folder)
    new = folder.with_name(f".{folder.name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # the system frees it when its process dies
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                _write(new, parts, rows, dtype, data)
                _replace(folder, new)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"bank {str(folder)!r}",
            f"cannot be written ({error.strerror or error})",
            "Choose a place with room and write access.",
        ) from error
    return folder


def open_bank(folder: str | Path, *, network: int | None = None, data: str | None = None) -> Bank:
    """See `Bank.open`."""
    folder = Path(folder)
    description = describe(folder)
    for name, wanted, other in (
        ("network_hash", network, "of another network"),
        ("data_hash", data, "for other inputs"),
    ):
        if wanted is not None and description[name] != wanted:
            problem = f"holds outputs {other}" if description[name] else f"holds outputs, perhaps {other}"
            raise InputError(f"bank {str(folder)!r}", problem, "Choose another folder, or delete this one.")
    found = {
        name: map_rows(folder / part["file"], tuple(part["shape"]), np.dtype(part["dtype"]))
        for name, part in description["parts"].items()
    }
    layers = {
        name.removeprefix("layers/"): found.pop(name) for name in [*found] if name.startswith("layers/")
    }
    head = _linear(found.pop("head/weight", None), found.pop("head/bias", None))
    domains, made_by = tuple(description["domains"]), description["network_hash"]
    return Bank(**found, head=head, layers=layers, domains=domains, network_hash=made_by)


def describe(folder: Path) -> dict[str, Any]:
    """What `bank.json` says. Raises `InputError` where there is none, or one that this version cannot read."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description["format"]
        if version == FORMAT and not (
            description.keys() >= _ENTRIES and description["parts"].keys() >= {"features", "logits"}
        ):
            raise ValueError
    except OSError:
        problem = "holds no bank" if folder.is_dir() else "is not there"
        raise InputError(f"bank {str(folder)!r}", problem, "Give a folder that Bank.save wrote.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"file {str(path)!r}", "does not describe a bank", "Compute the bank again."
        ) from None
    if version != FORMAT:
        problem = f"has format {version}; this version reads {FORMAT}"
        raise InputError(f"bank {str(folder)!r}", problem, "Upgrade: pip install -U unseen.")
    return description


def _write(folder: Path, parts: Iterable[Bank], rows: int, dtype: str, data: str | None) -> None:
    files: dict[str, RowFile] = {}
    made: Any = None
    head: nn.Linear | None = None
    with ExitStack() as stack:
        for part in parts:
            found = _columns(part, dtype)
            if made is None:
                made, head = (part.domains, part.network_hash), part.head
                for number, (name, values) in enumerate(found.items()):
                    path, shape = folder / f"{number:03d}.npy", (rows, *values.shape[1:])
                    files[name] = stack.enter_context(RowFile(path, shape, values.numpy().dtype))
            if (part.domains, part.network_hash) != made or not _fits(found, files):
                raise InputError(
                    "parts of a bank", "differ in what they hold", "Give outputs of one network, all alike."
                )
            for name, values in found.items():
                files[name].append(values)
    done = files["features"].done if files else 0
    if not files or done != rows:
        raise InputError("parts of a bank", f"hold {done} examples", f"{rows} were announced.")
    described = {
        name: {"file": f"{number:03d}.npy", "shape": list(file.shape), "dtype": file.dtype.name}
        for number, (name, file) in enumerate(files.items())
    }
    for name in ("weight", "bias") if head is not None else ():
        if (value := getattr(head, name)) is not None:
            array = value.detach().cpu().float().numpy()
            np.save(folder / f"head_{name}.npy", array)
            described[f"head/{name}"] = {
                "file": f"head_{name}.npy", "shape": list(array.shape), "dtype": "float32"
            }  # fmt: skip
    domains, network_hash = made
    description = {
        "format": FORMAT,
        "network_hash": network_hash,
        "data_hash": data,
        "domains": list(domains),
        "parts": described,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def _columns(bank: Bank, dtype: str) -> dict[str, Tensor]:
    """What is written of a bank, on the CPU, in the precision that it is written in."""
    found = {name: _rounded(name, getattr(bank, name), dtype) for name in ("features", "logits")}
    found |= {name: getattr(bank, name).cpu() for name in _NUMBERS if getattr(bank, name) is not None}
    return found | {f"layers/{name}": _rounded(name, value) for name, value in bank.layers.items()}


def _rounded(name: str, values: Tensor, dtype: str = "float32") -> Tensor:
    values = values.detach().cpu()
    if not values.is_floating_point():
        return values
    found = values.to(getattr(torch, dtype))
    if bool((found.isinf() & values.isfinite()).any()):
        raise InputError(
            f"bank's {name}",
            f"have values up to {float(values.abs().amax()):.3g}, which {dtype} cannot hold",
            "Keep them as float32." if dtype == "float16" else "Rescale them.",
        )
    return found


def _fits(found: dict[str, Tensor], files: dict[str, RowFile]) -> bool:
    return found.keys() == files.keys() and all(
        values.shape[1:] == files[name].shape[1:] and values.numpy().dtype == files[name].dtype
        for name, values in found.items()
    )


def _require_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    others = sorted(name for name in found if not _OWN.fullmatch(name))
    if others or (found and DESCRIPTION not in found):
        problem = (
            f"exists and holds more than a bank ({', '.join(others[:5])})" if others else "holds no bank"
        )
        raise InputError(f"folder {str(folder)!r}", problem, "Choose another folder.")


def _replace(folder: Path, new: Path) -> None:
    """Give `new` the name of `folder`; what was there is put back when that fails."""
    old = new / "old"
    if folder.exists():
        old = new.with_name(f"{new.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear | None:
    if weight is None:
        return None
    head = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return head.requires_grad_(False)
