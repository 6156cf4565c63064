"""What is measured of each fine-tuning: curves, sharpness, the straggler, repairs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from unseen.averaging import StateDict, snapshot
from unseen.errors import InputError
from unseen.measures.adaptive_sharpness import layerwise_sharpness, sharpness
from unseen.merging import interpolate, interpolation_curve, layerwise_curves
from unseen.merging.stragglers import sparsify_update, straggler_layers
from unseen.networks.parameter_groups import Groups, grouped
from unseen.papers import rft_sharpness as names
from unseen.papers.interpolated_digits import Recipe, StyledDigits, accuracy, fine_tuned, pretrained
from unseen.papers.rft_sharpness import ALPHA, ALPHAS, KEEPS, LOGIT_NORM, RHO, RHO_WORST, SAMPLES
from unseen.shifts.sampling import derive_seed

Examples = tuple[Tensor, Tensor]


def digit_runs(seed: int, recipes: Iterable[Recipe], **sizes: int) -> pd.DataFrame:
    """One row a fine-tuning of the network that was pretrained with this seed."""
    data = StyledDigits.draw(seed, **sizes)
    start = pretrained(data, seed)
    states = (fine_tuned(start, data, recipe) for recipe in recipes)
    return measured(start, states, data.validation, data.seen, data.unseen, seed)


def measured(
    model: nn.Module,
    tuned: Iterable[StateDict],
    validation: Examples,
    seen: Examples,
    unseen: Examples,
    seed: int,
    groups: Groups | None = None,
) -> pd.DataFrame:
    """Columns of `unseen.papers.rft_sharpness`, a row for each of `tuned`, from the state of `model` at the start.

    Everything that is decided (the straggler, how sparse its update is made) is decided on `validation`, which is
    ID and is not what `seen` and `unseen` judge by.
    """
    start = snapshot(model)
    model.eval()
    rows = []
    for index, state in enumerate(tuned):
        rows.append(_one(model, start, state, validation, seen, unseen, derive_seed(seed, 7, index), groups))
        model.load_state_dict(start)
    return pd.DataFrame(rows)


def _one(
    model: nn.Module,
    start: StateDict,
    tuned: StateDict,
    validation: Examples,
    seen: Examples,
    unseen: Examples,
    seed: int,
    groups: Groups | None,
) -> dict[str, float]:
    def on(examples: Examples) -> Any:
        return lambda state: accuracy(model, state, examples)

    blocks = list(grouped(dict(model.named_parameters()), groups))
    group_of = {n: b for b, members in grouped(start, groups).items() for n in members}
    out = interpolation_curve(start, tuned, on(unseen), alphas=ALPHAS)
    chosen = interpolation_curve(start, tuned, on(validation), alphas=ALPHAS)
    inside = interpolation_curve(start, tuned, on(seen), alphas=(0.0, 1.0))
    alone = layerwise_curves(start, tuned, on(validation), alphas=ALPHAS, groups=group_of.get, anchor="b")
    straggler = straggler_layers(alone, k=1)[0]
    found = {
        "gain": out.gain(ALPHA),
        names.DISTANCE: float(sum(float((tuned[n] - start[n]).square().sum()) for n in group_of) ** 0.5),
        names.ID_SCORE: chosen.scores[ALPHAS.index(ALPHA)],
        names.ID_BARRIER: chosen.barrier(),
        "start, OOD": out.scores[0],
        "tuned, OOD": out.scores[-1],
        "start, ID": inside.scores[0],
        "tuned, ID": inside.scores[-1],
    }
    found |= _sharpness(model, interpolate(start, tuned, ALPHA), validation, straggler, blocks, groups)
    for alpha in (0.3, 0.7):
        found[f"gain, {alpha:g}"] = out.gain(alpha)
        model.load_state_dict(interpolate(start, tuned, alpha))
        for name, include in ((names.SHARP, None), (names.STRAGGLER, lambda n: group_of.get(n) == straggler)):
            found[f"{name}, {alpha:g}"] = _average(model, validation, include)
    other = np.random.default_rng(seed).choice([block for block in blocks if block != straggler])
    layers = {names.SPARSE: [straggler], names.RANDOM: [str(other)], names.WHOLE: blocks}
    plain = out.scores[ALPHAS.index(ALPHA)]
    found |= _repairs(start, tuned, on(validation), on(unseen), plain, layers, groups)
    found[names.CLOSER] = out.scores[ALPHAS.index(0.3)] - plain
    return found


def _average(model: nn.Module, examples: Examples, include: Any = None) -> float:
    options = {"logit_norm": LOGIT_NORM, "samples": SAMPLES}
    return sharpness(model, [examples], RHO, include=include, **options).value  # type: ignore[arg-type]


def _sharpness(
    model: nn.Module,
    state: StateDict,
    examples: Examples,
    straggler: str,
    blocks: Sequence[str],
    groups: Groups | None,
) -> dict[str, float]:
    """The same noise, on the same examples, for every run."""
    model.load_state_dict(state)
    by_block = layerwise_sharpness(
        model, [examples], RHO, groups=groups, logit_norm=LOGIT_NORM, samples=SAMPLES
    )
    worst = sharpness(model, [examples], RHO_WORST, mode="worst", logit_norm=LOGIT_NORM, steps=6)
    return {
        names.SHARP: _average(model, examples),
        names.WORST: worst.value,
        names.STRAGGLER: by_block[straggler].value,
        names.FIRST: by_block[blocks[0]].value,
        names.SPREAD: float(np.mean([each.value for each in by_block.values()])),
    }


def _repairs(
    start: StateDict,
    tuned: StateDict,
    inside: Any,
    outside: Any,
    plain: float,
    layers: Mapping[str, Sequence[str]],
    groups: Groups | None,
) -> dict[str, float]:
    """OOD accuracy above plain interpolation's, for each share kept and for the one that ID accuracy chooses for the
    straggler: the sparsest of the best."""
    found: dict[str, float] = {}
    scores: dict[float, float] = {}
    for name, chosen in layers.items():
        for keep in KEEPS:
            state = interpolate(
                start, sparsify_update(start, tuned, keep, layers=chosen, groups=groups), ALPHA
            )
            found[f"{name}, {keep:g}"] = outside(state) - plain
            if name == names.SPARSE:
                scores[keep] = inside(state)
    keep = min(scores, key=lambda k: (-scores[k], k))
    return {**found, **{name: found[f"{name}, {keep:g}"] for name in layers}}


def folder_runs(seed: int) -> pd.DataFrame:
    """The paper's setting for models that you have: see the card's `full`."""
    from safetensors.torch import load_file

    from unseen.networks import build_network
    from unseen.papers.left_out_domains import image_folder
    from unseen.shifts.opening import open_shift
    from unseen.training.data import TrainingData

    folder = Path(os.environ.get("UNSEEN_MODELS", ""))
    files = sorted(path for path in folder.glob("*.safetensors") if path.stem != "start")
    if not os.environ.get("UNSEEN_MODELS") or not (folder / "start.safetensors").is_file() or len(files) < 2:
        raise InputError(
            f"folder of models {str(folder)!r}",
            "has no start.safetensors with two or more others",
            "Set UNSEEN_MODELS to a folder that has.",
        )
    shift = open_shift(image_folder())
    split = shift.split(unseen=list(shift.domains[1:]), seed=seed)
    data = TrainingData(split)
    spec = os.environ.get("UNSEEN_NETWORK", "pretrained")
    model: nn.Module = build_network(spec, data.preprocessing.shape, len(shift.classes))
    model.load_state_dict(load_file(folder / "start.safetensors"))

    def examples(rows: Tensor) -> Examples:
        batch = data.batch(rows, 0)
        assert isinstance(batch.x, Tensor)
        return batch.x, batch.y

    half = len(split.validation) // 2
    validation, seen = examples(split.validation[:half]), examples(split.validation[half:])
    return measured(
        model, (load_file(path) for path in files), validation, seen, examples(split.unseen), seed
    )
