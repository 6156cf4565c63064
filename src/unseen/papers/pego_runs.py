"""What the PEGO reproduction tunes: a small transformer pretrained on characters, on two plain sources of digits."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unseen.measures.update_geometry import linear_cka, update_geometry
from unseen.networks import Network, build_network
from unseen.networks.feature_cache import cache_folder
from unseen.networks.low_rank import inject_low_rank, low_rank_updates
from unseen.objectives.base import Loss
from unseen.papers.base import Row
from unseen.papers.styled_characters import BROAD, CHARACTERS, Style, corpus_batch, styled
from unseen.registry import Spec, objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

SOURCE, UNSEEN, WORST = "source", "unseen styles", "worst style"
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
