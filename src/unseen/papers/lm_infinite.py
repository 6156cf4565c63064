"""LM-Infinite: does a changed mask and a ceiling on distances keep a decoder stable beyond its window?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

BUCKETS = {"NLL 0.5-1": (0.5, 1), "NLL 1-2": (1, 2), "NLL 2-4": (2, 4), "NLL 4-8": (4, 8)}
"""Metric -> targets' positions in training windows, so that one table serves models of any window."""
INSIDE, FAR = "NLL 0.5-1", "NLL 4-8"
LENGTH = 8  # windows
STARTING_TOKENS = 10


def _excess(condition: str, over: str) -> Callable[[Measured], float]:
    """How much worse (nats a token) one condition is than another, far beyond the window."""
    return lambda measured: measured[condition, FAR] - measured[over, FAR]


def _degradation(condition: str) -> Callable[[Measured], float]:
    """How much worse (nats a token) a condition is far beyond the window than within it."""
    return lambda measured: measured[condition, FAR] - measured[condition, INSIDE]


@papers.register(
    "lm-infinite",
    summary="A Lambda-shaped mask and a distance ceiling keep a decoder stable at 8 times its window",
    paper="Han et al. 2024, arXiv 2308.16137",
)
class LMInfinite(Reproduction):
    card = Card(
        number=24,
        title="LM-Infinite: zero-shot extreme length generalization for large language models",
        authors="Han, Wang, Peng, Xiong, Chen, Ji and Wang",
        venue="NAACL 2024",
        arxiv="2308.16137",
        claim="Without any training, a Lambda-shaped attention mask and a ceiling on relative distances keep "
        "a decoder with relative positions as good beyond its training window as within it.",
        here="A byte-level decoder (3 layers, width 64, RoPE, window of 64 bytes) trained on the sources of "
        "Python's standard library, judged on 96 held-out sequences of 512 bytes a seed.",
        not_here="Models of 7 billion parameters, 32,000 to 200 million tokens, retrieval with a real LLM. "
        "A model this small builds no attention sinks, so what starting tokens are worth is not tested.",
        full="Llama-2-7B (UNSEEN_LM: any RoPE decoder of transformers) at 8 times its window on ArXiv or "
        "OpenWebText2 (UNSEEN_TEXT: a text file, or a data set with a column 'text' and a split 'test'). "
        "The paper: one A100 a model.",
    )
    conditions = (
        Condition("vanilla", "baseline", "all earlier tokens at their true distance"),
        Condition("window", "baseline", "the last window of tokens only"),
        Condition("interpolation", "baseline", "positions divided by 8, without fine-tuning"),
        Condition("ntk", "baseline", "rotary base raised for 8 times the length"),
        Condition("sink", "baseline", "StreamingLLM: starting tokens re-indexed next to the window"),
        Condition("mask-only", "control", "LM-Infinite without the ceiling"),
        Condition("ceiling-only", "control", "LM-Infinite without the mask"),
        Condition("lm-infinite", "method", "mask and ceiling; 10 starting tokens"),
        Condition("recompute", "reference", "each token from a fresh pass over the window before it"),
    )
    metrics: ClassVar = {
        **{
            name: f"nats per token at {low:g} to {high:g} training windows (bytes {low * 64:.0f} to "
            f"{high * 64:.0f} at laptop scale)"
            for name, (low, high) in BUCKETS.items()
        },
        "block error": "largest difference of block-wise and dense attention on random tensors",
        "memory slope": "of log bytes over log length, block-wise: 1 is linear, 2 quadratic",
        "time slope": "of log seconds over log length, block-wise; unreliable on a busy machine",
    }
    claims = (
        Claim(
            "vanilla degrades",
            "Plain attention is worse at 4-8 windows than within its window.",
            value=_degradation("vanilla"),
            at_least=0.5,
        ),
        Claim(
            "stays flat",
            "LM-Infinite is about as good at 4-8 windows as within its window.",
            value=_degradation("lm-infinite"),
            at_most=0.10,
        ),
        Claim(
            "close to recomputing",
            "LM-Infinite is about as good at 4-8 windows as a fresh pass for every token.",
            value=_excess("lm-infinite", over="recompute"),
            at_most=0.05,
        ),
        Claim(
            "ceiling needed",
            "Without the ceiling (mask only) it is worse.",
            value=_excess("mask-only", over="lm-infinite"),
            at_least=0.1,
            control=True,
        ),
        Claim(
            "mask needed",
            "Without the mask (ceiling only) it is worse.",
            value=_excess("ceiling-only", over="lm-infinite"),
            at_least=0.1,
            control=True,
        ),
        Claim(
            "better than interpolation",
            "Training-free position interpolation is worse.",
            value=_excess("interpolation", over="lm-infinite"),
            at_least=0.0,
        ),
        Claim(
            "no worse than a window",
            "LM-Infinite loses nothing against a plain sliding window.",
            value=_excess("lm-infinite", over="window"),
            at_most=0.05,
        ),
        Claim(
            "sink effect",
            "What the starting tokens are worth: plain window less LM-Infinite.",
            value=_excess("window", over="lm-infinite"),
        ),
        Claim(
            "exact",
            "The block-wise form equals dense attention.",
            value=lambda measured: measured["lm-infinite", "block error"],
            at_most=1e-5,
        ),
        Claim(
            "linear memory",
            "The block-wise form's memory grows linearly with length.",
            value=lambda measured: measured["lm-infinite", "memory slope"],
            at_most=1.1,
        ),
    )

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.sequences.length_evaluation import evaluate_policies, recompute_nll

        trial = laptop_trial(seed) if scale == "laptop" else full_trial(seed)
        window = trial.window
        buckets = {(round(low * window), round(high * window)): name for name, (low, high) in BUCKETS.items()}
        found = evaluate_policies(
            trial.model, trial.tokens, window, STARTING_TOKENS, list(buckets), batch=trial.batch
        )
        found["recompute"] = recompute_nll(
            trial.model,
            trial.tokens,
            window,
            list(buckets),
            stride=trial.recompute_stride,
            batch=trial.recompute_batch,
        )
        rows = [
            Row(condition, buckets[bucket], nll)
            for condition, by_bucket in found.items()
            for bucket, nll in by_bucket.items()
        ]
        return rows + _block_form(seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.4), layout="constrained")
        whole, excess = figure.subplots(1, 2)
        nll = table[table.metric.isin(BUCKETS)].set_index(["condition", "metric", "seed"]).value
        for axes, values in ((whole, nll), (excess, nll - nll["recompute"])):
            for condition in self.conditions:
                style, rows = _STYLES[condition.name], values[condition.name]
                intervals = [mean_interval(rows[bucket]) for bucket in BUCKETS]
                axes.plot([i.estimate for i in intervals], label=condition.name, **style)
                low, high = [i.low for i in intervals], [i.high for i in intervals]
                axes.fill_between(
                    range(len(BUCKETS)), low, high, color=style["color"], alpha=0.1, linewidth=0
                )
            axes.set_xticks(range(len(BUCKETS)), [name.removeprefix("NLL ") for name in BUCKETS])
            axes.set_xlabel("position in the text (training windows)")
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        whole.set(ylabel="negative log-likelihood (nats per token)", title="All conditions")
        # paired by seed: how hard the drawn text is cancels
        excess.set(ylim=(-0.1, 0.5), title="Excess over recomputing, near zero")
        figure.legend(*whole.get_legend_handles_labels(), loc="outside right center", frameon=False)
        return figure


@dataclass(frozen=True)
class Trial:
    """A trained decoder, the tokens (N, 8 * window) it is judged on, and how much to do at a time."""

    model: Any
    tokens: Any
    window: int
    batch: int
    recompute_stride: int
    recompute_batch: int


def laptop_trial(seed: int, *, window: int = 64, steps: int = 1500, sequences: int = 96) -> Trial:
    """A small byte-level decoder trained here; `seed` draws its weights and what it reads, and the tests."""
    from unseen.sequences.byte_corpus import standard_library_corpus
    from unseen.sequences.train_bytes import train_byte_model

    corpus = standard_library_corpus()
    model = train_byte_model(seed, steps, window, batch=32, width=64, layers=3, heads=4, corpus=corpus.train)
    tokens = corpus.sequences(sequences, LENGTH * window, seed=seed)
    return Trial(model, tokens, window, batch=8, recompute_stride=1, recompute_batch=256)


def full_trial(seed: int, *, sequences: int = 8) -> Trial:
    """A pretrained decoder and a text, as the environment says (`pretrained_language`)."""
    from unseen.papers.pretrained_language import pretrained_decoder, text_sequences
    from unseen.sequences.transformers_context import trained_window

    model, tokenizer = pretrained_decoder("meta-llama/Llama-2-7b-hf")
    window = trained_window(model)
    tokens = text_sequences(tokenizer, sequences, LENGTH * window, seed=seed).to(model.device)
    stride = max(1, window // 32)  # a fresh pass of a whole window for every token would take days
    return Trial(model, tokens, window, batch=1, recompute_stride=stride, recompute_batch=4)


def _block_form(seed: int) -> list[Row]:
    """What the block-wise form costs and how exact it is; no model is needed."""
    import torch

    from unseen.sequences.attention_growth import measure_growth
    from unseen.sequences.lambda_attention import lambda_attention

    q, k, v = torch.randn(3, 2, 4, 512, 16, generator=torch.Generator().manual_seed(seed))
    block, dense = (
        lambda_attention(q, k, v, n_local=64, n_global=STARTING_TOKENS, d_max=64, method=method)
        for method in ("block", "dense")
    )
    growth = measure_growth("block", seed=seed)
    return [
        Row("lm-infinite", "block error", float((block - dense).abs().max())),
        Row("lm-infinite", "memory slope", growth.memory_slope),
        Row("lm-infinite", "time slope", growth.time_slope),
    ]


# Colours after Okabe & Ito (2008); what is compared with LM-Infinite most closely differs in dashes, too.
_STYLES: dict[str, dict[str, Any]] = {
    "vanilla": {"color": "#d55e00", "marker": "o"},
    "window": {"color": "#56b4e9", "marker": "s", "linestyle": "--"},
    "interpolation": {"color": "#8c564b", "marker": "v"},
    "ntk": {"color": "#e69f00", "marker": "P"},
    "sink": {"color": "#cc79a7", "marker": "D", "linestyle": "-."},
    "mask-only": {"color": "#009e73", "marker": "^"},
    "ceiling-only": {"color": "#999999", "marker": "X"},
    "lm-infinite": {"color": "#0072b2", "marker": "o", "linewidth": 2.6},
    "recompute": {"color": "#000000", "marker": "", "linestyle": ":", "linewidth": 2},
}
