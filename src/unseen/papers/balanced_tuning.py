"""Fine-tuning a small CLIP with and without softened targets, and averaging it with what it was before."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.averaging import StateDict, snapshot
from unseen.measures.confidence_gap import confidence_gap, temperature_for_confidence
from unseen.measures.ensemble_outcomes import ensemble_outcomes
from unseen.merging.curves import interpolate, interpolation_curve
from unseen.networks import Network
from unseen.papers.bang import ACCURACY, OBJECTIVES, TEMPERATURE
from unseen.papers.tiny_world import DOMAINS, examples, train_clip, zero_shot
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

SOURCE = ("photo", "blur", "dark")
UNSEEN = tuple(name for name in DOMAINS if name not in SOURCE)
BATCH, LEARNING_RATE = 32, 1e-3

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class World:
    """The network before fine-tuning, and images with labels: to train on, to validate and judge by."""

    pretrained: Network
    train: Examples
    validation: Examples
    source: Examples
    unseen: Examples


def tiny_world(
    seed: int, *, pairs: int = 2500, epochs: int = 10, train: int = 500, held_out: int = 600
) -> World:
    """A weak CLIP of half width, and eight shapes: trained on in three looks, judged in these and five others.

    held_out  images to judge by of each unseen look, and of the three source looks together; half as many validate
    """
    clip = train_clip(derive_seed(seed, 1), pairs=pairs, epochs=epochs, width=16, size=32)
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    return World(
        zero_shot(*clip),
        examples(train, SOURCE, generator),
        examples(held_out // 2, SOURCE, generator),
        examples(held_out, SOURCE, generator),
        examples(held_out * len(UNSEEN), UNSEEN, generator),
    )


def fine_tuned(
    world: World,
    objective: str,
    seed: int,
    steps: int,
    observe: Callable[[int, Network], None] = lambda step, network: None,
) -> Network:
    """All of the network after `steps` of AdamW (weight decay 0.1) at a rate that falls to zero, clipped at 1.

    `observe` sees the network after every step.
    """
    network, x, y = copy.deepcopy(world.pretrained).train(), *world.train
    loss_of = objectives.build(objective)
    loss_of.setup(features=network.features, classes=network.classes, domains=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    for step in range(steps):
        rows = torch.randint(len(y), (BATCH,), generator=generator)
        batch = Batch(x=x[rows], y=y[rows], domain=torch.zeros(BATCH).long(), domains=1, step=step)
        mixing = torch.Generator().manual_seed(derive_seed(seed, 4, step))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss_of(network, loss_of.prepare(batch, mixing)).total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        observe(step, network)
    return network.eval()


class Judge:
    """Judges states of the world's network."""

    def __init__(self, world: World):
        self.world, self.network = world, copy.deepcopy(world.pretrained)
        self.start = snapshot(world.pretrained)

    @torch.no_grad()
    def logits(self, state: StateDict, examples: Examples) -> Tensor:
        self.network.load_state_dict(state)
        return torch.cat([self.network(x) for x in examples[0].split(500)])

    def accuracy(self, state: StateDict, examples: Examples) -> float:
        return float((self.logits(state, examples).argmax(1) == examples[1]).double().mean())

    def alone(self, state: StateDict) -> dict[str, float]:
        """Of a network by itself."""
        before, now = (self.logits(s, self.world.unseen) for s in (self.start, state))
        unseen = confidence_gap(before, now, self.world.unseen[1]).b
        source = self.logits(state, self.world.source)
        return {
            "unseen, alone": float((now.argmax(1) == self.world.unseen[1]).double().mean()),
            "source, alone": float((source.argmax(1) == self.world.source[1]).double().mean()),
            "unseen, confidence": unseen.mean,
            "unseen, calibration error": unseen.error,
            "source, confidence": float(source.softmax(1).max(1).values.mean()),
            "train accuracy": self.accuracy(state, self.world.train),
        }

    def averaged(self, state: StateDict) -> dict[str, float]:
        """Of its averages with the pretrained network, in weights and in outputs (mean of logits)."""
        half = interpolate(self.start, state, 0.5)
        members = [self.logits(s, self.world.unseen) for s in (self.start, state)]
        labels = self.world.unseen[1]
        inside = self.logits(half, self.world.unseen).argmax(1)
        outputs = (sum(members) / 2).argmax(1)  # type: ignore[union-attr]
        in_weights = ensemble_outcomes(members[0].argmax(1), members[1].argmax(1), inside, labels)
        curve = interpolation_curve(
            self.start, state, lambda between: self.accuracy(between, self.world.validation)
        )
        return {
            "unseen, weights at 0.5": float((inside == labels).double().mean()),
            "unseen, weights at 0.3": self.accuracy(interpolate(self.start, state, 0.3), self.world.unseen),
            "unseen, weights, alpha by validation": self.accuracy(
                interpolate(self.start, state, curve.best()), self.world.unseen
            ),
            "alpha by validation": curve.best(),
            "unseen, outputs": float((outputs == labels).double().mean()),
            "source, weights at 0.5": self.accuracy(half, self.world.source),
            "unseen, FFT": in_weights.rate("FFT"),
            "unseen, TTF": in_weights.rate("TTF"),
            "unseen, gain in weights": in_weights.gain,
        }


def tuning_metrics(
    seed: int, *, steps: int = 1000, every: int = 100, **sizes: int
) -> dict[tuple[str, str], float]:
    """(condition, metric) -> value of all ways to fine-tune, with one pretrained network and the same batches."""
    world = tiny_world(seed, **sizes)
    judge = Judge(world)
    found = {("pretrained", name): value for name, value in judge.alone(judge.start).items()}
    states: dict[str, StateDict] = {}
    passed: list[StateDict] = []

    def keep(step: int, network: Network) -> None:
        if (step + 1) % every == 0:
            passed.append(snapshot(network))

    for condition, objective in OBJECTIVES.items():
        observe = {"observe": keep} if condition == "bang" else {}
        states[condition] = snapshot(fine_tuned(world, objective, seed, steps, **observe))
    wanted = judge.accuracy(states["ce"], world.unseen)
    states[ACCURACY] = min(passed, key=lambda s: abs(judge.accuracy(s, world.unseen) - wanted))
    states[TEMPERATURE] = _matched(judge, states["ce"])
    for condition, state in states.items():
        for name, value in {**judge.alone(state), **judge.averaged(state)}.items():
            found[condition, name] = value
    return found


def _matched(judge: Judge, state: StateDict) -> StateDict:
    """With a head divided by the temperature at which validation confidence is the pretrained network's."""
    before, now = (judge.logits(s, judge.world.validation) for s in (judge.start, state))
    temperature = temperature_for_confidence(now, float(before.softmax(1).max(1).values.mean()))
    return {name: value / temperature if name.startswith("head.") else value for name, value in state.items()}
