"""MOL: is an initialisation that was meta-learned for it better to adapt, and to reject with, than a trained one?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import papers
from unseen.studies.statistics import mean_interval

LAYOUTS, ROTATIONS = "layouts", "rotations"
FOLDER = "folder"
STEPS = (0, 1, 3, 10)
ORDINARY = ("erm-shifts", "erm-shifts-longer")


def at(drift: str, what: str, steps: int) -> str:
    """Name of the metric "accuracy" or "AUROC" of a drift after steps of adaptation from the first state."""
    return f"{drift}: {what}, {steps} steps"


def _gain(metric: str, over: tuple[str, ...], of: str = "mol") -> Callable[[Measured], float]:
    """A metric of one condition above the best of others."""
    return lambda m: m[of, metric] - max(m[other, metric] for other in over)


def _adapted_over_source(m: Measured) -> float:
    """The least gain by ten steps over the source model as it is."""
    after, unadapted = at(ROTATIONS, "accuracy", 10), m["erm-source", at(ROTATIONS, "accuracy", 0)]
    return min(m[name, after] - unadapted for name in ("erm-source", "erm-shifts", "mol"))


def _gain_of_steps(m: Measured) -> float:
    """What three steps add to MOL's accuracy, less what they add to ordinary training's."""
    first, last = (at(LAYOUTS, "accuracy", steps) for steps in (0, 3))
    return (m["mol", last] - m["mol", first]) - (m["erm-shifts", last] - m["erm-shifts", first])


@papers.register(
    "meta-ood",
    summary="Meta-learned weights adapt to a drift from a few labels, and still know what is unfamiliar",
    paper="Wu et al. 2023, arXiv 2309.11705",
)
class MetaOODReproduction(Reproduction):
    card = Card(
        number=28,
        title="Meta OOD Learning for Continuously Adaptive OOD Detection",
        authors="Wu, Lu, Fang and Zhang",
        venue="ICCV 2023",
        arxiv="2309.11705",
        claim="Weights that were meta-learned for it adapt from a few labelled examples to each distribution of a "
        "drift, so that they keep both accuracy and detection of unfamiliar inputs.",
        here="optdigits (8 x 8): five classes ID, two outliers of the training, three unfamiliar and never seen, "
        "dealt anew for every seed; the drift acts on all of them. Layouts: the four quadrants change places, 13 "
        "orders in training, 3 to choose rates on, 8 that arrive. Rotations: 0 to 60 degrees in training, 60 to 180 "
        "arrive. Five labels a class and distribution, three draws; 64-96-64-5 perceptron, outlier exposure in all "
        "training, 0 to 10 steps of gradient descent at rate 0.1 from the first weights (reset), or ten from where "
        "the last distribution left them (continual). 800 steps of Adam, then 600 more or 600 meta-steps, one task "
        "in each. AUROC is of the largest softmax. Tried on a seed that is not judged: how many steps take the time "
        "of a meta-step.",
        not_here="The paper's benchmarks, backbones and losses: only its abstract was at hand, and the method is "
        "reconstructed on the pattern of MAML.",
        full="Besides, a folder domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS): half of the domains "
        "in training, the others arrive, a quarter of the classes unfamiliar; a perceptron on features of a frozen "
        "backbone ($UNSEEN_BACKBONE, default efficientnet-lite0), 2,000 meta-steps. One GPU for the features.",
    )
    conditions = (
        Condition("erm-source", "baseline", "trained on the source alone, 1,400 steps"),
        Condition("erm-shifts", "baseline", "trained on all training shifts, 1,400 steps: as many as MOL"),
        Condition("erm-shifts-longer", "control", "the same for 5,000 steps: about MOL's time"),
        Condition("erm-shifts-tuned", "baseline", "erm-shifts, rate of adaptation chosen on other shifts"),
        Condition(
            "prototypes", "baseline", "class means of the support's features under erm-shifts, no steps"
        ),
        Condition("oracle", "reference", "trained on the arriving shifts, too"),
        Condition("mol-first-order", "control", "the inner gradients are constants"),
        Condition("mol", "method", "second-order gradients through three inner steps"),
        Condition("mol-tuned", "method", "mol, rate of adaptation chosen as for erm-shifts-tuned"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        **{
            at(drift, what, steps): f"{text} after {steps} steps, mean of what arrives and of draws"
            for drift in (LAYOUTS, ROTATIONS)
            for what, text in (("accuracy", "accuracy"), ("AUROC", "AUROC of ID and unfamiliar inputs"))
            for steps in STEPS
        },
        **{
            f"{drift}: {name}": text
            for drift in (LAYOUTS, ROTATIONS)
            for name, text in (
                ("AUROC of energy, 10 steps", "the same by the energy of the logits"),
                ("accuracy, continual", "accuracy when adaptation goes on from where it was"),
                ("AUROC, continual", "AUROC, the same"),
                ("forgetting", "accuracy lost on the source by the end of the stream, continual"),
                ("seconds", "CPU time of training"),
                ("rate", "the rate of adaptation that was chosen"),
            )
        },
        at(FOLDER, "accuracy", 10): "accuracy on real domains (full scale only)",
        at(FOLDER, "AUROC", 10): "AUROC on real domains (full scale only)",
    }
    claims = (
        Claim(
            "layouts are a shift",
            "Accuracy that unadapted weights of the source are below the oracle on the layouts.",
            value=lambda m: (
                m["oracle", at(LAYOUTS, "accuracy", 0)] - m["erm-source", at(LAYOUTS, "accuracy", 0)]
            ),
            at_least=0.20,
            control=True,
        ),
        Claim(
            "drift can be learnt",
            "Accuracy of the oracle on the layouts.",
            value=lambda m: m["oracle", at(LAYOUTS, "accuracy", 0)],
            at_least=0.90,
            control=True,
        ),
        Claim(
            "adapting helps",
            "Rotations: least accuracy of adapted weights (source, shifts, MOL) above the unadapted source.",
            value=_adapted_over_source,
            at_least=0.20,
        ),
        Claim(
            "rejects better",
            "Layouts, ten steps: AUROC of MOL above the better of the two ordinary trainings on the same shifts.",
            value=_gain(at(LAYOUTS, "AUROC", 10), ORDINARY),
            at_least=0.02,
        ),
        Claim(
            "classifies as well",
            "The same for accuracy.",
            value=_gain(at(LAYOUTS, "accuracy", 10), ORDINARY),
            at_least=-0.005,
        ),
        Claim(
            "learns to adapt",
            "Layouts: accuracy that three steps add to MOL, less what they add to ordinary training.",
            value=_gain_of_steps,
            at_least=0.0,
        ),
        Claim(
            "forgets no more",
            "Layouts, continual: accuracy on the source that MOL loses beyond ordinary training.",
            value=lambda m: m["mol", f"{LAYOUTS}: forgetting"] - m["erm-shifts", f"{LAYOUTS}: forgetting"],
            at_most=0.02,
        ),
        Claim(
            "against tuned adaptation",
            "Layouts: AUROC of MOL above ordinary training, rates of adaptation chosen alike for both.",
            value=_gain(at(LAYOUTS, "AUROC", 10), ("erm-shifts-tuned",), of="mol-tuned"),
            at_least=0.0,
        ),
        Claim(
            "against prototypes",
            "Layouts: the same above class means of the support's features.",
            value=_gain(at(LAYOUTS, "AUROC", 10), ("prototypes",)),
            at_least=0.0,
        ),
        Claim(
            "what the second order adds",
            "Layouts, ten steps: accuracy of MOL above its first-order form.",
            value=_gain(at(LAYOUTS, "accuracy", 10), ("mol-first-order",)),
        ),
        Claim(
            "rotations: accuracy",
            "Where one tolerant model fits all training shifts, ten steps: MOL above ordinary training.",
            value=_gain(at(ROTATIONS, "accuracy", 10), ("erm-shifts",)),
        ),
        Claim(
            "rotations: AUROC",
            "The same for AUROC.",
            value=_gain(at(ROTATIONS, "AUROC", 10), ("erm-shifts",)),
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return [LAYOUTS, ROTATIONS] if scale == "laptop" else [LAYOUTS, ROTATIONS, FOLDER]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        from unseen.papers import meta_ood_folder, meta_ood_runs

        found = meta_ood_folder.folder(seed) if unit == FOLDER else meta_ood_runs.drifting(unit, seed)
        return [
            Row(condition, f"{unit}: {metric}", value)
            for condition, metrics in found.items()
            for metric, value in metrics.items()
        ]

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 7), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        values = table.set_index(["condition", "metric"]).value
        places = np.arange(len(STEPS))
        shifts = np.linspace(-0.18, 0.18, len(_LINES))
        for row, drift in zip(panels, (LAYOUTS, ROTATIONS), strict=True):
            for axes, what in zip(row, ("accuracy", "AUROC"), strict=True):
                for shift, (name, style) in zip(shifts, _LINES.items(), strict=True):
                    found = [mean_interval(values[name, at(drift, what, steps)]) for steps in STEPS]
                    mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
                    axes.errorbar(
                        places + shift,
                        mean,
                        yerr=[mean - low, high - mean],
                        elinewidth=0.8,
                        label=name,
                        **style,
                    )
                rest = mean_interval(values["prototypes", at(drift, what, 10)])
                axes.axhline(rest.estimate, color="#cc79a7", linestyle=":", label="prototypes")
                axes.axhspan(rest.low, rest.high, color="#cc79a7", alpha=0.12, lw=0)
                axes.set(title=drift, ylabel=what)
                axes.set_xticks(places, STEPS)
                axes.grid(alpha=0.3)
                axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(
            "steps of adaptation, from the first weights (means and 95 % intervals over seeds)",
            fontsize="medium",
        )
        panels[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return figure


# Colours after Okabe & Ito (2008).
_LINES: dict[str, dict[str, Any]] = {
    "erm-source": {"color": "#999999", "marker": "o"},
    "erm-shifts": {"color": "#000000", "marker": "o"},
    "erm-shifts-longer": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "mol-first-order": {"color": "#56b4e9", "marker": "v"},
    "mol": {"color": "#d55e00", "marker": "D"},
    "oracle": {"color": "#009e73", "marker": "^", "linestyle": "-."},
}
