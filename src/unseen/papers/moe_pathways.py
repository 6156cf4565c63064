"""Grokking in a mixture of experts: do the pathways of memorized samples tell when the model generalizes?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.errors import InputError, MissingExtra
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers

GROKKING, NO_DECAY, CHECKPOINTS = "weight decay 1", "weight decay 0", "checkpoints"
RHO, GIVEN_STEP, LATE = "rho", "rho given step", "rho late"
MONITORS = {
    "pathway distance": "distance",
    "normalized distance": "normalized_distance",
    "distance, same answer": "same_answer",
    "smoothness": "smoothness",
    "router entropy": "router_entropy",
    "training loss": "loss",
    "loss, moving average": "loss_average",
    "weight norm": "weight_norm",
    "step": "step",
}
"""Condition -> column of the table of checkpoints."""
STEPS = tuple(range(0, 2001, 80))
TRACES = {"distance": "distance", "test accuracy": "test_accuracy"}


def _stronger(than: str) -> Callable[[Measured], float]:
    """How much more strongly distance follows accuracy, in the claimed direction, than another monitor in any."""
    return lambda m: -m["pathway distance", RHO] - abs(m[than, RHO])


@papers.register(
    "moe-pathways",
    summary="Do the routing pathways of memorized samples tell when a mixture of experts generalizes?",
    paper="Li et al. 2025, arXiv 2506.21551",
)
class MoEPathways(Reproduction):
    card = Card(
        number=43,
        title="Grokking in LLM pretraining? Monitor memorization-to-generalization without test",
        authors="Li, Fan and Zhou",
        venue="ICLR 2026",
        arxiv="2506.21551",
        claim="After a mixture of experts has memorized its training samples, the edit distance between their routing "
        "pathways falls and the smoothness of routing rises as it begins to generalize, while the loss is flat.",
        here="Addition modulo 23 by a decoder of 3 layers (width 48, 6 experts of 32, top-2, load-balance 0.01), "
        "AdamW 1.5e-3 with weight decay 1, full batch, 2,000 steps, a checkpoint every 80. 80 % of the unordered "
        "pairs are for training (at 70 % most runs generalize after more steps than are affordable here), both "
        "orders of a pair on the same side. Control: weight decay 0, which memorizes only. A sample is memorized "
        "while its loss is below 0.5 nats (not 0.05) for the rest of training; checkpoints count from that at which "
        "90 % of those memorized in the end are. Share, length, this bound and initialization were chosen among some "
        "ten set-ups on seeds that are not judged, for when they generalize; no pathway was looked at. Ten or "
        "twenty-five checkpoints of one run all drift: so the step itself, weight norm, loss and router entropy are "
        "monitors, too.",
        not_here="One-pass pretraining of a model of 7 billion parameters, benchmark suites after instruction tuning "
        "of each checkpoint, and the pairing of training and benchmark domains. Several tasks in one model and a "
        "much longer tail were not tried.",
        full="Checkpoints of OLMoE-1B-7B (UNSEEN_LM, default allenai/OLMoE-1B-7B-0924: a MoE of transformers), "
        "texts that it was trained on (UNSEEN_TEXT: a text file, or a data set with a column 'text' and a split "
        "'test'), and UNSEEN_ACCURACY: a JSON file {revision, or folder within UNSEEN_LM: benchmark accuracy} in "
        "order of training. One GPU.",
    )
    conditions = (
        Condition("pathway distance", "method", "edits between pathways, mean over 1,000 pairs of samples"),
        Condition("normalized distance", "method", "the same, as a share of the longer pathway"),
        Condition("distance, same answer", "method", "the same between samples of one answer"),
        Condition("smoothness", "method", "cosine between routing embeddings of neighbouring layers"),
        Condition("router entropy", "baseline", "of the routing weights: no pathway is compared"),
        Condition("training loss", "baseline", "mean over the memorized samples"),
        Condition("loss, moving average", "baseline", "over five checkpoints"),
        Condition("weight norm", "baseline", "known to fall as models grok"),
        Condition("step", "baseline", "nothing but time"),
        Condition(GROKKING, "reference", "the runs whose test accuracy the monitors should tell"),
        Condition(NO_DECAY, "control", "memorizes and does not generalize"),
        Condition(CHECKPOINTS, "reference", "saved checkpoints of a language model (full scale only)"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        RHO: "Spearman's correlation with test accuracy over checkpoints after memorization (0 if one is constant)",
        GIVEN_STEP: "the same with the step held fixed",
        LATE: "the same from the first checkpoint with a test accuracy above 0.1",
        "test accuracy": "of the last three checkpoints",
        "train accuracy": "of the last three checkpoints",
        "fall": "of the distance, from the first three checkpoints that count to the last three, as a share",
        "fall from peak": "of the distance, from its highest to the last three checkpoints, as a share",
        "lowest C": "the paper's C, least of the checkpoints' means: it has no meaning outside [0, 2]",
        "highest C": "the paper's C, greatest of the checkpoints' means",
        "rho of distance": "Spearman's correlation of distance with benchmark accuracy (full scale only)",
        "rho of smoothness": "Spearman's correlation of smoothness with benchmark accuracy (full scale only)",
        "rho of loss": "Spearman's correlation of training loss with benchmark accuracy (full scale only)",
        **{f"{name} at {step}": f"{name} after {step} steps" for name in TRACES for step in STEPS},
    }
    claims = (
        Claim(
            "memorizes",
            "Both kinds of runs know their training pairs: the lesser accuracy.",
            value=lambda m: min(m[run, "train accuracy"] for run in (GROKKING, NO_DECAY)),
            at_least=0.98,
            control=True,
        ),
        Claim(
            "generalizes",
            "With weight decay, test accuracy at the end.",
            value=lambda m: m[GROKKING, "test accuracy"],
            at_least=0.5,
            control=True,
        ),
        Claim(
            "does not without decay",
            "Without weight decay, test accuracy at the end.",
            value=lambda m: m[NO_DECAY, "test accuracy"],
            at_most=0.2,
            control=True,
        ),
        Claim(
            "distance falls as accuracy rises",
            "Spearman's correlation of pathway distance and test accuracy after memorization.",
            value=lambda m: m["pathway distance", RHO],
            at_most=-0.6,
        ),
        Claim(
            "more than time",
            "The same with the step held fixed.",
            value=lambda m: m["pathway distance", GIVEN_STEP],
            at_most=-0.3,
        ),
        Claim(
            "better than the step",
            "Strength of that correlation above that of the step index.",
            value=_stronger("step"),
            at_least=0.0,
        ),
        Claim(
            "better than the training loss",
            "Strength above that of the training loss.",
            value=_stronger("training loss"),
            at_least=0.0,
        ),
        Claim(
            "better than the weight norm",
            "Strength above that of the weight norm.",
            value=_stronger("weight norm"),
            at_least=0.0,
        ),
        Claim(
            "better than router entropy",
            "Strength above that of the router's entropy.",
            value=_stronger("router entropy"),
            at_least=0.0,
        ),
        Claim(
            "no such fall in the control",
            "Fall of the distance where the model generalizes, less that where it does not.",
            value=lambda m: m[GROKKING, "fall"] - m[NO_DECAY, "fall"],
            at_least=0.05,
        ),
        Claim(
            "smoothness rises",
            "Spearman's correlation of smoothness and test accuracy after memorization.",
            value=lambda m: m["smoothness", RHO],
            at_least=0.6,
        ),
        Claim(
            "same answer",
            "Correlation of the distance between samples of one answer.",
            value=lambda m: m["distance, same answer", RHO],
        ),
        Claim(
            "once accuracy rises",
            "Correlation of the distance from the first test accuracy above 0.1, as the paper measures.",
            value=lambda m: m["pathway distance", LATE],
        ),
        Claim(
            "time alone",
            "Correlation of the step index and test accuracy: what any drift reaches.",
            value=lambda m: m["step", RHO],
        ),
    )

    def units(self, scale: Scale) -> list[str]:
        return [GROKKING, NO_DECAY] + ([CHECKPOINTS] if scale == "full" else [])

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit == CHECKPOINTS:
            return checkpoint_rows(seed)
        from unseen.papers.modular_experts import Protocol, grow

        table = grow(seed, 1.0 if unit == GROKKING else 0.0, Protocol())
        return run_rows(table, unit) + (monitor_rows(table) if unit == GROKKING else [])

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.2), layout="constrained")
        traces, correlations = figure.subplots(1, 2, width_ratios=(1.2, 1))
        accuracy = traces.twinx()
        for run, colour in _COLOURS.items():
            for axes, name, style in ((traces, "distance", "-"), (accuracy, "test accuracy", ":")):
                for _, rows in table[table.condition == run].groupby("seed"):
                    values = rows.set_index("metric").value
                    steps = [step for step in STEPS if f"{name} at {step}" in values.index]
                    axes.plot(steps, [values[f"{name} at {step}"] for step in steps], style, color=colour)
            traces.plot([], [], color=colour, label=run)
        traces.plot([], [], ":", color="#777777", label="test accuracy (right)")
        traces.set(xlabel="step", ylabel="pathway distance (edits)")
        accuracy.set(ylabel="test accuracy", ylim=(0, 1.02))
        traces.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        for row, name in enumerate(MONITORS):
            for metric, offset, marker in ((RHO, 0.12, "o"), (GIVEN_STEP, -0.12, "x")):
                found = table[(table.condition == name) & (table.metric == metric)].value
                correlations.plot(found, np.full(len(found), row + offset), marker, color="#0072b2", ms=5)
        correlations.plot([], [], "o", color="#0072b2", label="over checkpoints")
        correlations.plot([], [], "x", color="#0072b2", label="step held fixed")
        correlations.axvline(0, color="#999999", linewidth=1)
        correlations.set(xlabel="rank correlation with test accuracy, a mark a seed", xlim=(-1.05, 1.05))
        correlations.set_yticks(range(len(MONITORS)), MONITORS)
        correlations.invert_yaxis()
        correlations.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        for axes in (traces, accuracy, correlations):
            axes.spines["top"].set_visible(False)
        return figure


def run_rows(table: pd.DataFrame, run: str) -> list[Row]:
    """What one run is: how it ends, how far the distance falls, and its traces."""
    counted = _after_memorization(table)
    begin, end, peak = (
        counted.distance[:3].mean(),
        counted.distance[-3:].mean(),
        counted.distance.max(),
    )
    values = {
        "test accuracy": table.test_accuracy[-3:].mean(),
        "train accuracy": table.train_accuracy[-3:].mean(),
        "fall": 1 - end / begin,
        "fall from peak": 1 - end / peak,
        "lowest C": counted.inconsistency.min(),
        "highest C": counted.inconsistency.max(),
    }
    traces = {
        f"{name} at {step}": table.loc[table.step == step, column].item()
        for name, column in TRACES.items()
        for step in STEPS
        if step in set(table.step)
    }
    return [Row(run, name, float(value)) for name, value in {**values, **traces}.items()]


def monitor_rows(table: pd.DataFrame) -> list[Row]:
    """Correlations of every monitor with test accuracy over the checkpoints after memorization."""
    from unseen.sequences.generalization_monitor import rank_correlation_given
    from unseen.studies.statistics import rank_correlation

    table = table.assign(loss_average=table.loss.rolling(5, min_periods=1).mean())
    counted = _after_memorization(table)
    late = counted[counted.step >= counted.step[counted.test_accuracy > 0.1].min()]
    rows = []
    for condition, column in MONITORS.items():
        values = {RHO: rank_correlation(counted[column], counted.test_accuracy, resamples=1).estimate}
        if len(late) > 2:
            values[LATE] = rank_correlation(late[column], late.test_accuracy, resamples=1).estimate
        if column != "step":
            values[GIVEN_STEP] = rank_correlation_given(counted[column], counted.test_accuracy, counted.step)
        rows += [Row(condition, name, 0.0 if math.isnan(value) else value) for name, value in values.items()]
        rows += [] if LATE in values else [Row(condition, LATE, 0.0)]  # accuracy never rose: nothing to tell
    return rows


def checkpoint_rows(seed: int, samples: int = 1000, length: int = 256) -> list[Row]:
    """Correlations over saved checkpoints of a language model, as the environment says (`Card.full`)."""
    from unseen.papers.pretrained_language import text_sequences
    from unseen.sequences.generalization_monitor import GeneralizationMonitor

    path = os.environ.get("UNSEEN_ACCURACY")
    if not path or not Path(path).is_file():
        raise InputError(
            "UNSEEN_ACCURACY", f"is {path!r}", "Name a JSON file {revision: benchmark accuracy}."
        )
    accuracy = json.loads(Path(path).read_text())
    if len(accuracy) < 3:
        raise InputError("UNSEEN_ACCURACY", f"names {len(accuracy)} checkpoints", "Give three at least.")
    name = os.environ.get("UNSEEN_LM", "allenai/OLMoE-1B-7B-0924")
    monitor: Any = None
    for number, revision in enumerate(accuracy):
        model, tokenizer = _checkpoint(name, revision)
        if monitor is None:
            tokens = text_sequences(tokenizer, samples, length, seed=seed)
            monitor = GeneralizationMonitor(tokens, batch=8, seed=seed)
        monitor.measure(number, model)
    found = monitor.correlations(dict(enumerate(accuracy.values()))).set_index("monitor").spearman
    return [
        Row(CHECKPOINTS, f"rho of {name}", float(found[name])) for name in ("distance", "smoothness", "loss")
    ]


def _checkpoint(name: str, revision: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a revision on the Hugging Face hub, or of a folder of this name within `name`."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra("a pretrained language model", "language") from error
    import torch

    saved = Path(name, revision)
    source: tuple[Any, dict[str, str]] = (saved, {}) if saved.is_dir() else (name, {"revision": revision})
    model = AutoModelForCausalLM.from_pretrained(source[0], dtype="auto", **source[1]).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), AutoTokenizer.from_pretrained(source[0], **source[1])


def _after_memorization(table: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints from the first at which 90 % of the samples that are memorized in the end are."""
    return table[table.step >= table.step[table.memorized >= 0.9 * table.memorized.max()].min()]


# Colours after Okabe & Ito (2008).
_COLOURS = {GROKKING: "#0072b2", NO_DECAY: "#d55e00"}
