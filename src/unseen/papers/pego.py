"""PEGO: do low-rank groups kept orthogonal to pretrained weights, and to each other, generalise better?"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unseen.measures.update_geometry import linear_cka, update_geometry
from unseen.networks import Network, build_network
from unseen.networks.feature_cache import cache_folder
from unseen.networks.low_rank import inject_low_rank, low_rank_updates
from unseen.objectives.base import Loss
from unseen.papers.base import Card, Claim, Condition, Measured, Reproduction, Row, Scale, by_seed
from unseen.papers.styled_characters import BROAD, CHARACTERS, Style, corpus_batch, styled
from unseen.registry import Spec, objectives, papers
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.studies.statistics import mean_interval
from unseen.training.system import seeded

SOURCE, UNSEEN, WORST, LEFT_OUT = "source", "unseen styles", "worst style", "left out"
PRESERVE, DIVERSIFY, SIZE = "preserve cosine", "diversify cosine", "update size"
DRIFT, UNSEEN_DRIFT = "drift, source", "drift, unseen styles"
STYLES = {
    "inverted": Style(invert=1.0),
    "ramp": Style(ramp=0.9),
    "blurred": Style(blur=2.5),
    "noisy": Style(noise=0.8),
    "rotated": Style(rotation=45),
}
WEIGHT = 1e-3 * (768 / 64) ** 2  # the paper's, for sums over matrices of 64 x 64
DECAYS = (0.01, 0.03, 0.1, 0.3, 1.0)
TUNING_SEED = 100  # none of those that are judged


@dataclass(frozen=True)
class Method:
    """What is trained beside the head: nothing, everything, or a group of low-rank updates; and what is added.

    rates    learning rates to choose from, on source validation of a seed that is not judged
    slower   divides the chosen rate
    towards  weight of the squared distance to the pretrained weights (L2-SP)
    """

    trained: Literal["head", "all", "low-rank"]
    rates: tuple[float, ...]
    rank: int = 4
    groups: int = 4
    objective: Spec = Spec("erm")
    slower: float = 1.0
    towards: float = 0.0
    pretrained: bool = True


def _group(**options: Any) -> Method:
    return Method("low-rank", (3e-3, 1e-2, 3e-2), **options)


def _pego(**options: float) -> Spec:
    return Spec.make("pego", penalty_weight=WEIGHT, **options)


_ALL_RATES = (3e-4, 1e-3, 3e-3)
METHODS: dict[str, Method] = {
    "scratch": Method("all", _ALL_RATES, pretrained=False),
    "probe": Method("head", (1e-2, 3e-2, 1e-1)),
    "full": Method("all", _ALL_RATES),
    "l2-sp": Method("all", _ALL_RATES, towards=0.01),
    "lora": _group(rank=16, groups=1),
    "lora-slow": _group(rank=16, groups=1, slower=4.0),
    "group": _group(),
    "shrunk": _group(),  # its decay is chosen in `_decay`
    "preserve": _group(objective=_pego(diversify=0.0)),
    "diversify": _group(objective=_pego(preserve=0.0)),
    "pego": _group(objective=_pego()),
}


@dataclass(frozen=True)
class Protocol:
    """Sizes of the network, of pretraining and of a downstream run (`batch` images of each source a step)."""

    network: str = "transformer(width=64, depth=3, patch=7)"
    pretraining: int = 4500
    pretraining_batch: int = 64
    train: int = 600
    held: int = 300
    steps: int = 100
    batch: int = 32
    evaluations: int = 5


LAPTOP = Protocol()


def _gain(condition: str, over: str, metric: str = UNSEEN) -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] - m[over, metric]


def _ratio(condition: str, to: str, metric: str) -> Callable[[Measured], float]:
    return lambda m: m[condition, metric] / m[to, metric]


def _share_of_seeds_above(condition: str, other: str) -> Callable[[pd.DataFrame], float]:
    """Share of seeds in which one condition's accuracy on unseen styles is above another's."""
    gain = _gain(condition, other)
    return lambda table: float(np.mean([gain(measured) > 0 for measured in by_seed(table).values()]))


@papers.register(
    "pego",
    summary="Low-rank groups orthogonal to pretrained weights and to each other, on digits in unseen styles",
    paper="Hu et al. 2024, arXiv 2407.15085",
)
class Pego(Reproduction):
    card = Card(
        number=39,
        title="Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for "
        "Domain Generalization",
        authors="Hu, Zhang, Qi, Shi, Gao",
        venue="ECCV 2024",
        arxiv="2407.15085",
        claim="Groups of low-rank updates that are penalised for leaving the orthogonal complement of the pretrained "
        "weights and for resembling each other generalise better to unseen domains than LoRA and full fine-tuning.",
        here="A vision transformer (width 64, depth 3, patches of 7 x 7) pretrained on 36 characters in 21 fonts and "
        "many styles, then tuned with a new head on two plain sources of real digits, 600 images of MNIST and 600 of "
        "optdigits, for 100 steps; judged on other MNIST digits inverted, over a ramp of grey, blurred, noisy and "
        "rotated. Learning rates are chosen by source validation on a seed that is not judged, the step that is kept "
        "by source validation. The penalty has the paper's weight times (768 / 64)^2. The control `shrunk` has "
        "updates as small as PEGO's by a squared norm alone.",
        not_here="CLIP and the five image benchmarks; sources left out in turn.",
        full="CLIP ViT-B/16 ($UNSEEN_BACKBONE, default transformers:openai/clip-vit-base-patch16, read from its "
        "local files) on PACS or any folder domain/class/image ($UNSEEN_IMAGES), each domain left out in turn, "
        "5,000 steps of 32 images a domain. One GPU of 24 GB, 1-2 hours a run. Not run here.",
    )
    conditions = (
        Condition("scratch", "control", "everything trained, without pretraining"),
        Condition("probe", "reference", "the head alone"),
        Condition("full", "baseline", "everything trained"),
        Condition(
            "l2-sp", "baseline", "everything trained, squared distance to the pretrained weights penalised"
        ),
        Condition("lora", "baseline", "one update of rank 16 on query and value"),
        Condition("lora-slow", "baseline", "the same at a quarter of the learning rate"),
        Condition("group", "control", "four updates of rank 4 without a penalty"),
        Condition("shrunk", "control", "the same, made as small as PEGO's by a squared norm"),
        Condition("preserve", "baseline", "orthogonal to the pretrained weights only"),
        Condition("diversify", "baseline", "orthogonal to each other only"),
        Condition("pego", "method", "both penalties"),
    )
    metrics: ClassVar[Mapping[str, str]] = {
        SOURCE: "accuracy on held-out digits of the two sources",
        UNSEEN: "accuracy on MNIST digits in unseen styles, mean of five",
        WORST: "the least of the five",
        PRESERVE: "mean |cos| between rows of a frozen matrix and rows of its updates",
        DIVERSIFY: "mean |cos| between rows of two updates of a group",
        SIZE: "Frobenius norm of an update over that of the frozen matrix, mean",
        DRIFT: "1 - CKA of the features with the pretrained ones, source digits",
        UNSEEN_DRIFT: "the same on digits in unseen styles",
        LEFT_OUT: "accuracy on a domain that was left out, mean over domains (full scale only)",
    }
    claims = (
        Claim(
            "pretraining carries over",
            "The group without a penalty against the same network from scratch, on unseen styles.",
            value=_gain("group", over="scratch"),
            at_least=0.10,
            control=True,
        ),
        Claim(
            "low rank keeps more",
            "The group without a penalty against full fine-tuning, on unseen styles.",
            value=_gain("group", over="full"),
            at_least=0.02,
        ),
        Claim(
            "the penalty gains",
            "PEGO against the group without a penalty, on unseen styles.",
            value=_gain("pego", over="group"),
            at_least=0.005,
        ),
        Claim(
            "in most seeds",
            "Share of seeds in which PEGO is above the group without a penalty.",
            pooled=_share_of_seeds_above("pego", "group"),
            at_least=0.8,
        ),
        Claim(
            "better than LoRA",
            "PEGO against the better of LoRA of equal parameters and LoRA at a quarter of its rate.",
            value=lambda m: m["pego", UNSEEN] - max(m["lora", UNSEEN], m["lora-slow", UNSEEN]),
            at_least=0.005,
        ),
        Claim(
            "not mere shrinkage",
            "PEGO against a group made as small by a squared norm.",
            value=_gain("pego", over="shrunk"),
            at_least=0.005,
        ),
        Claim(
            "preserves",
            "Mean |cos| of updates with the frozen rows, PEGO's over that of the group without a penalty.",
            value=_ratio("pego", "group", PRESERVE),
            at_most=0.5,
        ),
        Claim(
            "diversifies",
            "Mean |cos| of updates with each other, PEGO's over that of the group without a penalty.",
            value=_ratio("pego", "group", DIVERSIFY),
            at_most=0.5,
        ),
        Claim(
            "drifts less",
            "Drift of the features on unseen styles, PEGO's over that of the group without a penalty.",
            value=_ratio("pego", "group", UNSEEN_DRIFT),
            at_most=0.9,
        ),
        Claim(
            "costs little on the source",
            "PEGO against the group without a penalty, on the sources.",
            value=_gain("pego", over="group", metric=SOURCE),
            at_least=-0.005,
        ),
        Claim(
            "preserve alone", "The first penalty alone against none.", value=_gain("preserve", over="group")
        ),
        Claim("diversify alone", "The second alone against none.", value=_gain("diversify", over="group")),
        Claim("against L2-SP", "PEGO against L2-SP, on unseen styles.", value=_gain("pego", over="l2-sp")),
    )
    seeds = (0, 1, 2, 3, 4)

    def units(self, scale: Scale) -> list[str]:
        return list(METHODS) if scale == "laptop" else list(METHODS) + [f"{LEFT_OUT}: {n}" for n in _FULL]

    def measure(self, unit: str, seed: int, scale: Scale) -> list[Row]:
        if unit.startswith(LEFT_OUT):
            from unseen.papers.left_out_domains import left_out_accuracy

            condition = unit.removeprefix(f"{LEFT_OUT}: ")
            accuracy = left_out_accuracy(_FULL[condition], seed, **_full_settings(condition))
            return [Row(condition, LEFT_OUT, float(np.mean(list(accuracy.values()))))]
        return tuned_digits(unit, seed, LAPTOP)

    def plot(self, table: pd.DataFrame) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.6), layout="constrained")
        accuracy, geometry = figure.subplots(1, 2, width_ratios=(1.3, 1))
        names = [condition.name for condition in self.conditions]
        rows = np.arange(len(names))[::-1]
        for offset, (metric, colour) in zip((0.22, 0, -0.22), _COLOURS.items(), strict=True):
            chosen = table[table.metric == metric]
            found = [mean_interval(chosen.value[chosen.condition == name]) for name in names]
            mean, low, high = np.array([(i.estimate, i.low, i.high) for i in found]).T
            bars = [mean - low, high - mean]
            accuracy.errorbar(mean, rows + offset, xerr=bars, fmt="o", color=colour, label=metric, ms=5)
        accuracy.set_yticks(rows, names)
        accuracy.set(xlabel="accuracy, mean and 95 % interval over seeds", xlim=(None, 1))
        accuracy.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        runs = table.pivot_table(index=["seed", "condition"], columns="metric", values="value")
        for index, name in enumerate(name for name in names if METHODS[name].trained == "low-rank"):
            points = runs.xs(name, level="condition")
            geometry.scatter(points[PRESERVE], points[UNSEEN], s=36, alpha=0.8, label=name,
                             marker="osD^vPX"[index])  # fmt: skip
        geometry.set(xlabel="mean |cos| of updates with the frozen rows", ylabel="accuracy on unseen styles")
        geometry.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in (accuracy, geometry):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def tuned_digits(condition: str, seed: int, protocol: Protocol) -> list[Row]:
    """Tune one condition on one seed's digits and judge it; conditions of a seed share digits and batches."""
    method, decay = METHODS[condition], 0.0
    if condition == "shrunk":
        decay = _decay(protocol)
    digits, rate = _digits(seed, protocol), _rate(condition, protocol) / method.slower
    network, _ = tune(method, digits, rate, seed, protocol, decay=decay)
    return [Row(condition, name, value) for name, value in judge(network, digits, protocol).items()]


@lru_cache(maxsize=2)
def pretrained(protocol: Protocol) -> Network:
    """The network after pretraining on characters, the same for all seeds; kept in the cache folder."""
    identity = repr((protocol.network, protocol.pretraining, protocol.pretraining_batch, BROAD))
    name = f"pego-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    path = cache_folder() / "pretrained" / name
    with seeded(0):
        network = build_network(protocol.network, (1, 28, 28), len(CHARACTERS))
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    _pretrain(network, protocol)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{name}")
    save_file(network.state_dict(), temporary)
    os.replace(temporary, path)
    return network.eval()


def _pretrain(network: Network, protocol: Protocol) -> None:
    generator = torch.Generator().manual_seed(derive_seed(0, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=protocol.pretraining + 1)
    for _ in range(protocol.pretraining):
        images, labels = corpus_batch(protocol.pretraining_batch, generator)
        loss = nn.functional.cross_entropy(network(_scaled(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 28, 28) as the network reads them, and labels (N,). `domain` (N,): 0 MNIST, 1 optdigits."""

    train: tuple[Tensor, Tensor]
    domain: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unseen: Mapping[str, tuple[Tensor, Tensor]]


@lru_cache(maxsize=2)
def _digits(seed: int, protocol: Protocol) -> Digits:
    from unseen.shifts.builtin.digit_images import mnist, optdigits

    return make_digits(mnist(), optdigits(), seed, protocol)


def make_digits(
    mnist: tuple[Tensor, Tensor], optdigits: tuple[Tensor, Tensor], seed: int, protocol: Protocol
) -> Digits:
    """Deal two sources of uint8 digits (N, 28, 28) to the roles; other digits of the first get unseen styles."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    sizes = (protocol.train, protocol.held, protocol.held)
    parts: list[list[tuple[Tensor, Tensor]]] = []
    rest = mnist[0][:0], mnist[1][:0]
    for images, labels in (mnist, optdigits):
        order = torch.randperm(len(labels), generator=generator)
        cuts = order.split((*sizes, len(order) - sum(sizes)))
        parts.append([(_scaled(images[rows][:, None].float() / 255), labels[rows]) for rows in cuts[:3]])
        rest = rest if len(rest[1]) else (images[cuts[3]], labels[cuts[3]])
    train, validation, test = (
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*parts, strict=True)
    )
    images, labels = rest[0][: 2 * protocol.held].float() / 255, rest[1][: 2 * protocol.held]
    unseen = {name: (_scaled(styled(images, style, generator)), labels) for name, style in STYLES.items()}
    domain = torch.arange(2).repeat_interleave(protocol.train)
    return Digits(train, domain, validation, test, unseen)


def tune(
    method: Method, digits: Digits, rate: float, seed: int, protocol: Protocol, *, decay: float = 0.0
) -> tuple[Network, float]:
    """The network at the step of its best source validation, and that score (accuracy, ties by the loss).

    decay  weight of the updates' squared Frobenius norms, summed over matrices
    """
    network = _start(method, seed, protocol)
    trained = [p for p in network.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in network.featurizer.parameters()] if method.towards else []
    objective = objectives.build(method.objective)
    optimizer = torch.optim.Adam(trained, lr=rate)
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    every = protocol.steps // protocol.evaluations
    best, state = -1.0, {}
    for step in range(protocol.steps):
        rows = torch.cat([
            start + torch.randint(protocol.train, (protocol.batch,), generator=generator)
            for start in (0, protocol.train)
        ])  # fmt: skip
        x, y = digits.train
        loss: Loss = objective(network.train(), Batch(x[rows], y[rows], digits.domain[rows], 2, step=step))
        total = loss.total
        if method.towards:
            distances = [
                (p - a).square().sum() for p, a in zip(network.featurizer.parameters(), anchors, strict=True)
            ]
            total = total + method.towards * torch.stack(distances).sum()
        if decay:
            sizes = [update.total().square().sum() for _, _, update in low_rank_updates(network)]
            total = total + decay * torch.stack(sizes).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if (step + 1) % every == 0:
            score = _score(network, *digits.validation)
            if score > best:
                best, state = score, copy.deepcopy(network.state_dict())
    network.load_state_dict(state)
    return network.eval(), best


def _start(method: Method, seed: int, protocol: Protocol) -> Network:
    with seeded(seed, 4):
        if method.pretrained:
            featurizer = copy.deepcopy(pretrained(protocol).featurizer)
        else:
            featurizer = build_network(protocol.network, (1, 28, 28), 10).featurizer
        width = pretrained(protocol).features
        if method.trained == "low-rank":
            inject_low_rank(featurizer, rank=method.rank, groups=method.groups)
        elif method.trained == "head":
            featurizer.requires_grad_(False)
        return Network(featurizer, width, 10)


@torch.no_grad()
def judge(network: Network, digits: Digits, protocol: Protocol) -> dict[str, float]:
    """Every metric of one tuned network."""
    styles = {name: _accuracy(network, *pair) for name, pair in digits.unseen.items()}
    found = {
        SOURCE: _accuracy(network, *digits.test),
        UNSEEN: float(np.mean(list(styles.values()))),
        WORST: min(styles.values()),
    }
    base = pretrained(protocol).featurizer
    changed = torch.cat([x[:100] for x, _ in digits.unseen.values()])
    for name, x in ((DRIFT, digits.test[0]), (UNSEEN_DRIFT, changed)):
        found[name] = 1 - linear_cka(base(x), network.eval().featurizer(x))
    if low_rank_updates(network):
        geometry = update_geometry(network).mean()
        found |= {PRESERVE: geometry.preserve_cosine, SIZE: geometry.relative_size}
        if not np.isnan(geometry.diversify_cosine):
            found[DIVERSIFY] = geometry.diversify_cosine
    return {name: float(value) for name, value in found.items()}


@cache
def _rate(condition: str, protocol: Protocol) -> float:
    """The learning rate with the best source validation on the seed that is not judged."""
    method = METHODS[condition]
    if (
        condition != "group"
        and method.objective == Spec("erm")
        and method.groups > 1
        and method.trained == "low-rank"
    ):
        return _rate("group", protocol)  # the same but for its decay
    digits = _digits(TUNING_SEED, protocol)
    scores = {rate: tune(method, digits, rate, TUNING_SEED, protocol)[1] for rate in method.rates}
    return max(scores, key=scores.__getitem__)


@cache
def _decay(protocol: Protocol) -> float:
    """The weight of a squared norm at which updates are nearest in size to PEGO's, on the seed that is not judged."""
    digits = _digits(TUNING_SEED, protocol)

    def size(condition: str, decay: float = 0.0) -> float:
        rate = _rate(condition, protocol)
        network, _ = tune(METHODS[condition], digits, rate, TUNING_SEED, protocol, decay=decay)
        return float(np.log(update_geometry(network).relative_size.mean() + 1e-12))

    wanted = size("pego")
    return min(DECAYS, key=lambda decay: abs(size("group", decay) - wanted))


def _scaled(images: Tensor) -> Tensor:
    return 2 * images - 1


@torch.no_grad()
def _score(network: Network, x: Tensor, y: Tensor) -> float:
    logits = network.eval()(x)
    loss = nn.functional.cross_entropy(logits, y)
    return float((logits.argmax(1) == y).double().mean()) - 1e-6 * float(loss)


@torch.no_grad()
def _accuracy(network: Network, x: Tensor, y: Tensor) -> float:
    return float((network.eval()(x).argmax(1) == y).double().mean())


# The paper's own scale -------------------------------------------------------------------------------------

_FULL: dict[str, Spec] = {
    "full": Spec("erm"),
    "lora": Spec("erm"),
    "group": Spec("erm"),
    "pego": Spec("pego"),
}


def _full_settings(condition: str) -> dict[str, Any]:
    """Of the `Learner`: the paper's (section 4.1), with N = 2 for PACS."""
    backbone = os.environ.get("UNSEEN_BACKBONE", "transformers:openai/clip-vit-base-patch16")
    of = Spec.make("pretrained", name=backbone)
    if condition == "full":
        return {"network": of, "learning_rate": 5e-6, "evaluations": 25}
    rank, groups = (8, 1) if condition == "lora" else (4, 2)
    network = Spec.make("low-rank", of=str(of), rank=rank, groups=groups)
    return {"network": network, "learning_rate": 5e-4, "evaluations": 25}


# Colours after Okabe & Ito (2008).
_COLOURS = {SOURCE: "#0072b2", UNSEEN: "#d55e00", WORST: "#999999"}
