"""Sparse model soups: does the mean of networks that were pruned together do better than any of them?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale
from unseen.registry import Spec, papers
from unseen.studies.statistics import mean_interval

PHASES, MEMBERS, EPOCHS, DENSE_EPOCHS = 3, 3, 8, 12
SPARSITY = 0.9
DECAYS = (1e-4, 5e-4, 1e-3)
CELLS = {"0.98": (0.98, EPOCHS), "0.95 after 3 epochs": (0.95, 3)}
"""Where members may be too sparse, or trained too little, to be averaged: (sparsity, epochs a phase)."""
ID = "digits"
OTHERS = ("noise", "other source", "turned", "pale")
OFF, DISTANCE, ANGLE = "weights off", "distance", "angle"
LEFT_OUT = "left out"
MAIN = "main"
SPARSE = ("imp", "imp-longer", "average-last", "soup", "soup-decay", "reprune")


def _gain(metric: str, over: str, of: str = "soup") -> Callable[[Measured], float]:
    return lambda m: m[of, metric] - m[over, metric]


@papers.register(
    "sparse-soups",
    summary="The mean of networks that were retrained under one mask beats one pruned network, at its cost",
    paper="Zimmer et al. 2024, arXiv 2306.16788",
)
class SparseSoups(Reproduction):
    card = Card(
        number=22,
        title="Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging",
        authors="Zimmer, Spiegel and Pokutta",
        venue="ICLR 2024",
        arxiv="2306.16788",
        claim="Copies of a pruned network that are retrained with different seeds or settings under one mask can be "
        "averaged: the mean is as sparse, generalizes better than a copy, in and out of distribution, and beats "
        "iterative magnitude pruning, even when that retrains for as many steps as all copies together.",
        here="MNIST reduced to 8 x 8: 3,500 digits to train on (moved by up to a pixel), 500 to validate, 1,000 to "
        "judge by; these with noise (0.25), turned (25 degrees), pale (contrast 0.4); and the digits of "
        "scikit-learn. Three convolutions with batch normalisation, 58,144 weights. Dense training of "
        f"{DENSE_EPOCHS} epochs, then {PHASES} phases that prune by global magnitude to 90 % zeros and retrain for "
        f"{EPOCHS} epochs with {MEMBERS} members; SGD (0.1, Nesterov), the rate rises for a tenth and falls linearly. "
        "Batch statistics are estimated anew from a fifth of the training images for every network that is judged. "
        "Two further cells where members may be too sparse or train too little: 98 % zeros, and 95 % with 3 epochs.",
        not_here="CIFAR, ImageNet, translation and segmentation; other retraining schedules; pruning while training; "
        "more than three members.",
        full="An image folder domain/class/image ($UNSEEN_IMAGES, default $UNSEEN_DATA/PACS), one domain left out in "
        "turn, with the network of UNSEEN_NETWORK (default resnet(width=64)), 5,000 steps a phase: pruning alone, "
        "three times as long, and soups. One GPU a member; the paper: ResNet-18, WideResNet-20 and ResNet-50.",
    )
    conditions = (
        Condition("dense", "reference", "before pruning"),
        Condition("imp", "baseline", "iterative magnitude pruning: one member"),
        Condition("imp-longer", "baseline", f"{MEMBERS} times the epochs: as many steps as a soup"),
        Condition("average-last", "baseline", "members in the last phase alone"),
        Condition("soup", "method", "members differ in the order of examples"),
        Condition("soup-decay", "method", f"and in weight decay: {', '.join(f'{d:g}' for d in DECAYS)}"),
        Condition("member", "reference", "of the soup's last phase, mean of the three"),
        Condition("best member", "reference", "of the soup's last phase, by validation"),
        Condition("reprune", "control", "mean of three whole runs, whose zeros differ, pruned again"),
        Condition(
            "ensemble", "reference", "mean prediction of the soup's members: three times the inference"
        ),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        ID: "accuracy on held-out digits as they are",
        "noise": "accuracy with noise of deviation 0.25",
        "other source": "accuracy on scikit-learn's digits",
        "turned": "accuracy on digits turned by 25 degrees",
        "pale": "accuracy at a contrast of 0.4",
        OFF: "how many zeros there are more or less than asked for",
        DISTANCE: "mean distance of members to their mean in the last phase",
        ANGLE: "mean angle between what two members learned in the last phase, degrees",
        **{f"{cell}: {metric}": f"{metric}, {cell}" for cell in CELLS for metric in (ID, *OTHERS)},
        LEFT_OUT: "accuracy on a domain that was left out, mean over domains (full scale only)",
    }
    claims = (
        Claim(
            "exactly as sparse",
            "Largest number of zeros too many or too few, over all pruned networks.",
            value=lambda m: max(m[name, OFF] for name in SPARSE),
            at_most=0,
            control=True,
        ),
        Claim(
            "zeros must be shared",
            "The soup against the mean of separately pruned networks, on digits as they are.",
            value=_gain(ID, "reprune"),
            at_least=0.01,
            control=True,
        ),
        Claim(
            "better than a member",
            "The soup against its members, on digits as they are.",
            value=_gain(ID, "member"),
            at_least=0.004,
        ),
        Claim(
            "better than a member under noise",
            "The soup against its members, with noise.",
            value=_gain("noise", "member"),
            at_least=0.005,
        ),
        Claim(
            "better than pruning alone",
            "The soup against iterative magnitude pruning, on digits as they are.",
            value=_gain(ID, "imp"),
            at_least=0.003,
        ),
        Claim(
            "better than pruning alone under noise",
            "The soup against iterative magnitude pruning, with noise.",
            value=_gain("noise", "imp"),
            at_least=0.015,
        ),
        Claim(
            "not more training alone",
            "The soup against pruning with three times the epochs, on digits as they are.",
            value=_gain(ID, "imp-longer"),
            at_least=0.0,
        ),
        Claim(
            "not more training alone under noise",
            "The soup against pruning with three times the epochs, with noise.",
            value=_gain("noise", "imp-longer"),
            at_least=0.0,
        ),
        Claim(
            "not more training alone on another source",
            "The soup against pruning with three times the epochs, on scikit-learn's digits.",
            value=_gain("other source", "imp-longer"),
            at_least=0.0,
        ),
        Claim(
            "average in every phase",
            "The soup against averaging in the last phase alone, on digits as they are.",
            value=_gain(ID, "average-last"),
        ),
        Claim(
            "other weight decays",
            "Members of different weight decay against different order alone, on digits as they are.",
            value=_gain(ID, "soup", of="soup-decay"),
        ),
        Claim(
            "what a soup leaves to an ensemble",
            "The ensemble of the members against their mean, on digits as they are.",
            value=_gain(ID, "soup", of="ensemble"),
        ),
        *(
            Claim(
                f"at {cell}, against as many steps",
                f"The soup against pruning with three times the epochs, {cell}: digits as they are.",
                value=_gain(f"{cell}: {ID}", "imp-longer"),
            )
            for cell in CELLS
        ),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        if scale == "full":
            return [f"{LEFT_OUT}: {name}" for name in ("imp", "imp-longer", "soup")]
        return [MAIN, *CELLS]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit.startswith(LEFT_OUT):
            name = unit.removeprefix(f"{LEFT_OUT}: ")
            return [Row(name, LEFT_OUT, left_out(name, seed))]
        if unit == MAIN:
            return main_cell(seed)
        return boundary_cell(unit, seed)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 4.6), layout="constrained")
        parts = figure.subplots(1, 4, sharey=True, width_ratios=(1.3, 1.3, 1.3, 1.1))
        names = [condition.name for condition in self.conditions]
        heights = np.arange(len(names))[::-1]
        values = table.set_index(["condition", "metric"]).value
        for axes, metric in zip(parts, (ID, "noise", "other source"), strict=False):
            found = [mean_interval(values[name, metric]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            colours = [_COLOURS[condition.role] for condition in self.conditions]
            for y, middle, left, right, colour in zip(heights, mean, low, high, colours, strict=True):
                axes.errorbar(
                    middle, y, xerr=[[middle - left], [right - middle]], fmt="o", color=colour, ms=5
                )
            axes.set(xlabel=f"accuracy: {metric}", title="90 % zeros" if metric == ID else None)
        parts[0].set_yticks(heights, names)
        # differences of the same seeds, because seeds differ more than methods do
        rows = [(cell, other) for cell in ("0.9", *CELLS) for other in ("member", "imp", "imp-longer")]
        for y, (cell, other) in zip(np.linspace(heights[0], 0, len(rows)), rows, strict=True):
            metric = ID if cell == "0.9" else f"{cell}: {ID}"
            gain = mean_interval(values["soup", metric].to_numpy() - values[other, metric].to_numpy())
            bar = [[gain.estimate - gain.low], [gain.high - gain.estimate]]
            parts[3].errorbar(gain.estimate, y, xerr=bar, fmt="s", color="#d55e00", ms=5)
            parts[3].annotate(f"{cell}: {other}", (1.02, y), xycoords=("axes fraction", "data"), va="center")
        parts[3].axvline(0, color="black", lw=0.8)
        parts[3].set(xlabel="soup less the other,\ndigits as they are")
        for axes in parts:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def main_cell(
    seed: int, *, size: int = 3500, epochs: int = EPOCHS, dense_epochs: int = DENSE_EPOCHS
) -> list[Row]:
    """All conditions at 90 % zeros; they share the digits and the dense network."""
    from unseen.merging.sparse_soups import reprune

    run = _Run(seed, size, dense_epochs)
    soup = run.soup(SPARSITY, epochs)
    decayed = run.soup(SPARSITY, epochs, decay=DECAYS)
    apart = [run.soup(SPARSITY, epochs, seed=(k,)).model for k in range(MEMBERS)]
    again = run.copy()
    again.load_state_dict(reprune(apart, SPARSITY)[0])
    members = [run.copy(state) for state in soup.members]
    for network in (again, *members):
        run.settle(network)
    accuracies = [run.accuracies(network) for network in members]
    best = max(range(MEMBERS), key=lambda k: (run.validation(members[k]), -k))
    networks = {
        "dense": run.dense,
        "imp": apart[0],
        "imp-longer": run.soup(SPARSITY, MEMBERS * epochs, seed=(0,)).model,
        "average-last": run.soup(SPARSITY, epochs, average="last").model,
        "soup": soup.model,
        "soup-decay": decayed.model,
        "reprune": again,
    }
    found = {name: run.accuracies(network) for name, network in networks.items()}
    found["member"] = {k: float(np.mean([a[k] for a in accuracies])) for k in accuracies[0]}
    found["best member"] = accuracies[best]
    found["ensemble"] = run.ensemble(members)
    rows = [Row(name, metric, value) for name, values in found.items() for metric, value in values.items()]
    rows += [Row(name, OFF, run.zeros_off(networks[name], SPARSITY)) for name in SPARSE]
    for name, result in (("soup", soup), ("soup-decay", decayed)):
        last = result.history[-1]
        rows += [Row(name, DISTANCE, last.distance), Row(name, ANGLE, last.angle)]
    return rows


def boundary_cell(cell: str, seed: int, *, size: int = 3500, dense_epochs: int = DENSE_EPOCHS) -> list[Row]:
    """Pruning alone, for longer, and the soup with its members, where averaging may fail."""
    run, (sparsity, epochs) = _Run(seed, size, dense_epochs), CELLS[cell]
    soup = run.soup(sparsity, epochs)
    members = [run.copy(state) for state in soup.members]
    for network in members:
        run.settle(network)
    accuracies = [run.accuracies(network) for network in members]
    found = {
        "imp": run.accuracies(run.soup(sparsity, epochs, seed=(0,)).model),
        "imp-longer": run.accuracies(run.soup(sparsity, MEMBERS * epochs, seed=(0,)).model),
        "soup": run.accuracies(soup.model),
        "member": {k: float(np.mean([a[k] for a in accuracies])) for k in accuracies[0]},
    }
    return [Row(name, f"{cell}: {k}", v) for name, values in found.items() for k, v in values.items()]


class _Run:
    """The digits and the dense network of one seed, and what is done with them."""

    def __init__(self, seed: int, size: int, epochs: int):
        from unseen.papers.pooled_digits import PooledDigits, network, train

        self.seed = seed
        self.data = PooledDigits.draw(seed, size)
        self.dense = train(network(seed), self.data, seed=seed, epochs=epochs, warmup=0)

    def soup(self, sparsity: float, epochs: int, average: Any = "every", **vary: Any) -> Any:
        """A `SparseResult`; `vary` is by default the seeds of three members."""
        from unseen.merging.sparse_soups import SparseSoup
        from unseen.papers.pooled_digits import train
        from unseen.shifts.sampling import derive_seed

        def further(model: Any, setting: Mapping[str, Any]) -> Any:
            seed = derive_seed(self.seed, 3, setting["seed"], setting["phase"])
            return train(model, self.data, seed=seed, epochs=epochs, decay=setting.get("decay", DECAYS[1]))

        vary = {"seed": tuple(range(MEMBERS)), **vary}
        return SparseSoup(
            further, sparsity, PHASES, vary, recalibrate=self.data.recalibration, average=average
        ).run(self.dense)

    def copy(self, state: Any = None) -> Any:
        import copy

        network = copy.deepcopy(self.dense)
        if state is not None:
            network.load_state_dict(state)
        return network

    def settle(self, network: Any) -> None:
        from unseen.averaging import estimate_batch_statistics

        estimate_batch_statistics(network, self.data.recalibration)

    def accuracies(self, network: Any) -> dict[str, float]:
        from unseen.papers.pooled_digits import accuracy

        return {name: accuracy(network, examples) for name, examples in self.data.tests.items()}

    def validation(self, network: Any) -> float:
        from unseen.papers.pooled_digits import accuracy

        return accuracy(network, self.data.validation)

    def ensemble(self, networks: list[Any]) -> dict[str, float]:
        import torch

        found = {}
        with torch.inference_mode():
            for name, (x, y) in self.data.tests.items():
                mean = torch.stack([network.eval()(x).softmax(1) for network in networks]).mean(0)
                found[name] = float((mean.argmax(1) == y).double().mean())
        return found

    @staticmethod
    def zeros_off(network: Any, sparsity: float) -> float:
        from unseen.networks.pruning import prunable

        weights = prunable(network).values()
        zeros, count = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        return float(abs(zeros - round(sparsity * count)))


def left_out(name: str, seed: int, *, steps: int = 5000) -> float:
    """Mean accuracy on a domain of an image folder that was left out of dense training and of all retraining."""
    import os

    from unseen.merging.sparse_soups import SparseSoup
    from unseen.papers.left_out_domains import image_folder
    from unseen.shifts.opening import open_shift
    from unseen.training.data import TrainingData
    from unseen.training.fit import fit
    from unseen.training.learner import Learner
    from unseen.training.retraining import retrainer

    shift = open_shift(image_folder())
    network = os.environ.get("UNSEEN_NETWORK", "resnet(width=64)")
    learner = Learner(
        network=Spec.of(network), optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, schedule="cosine", warmup=0.1,
        steps=steps, keep="last",
    )  # fmt: skip
    longer = learner.replace(steps=MEMBERS * steps) if name == "imp-longer" else learner
    seeds = tuple(range(MEMBERS)) if name == "soup" else (0,)
    found = []
    for domain in shift.domains:
        split = shift.split(unseen=domain, seed=seed)
        data = TrainingData(split)
        dense = fit(learner, split, seed=seed, data=data).network
        vary = {"seed": [seed * MEMBERS + k for k in seeds]}
        soup = SparseSoup(retrainer(longer, split, data=data), SPARSITY, PHASES, vary)
        bank = data.bank(soup.run(dense).model, "unseen")  # type: ignore[arg-type]
        found.append(float(bank.correct.float().mean()))
    return float(np.mean(found))


# Colours after Okabe & Ito (2008).
_COLOURS = {"method": "#d55e00", "baseline": "#0072b2", "control": "#cc79a7", "reference": "#666666"}
