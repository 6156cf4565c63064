"""Named tensors, wherever they are: a dict, a safetensors file, a sharded folder, a model folder of this library.

Files are read tensor by tensor with plain reads into memory of the tensor's size. A memory map would be simpler,
but the pages it touches stay in the process's resident memory until the system wants them back: merging 2 x 4 GB
would peak at 8 GB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError, nearest

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of the safetensors format."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OWN_WEIGHTS, OWN_DESCRIPTION = "weights.safetensors", "model.json"
"""The files of a model folder that `Predictor.save` writes; its networks' tensors are named network.*"""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


class Checkpoint:
    """Named tensors that are read one by one. `label` names it in messages; `folder` has its other files."""

    label: str
    folder: Path | None = None
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> Tensor:
        """The tensor; it may be the caller's own memory: don't change it in place."""
        info = self.tensors[name]
        return self.read_range(name, 0, info.count).reshape(info.shape)

    def read_range(self, name: str, first: int, last: int) -> Tensor:
        """Entries [first, last) of the flattened tensor."""
        raise TypeError(f"{type(self).__name__} must define read_range")

    def files(self) -> list[Path]:
        """What it is read from."""
        return []

    def aliases(self) -> dict[str, str]:
        """Names that are the same memory as an earlier name."""
        return {}


class StateDictCheckpoint(Checkpoint):
    """A state dict in memory."""

    def __init__(self, state: Mapping[str, Tensor], label: str):
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"entry {name!r} of {label}", f"is a {type(value).__name__}", "Give tensors only."
                )
        self.label, self._state = label, state
        self.tensors = {name: TensorInfo(tuple(v.shape), v.dtype) for name, v in state.items()}

    def read_range(self, name: str, first: int, last: int) -> Tensor:
        return self._state[name].detach().reshape(-1)[first:last]

    def aliases(self) -> dict[str, str]:
        first: dict[Any, str] = {}
        found = {}
        for name, value in self._state.items():
            if value.numel():
                key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
                if first.setdefault(key, name) != name:
                    found[name] = first[key]
        return found


class SafetensorsCheckpoint(Checkpoint):
    """One or several safetensors files, with the file of each name if an index says it."""

    def __init__(
        self, label: str, files: list[Path], index: Mapping[str, str] | None = None, prefix: str = ""
    ):
        self.label, self._files = label, files
        self._where: dict[str, tuple[Path, int]] = {}
        tensors: dict[str, TensorInfo] = {}
        for path in files:
            for name, (info, start) in read_header(path).items():
                if name.startswith(prefix) and (index is None or index.get(name) == path.name):
                    self._where[name], tensors[name] = (path, start), info
        for name, file in (index or {}).items():
            if name not in tensors:
                raise InputError(
                    f"file {file!r} of {label}", f"lacks tensor {name!r} of the index", "Get the shard again."
                )
        self.tensors = tensors

    def read_range(self, name: str, first: int, last: int) -> Tensor:
        path, start = self._where[name]
        dtype = self.tensors[name].dtype
        raw = torch.empty((last - first) * dtype.itemsize, dtype=torch.uint8)
        view, filled = memoryview(raw.numpy()), 0  # type: ignore[arg-type]
        with path.open("rb", buffering=0) as file:
            file.seek(start + first * dtype.itemsize)
            while filled < len(raw):  # a single read stops at 2 GB
                count = file.readinto(view[filled:])
                if not count:
                    raise InputError(f"file {str(path)!r}", "ended early", "Was it changed meanwhile?")
                filled += count
        return raw.view(dtype)

    def files(self) -> list[Path]:
        return self._files


def open_checkpoint(
    source: Checkpoint | Mapping[str, Tensor] | str | Path, label: str | None = None
) -> Checkpoint:
    """A state dict, a .safetensors file, or a folder that holds them (sharded: with its index JSON).

    Raises `InputError` for a missing or truncated file, and for pickled weights, which are never opened.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return StateDictCheckpoint(source, label or "state dict")
    path = Path(source)
    if path.is_dir():
        found = _open_folder(path)
        found.folder = path
        return found
    if not path.exists():
        hint = " Models are not downloaded: fetch it first." if str(source).count("/") == 1 else ""
        raise InputError(f"model {str(source)!r}", "does not exist", f"Give a file or folder.{hint}")
    if path.suffix in PICKLED:
        raise pickled(path)
    return SafetensorsCheckpoint(str(path), [path])


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / OWN_DESCRIPTION).is_file() and (folder / OWN_WEIGHTS).is_file():
        return SafetensorsCheckpoint(str(folder), [folder / OWN_WEIGHTS], prefix="network.")
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        index = _read_index(indexes[0])
        shards = [folder / name for name in sorted(set(index.values()))]
        for shard in shards:
            if not shard.is_file():
                raise InputError(
                    f"shard {str(shard)!r}", f"is missing, {indexes[0].name} names it", "Get it again."
                )
        return SafetensorsCheckpoint(str(folder), shards, index)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "model.safetensors") in files:
        files = [folder / "model.safetensors"]
    if len(files) == 1:
        return SafetensorsCheckpoint(str(folder), files)
    if not files:
        for path in sorted(folder.iterdir()):
            if path.suffix in PICKLED:
                raise pickled(path)
    problem = f"holds {len(files)} .safetensors files and no index" if files else "holds no .safetensors file"
    raise InputError(
        f"folder {str(folder)!r}", problem, "Give a file, or a folder with one file or an index."
    )


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if all(Path(file).name == file for file in index.values()):
            return index
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"file {str(path)!r}", "is not an index of safetensors shards", "Get it again.")


def read_header(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Tensors of a safetensors file and where their bytes begin. Raises when the file is not whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError
            header: dict[str, Any] = json.loads(file.read(length))
    except (ValueError, UnicodeDecodeError):
        raise InputError(
            f"file {str(path)!r}", "is not a whole safetensors file", "Get it again, or convert it."
        ) from None
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"tensor {name!r} of {str(path)!r}",
                f"has type {entry['dtype']}",
                f"Known: {', '.join(DTYPES)}.",
            )
        info = TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]])
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > size:
            raise InputError(
                f"file {str(path)!r}",
                f"is truncated: tensor {name!r} ends at byte {end:,} of {size:,}",
                "Get it again.",
            )
        if end - start != info.bytes:
            raise InputError(f"file {str(path)!r}", f"has a broken entry for {name!r}", "Get it again.")
        found[name] = (info, start)
    return found


def pickled(path: Path) -> InputError:
    return InputError(
        f"file {str(path)!r}",
        "is pickled: opening it may run code, and it can't be read tensor by tensor",
        'Convert it once: safetensors.torch.save_file(torch.load("' + path.name + '", weights_only=True, '
        'map_location="cpu"), "model.safetensors").',
    )  # fmt: skip


def check_same_tensors(checkpoints: list[Checkpoint]) -> None:
    """Raise `InputError` unless all have the same names, shapes and ties; types may differ, but not in kind."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for here, there in ((first, other), (other, first)):
            for name in here.tensors:
                if name not in there.tensors:
                    raise missing(name, here, there)
        for name, info in first.tensors.items():
            check_same_form(name, info, other.tensors[name], first.label, other.label)
        ties, others = first.aliases(), other.aliases()
        for name in ties.keys() ^ others.keys():
            tied, free = (first, other) if name in ties else (other, first)
            twin = (ties | others)[name]
            raise InputError(
                f"tensors {name!r} and {twin!r}",
                f"are one tensor in {tied.label}, but two in {free.label}",
                "Tie both models' weights, or clone one of the tensors.",
            )


def check_same_form(name: str, a: TensorInfo, b: TensorInfo, label_a: str, label_b: str) -> None:
    if a.shape != b.shape:
        raise InputError(
            f"tensor {name!r}",
            f"has shape {a.shape} in {label_a}, but {b.shape} in {label_b}",
            "Merge models of one architecture.",
        )
    if a.dtype.is_floating_point != b.dtype.is_floating_point:
        raise InputError(
            f"tensor {name!r}",
            f"is {a.dtype} in {label_a}, but {b.dtype} in {label_b}",
            "Convert one of them.",
        )


def missing(name: str, here: Checkpoint, there: Checkpoint) -> InputError:
    if tied_embeddings(there) and "lm_head" in name:
        remedy = (
            "Its config.json ties the output head to the embedding: save it untied, or the other one tied."
        )
    else:
        remedy = nearest(name, there.tensors)
    return InputError(f"tensor {name!r}", f"is in {here.label}, but not in {there.label}", remedy)


def tied_embeddings(checkpoint: Checkpoint) -> bool:
    config = {} if checkpoint.folder is None else read_json(checkpoint.folder / "config.json")
    return bool(config.get("tie_word_embeddings"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"file {str(path)!r}", "is not a JSON object", "Get it again.")
    return found
