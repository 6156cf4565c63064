"""Follow the routing of training samples over training, and ask whether it tells anything about accuracy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from numpy.typing import NDArray
from scipy.stats import BootstrapMethod, pearsonr, spearmanr
from torch import Tensor

from unseen.errors import InputError, UnseenWarning
from unseen.networks.modes import evaluating
from unseen.sequences.memorization import MemorizationTracker
from unseen.sequences.pathways import pair_edits, pathways, sample_pairs
from unseen.sequences.perplexity import next_token_losses
from unseen.sequences.routing import RoutingRecorder, pathway_smoothness, routing_entropy
from unseen.studies.statistics import Interval, rank_correlation

ALL = "all"
"""Name of all domains together. Pairs are within a domain there, too."""
ROUTING_MONITORS = ("distance", "normalized_distance", "smoothness", "inconsistency", "router_entropy")
COLUMNS = (*ROUTING_MONITORS, "meaningful", "loss")
TRIVIAL_MONITORS = ("loss", "weight_norm", "step")
"""What any signal has to beat: nearly everything drifts with time and so correlates with what rises with time."""

SampleLosses = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, tokens (B, T), padding_mask (B, T)) -> loss of each sample (B,), in one pass through the model."""


class Reading(NamedTuple):
    """What one checkpoint says of each watched pair (P,) and each watched sample (N,)."""

    distance: NDArray[np.float64]
    normalized_distance: NDArray[np.float64]
    smoothness: NDArray[np.float64]
    inconsistency: NDArray[np.float64]
    meaningful: NDArray[np.float64]
    router_entropy: NDArray[np.float64]
    loss: NDArray[np.float64]
    weight_norm: float


class GeneralizationMonitor:
    """Pathway distance and smoothness of N training samples, by domain, while a MoE model trains.

        monitor = GeneralizationMonitor(tokens, domains=names, memorization=MemorizationTracker(0.05, 0.05))
        for step in range(steps):
            ...
            monitor(step, model)                       # live: measures every `every` steps
        for step, model in checkpoints:
            monitor.measure(step, model)               # or on saved checkpoints
        monitor.table(), monitor.correlations({step: accuracy})

    tokens          (N, T) int64, training samples to watch
    padding_mask    (N, T), nonzero for real tokens; None: all are
    domains         N names; samples are paired within a domain only
    memorization    decides which samples count at which step: those memorized by then. None: all, always
    losses          see `SampleLosses`; None: mean negative log-likelihood of the next tokens
    every           steps between live measurements
    pairs           how many pairs of samples are compared, the same at every step
    threshold, router_modules, top_k  see `pathways` and `RoutingRecorder`
    batch           samples that go through the model at once
    seed            of the pairs

    The claim that distance falls and smoothness rises as a model generalizes is arXiv 2506.21551's; it did not hold
    in this toolkit's own small experiment (`unseen reproduce moe-pathways`). Compare with the trivial monitors.
    """

    def __init__(
        self,
        tokens: Tensor,
        *,
        padding_mask: Tensor | None = None,
        domains: Sequence[str] | None = None,
        memorization: MemorizationTracker | None = None,
        losses: SampleLosses | None = None,
        every: int = 100,
        pairs: int = 1000,
        threshold: float = 0.7,
        router_modules: Sequence[str] | None = None,
        top_k: int | None = None,
        batch: int = 256,
        seed: int = 0,
    ):
        if tokens.dim() != 2 or len(tokens) < 2:
            raise InputError(
                "tokens", f"have shape {tuple(tokens.shape)}", "Give (N, T), two samples at least."
            )
        if every < 1 or pairs < 1 or batch < 1:
            raise InputError("every, pairs, batch", f"are {every}, {pairs}, {batch}", "Give numbers from 1.")
        if not 0 < threshold <= 1:
            raise InputError("threshold", f"is {threshold}", "Give a number above 0, at most 1.")
        if domains is not None and len(domains) != len(tokens):
            raise InputError(
                "domains", f"are {len(domains)}", f"Give one name for each of {len(tokens)} samples."
            )
        self.tokens = tokens
        self.padding_mask = torch.ones_like(tokens) if padding_mask is None else padding_mask
        if self.padding_mask.shape != tokens.shape:
            raise InputError(
                "padding_mask", f"has shape {tuple(self.padding_mask.shape)}", f"Give {tuple(tokens.shape)}."
            )
        self.domains = np.array([ALL] * len(tokens) if domains is None else list(domains))
        self.pairs = sample_pairs(len(tokens), pairs, seed, None if domains is None else self.domains)
        self.memorization, self.every, self.threshold, self.batch = memorization, every, threshold, batch
        self._losses = losses or mean_token_losses
        self._router_modules, self._top_k = router_modules, top_k
        self.readings: dict[int, Reading] = {}

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure when `step` is a multiple of `every`: a callback for each training step."""
        if step % self.every == 0:
            self.measure(step, model)

    @torch.no_grad()
    def measure(self, step: int, model: nn.Module) -> Reading:
        """One pass of the watched samples through the model, which is left as it was; steps must grow."""
        if self.readings and step <= max(self.readings):
            raise InputError("step", f"is {step} after {max(self.readings)}", "Give checkpoints in order.")
        recorder = RoutingRecorder(model, self._router_modules, self._top_k)
        device = next(model.parameters()).device
        routing, losses = [], []
        with evaluating(model):
            for tokens, mask in zip(
                self.tokens.split(self.batch), self.padding_mask.split(self.batch), strict=True
            ):
                tokens, mask = tokens.to(device), mask.to(device)
                with recorder.watch(mask) as recording:
                    losses.append(self._losses(model, tokens, mask).float().cpu())
                routing.append(recording.routing.cpu())
        if self.memorization is not None:
            self.memorization.observe(step, torch.cat(losses))
        found = torch.cat(routing)
        paths = pathways(found, self.threshold)
        edits = pair_edits(paths, self.pairs)
        with warnings.catch_warnings():  # a line a step would be too many: the table has a column for it
            warnings.simplefilter("ignore", UnseenWarning)
            smoothness = pathway_smoothness(found, recorder.router_weights.float().cpu())
        self.readings[step] = Reading(
            edits.distance,
            edits.distance / edits.longer,
            smoothness.cosine.double().numpy(),
            smoothness.inconsistency.double().numpy(),
            smoothness.meaningful.double().numpy(),
            routing_entropy(found).double().numpy(),
            torch.cat(losses).double().numpy(),
            math.sqrt(sum(float(p.detach().float().square().sum()) for p in model.parameters())),
        )
        return self.readings[step]

    def table(self) -> pd.DataFrame:
        """A row a step and domain: means over the samples that count, `samples`, and the trivial monitors.

        Columns: step, domain, samples, distance and normalized_distance (of their pairs), smoothness (higher is
        smoother), inconsistency (the paper's C, lower is smoother), router_entropy, meaningful (share of samples
        whose C says anything), loss, weight_norm. Rows where no pair counts are left out. Before the last step, who
        is memorized is provisional.
        """
        if not self.readings:
            raise InputError("monitor", "has measured nothing", "Call it while the model trains.")
        since = np.zeros(len(self.tokens)) if self.memorization is None else self.memorization.since().numpy()
        first, second = self.pairs.numpy().T
        rows = []
        for step, reading in self.readings.items():
            for domain in dict.fromkeys([ALL, *self.domains]):
                counts = (since >= 0) & (since <= step) & ((self.domains == domain) | (domain == ALL))
                both = counts[first] & counts[second]
                if not both.any():
                    continue
                row: dict[str, Any] = {"step": step, "domain": domain, "samples": int(counts.sum())}
                for name in COLUMNS:
                    row[name] = getattr(reading, name)[both if name.endswith("distance") else counts].mean()
                rows.append(row | {"weight_norm": reading.weight_norm})
        return pd.DataFrame(rows, columns=["step", "domain", "samples", *COLUMNS, "weight_norm"])

    def correlations(
        self, accuracy: Mapping[int, float], *, domain: str = ALL, after: int = 0, resamples: int = 2000
    ) -> pd.DataFrame:
        """How each monitor follows `accuracy` {step: value} over the checkpoints: `monitor_correlations`.

        domain  whose rows of `table` are used
        after   first step that counts, such as that at which accuracy begins to rise
        """
        table = self.table()
        table = table[(table.domain == domain) & (table.step >= after)]
        if domain not in {ALL, *self.domains}:
            raise InputError(
                "domain", f"{domain!r} is not known", f"There is: {', '.join(sorted(set(self.domains)))}."
            )
        table = table[table.step.isin(list(accuracy))]
        if len(table) < 3:
            raise InputError(
                "accuracy", f"shares {len(table)} steps with the monitor", "Give three checkpoints at least."
            )
        return monitor_correlations(table, [accuracy[step] for step in table.step], resamples=resamples)


def monitor_correlations(table: pd.DataFrame, accuracy: Any, *, resamples: int = 2000) -> pd.DataFrame:
    """Correlations of every monitor in `table` with `accuracy` (checkpoints,), a row a monitor.

    Columns: monitor, pearson, pearson_low, pearson_high, spearman, spearman_low, spearman_high (95 % bootstrap
    intervals over checkpoints, which take them for independent: checkpoints of one run are not, so they are too
    narrow), and given_step: Spearman's with the step held fixed. Undefined ones are NaN.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    rows = []
    for name in (name for name in (*ROUTING_MONITORS, *TRIVIAL_MONITORS) if name in table):
        values = table[name].to_numpy(dtype=float)
        linear, ranked = _pearson(values, accuracy, resamples), _spearman(values, accuracy, resamples)
        rows.append({
            "monitor": name,
            "pearson": linear.estimate, "pearson_low": linear.low, "pearson_high": linear.high,
            "spearman": ranked.estimate, "spearman_low": ranked.low, "spearman_high": ranked.high,
            "given_step": rank_correlation_given(values, accuracy, table["step"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def rank_correlation_given(x: Any, y: Any, given: Any) -> float:
    """Partial Spearman correlation of x and y (K,) with `given` (K,) held fixed; NaN where `given` fixes one."""
    x, y, given = (np.asarray(values, dtype=float) for values in (x, y, given))
    if not np.isfinite([x, y]).all() or min(np.ptp(x), np.ptp(y), np.ptp(given)) == 0:
        return math.nan
    between, of_x, of_y = (float(spearmanr(*pair).statistic) for pair in ((x, y), (x, given), (y, given)))
    rest = (1 - of_x**2) * (1 - of_y**2)
    return (between - of_x * of_y) / math.sqrt(rest) if rest > 1e-12 else math.nan


def mean_token_losses(model: nn.Module, tokens: Tensor, padding_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats) of the real tokens after the first, (B,): a `DecoderLM` or transformers."""
    padded = {} if bool(padding_mask.all()) else {_mask_name(model): padding_mask}
    output = model(tokens, **padded)
    logits = output if isinstance(output, Tensor) else output.logits
    scored = padding_mask.bool().clone()
    scored[:, 1:] &= padding_mask[:, :-1].bool()  # the first real token follows none
    counts = scored[:, 1:].sum(1)
    if not bool(counts.all()):
        raise InputError("tokens", "hold a sample with no token to predict", "Give two real tokens or more.")
    losses = next_token_losses(logits.float(), tokens, scored).split(counts.tolist())
    return torch.stack([each.mean() for each in losses])


def _mask_name(model: nn.Module) -> str:
    return "attention_mask" if hasattr(model, "config") else "padding_mask"


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64], resamples: int) -> Interval:
    if not np.isfinite(x).all():
        return Interval(math.nan, math.nan, math.nan)
    return rank_correlation(x, y, resamples=resamples)


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64], resamples: int) -> Interval:
    """With a percentile bootstrap interval over pairs."""
    if not np.isfinite(x).all() or min(np.ptp(x), np.ptp(y)) == 0:
        return Interval(math.nan, math.nan, math.nan)
    found = pearsonr(x, y)
    if len(x) < 4:
        return Interval(float(found.statistic), math.nan, math.nan)
    method = BootstrapMethod(n_resamples=resamples, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval(0.95, method=method)
    return Interval(float(found.statistic), float(low), float(high))
