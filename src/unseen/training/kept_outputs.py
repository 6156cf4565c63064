"""Outputs of a model kept in a folder: computed once, memory-mapped, refused to another model or other inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.networks import Bank
from unseen.networks.bank import BLOCK
from unseen.networks.bank_files import DESCRIPTION, write_bank
from unseen.networks.feature_cache import content_hash
from unseen.shifts import Shift
from unseen.shifts.shift import count_rows, take
from unseen.training.data import Observer, network_outputs, weights_hash

if TYPE_CHECKING:
    from unseen.training.predictor import Predictor


def kept_outputs(
    predictor: Predictor,
    inputs: Any,
    folder: str | Path,
    observers: Sequence[Observer] = (),
    dtype: str = "float32",
) -> Bank:
    """See `Predictor.outputs`. Raw inputs are encoded and pass the network a block at a time."""
    raw, folder = inputs.inputs if isinstance(inputs, Shift) else inputs, Path(folder)
    network, count = predictor.network, count_rows(raw)
    made_by, data = weights_hash(network), _inputs_hash(predictor, raw)

    def outputs(rows: Tensor) -> Bank:
        stored = predictor.preprocessing.encode(take(raw, rows))
        bank = network_outputs(
            network, predictor.preprocessing, stored, predictor.device, observers=observers
        )
        return replace(bank, network_hash=made_by)

    if not (folder / DESCRIPTION).is_file():
        write_bank(folder, blocks(outputs, torch.arange(count)), count, dtype=dtype, data=data)
    bank = Bank.open(folder, network=made_by, data=data)
    _require_kept(folder, bank, outputs(torch.arange(min(count, 1))), dtype)
    if isinstance(inputs, Shift):
        bank.labels, bank.domain, bank.domains = inputs.labels, inputs.domain, inputs.domains
    return replace(bank, head=network.head)


def blocks(outputs: Callable[[Tensor], Bank], rows: Tensor) -> Iterator[Bank]:
    """The outputs of rows, block by block; those of no rows are one empty bank."""
    for part in rows.split(BLOCK):
        yield outputs(part)


def _inputs_hash(predictor: Predictor, raw: Any) -> str:
    """Of inputs and of what is done to them before they enter the network."""
    done = json.dumps(predictor.preprocessing.to_json(), sort_keys=True)
    return hashlib.sha256(f"{content_hash(raw)} {done}".encode()).hexdigest()[:32]


def _require_kept(folder: Path, bank: Bank, wanted: Bank, dtype: str) -> None:
    """Whether a bank holds what an input's outputs hold, in the precision that was asked for."""
    remedy = "Choose another folder, or delete this one."
    if lacking := sorted(wanted.layers.keys() - bank.layers.keys()):
        problem = f"was computed without {', '.join(map(repr, lacking[:5]))}, which a detector reads"
        raise InputError(f"bank {str(folder)!r}", problem, remedy)
    found = str(bank.features.dtype).removeprefix("torch.")
    if found != dtype:
        raise InputError(f"bank {str(folder)!r}", f"holds {found}, not {dtype}", remedy)
