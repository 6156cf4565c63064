"""Fine-tuning a pretrained network on one domain, and what it then does on others: text, and styles of digits."""

from __future__ import annotations

import ast
import copy
import importlib.util
import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unseen.measures.sharpness import Examples, epsilon_sharpness
from unseen.networks import Network
from unseen.objectives import Objective
from unseen.registry import Spec, objectives, updates
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed

PRETRAINING = ("numpy", "scipy", "sklearn", "networkx")
FINE_TUNING, NEVER_SEEN = "torch", "matplotlib"
WINDOW = 32
DIGITS = (1, 3, 4, 7, 8)
"""Those that are fine-tuned on; they become classes 0 to 4 of a new head."""


class Task(ABC):
    """A pretrained network, batches of one domain to fine-tune it on, and examples to judge it by.

    Examples are batches of inputs and labels, of held-out data: `validation` and `source` of the domain that is
    fine-tuned on, `unseen` by name of the others.
    """

    validation: Examples
    source: Examples
    unseen: dict[str, Examples]
    learning_rate: float

    @abstractmethod
    def network(self, seed: int) -> nn.Module:
        """A new copy of the pretrained network."""

    @abstractmethod
    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """Examples to fine-tune on."""

    @abstractmethod
    def score(self, network: nn.Module, examples: Examples) -> float:
        """What the task is judged by."""

    smoothing = 0.0
    """Label smoothing: this share of a label is spread over all classes."""


class NextToken(nn.Module):
    """Logits (B T, vocabulary) of the next tokens, for inputs (B, T): every token is an example."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        outputs = self.model(tokens)
        return getattr(outputs, "logits", outputs).flatten(0, 1)


class TextTask(Task):
    """A language model and tokens of texts, one (N,) tensor a domain; scored in bits a token, less is better.

    texts   by name; the first fifth of each is held out: half to validate on, half to judge by
    source  the name of the one that is fine-tuned on
    """

    def __init__(
        self,
        model: nn.Module,
        texts: dict[str, Tensor],
        source: str,
        *,
        window: int = WINDOW,
        batch: int = 8,
        judged: int = 32,
        learning_rate: float = 1e-3,
    ):
        self.model, self.window, self.size, self.learning_rate = model, window, batch, learning_rate
        self.train = texts[source][len(texts[source]) // 5 :]
        parts = {name: text[: len(text) // 5].tensor_split(2) for name, text in texts.items()}
        self.validation = self._examples(parts[source][0], judged)
        self.source = self._examples(parts[source][1], judged)
        self.unseen = {
            name: self._examples(part[1], judged) for name, part in parts.items() if name != source
        }

    def _examples(self, text: Tensor, count: int) -> Examples:
        rows = text[: (len(text) - 1) // self.window * self.window + 1].unfold(
            0, self.window + 1, self.window
        )
        return [(part[:, :-1], part[:, 1:].flatten()) for part in rows[:count].split(self.size)]

    def network(self, seed: int) -> nn.Module:
        return NextToken(copy.deepcopy(self.model)).train()

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        starts = torch.randint(len(self.train) - self.window, (self.size, 1), generator=generator)
        rows = self.train[
            starts.to(self.train.device) + torch.arange(self.window + 1, device=self.train.device)
        ]
        y = rows[:, 1:].flatten()
        return Batch(x=rows[:, :-1], y=y, domain=torch.zeros_like(y), domains=1, step=step)

    def score(self, network: nn.Module, examples: Examples) -> float:
        return mean_loss(network, examples) / math.log(2)


class DigitTask(Task):
    """A perceptron that learned ten digits in many styles, and 300 plain images of five of them with a new head."""

    learning_rate = 1e-3

    def __init__(self, pretrained: Network, images: Tensor, digits: Tensor, seed: int, train: int = 300):
        from unseen.papers.digit_styles import HELD_OUT_LEVELS

        self.pretrained = pretrained
        rows = torch.isin(digits, torch.tensor(DIGITS)).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive_seed(seed, 3)))]
        x, y = images[rows], torch.searchsorted(torch.tensor(DIGITS), digits[rows])
        self.x, self.y = x[:train], y[:train]
        held = x[train + 200 : train + 600], y[train + 200 : train + 600]
        self.validation = [(x[train : train + 200], y[train : train + 200])]
        self.source = [held]
        self.unseen = {name: [(style(held[0], seed), held[1])] for name, style in HELD_OUT_LEVELS.items()}

    def network(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, 4))
            network = Network(
                copy.deepcopy(self.pretrained.featurizer), self.pretrained.features, len(DIGITS)
            )
        return network.train()

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(len(self.x), (32,), generator=generator)
        y, zeros = self.y[rows], torch.zeros(32).long()
        if self.smoothing:
            y = (1 - self.smoothing) * nn.functional.one_hot(y, len(DIGITS)) + self.smoothing / len(DIGITS)
        return Batch(x=self.x[rows], y=y, domain=zeros, domains=1, step=step)

    @torch.inference_mode()
    def score(self, network: nn.Module, examples: Examples) -> float:
        network.eval()
        right = torch.cat([network(x).argmax(-1) == y for x, y in examples])
        return float(right.double().mean())


class _System(nn.Module):
    """What update rules bind to: a network, here of any kind, and an objective."""

    def __init__(self, network: nn.Module, objective: Objective):
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch) -> Any:
        return self.objective(self.network, batch)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FineTuned:
    """A network after the last step, and the mean of what a rule logged (`divergence`, `radius`)."""

    network: nn.Module
    log: dict[str, float] = field(default_factory=dict)


def fine_tune(task: Task, objective: Spec, update: Spec, *, seed: int, steps: int) -> FineTuned:
    """`steps` updates with AdamW at a rate that falls to zero; `seed` draws the batches and new layers."""
    system = _System(task.network(seed), objectives.build(objective))
    optimizer = torch.optim.AdamW(system.parameters(), lr=task.learning_rate, weight_decay=0.01)
    rule = updates.build(update).bind(system, optimizer, clip=1.0)
    generator = torch.Generator().manual_seed(derive_seed(seed, 5))
    logged: dict[str, list[float]] = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = rule.step(system, task.batch(step, generator))
        for name in ("divergence", "radius"):
            if name in loss.parts:
                logged.setdefault(name, []).append(float(loss.parts[name].detach()))
    return FineTuned(system.network.eval(), {name: sum(v) / len(v) for name, v in logged.items()})


def judge(task: Task, network: nn.Module, seed: int) -> dict[str, float]:
    """Scores on the source and, on average, the other domains, and there the mean KL from the network at the
    start and the sharpness."""
    network.eval()
    start = task.network(seed).eval()
    unseen = [batch for examples in task.unseen.values() for batch in examples[:1]]
    with torch.no_grad():
        pairs = [(start(x).log_softmax(-1), network(x).log_softmax(-1)) for x, _ in unseen]
    drift = [float((there.exp() * (there - now)).sum(-1).mean()) for there, now in pairs]
    scores = [task.score(network, examples) for examples in task.unseen.values()]
    return {
        "source": task.score(network, task.source),
        "unseen": sum(scores) / len(scores),
        "drift": sum(drift) / len(drift),
        "sharpness": epsilon_sharpness(network, unseen, epsilon=1e-3, steps=5),
    }


@torch.no_grad()
def mean_loss(network: nn.Module, examples: Examples) -> float:
    """Mean cross-entropy in nats, in evaluation mode."""
    network.eval()
    losses = [nn.functional.cross_entropy(network(x), y, reduction="sum") for x, y in examples]
    return float(sum(losses)) / sum(len(y) for _, y in examples)


@lru_cache(maxsize=1)
def pretrained_text(steps: int = 600, characters: int = 120_000) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small decoder of characters that read the docstrings of four packages, and the texts of all six.

    The seeds of a reproduction share it, as they share a paper's pretrained model. Not to be changed.
    """
    from unseen.sequences.train_bytes import train_byte_model

    texts = {name: package_text(name, characters) for name in (*PRETRAINING, FINE_TUNING, NEVER_SEEN)}
    corpus = torch.cat([texts[name][len(texts[name]) // 5 :] for name in PRETRAINING])
    return train_byte_model(0, steps, WINDOW, width=64, layers=2, heads=4, corpus=corpus), texts


def package_text(package: str, characters: int) -> Tensor:
    """(N,) ASCII codes of the docstrings of an installed package, files in random order, N at most `characters`."""
    root = Path(next(iter(importlib.util.find_spec(package).submodule_search_locations)))  # type: ignore
    files = sorted(root.rglob("*.py"))
    random.Random(0).shuffle(files)
    pieces: list[str] = []
    length = 0
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                text := ast.get_docstring(node)
            ):
                pieces.append(text)
                length += len(text) + 1
        if length >= characters:
            break
    joined = "\n".join(pieces)[:characters].encode("ascii", "replace")
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).long()


@lru_cache(maxsize=1)
def pretrained_digits(steps: int = 400) -> tuple[Network, Tensor, Tensor]:
    """A perceptron with layer normalisation that learned MNIST's ten digits in many styles, and the digits."""
    from unseen.papers.digit_styles import random_styles
    from unseen.shifts.builtin.digit_images import mnist

    images, digits = mnist()
    images = images[:, None].float() / 255
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(784, 128), nn.LayerNorm(128), nn.ReLU()]
        network = Network(nn.Sequential(*layers, nn.Linear(128, 128), nn.LayerNorm(128), nn.ReLU()), 128, 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        logits = network(random_styles(images[rows], derive_seed(0, step)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, digits[rows]).backward()
        optimizer.step()
    return network.eval(), images, digits
