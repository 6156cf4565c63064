"""TRAM: does a sharpness-aware radius that follows the outputs' drift help a fine-tuned network elsewhere?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

TASKS = ("text", "digits")
STEPS = {"text": 80, "digits": 100}
SIGMA = {"text": 0.02, "digits": 0.1}
LENGTHENED = 1.5
RADII = (0.1, 0.5)
WEIGHTS = (0.1, 1.0)
SMOOTHING = 0.1
UNSEEN, SOURCE = "unseen", "source"

VARIANTS = ("tram", "tram-pretrained", "tram-x")
METHODS: dict[str, tuple[Spec, Spec]] = {
    "adamw": (Spec("erm"), Spec("plain")),
    "adamw-longer": (Spec("erm"), Spec("plain")),
    "sam": (Spec("erm"), Spec("sam")),
    "r3f": (Spec("r3f"), Spec("plain")),
    "trpo": (Spec("trpo"), Spec("plain")),
    "asam+trpo": (Spec("trpo"), Spec("asam")),
    **{name: (Spec("erm"), Spec(name)) for name in VARIANTS},
}
BASELINES = ("adamw", "adamw-longer", "sam", "asam", "r3f", "trpo", "pretrained-kl", "asam+trpo")


def _better(task: str, m: Measured, condition: str, than: str, metric: str = UNSEEN) -> float:
    """By how much a condition is better: in bits a character less, or in accuracy."""
    difference = m[condition, f"{task}, {metric}"] - m[than, f"{task}, {metric}"]
    return -difference if task == "text" else difference


def _mean(table: pd.DataFrame, value: Callable[[Measured], float]) -> float:
    return float(np.mean([value(measured) for measured in by_seed(table).values()]))


def _gain(table: pd.DataFrame, task: str, variant: str, other: str) -> float:
    """Mean over seeds of how much better a variant is than another condition."""
    return _mean(table, lambda measured: _better(task, measured, variant, other))


def _best_variant(table: pd.DataFrame, task: str) -> str:
    return max(VARIANTS, key=lambda v: _gain(table, task, v, "asam"))


def _over_asam(task: str) -> Callable[[pd.DataFrame], float]:
    return lambda table: max(_gain(table, task, v, "asam") for v in VARIANTS)


def _over_all(task: str) -> Callable[[pd.DataFrame], float]:
    """The least mean gain over a baseline, of TRAM with the variant for which it is largest."""

    def gain(table: pd.DataFrame, variant: str) -> float:
        return min(_gain(table, task, variant, baseline) for baseline in BASELINES)

    return lambda table: max(gain(table, variant) for variant in ("tram", "tram-x"))


def _over_matched(task: str) -> Callable[[pd.DataFrame], float]:
    def gain(table: pd.DataFrame) -> float:
        variant = _best_variant(table, task)
        return _mean(table, lambda m: _better(task, m, variant, f"{variant} matched"))

    return gain


def _source_loss(table: pd.DataFrame) -> float:
    """Relative to AdamW's bits a character on the source."""
    variant = _best_variant(table, "text")
    return _mean(table, lambda m: m[variant, "text, source"] / m["adamw", "text, source"] - 1)


@papers.register(
    "tram",
    summary="A perturbation as long as the outputs have moved keeps more of what was pretrained",
    paper="Sherborne et al. 2024, arXiv 2310.03646",
)
class TRAMReproduction(Reproduction):
    card = Card(
        number=17,
        title="TRAM: Bridging Trust Regions and Sharpness Aware Minimization",
        authors="Sherborne, Saphra, Dasigi and Peng",
        venue="ICLR 2024",
        arxiv="2310.03646",
        claim="Fine-tuning with ASAM whose radius is, at every step, the divergence of the outputs from a reference "
        "transfers better to other domains than sharpness-aware updates and trust-region penalties do.",
        here="Text (the primary task): a decoder of characters (2 layers, width 64) that read 96,000 characters of "
        "docstrings of each of numpy, scipy, scikit-learn and networkx is fine-tuned on those of torch and judged, in "
        "bits a character, on held-out text of the five others (matplotlib it never read). Digits: a perceptron that "
        "learned MNIST's ten digits in many styles is fine-tuned, with a new head, on 300 plain images of five digits "
        f"and judged in six styles beyond those. {STEPS['text']} and {STEPS['digits']} steps of AdamW (1e-3). Radius "
        "of ASAM and weight of the penalty towards the pretrained outputs are chosen by loss on validation data of "
        "the source, of 0.1, 0.5 and 0.1, 1; other settings are the paper's, but for a noise of 0.02 on this "
        "model's small embeddings. Seeds share the pretrained networks. The numbers of steps were set by what they "
        "cost. All was looked at once on a seed that is not judged, with 150 steps and four times the text in a step: "
        "TRAM gained nothing there.",
        not_here="GPT-2, XLM-R and ViT-B, their tasks, cross-lingual transfer, sharpness on the source and CKA.",
        full="A pretrained decoder of transformers ($UNSEEN_LM, default gpt2) and a folder of text files, one a domain "
        "($UNSEEN_TEXTS, such as M2D2's): fine-tuned on the first by name, or on $UNSEEN_SOURCE. 5,000 steps; one GPU.",
    )
    conditions = (
        Condition("pretrained", "reference", "no fine-tuning (text alone: the digits' head is new)"),
        Condition("adamw", "baseline", "plain updates"),
        Condition(
            "adamw-longer", "control", f"{LENGTHENED:g} times the steps: the cost of a TRAM with fewer"
        ),
        Condition("sam", "baseline", "rho 0.05"),
        Condition("asam", "baseline", "radius chosen on the source"),
        Condition("r3f", "baseline", "penalty 0.1: alike outputs under noise"),
        Condition("trpo", "baseline", "penalty 0.1: outputs close to those before the last step"),
        Condition(
            "pretrained-kl", "baseline", "outputs close to those at the start; weight chosen on the source"
        ),
        Condition("asam+trpo", "baseline", "both added up, rho 0.5"),
        Condition(
            "label-smoothing", "control", "0.1, digits alone: a new head's outputs at the start are uniform"
        ),
        Condition("tram", "method", "reference: the step before"),
        Condition("tram-pretrained", "method", "reference: the start"),
        Condition("tram-x", "method", "reference: noisy inputs"),
        *(
            Condition(f"{name} matched", "control", f"ASAM with the mean radius of {name}")
            for name in VARIANTS
        ),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "text, unseen": "bits a character, mean of five other packages: less is better",
        "text, source": "bits a character on held-out text of the package fine-tuned on",
        "digits, unseen": "accuracy, mean of six styles",
        "digits, source": "accuracy on held-out plain images",
        **{
            f"{task}, {name}": what
            for task in TASKS
            for name, what in (
                ("drift", "KL in nats from the outputs at the start, on unseen inputs"),
                ("sharpness", "rise of the loss on unseen inputs in a box of 0.001 (epsilon-sharpness, %)"),
                ("divergence", "mean d of TRAM over the steps"),
                ("radius", "mean radius over the steps: d, capped at 0.5"),
            )
        },
    }
    claims = (
        Claim(
            "fine-tuning forgets",
            "AdamW raises the bits a character on other packages.",
            value=lambda m: m["adamw", "text, unseen"] - m["pretrained", "text, unseen"],
            at_least=0.02,
            control=True,
        ),
        Claim(
            "better than every baseline, text",
            "The least gain, over a baseline, of TRAM with the previous step or noisy inputs (bits a character).",
            pooled=_over_all("text"),
            at_least=0.0,
        ),
        Claim(
            "better than ASAM, text",
            "The best TRAM against ASAM with its radius chosen (bits a character).",
            pooled=_over_asam("text"),
            at_least=0.0,
        ),
        Claim(
            "a radius that adapts, text",
            "That TRAM against ASAM with its mean radius (bits a character).",
            pooled=_over_matched("text"),
            at_least=0.0,
        ),
        Claim(
            "keeps the source, text",
            "That TRAM's bits a character on the source above AdamW's, as a share of these.",
            pooled=_source_loss,
            at_most=0.005,
        ),
        Claim(
            "flatter than SAM, text",
            "SAM's sharpness on unseen text less that of TRAM with the previous step.",
            value=lambda m: m["sam", "text, sharpness"] - m["tram", "text, sharpness"],
            at_least=0.0,
        ),
        Claim(
            "better than every baseline, digits",
            "As above, accuracy.",
            pooled=_over_all("digits"),
            at_least=0.0,
        ),
        Claim("better than ASAM, digits", "As above, accuracy.", pooled=_over_asam("digits"), at_least=0.0),
        Claim(
            "a radius that adapts, digits",
            "As above, accuracy.",
            pooled=_over_matched("digits"),
            at_least=0.0,
        ),
        Claim(
            "adding up is poor, text",
            "TRAM with the previous step against ASAM and TRPO added up (bits a character).",
            value=lambda m: _better("text", m, "tram", "asam+trpo"),
        ),
        Claim(
            "confidence alone, digits",
            "The penalty towards the outputs at the start against label smoothing, accuracy.",
            value=lambda m: _better("digits", m, "pretrained-kl", "label-smoothing"),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return list(TASKS)

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if scale == "full" and unit == "text":  # the digits have no larger scale; claims speak of them too
            return compare("text", full_task(), seed, 5000)
        return compare(unit, laptop_task(unit, seed), seed, STEPS[unit])

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.8), layout="constrained")
        values = table.set_index(["condition", "metric"]).value.sort_index()
        names = [condition.name for condition in self.conditions if condition.name in _COLOURS]
        labels = {"text": "bits a character, other packages", "digits": "accuracy in other styles"}
        present = [task for task in TASKS if f"{task}, {UNSEEN}" in set(table.metric)]
        rows = np.arange(len(names))[::-1]
        axes_of = np.atleast_1d(figure.subplots(1, len(present), sharey=True))
        for axes, task in zip(axes_of, present, strict=True):
            for name, row in zip(names, rows, strict=True):
                if (name, f"{task}, {UNSEEN}") in values.index:
                    found = mean_interval(values.loc[(name, f"{task}, {UNSEEN}")])
                    bars = [[found.estimate - found.low], [found.high - found.estimate]]
                    axes.errorbar(found.estimate, row, xerr=bars, fmt="o", color=_COLOURS[name], ms=5)
            axes.set_xlabel(f"{labels[task]}, mean and 95 % interval")
            axes.set_title(f"{task}: {'less' if task == 'text' else 'more'} is better")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        axes_of[0].set_yticks(rows, names)
        return figure


def laptop_task(name: str, seed: int) -> Any:
    """The task `name` of one seed, on a pretrained network that all seeds share."""
    from unseen.papers import fine_tuning as ft

    if name == "text":
        return ft.TextTask(*ft.pretrained_text(), source=ft.FINE_TUNING)
    return ft.DigitTask(*ft.pretrained_digits(), seed=seed)


def full_task() -> Any:
    """A pretrained decoder and the text files of $UNSEEN_TEXTS."""
    import os
    from pathlib import Path

    import torch

    from unseen.errors import InputError
    from unseen.papers.fine_tuning import TextTask
    from unseen.papers.pretrained_language import pretrained_decoder

    folder = Path(os.environ.get("UNSEEN_TEXTS", ""))
    files = sorted(folder.glob("*.txt")) if os.environ.get("UNSEEN_TEXTS") else []
    if len(files) < 2:
        raise InputError("UNSEEN_TEXTS", "names no folder with two text files", "Set it: one .txt a domain.")
    model, tokenizer = pretrained_decoder("gpt2")
    texts = {
        file.stem: torch.tensor(tokenizer(file.read_text(), verbose=False)["input_ids"], device=model.device)
        for file in files
    }
    source = os.environ.get("UNSEEN_SOURCE", files[0].stem)
    if source not in texts:
        raise InputError(f"UNSEEN_SOURCE {source!r}", "is no file", f"Choose one of {', '.join(texts)}.")
    window = 256 if min(map(len, texts.values())) > 20_000 else 32
    return TextTask(model.float(), texts, source, window=window, batch=16, learning_rate=2e-5)


def compare(name: str, task: Any, seed: int, steps: int) -> list[Row]:
    """All conditions of one task and seed: they share the network at the start and the order of batches."""
    from unseen.papers.fine_tuning import fine_tune, judge, mean_loss

    rows: list[Row] = []

    def add(condition: str, network: Any, log: Mapping[str, float] = {}) -> None:
        found = {**judge(task, network, seed), **log}
        rows.extend(Row(condition, f"{name}, {metric}", value) for metric, value in found.items())

    def tuned(condition: str, choices: list[tuple[Spec, Spec]]) -> None:
        results = [fine_tune(task, *choice, seed=seed, steps=steps) for choice in choices]
        add(condition, min(results, key=lambda result: mean_loss(result.network, task.validation)).network)

    if name == "text":
        add("pretrained", task.network(seed))
    tuned("asam", [(Spec("erm"), Spec.make("asam", rho=rho)) for rho in RADII])
    tuned("pretrained-kl", [(Spec.make("pretrained-kl", penalty_weight=w), Spec("plain")) for w in WEIGHTS])
    for condition, (objective, update) in METHODS.items():
        objective = objective.with_options(sigma=SIGMA[name]) if objective.name == "r3f" else objective
        update = update.with_options(sigma=SIGMA[name]) if update.name == "tram-x" else update
        updates = round(steps * LENGTHENED) if condition == "adamw-longer" else steps
        result = fine_tune(task, objective, update, seed=seed, steps=updates)
        add(condition, result.network, result.log)
        if condition in VARIANTS:
            same = Spec.make("asam", rho=result.log["radius"])
            add(f"{condition} matched", fine_tune(task, Spec("erm"), same, seed=seed, steps=steps).network)
    if name == "digits":
        task.smoothing = SMOOTHING
        add("label-smoothing", fine_tune(task, Spec("erm"), Spec("plain"), seed=seed, steps=steps).network)
    return rows


# Colours after Okabe & Ito (2008), by role.
_COLOURS: dict[str, str] = {
    "pretrained": "#000000",
    **dict.fromkeys(BASELINES, "#56b4e9"),
    "adamw-longer": "#999999",
    "label-smoothing": "#999999",
    **dict.fromkeys(VARIANTS, "#d55e00"),
    **dict.fromkeys((f"{name} matched" for name in VARIANTS), "#999999"),
}
