"""Merging from disk to disk, tensor by tensor: memory for a few tensors, whatever the model's size.

A shard is written under a temporary name and takes its own when it is whole. Its header holds a fingerprint of the
recipe and of the inputs' sizes and times, so that a merge that was stopped goes on where it was, and one that
would mix two recipes is refused: the shards themselves are the record of what is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import unseen
from unseen.errors import InputError
from unseen.merging.checkpoints import DTYPES, OWN_WEIGHTS
from unseen.merging.companions import check_companions, companion_names, copy_companions, is_own
from unseen.merging.plan import Job, Plan, plan, warn_of_batch_statistics
from unseen.merging.recipe import Recipe

SHARD_BYTES = 5_000_000_000
INDEX, RECORD, LOCK = "model.safetensors.index.json", "merge.json", ".merge.lock"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """A file of the result."""

    name: str
    jobs: list[Job]

    @property
    def bytes(self) -> int:
        return sum(job.info.bytes for job in self.jobs)


@torch.no_grad()
def merge_to_disk(
    recipe: Recipe,
    out: str | Path,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Merge into the folder `out`, or the file `out` when it ends in .safetensors; returns it.

    A folder also gets the base's (or the first model's) configuration and tokenizer, and merge.json, which says
    how it was made. Run again after an interruption, with unchanged inputs, it computes only what is missing.

    shard_bytes  most bytes of tensors in a file; a larger tensor has a file of its own
    progress     called with (bytes done, bytes in all) after every tensor

    Raises `InputError` before anything is written when inputs do not fit together, when `out` holds something
    else, or when the disk has too little room. Warns of batch statistics that differ, as `merge` does.
    """
    out = Path(out)
    made = plan(recipe)
    check_companions(made)
    warn_of_batch_statistics(made)
    print_before = fingerprint(made, seed, shard_bytes)
    single = out.suffix == ".safetensors"
    folder = out.parent if single else out
    shards = [Shard(out.name, made.jobs)] if single else _shards(made, shard_bytes)
    done = _finished(folder, shards, print_before)
    if not single:
        _require_ours(folder, shards, made, done)
    _require_room(folder, sum(shard.bytes for shard in shards if shard.name not in done))
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / (f".{out.name}.lock" if single else LOCK)):
        _write_shards(made, shards, folder, seed, shard_bytes, print_before, progress)
        if not single:
            _finish(made, shards, folder, seed)
    return out


def fingerprint(made: Plan, seed: int, shard_bytes: int) -> str:
    """Hash of the recipe and of path, size and time of every file that is read."""
    paths = dict.fromkeys(
        path for job in made.jobs for part in _parts(job) for path in part.checkpoint.files()
    )
    files = []
    for path in paths:
        status = path.stat()
        files.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    content = (_plain(made.recipe), files, seed, shard_bytes, unseen.__version__)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parts(job: Job) -> list[Any]:
    return [*job.parts, *([job.base] if job.base else []), *job.fisher]


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))


def _shards(made: Plan, limit: int) -> list[Shard]:
    """Jobs in order, filled up to `limit` bytes; model folders of this library are one file."""
    if is_own(made.leading):
        return [Shard(OWN_WEIGHTS, made.jobs)]
    groups: list[list[Job]] = [[]]
    size = 0
    for job in made.jobs:
        if groups[-1] and size + job.info.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(job)
        size += job.info.bytes
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    return [
        Shard(f"model-{index:05}-of-{len(groups):05}.safetensors", jobs)
        for index, jobs in enumerate(groups, start=1)
    ]


def _finished(folder: Path, shards: list[Shard], expected: str) -> set[str]:
    """Shards that this merge has already written; raises when one is of another merge."""
    done = set()
    for shard in shards:
        path = folder / shard.name
        if path.exists():
            if _stored_fingerprint(path) != expected:
                raise InputError(
                    f"file {str(path)!r}",
                    "exists and is not of this merge: recipe, inputs or settings differ",
                    "Choose another place, or delete it.",
                )
            done.add(shard.name)
    return done


def _stored_fingerprint(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, AttributeError), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length < path.stat().st_size:
            return json.loads(file.read(length)).get("__metadata__", {}).get("merge")
    return None


def _require_ours(folder: Path, shards: list[Shard], made: Plan, done: set[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(
            f"{str(folder)!r}", "is a file", "Give a folder, or a name that ends in .safetensors."
        )
    later = [*companion_names(made), INDEX, RECORD] if done else []
    ours = {shard.name for shard in shards} | set(later)
    known = ours | {f".{name}.part" for name in [*ours, *companion_names(made), INDEX, RECORD]} | {LOCK}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if others:
        raise InputError(
            f"folder {str(folder)!r}",
            f"holds other files ({', '.join(map(repr, others[:5]))})",
            "Choose a new or an empty folder.",
        )


def _require_room(folder: Path, needed: int) -> None:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"disk of {str(folder)!r}",
            f"has {free / 1e9:.2f} GB free, the result needs {needed / 1e9:.2f} GB",
            "Make room, choose another place, or a smaller dtype.",
        )


@contextlib.contextmanager
def _lock(path: Path) -> Any:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{str(path.parent)!r}", "is being written by another merge", "Wait for it."
        ) from None
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


def _write_shards(
    made: Plan,
    shards: list[Shard],
    folder: Path,
    seed: int,
    shard_bytes: int,
    expected: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    total, written = sum(shard.bytes for shard in shards), 0
    for shard in shards:
        path, part = folder / shard.name, folder / f".{shard.name}.part"
        if not path.exists():
            try:
                with part.open("wb", buffering=0) as file:
                    file.write(_header(shard.jobs, expected))
                    for job in shard.jobs:
                        for stretch in job.run(seed):
                            _write(file, stretch)
                        written += job.info.bytes
                        if progress is not None:
                            progress(written, total)
            except OSError as error:
                part.unlink(missing_ok=True)
                problem = f"cannot be written ({error.strerror or error})"
                raise InputError(f"file {str(part)!r}", problem, "Choose a place with room.") from error
            if fingerprint(made, seed, shard_bytes) != expected:
                part.unlink()
                raise InputError(
                    "inputs", f"changed while {shard.name} was merged", "Start again when they rest."
                )
            os.replace(part, path)
        else:
            written += shard.bytes
        if progress is not None:
            progress(written, total)


def _header(jobs: list[Job], expected: str) -> bytes:
    """Of the safetensors format: a length, then JSON padded to 8 bytes; sizes are known before values."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "merge": expected}}
    offset = 0
    for job in jobs:
        entries[job.name] = {
            "dtype": _NAMES[job.info.dtype],
            "shape": list(job.info.shape),
            "data_offsets": [offset, offset + job.info.bytes],
        }
        offset += job.info.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: Any, tensor: torch.Tensor) -> None:
    if tensor.numel():
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        view, written = memoryview(raw.numpy()), 0  # type: ignore[arg-type]
        while written < len(view):  # a single write stops at 2 GB
            written += file.write(view[written:])


def _finish(made: Plan, shards: list[Shard], folder: Path, seed: int) -> None:
    """The index, the files beside the weights, and the record."""
    record = {"library": f"unseen {unseen.__version__}", "seed": seed, "recipe": _plain(made.recipe)}
    if len(shards) > 1:
        where = {job.name: shard.name for shard in shards for job in shard.jobs}
        index = {"metadata": {"total_size": sum(shard.bytes for shard in shards)}, "weight_map": where}
        _write_text(folder / INDEX, json.dumps(index, indent=1))
    copy_companions(made, folder, record)
    if not is_own(
        made.leading
    ):  # there the description has it, and saving over the folder allows no other file
        _write_text(folder / RECORD, json.dumps(record, indent=1))


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
