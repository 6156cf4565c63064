"""RFT sharpness: does the sharpness of straggler layers tell where the way between two models fails, and repair it?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

RATES, STEPS, DECAYS, TUNINGS = (5e-4, 1.5e-3, 4e-3), (60, 300), (0.0, 0.1), 2
RUNS_A_SEED = len(RATES) * len(STEPS) * len(DECAYS) * TUNINGS
ALPHAS, ALPHA = (0.0, 0.3, 0.5, 0.7, 1.0), 0.5
RHO, RHO_WORST, LOGIT_NORM, SAMPLES = 0.1, 0.01, 10.0, 6
KEEPS = (0.5, 0.3, 0.1)
RANK, PARTIAL, UPPER, BAND = "rank", "partial", "partial, upper end", "within thirds"
REPAIR = "gain by repair"
LEFT_OUT = "left out"

SHARP, WORST, STRAGGLER = "overall sharpness", "overall worst case", "straggler sharpness"
FIRST, SPREAD, DISTANCE = "first block's sharpness", "mean block's sharpness", "distance"
ID_SCORE, ID_BARRIER, RUNS = "ID accuracy", "ID barrier", "runs"
PREDICTORS = (SHARP, WORST, STRAGGLER, FIRST, SPREAD, DISTANCE, ID_SCORE, ID_BARRIER)
SPARSE, RANDOM, WHOLE, CLOSER = "sparse straggler", "sparse random block", "sparse everywhere", "lower alpha"


def _stronger(m: Measured) -> float:
    """How much more strongly, and in the claimed direction, stragglers' sharpness ranks the runs."""
    return -m[STRAGGLER, RANK] - abs(m[SHARP, RANK])


def _repaired(over: str | None = None) -> Callable[[Measured], float]:
    return lambda m: m[SPARSE, REPAIR] - (m[over, REPAIR] if over else 0.0)


@papers.register(
    "rft-sharpness",
    summary="Sharp straggler layers tell where interpolation fails, and sparsity in them repairs it",
    paper="Abdollahpourrostam et al. 2024, arXiv 2410.16476",
)
class RFTSharpness(Reproduction):
    card = Card(
        number=21,
        title="In Search of the Successful Interpolation: On the Role of Sharpness in CLIP Generalization",
        authors="Abdollahpourrostam, Sanyal and Moosavi-Dezfooli",
        venue="NeurIPS 2024 workshop AdvML-Frontiers",
        arxiv="2410.16476",
        claim="Sharpness of the whole network does not tell whether weights between a zero-shot and a fine-tuned model "
        "generalize out of distribution; the sharpness of a few straggler layers does, and sparsity in these layers "
        "repairs the failures.",
        here="MNIST at 14 x 14 in eight styles. A network of five blocks is pretrained for 80 steps on 2,000 digits in "
        f"all of them, then fine-tuned on 500 digits plain, blurred and pale: {RUNS_A_SEED} times "
        f"(AdamW {', '.join(f'{r:g}' for r in RATES)}; 60 or 300 steps; decay 0 or 0.1; two orders). Judged on "
        "200 digits with noise, turned, inverted, on a ramp and occluded, at half of the way. Sharpness on 300 "
        "held-out ID digits, relative to each weight, logits of length 10: mean rise at noise of 0.1, and the rise "
        "that 6 steps find within 0.01. Straggler: the block whose own way costs most ID accuracy. Sparsity (0.5, 0.3, "
        "0.1 of the block's update kept) is chosen by ID accuracy. Pretraining and rates were chosen on seeds that "
        "are not judged, for successes and failures to be among the runs; the paper's definitions had to be "
        "reconstructed, as it gives none beyond its abstract.",
        not_here="CLIP, ImageNet and its variants; sharpness on many radii: one was fixed beforehand.",
        full="Two or more fine-tuned states of one network and their common start as .safetensors "
        "($UNSEEN_MODELS, a folder with start.safetensors and others), of the network UNSEEN_NETWORK, and an image "
        "folder domain/class/image ($UNSEEN_IMAGES) whose first domain is ID. "
        "The paper: CLIP ViT-B, ImageNet, one A100.",
    )
    conditions = (
        Condition(SHARP, "baseline", "average case, all weights"),
        Condition(WORST, "baseline", "worst case, all weights"),
        Condition(STRAGGLER, "method", "average case, the straggler alone"),
        Condition(FIRST, "reference", "average case, the first block alone"),
        Condition(SPREAD, "control", "average case, mean of the blocks taken one by one"),
        Condition(DISTANCE, "baseline", "of the fine-tuned weights to the start"),
        Condition(ID_SCORE, "baseline", "of the interpolated weights"),
        Condition(ID_BARRIER, "baseline", "largest fall of ID accuracy below the line between the ends"),
        Condition(SPARSE, "method", "the largest entries of the straggler's update alone"),
        Condition(RANDOM, "control", "the same share in another block, drawn at random"),
        Condition(WHOLE, "baseline", "the same share in every block"),
        Condition(CLOSER, "baseline", "0.3 of the way instead of 0.5"),
        Condition(RUNS, "reference", "the fine-tunings themselves"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        RANK: "Spearman's correlation over runs with the OOD gain at half of the way (accuracy less the better end's)",
        **{f"{RANK}, {alpha:g}": f"the same at {alpha:g} of the way" for alpha in (0.3, 0.7)},
        PARTIAL: "the same, given the distance",
        UPPER: "upper end of its 95 % interval over 1,000 resamples of the runs",
        BAND: "mean correlation within thirds of the runs by distance",
        REPAIR: "OOD accuracy above plain interpolation's, mean over failing runs",
        **{f"{REPAIR}, {keep:g}": f"the same with the share {keep:g} kept" for keep in KEEPS},
        "successes": "runs that gain at half of the way",
        "failures": "runs that lose at half of the way",
        "start, OOD": "OOD accuracy of the start",
        "start, ID": "ID accuracy of the start",
        "tuned, OOD": "OOD accuracy of the fine-tuned networks, mean",
        "tuned, ID": "ID accuracy of the fine-tuned networks, mean",
    }
    claims = (
        Claim(
            "ways that succeed and ways that fail",
            "The rarer of successes and failures among the runs.",
            value=lambda m: min(m[RUNS, "successes"], m[RUNS, "failures"]),
            at_least=3,
            control=True,
        ),
        Claim(
            "overall sharpness does not tell",
            "Absolute rank correlation of overall sharpness with the OOD gain.",
            value=lambda m: abs(m[SHARP, RANK]),
            at_most=0.4,
        ),
        Claim(
            "straggler sharpness does",
            "How much stronger stragglers' sharpness ranks the runs, sharper being worse.",
            value=_stronger,
            at_least=0.2,
        ),
        Claim(
            "beyond the distance",
            "Stragglers' sharpness given the distance: upper end of the bootstrap interval over runs.",
            value=lambda m: m[STRAGGLER, UPPER],
            at_most=0.0,
        ),
        Claim(
            "sparsity repairs",
            "OOD accuracy of failing runs with a sparse straggler against plain interpolation.",
            value=_repaired(),
            at_least=0.02,
        ),
        Claim(
            "in stragglers, not anywhere",
            "A sparse straggler against as sparse a random block, OOD accuracy of failing runs.",
            value=_repaired(RANDOM),
            at_least=0.005,
        ),
        Claim(
            "more than going less far",
            "A sparse straggler against 0.3 of the way, OOD accuracy of failing runs.",
            value=_repaired(CLOSER),
        ),
        Claim(
            "what distance tells",
            "Rank correlation of the distance with the OOD gain.",
            value=lambda m: m[DISTANCE, RANK],
        ),
        Claim(
            "a block's sharpness without choice",
            "Rank correlation of the mean block's sharpness with the OOD gain.",
            value=lambda m: m[SPREAD, RANK],
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return [LEFT_OUT] if scale == "full" else ["all"]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.papers.rft_runs import digit_runs, folder_runs

        runs = folder_runs(seed) if unit == LEFT_OUT else digit_runs(seed, _recipes(seed))
        return analyse(runs, seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        values = table.set_index(["condition", "metric"]).value
        heights = np.arange(len(PREDICTORS))[::-1]
        for offset, metric, colour in ((0.16, RANK, "#0072b2"), (-0.16, PARTIAL, "#d55e00")):
            label = "as it is" if metric == RANK else "given the distance"
            known = [
                (h, name) for h, name in zip(heights, PREDICTORS, strict=True) if (name, metric) in values
            ]
            _intervals(
                left,
                [values[name, metric] for _, name in known],
                [h for h, _ in known],
                offset,
                colour,
                label,
            )
        left.axvspan(-0.4, 0.4, color="#eeeeee", zorder=0)
        left.axvline(0, color="black", lw=0.8)
        left.set_yticks(heights, PREDICTORS)
        left.set(xlabel="Spearman's correlation with the OOD gain over runs", xlim=(-1.02, 1.02))
        left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        names = (SPARSE, RANDOM, WHOLE, CLOSER)
        _intervals(right, [values[name, REPAIR] for name in names], range(4)[::-1], 0, "#d55e00", None)
        right.set_yticks(range(4)[::-1], names)
        right.axvline(0, color="black", lw=0.8)
        right.axvline(0.02, color="black", lw=0.8, ls=":")
        right.set(xlabel="OOD accuracy above plain interpolation, failing runs")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def _intervals(
    axes: Any, found: list[Any], heights: Any, offset: float, colour: str, label: str | None
) -> None:
    mean, low, high = np.array([(i.estimate, i.low, i.high) for i in map(mean_interval, found)]).T
    bars = [mean - low, high - mean]
    axes.errorbar(mean, np.array(heights) + offset, xerr=bars, fmt="o", color=colour, label=label, ms=5)


def _recipes(seed: int) -> list[Any]:
    from unseen.papers.interpolated_digits import Recipe
    from unseen.shifts.sampling import derive_seed

    orders = [derive_seed(seed, 6, order) for order in range(TUNINGS)]
    return [Recipe(*each) for each in itertools.product(RATES, STEPS, DECAYS, orders)]


def analyse(runs: pd.DataFrame, seed: int) -> list[Row]:
    """Correlations over runs, and repairs of failing ones; `runs` as `unseen.papers.rft_runs.measured` gives them."""
    gain, distance = runs["gain"].to_numpy(), runs[DISTANCE].to_numpy()
    rows = []
    for name in PREDICTORS:
        x = runs[name].to_numpy()
        rows += [Row(name, RANK, spearman(x, gain)), Row(name, BAND, within_thirds(x, gain, distance))]
        if name != DISTANCE:
            rows.append(Row(name, PARTIAL, partial(x, gain, distance)))
            rows.append(Row(name, UPPER, bootstrap_upper(x, gain, distance, seed)))
    for name in (SHARP, STRAGGLER):
        for alpha in (0.3, 0.7):
            x, y = runs[f"{name}, {alpha:g}"].to_numpy(), runs[f"gain, {alpha:g}"].to_numpy()
            rows.append(Row(name, f"{RANK}, {alpha:g}", spearman(x, y)))
    failing = runs[runs["gain"] < 0]
    # without a failing run nothing can be repaired; the control says that there were too few
    for name in (SPARSE, RANDOM, WHOLE, CLOSER):
        rows.append(Row(name, REPAIR, float(failing[name].mean()) if len(failing) else 0.0))
        if name != CLOSER:
            for keep in KEEPS:
                column = failing[f"{name}, {keep:g}"]
                rows.append(Row(name, f"{REPAIR}, {keep:g}", float(column.mean()) if len(failing) else 0.0))
    rows += [
        Row(RUNS, "successes", float((gain > 0).sum())),
        Row(RUNS, "failures", float((gain < 0).sum())),
        *(
            Row(RUNS, name, float(runs[name].mean()))
            for name in ("start, OOD", "start, ID", "tuned, OOD", "tuned, ID")
        ),
    ]
    return rows


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    from scipy.stats import rankdata

    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else 0.0


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Spearman's partial correlation: of what is left of both ranks after a line through the ranks of `given`."""
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    scale = np.sqrt(max(0.0, (1 - xz**2) * (1 - yz**2)))
    return float((xy - xz * yz) / scale) if scale > 1e-12 else 0.0


def within_thirds(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Mean of the rank correlations within the lower, middle and upper third by `given`."""
    parts = np.array_split(np.argsort(given, kind="stable"), 3)
    return float(np.mean([spearman(x[part], y[part]) for part in parts]))


def bootstrap_upper(x: np.ndarray, y: np.ndarray, given: np.ndarray, seed: int, draws: int = 1000) -> float:
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(x), size=(draws, len(x)))
    return float(np.percentile([partial(x[r], y[r], given[r]) for r in rows], 97.5))
