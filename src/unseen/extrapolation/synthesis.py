"""From a task and its classes to a shift of domains that nobody has collected."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.errors import InputError, UnseenWarning
from unseen.extrapolation.generators import Examples, Generator
from unseen.extrapolation.proposals import DomainProposer, DomainSpec, check_proposals, require_folder_name
from unseen.extrapolation.storage import ExampleFolder
from unseen.shifts.arrays import from_arrays
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

ROUNDS = 5
"""Times that a cell is generated anew when a filter rejects too much."""
MANY_COPIES = 0.1
"""Share of examples that may equal another of their class and domain before a warning."""

Filter = Callable[[Examples, DomainSpec, str], Tensor]
"""(n examples, domain, class name) -> (n,) bool, which are kept; such as `filter_by_score`."""


def extrapolate(
    task: str,
    classes: Sequence[str],
    proposer: DomainProposer,
    generator: Generator,
    *,
    domains: int = 16,
    per_cell: int = 20,
    keep: Filter | None = None,
    folder: str | Path | None = None,
    unseen: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Shift:
    """A shift of synthetic domains: each proposed, and each class generated in it (Li et al. 2024, section 3).

    task      what is to be recognised, in words, for the proposer
    domains   number of domains; `per_cell` examples of every class in each
    keep      filter of generated examples; what it rejects is generated anew, ROUNDS times at most
    folder    keep everything there, see `storage`, and go on from there when it was stopped; None: in memory
    unseen    names of domains that are to stay unseen: a proposal that names one is an `InputError`
    seed      of the generator
    progress  called as progress(cells done, cells)

    The shift has domains and classes in alphabetical order, whether from memory or from disk. Mix it with real
    examples by `mix`, compare it with them by `novelty_report`. Raises `InputError` for proposals that cannot be
    used and for a cell without an example; warns of cells that are not full and of repeated examples.
    """
    classes = [str(cls) for cls in classes]
    if len(set(classes)) < max(2, len(classes)):
        raise InputError("classes", f"are {classes}", "Give two or more different names.")
    if domains < 1 or per_cell < 1:
        raise InputError("domains, per_cell", f"are {domains}, {per_cell}", "Give 1 or more of each.")
    for cls in classes:
        require_folder_name(f"class {cls!r}", cls)
    request = {
        "task": task,
        "classes": classes,
        "domains": domains,
        "per_cell": per_cell,
        "seed": seed,
        "proposer": proposer.facts,
        "generator": generator.facts,
        "filter": None if keep is None else getattr(keep, "facts", getattr(keep, "__qualname__", "")),
    }
    disk = None if folder is None else ExampleFolder(folder, request)
    specs = disk.domains() if disk is not None else []
    if not specs:
        specs = proposer.propose(task, classes, domains)[:domains]
    check_proposals(specs, classes, domains, unseen)
    if disk is not None and not disk.domains():
        disk.write_domains(specs)
    made: dict[tuple[str, str], Examples] = {}
    records: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = [(d, c) for d in range(domains) for c in range(len(classes))]
    for done, (d, c) in enumerate(wanted):
        spec, cls = specs[d], classes[c]
        if disk is None or (spec.name, cls) not in disk.cells:
            examples, records[spec.name, cls] = _cell(
                generator, keep, spec, cls, per_cell, derive_seed(seed, d, c)
            )
            _require_like(examples, next(iter(made.values()), examples), spec, cls)
            if disk is None:
                made[spec.name, cls] = examples
            else:
                made = {(spec.name, cls): examples}
                disk.write(spec, cls, examples, records[spec.name, cls])
        if progress is not None:
            progress(done + 1, len(wanted))
    _warn(records, per_cell)
    shift = disk.open() if disk is not None else _in_memory(made)
    return replace(shift, name="extrapolated", description=f"{domains} synthetic domains for: {task}.")


def _cell(
    generator: Generator, keep: Filter | None, spec: DomainSpec, cls: str, count: int, seed: int
) -> tuple[Examples, dict[str, Any]]:
    """At most `count` examples of one class in one domain, and what became of all that were generated."""
    parts: list[Examples] = []
    generated = accepted = kept = 0
    rounds = 1 if keep is None else ROUNDS
    for number in range(rounds):
        examples = _checked(generator.generate(spec, cls, count, derive_seed(seed, number)), spec, cls)
        generated += len(examples)
        if keep is not None and len(examples):
            chosen = torch.as_tensor(keep(examples, spec, cls), dtype=torch.bool).nonzero().squeeze(1)
            examples = (
                examples[chosen] if isinstance(examples, Tensor) else [examples[i] for i in chosen.tolist()]
            )
        accepted += len(examples)
        examples = examples[: count - kept]
        kept += len(examples)
        parts.append(examples)
        if kept == count:
            break
    where = f"class {cls!r} in domain {spec.name!r}"
    if not kept:
        raise InputError(
            where, f"has no example left of {generated}", "Loosen the filter, or change the prompts."
        )
    found = _concatenated(parts)
    return found, {
        "prompts": list(spec.prompts.get(cls, ())),
        "seed": seed,
        "generated": generated,
        "rejected": generated - accepted,
        "kept": kept,
        "distinct": len({_key(example) for example in found}),
    }


def _warn(records: dict[tuple[str, str], dict[str, Any]], per_cell: int) -> None:
    """Say which cells are not full, and in which examples repeat."""
    short = {cell: r for cell, r in records.items() if r["kept"] < per_cell}
    copied = {cell: r for cell, r in records.items() if r["kept"] - r["distinct"] > MANY_COPIES * r["kept"]}
    for cells, key, what in (
        (short, "kept", f"fewer than {per_cell} examples"),
        (copied, "distinct", "examples that equal another and teach no more than one"),
    ):
        if cells:
            (domain, cls), record = next(iter(cells.items()))
            warnings.warn(
                f"{len(cells)} of {len(records)} cells have {what}, such as class {cls!r} in domain {domain!r}: "
                f"{record[key]} {key}.",
                UnseenWarning,
                stacklevel=3,
            )


def _checked(examples: Any, spec: DomainSpec, cls: str) -> Examples:
    """Texts as a list; images as uint8 (n, C, H, W); rows as float32 (n, ...)."""
    if isinstance(examples, (list, tuple)) and all(isinstance(text, str) for text in examples):
        return list(examples)
    try:
        tensor = torch.as_tensor(np.asarray(examples))
    except (TypeError, ValueError):
        tensor = torch.empty(0)
    if tensor.dtype == torch.uint8 and tensor.dim() in (3, 4):
        return tensor if tensor.dim() == 4 else tensor.unsqueeze(1)
    if tensor.is_floating_point() and tensor.dim() >= 2:
        return tensor.float()
    raise InputError(
        f"generator ({cls!r} in {spec.name!r})",
        f"gave {type(examples).__name__} of {tensor.dtype}, shape {tuple(tensor.shape)}",
        "Give images, uint8 (n, C, H, W); rows, float (n, features); or a list of strings.",
    )


def _require_like(examples: Examples, first: Examples, spec: DomainSpec, cls: str) -> None:
    shape, like = (tuple(e.shape[1:]) if isinstance(e, Tensor) else "texts" for e in (examples, first))
    if shape != like:
        raise InputError(
            f"generator ({cls!r} in {spec.name!r})",
            f"gave {shape} after {like}",
            "Give examples of one form.",
        )


def _key(example: Tensor | str) -> bytes:
    raw = example.encode() if isinstance(example, str) else example.numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=16).digest()


def _concatenated(parts: list[Examples]) -> Examples:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [str(text) for part in parts for text in part]


def _in_memory(made: dict[tuple[str, str], Examples]) -> Shift:
    places = [(domain, cls, row) for (domain, cls), part in made.items() for row in range(len(part))]
    return from_arrays(
        _concatenated(list(made.values())),
        np.array([cls for _, cls, _ in places]),
        np.array([domain for domain, _, _ in places]),
        ids=[f"{domain}/{cls}/{row:05d}" for domain, cls, row in places],
    )
