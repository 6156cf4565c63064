"""MLKD: does a student of a fine-tuned language model tell unfamiliar texts better than its teacher and itself?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.papers.docstring_sentences import FAMILIAR, LEAKED, SECOND
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

MODELS, EMBEDDINGS, GIVEN = "language models", "sentence embeddings", "texts given"
AUROC, FAR, HELD_OUT = "AUROC", "FAR95", "log-perplexity"
PARENTS = ("fine-tuned", "from scratch")


def of(domain: str) -> str:
    """Name of the AUROC against one domain."""
    return f"{AUROC}, {domain}"


def _gain(over: str, metric: str = AUROC) -> Callable[[Measured], float]:
    return lambda m: m["MLKD", metric] - m[over, metric]


def _leak(tuned: str) -> Callable[[Measured], float]:
    return lambda m: m["from scratch", of(LEAKED)] - m[tuned, of(LEAKED)]


def _gap_left(table: pd.DataFrame) -> float:
    """Share of the gap between from scratch and fine-tuned that is there without the leak, too; means over seeds."""
    means = table[table.metric == of(LEAKED)].groupby("condition").value.mean()
    scratch = means["from scratch"]
    return float((scratch - means["without the leak"]) / (scratch - means["fine-tuned"]))


@papers.register(
    "mlkd-text",
    summary="Perplexity of a student taught at several levels tells unfamiliar texts best",
    paper="Wu et al. 2023, arXiv 2211.11300",
)
class MLKDText(Reproduction):
    card = Card(
        number=40,
        title="Multi-level knowledge distillation for out-of-distribution detection in text",
        authors="Wu, Jiang, Ding, Karlsson and others",
        venue="ACL 2023",
        arxiv="2211.11300",
        claim="A language model that was pre-trained has seen unfamiliar texts and finds them likely; one trained from "
        "scratch on the familiar ones knows these badly. A student with random weights, taught on familiar texts by "
        "the fine-tuned teacher's outputs and layers, tells unfamiliar texts by perplexity better than both.",
        here="Sentences (40 to 160 characters) of docstrings, files split anew by each seed: 2,000 of scikit-learn are "
        "familiar; 300 others are judged against 300 of torch and 300 of the standard library, matched in length. "
        "Decoders of 3 layers, width 64, with 512 byte pairs. Pre-training: 2,000 sentences of each of these and of "
        "scipy, or all but torch's (the leak taken away). Sentences are read from the installed packages (numbers are "
        "for those of constraints.txt). Thresholds and settings were fixed before any number was seen.",
        not_here="GPT-2 and what it knows, CLINC150, SST, ROSTD, 20 Newsgroups, HC3, and the human comparison.",
        full="Also a causal decoder of transformers (UNSEEN_LM, default gpt2) and texts, one a line: UNSEEN_ID_TRAIN, "
        "UNSEEN_ID_TEST, UNSEEN_OOD_TEST, with the paper's settings (5 epochs, batches of 8, 5e-5, 128 tokens). "
        "The paper: hours of one GPU a data set.",
    )
    conditions = (
        Condition("pre-trained", "reference", "not tuned"),
        Condition("fine-tuned", "baseline", "pre-trained, then tuned on familiar sentences: the teacher"),
        Condition("without the leak", "control", "fine-tuned, torch left out of pre-training"),
        Condition("from scratch", "baseline", "as many epochs as the student"),
        Condition("label smoothing", "control", "from scratch, labels smoothed by 0.1: a cheap regulariser"),
        Condition("outputs only", "baseline", "a student of the teacher's outputs"),
        Condition("MLKD", "method", "outputs, and the 2 nearest teacher layers for layers 2 and 3"),
        Condition("n-grams", "baseline", "Kneser-Ney of 6 characters"),
        Condition("TF-IDF, one class", "baseline", "words and a one-class support vector machine"),
        Condition("MiniLM, kNN", "reference", "a pretrained sentence encoder, 1,000 training sentences"),
        Condition("MiniLM, Mahalanobis", "reference", "the same, one Gaussian"),
        Condition("length", "control", "number of characters"),
    )
    metrics: ClassVar = {
        AUROC: "chance that an unfamiliar sentence scores above a familiar one, mean of both domains",
        of(LEAKED): "against torch, which pre-training has read",
        of(SECOND): "against the standard library, which pre-training has read",
        FAR: "share of unfamiliar sentences accepted where 95 % of the familiar are, mean of both domains",
        HELD_OUT: "nats a token on held-out familiar sentences",
        of(GIVEN): "on a user's texts (full scale only)",
        f"{FAR}, {GIVEN}": "on a user's texts (full scale only)",
    }
    claims = (
        Claim(
            "length says nothing",
            "AUROC of the number of characters less one half, in size.",
            value=lambda m: abs(m["length", AUROC] - 0.5),
            at_most=0.02,
            control=True,
        ),
        Claim(
            "the teacher knows the familiar",
            "Log-perplexity on held-out familiar sentences, from scratch less fine-tuned.",
            value=lambda m: m["from scratch", HELD_OUT] - m["fine-tuned", HELD_OUT],
            at_least=0.05,
            control=True,
        ),
        Claim(
            "leak",
            "AUROC against torch, from scratch less fine-tuned.",
            value=_leak("fine-tuned"),
            at_least=0.0,
        ),
        Claim(
            "the leak is the cause",
            "AUROC against torch, without the leak less fine-tuned.",
            value=lambda m: m["without the leak", of(LEAKED)] - m["fine-tuned", of(LEAKED)],
            at_least=0.0,
        ),
        Claim(
            "better than both parents",
            "AUROC of MLKD less the better one of fine-tuned and from scratch.",
            value=lambda m: m["MLKD", AUROC] - max(m[name, AUROC] for name in PARENTS),
            at_least=0.005,
        ),
        Claim("layers help", "AUROC of MLKD less outputs only.", value=_gain("outputs only"), at_least=0.0),
        Claim(
            "more than a regulariser",
            "AUROC of MLKD less label smoothing.",
            value=_gain("label smoothing"),
            at_least=0.0,
        ),
        Claim(
            "what the leak leaves",
            "Share of the gap between from scratch and fine-tuned that stays without the leak, torch.",
            pooled=_gap_left,
        ),
        Claim("against n-grams", "AUROC of MLKD less Kneser-Ney of characters.", value=_gain("n-grams")),
    )

    seeds = (1, 2, 3)

    def units(self, scale: Scale) -> list[str]:
        return [MODELS, EMBEDDINGS] if scale == "laptop" else [MODELS, EMBEDDINGS, GIVEN]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.papers import mlkd_runs

        if unit == GIVEN:
            runs = mlkd_runs.measure_given(seed)
            return rows_of(runs.scores, {}, "ID", {of(GIVEN): "OOD"}, f"{FAR}, {GIVEN}")
        if unit == EMBEDDINGS:
            runs = mlkd_runs.Runs(mlkd_runs.embedding_scores(seed), {})
        else:
            runs = mlkd_runs.measure_texts(seed)
        by_domain = {of(domain): domain for domain in (LEAKED, SECOND)}
        return rows_of(runs.scores, runs.held_out, FAMILIAR, by_domain, FAR)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        values = table.set_index(["condition", "metric"]).value
        names = [c.name for c in self.conditions if (c.name, AUROC) in values.index][::-1]
        for domain, colour, offset in ((LEAKED, "#0072b2", 0.13), (SECOND, "#d55e00", -0.13)):
            found = [mean_interval(values[name, of(domain)]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            places = np.arange(len(names)) + offset
            left.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", color=colour, label=domain)
        left.set_yticks(range(len(names)), names)
        left.set(xlabel="AUROC, mean and 95 % interval", xlim=(None, 1))
        handles = left.get_legend_handles_labels()
        figure.legend(*handles, title="unfamiliar", loc="outside upper left", ncols=2, frameon=False)
        for name in names[::-1]:
            if (name, HELD_OUT) in values.index:
                points = values[name, HELD_OUT], values[name, AUROC]
                right.plot(*points, "o", label=name)
        right.set(xlabel="nats a token, held-out familiar sentences", ylabel="AUROC, a point a seed")
        right.legend(frameon=False, fontsize="small")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def rows_of(
    scores: Any, held_out: dict[str, float], familiar: str, domains: dict[str, str], accepted: str
) -> list[Row]:
    """Rows from scores by condition and domain (higher: less familiar), and their means over domains."""
    from unseen.detection.metrics import ood_metrics

    rows = [Row(name, HELD_OUT, value) for name, value in held_out.items()]
    for name, by_domain in scores.items():
        found = {
            metric: ood_metrics(-by_domain[familiar], -by_domain[domain])
            for metric, domain in domains.items()
        }
        rows += [Row(name, metric, each.auroc) for metric, each in found.items()]
        rows.append(Row(name, accepted, float(np.mean([each.fpr95 for each in found.values()]))))
        if len(found) > 1:
            rows.append(Row(name, AUROC, float(np.mean([each.auroc for each in found.values()]))))
    return rows
