"""Error along a stream: what adaptation gains, and where it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from unseen.adaptation.base import Adaptation
from unseen.errors import InputError
from unseen.registry import Spec, adaptation
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.preprocessing import Preprocessing
from unseen.shifts.shift import Shift
from unseen.shifts.streams import Stream

Reset = Literal["never", "batch", "domain"] | int
"""When a method forgets: never (continual), before every batch (episodic), when the domain changes (which nobody
tells a deployed model), or after so many batches."""


def network_inputs(
    shift: Shift, rows: Tensor, preprocessing: Preprocessing, device: torch.device | str = "cpu"
) -> Inputs:
    """What a network takes for the given rows."""
    encoded = preprocessing.encode(shift.take(rows))
    return preprocessing.finish(map_tensors(lambda tensor: tensor.to(device), encoded))


def source_batches(
    shift: Shift,
    rows: Tensor,
    preprocessing: Preprocessing,
    *,
    examples: int = 2000,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[Inputs]:
    """Batches of training inputs for `Adaptation.prepare`, at most `examples`, drawn at random from `rows`."""
    generator = torch.Generator().manual_seed(seed)
    chosen = rows[torch.randperm(len(rows), generator=generator)[:examples]]
    return [network_inputs(shift, part, preprocessing, device) for part in chosen.split(batch_size)]


def run_stream(
    method: Adaptation, stream: Stream, preprocessing: Preprocessing, *, reset: Reset = "never"
) -> pd.DataFrame:
    """Let a method answer a stream, from its first state on; labels only judge.

    One row an example, in order of arrival: `batch`, `row` of the shift, `domain`, `label`, `prediction` (numbers of
    classes) and `correct`.
    """
    if reset not in ("never", "batch", "domain") and not (isinstance(reset, int) and reset >= 1):
        raise InputError("reset", f"is {reset!r}", "Use 'never', 'batch', 'domain' or a number of batches.")
    shift, device = stream.shift, next(method.network.parameters()).device
    method.reset()
    predictions, numbers, last = [], [], None
    batches = stream.batches()
    for number, rows in enumerate(batches):
        domain = int(shift.domain[rows[0]])
        changed = reset == "batch" or (reset == "domain" and domain != last)
        if number and (changed or (isinstance(reset, int) and number % reset == 0)):
            method.reset()
        last = domain
        predictions.append(method.adapt(network_inputs(shift, rows, preprocessing, device)).argmax(1).cpu())
        numbers.append(torch.full((len(rows),), number))
    predicted = torch.cat(predictions)
    return pd.DataFrame(
        {
            "batch": torch.cat(numbers).numpy(),
            "row": stream.rows.numpy(),
            "domain": [shift.domains[i] for i in stream.domain.tolist()],
            "label": stream.labels.numpy(),
            "prediction": predicted.numpy(),
            "correct": (predicted == stream.labels).numpy(),
        }
    )


def error_over_time(outcomes: pd.DataFrame, window: int = 500) -> pd.Series:
    """Share of errors among the last `window` examples (fewer at the beginning), for each example of `run_stream`."""
    if window < 1:
        raise InputError("window", f"is {window}", "Give a number of examples from 1.")
    return 1 - outcomes["correct"].astype(float).rolling(window, min_periods=1).mean()


def error_by_domain(outcomes: pd.DataFrame) -> pd.DataFrame:
    """`error` and number of `examples` of each domain, in order of first arrival."""
    groups = outcomes.groupby("domain", sort=False)["correct"]
    return pd.DataFrame({"error": 1 - groups.mean(), "examples": groups.size()})


def compare(
    network: nn.Module,
    methods: Sequence[str | Spec],
    streams: Mapping[str, Stream],
    preprocessing: Preprocessing,
    *,
    resets: Sequence[Reset] = ("never",),
    source: Iterable[Inputs] | None = None,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Every method on every stream.

    source  batches for methods that need training inputs (`source_batches`)
    One row a method, stream, reset and seed: `error`, `late_error` and `late_classes` (error and number of predicted
    classes in the last quarter: a collapsed method predicts few), and what the number depends on: `examples`,
    `batch_size`, `arrival`, fingerprints of `data` and `weights`. What a method refuses (no normalisation, batches of
    one) stands in `refused`, and its numbers are missing.
    """
    batches = None if source is None else list(source)
    weights = fingerprint(network)
    found = []
    for spec in map(Spec.of, methods):
        for name, stream in streams.items():
            facts = {
                "method": str(spec),
                "stream": name,
                "arrival": stream.arrival,
                "batch_size": stream.batch_size,
                "examples": len(stream),
                "data": stream.shift.fingerprint,
                "weights": weights,
            }
            adaptation.check(spec, ("network", "seed"))  # a misspelt option is no refusal
            for reset in resets:
                for seed in seeds:
                    outcome = _outcome(network, spec, stream, preprocessing, reset, batches, seed)
                    found.append({**facts, "reset": reset, "seed": seed, **outcome})
    return pd.DataFrame(found)


def _outcome(
    network: nn.Module,
    spec: Spec,
    stream: Stream,
    preprocessing: Preprocessing,
    reset: Reset,
    source: list[Inputs] | None,
    seed: int,
) -> dict[str, float | str]:
    try:
        method = adaptation.build(spec, network=network, seed=seed)
        if method.needs_source and source is not None:
            method.prepare(source)
        outcomes = run_stream(method, stream, preprocessing, reset=reset)
    except InputError as error:
        return {"error": np.nan, "late_error": np.nan, "late_classes": np.nan, "refused": str(error)}
    late = outcomes.iloc[-max(1, len(outcomes) // 4) :]
    return {
        "error": 1 - outcomes["correct"].mean(),
        "late_error": 1 - late["correct"].mean(),
        "late_classes": late["prediction"].nunique(),
        "refused": "",
    }


def fingerprint(network: nn.Module) -> str:
    """Hash of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(getattr(network, "network", network).state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
