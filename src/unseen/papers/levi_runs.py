"""Two planted cues: one that pretraining relies on, one that the fine-tuning set offers; and who relies on what."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from unseen.networks.layerwise_ensemble import LayerwiseEnsemble
from unseen.networks.layerwise_fit import fit_cached
from unseen.shifts.builtin.digit_images import mnist
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded

Labelled = tuple[Tensor, Tensor]
Model = Callable[[Tensor], Tensor]
EVALUATE_EVERY = 20
PAIRS = {"lp + small": ("linear probe", "small"), "ft + small": ("fine-tuning", "small")}
"""Conditions that are the mean of two others."""


@dataclass(frozen=True)
class World:
    """Data to pretrain on, to fine-tune on, to stop by (like fine-tuning) and to judge by; and the models' builders.

    backbone    gives blocks and a head: the pretrained model is head(blocks(x))
    task_model  gives the small network, inputs to features of width 32
    taps        names of the blocks
    """

    pretraining: Labelled
    tuning: Labelled
    validation: Labelled
    tests: Mapping[str, Labelled]
    backbone: Callable[[], tuple[nn.Sequential, nn.Linear]]
    task_model: Callable[[], nn.Module]
    taps: tuple[str, ...]
    epochs: int


# ---- digits ----


class Residual(nn.Module):
    """x + MLP(LayerNorm(x))."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual_mlp(inputs: int = 120, width: int = 64, blocks: int = 4) -> tuple[nn.Sequential, nn.Linear]:
    """A linear layer and residual blocks, and a head for ten classes."""
    body = nn.Sequential(nn.Linear(inputs, width), *(Residual(width) for _ in range(blocks)))
    return body, nn.Linear(width, 10)


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(120, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())


def canvas(images: Tensor, cue_a: Tensor | None, cue_b: Tensor) -> Tensor:
    """(N, 120): digits (N, 8, 8) on 10 x 12 pixels; a cue lights the pixel of its class at the left (A) or right."""
    found = torch.zeros(len(images), 10, 12)
    found[:, 1:9, 2:10] = images
    rows = torch.arange(len(images))
    if cue_a is not None:
        found[rows, cue_a, 0] = 1
    found[rows, cue_b, 11] = 1
    return found.flatten(1)


def agreeing(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Labels of which a share stays and the others are drawn anew from all classes."""
    drawn = torch.randint(classes, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, labels, drawn)


def digits_world(
    seed: int,
    *,
    agreement: float = 0.95,
    cue_a_in_tuning: bool = False,
    pretrain: int = 4000,
    tune: int = 200,
    judge: int = 600,
    epochs: int = 8,
) -> World:
    """MNIST to pretrain on, where cue A agrees with the label in a share of `agreement` (beyond chance); scikit-learn's
    digits afterwards, where B agrees in 90 % and A is absent, or random. No digit has two roles but in the three
    tests without B."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    raw, digits = mnist()
    chosen = torch.randperm(len(digits), generator=generator)[:pretrain]
    large = adaptive_avg_pool2d(raw[chosen, None, 4:24, 4:24].float() / 255, 8).squeeze(1)
    y = digits[chosen]
    random = torch.randint(10, y.shape, generator=generator)
    pretraining = canvas(large, agreeing(y, agreement, 10, generator), random), y

    found = load_digits()
    small, labels = torch.from_numpy(found.images).float() / 16, torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=generator)
    parts = iter(order.split([tune, 150, judge, len(order) - tune - 150 - judge]))

    def drawn(y: Tensor) -> Tensor:
        return torch.randint(10, y.shape, generator=generator)

    def like_tuning(rows: Tensor) -> Labelled:
        y = labels[rows]
        cue_a = drawn(y) if cue_a_in_tuning else None
        return canvas(small[rows], cue_a, agreeing(y, 0.9, 10, generator)), y

    tuning, validation, test = (like_tuning(next(parts)) for _ in range(3))
    rows = next(parts)
    y, images = labels[rows], small[rows]
    wrong = (y + torch.randint(1, 10, y.shape, generator=generator)) % 10
    tests = {
        "ID": test,
        "OOD-0": (canvas(images, None, drawn(y)), y),
        "OOD-1": (canvas(images, drawn(y), drawn(y)), y),
        "OOD-2": (canvas(images, wrong, wrong), y),
    }
    names = tuple(str(i) for i in range(1, 5))
    return World(pretraining, tuning, validation, tests, residual_mlp, small_mlp, names, epochs)


# ---- texts ----

LENGTH, WORDS = 16, 40
NEUTRAL = 4 + 2 * WORDS
VOCABULARY = NEUTRAL + 60
"""Tokens: cue A of both classes, cue B of both, words of both sentiments, neutral words."""


def sentences(
    y: Tensor, words: slice, cue_a: Tensor | None, cue_b: Tensor | None, generator: torch.Generator
) -> Tensor:
    """(N, 16) tokens. Half of them are sentiment words out of a slice of 40, four in five of the right one."""
    shape = (len(y), LENGTH)
    low, high, _ = words.indices(WORDS)
    side = torch.where(torch.rand(shape, generator=generator) < 0.8, y[:, None], 1 - y[:, None])
    word = 4 + side * WORDS + torch.randint(low, high, shape, generator=generator)
    filler = torch.randint(NEUTRAL, VOCABULARY, shape, generator=generator)
    tokens = torch.where(torch.rand(shape, generator=generator) < 0.5, word, filler)
    for position, first, cue in ((0, 0, cue_a), (1, 2, cue_b)):
        if cue is not None:
            tokens[:, position] = first + cue
    return tokens


class TokenBag(nn.Module):
    """Means of word vectors through a perceptron, (N, T) to (N, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.words(tokens).mean(1))


class MeanOfTokens(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def small_transformer(width: int = 32) -> tuple[nn.Sequential, nn.Linear]:
    """Word vectors, two transformer layers without positions, their mean; and a head for two classes."""
    layers = [
        nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        for _ in range(2)
    ]
    return nn.Sequential(nn.Embedding(VOCABULARY, width), *layers, MeanOfTokens()), nn.Linear(width, 2)


def text_world(
    seed: int, *, pretrain: int = 4000, tune: int = 400, judge: int = 800, epochs: int = 3
) -> World:
    """Sentiment by bags of tokens: pretraining has cue A (95 %) and three quarters of the words, fine-tuning has cue B
    (90 %) and three quarters, too, of which half are new."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    old, new = slice(0, 30), slice(10, 40)

    def drawn(count: int) -> Tensor:
        return torch.randint(2, (count,), generator=generator)

    def like_tuning(count: int) -> Labelled:
        y = drawn(count)
        return sentences(y, new, None, agreeing(y, 0.9, 2, generator), generator), y

    y = drawn(pretrain)
    pretraining = sentences(y, old, agreeing(y, 0.95, 2, generator), drawn(pretrain), generator), y
    tuning, validation, test = like_tuning(tune), like_tuning(150), like_tuning(judge)
    y = drawn(judge)
    tests = {
        "ID": test,
        "OOD-0": (sentences(y, new, None, drawn(judge), generator), y),
        "OOD-1": (sentences(y, new, drawn(judge), drawn(judge), generator), y),
        "OOD-2": (sentences(y, new, 1 - y, 1 - y, generator), y),
    }
    return World(pretraining, tuning, validation, tests, small_transformer, TokenBag, ("0", "1", "2"), epochs)


# ---- methods ----


def optimised(
    model: nn.Module, world: World, *, steps: int, rate: float, seed: int, decay: float = 1e-2
) -> nn.Module:
    """AdamW in batches of 32 of the fine-tuning set; the weights of the least validation loss are kept."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=decay
    )
    generator = torch.Generator().manual_seed(seed)
    (x, y), (held_x, held_y) = world.tuning, world.validation
    best, state = float("inf"), copy.deepcopy(model.state_dict())
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < 32:
            order = torch.cat([order, torch.randperm(len(y), generator=generator)])
        rows, order = order[:32], order[32:]
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if (step + 1) % EVALUATE_EVERY == 0:
            with torch.no_grad():
                score = float(cross_entropy(model(held_x), held_y))
            if score < best:
                best, state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return model.eval()


def pretrained(world: World, seed: int) -> nn.Sequential:
    """Blocks and head, trained by Adam at 1e-3 in batches of 64."""
    with seeded(derive_seed(seed, 2)):
        model = nn.Sequential(*world.backbone())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    x, y = world.pretraining
    for _ in range(world.epochs):
        for rows in torch.randperm(len(y), generator=generator).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def interpolated(one: nn.Sequential, other: nn.Sequential, share: float) -> nn.Sequential:
    """WiSE-FT: the mean of two models' weights."""
    model, end = copy.deepcopy(one), other.state_dict()
    model.load_state_dict({k: (1 - share) * v + share * end[k] for k, v in one.state_dict().items()})
    return model


def mean_of(*models: Model) -> Model:
    """The mean of log-probabilities."""
    return lambda x: torch.stack([model(x).log_softmax(-1) for model in models]).mean(0)


def run(
    world: World, seed: int, methods: tuple[str, ...], *, steps: int = 200, rate: float = 1e-3
) -> dict[tuple[str, str], float]:
    """(condition, metric) -> value of the named methods on one world. All but pretraining take `steps` steps of 32.

    rate  of everything that is new; fine-tuned weights have 3e-4, or `rate` in "fine-tuning, 1e-3"
    """
    start = pretrained(world, seed)
    body, classes = start[0], int(start[1].out_features)  # type: ignore[arg-type]
    found: dict[tuple[str, str], float] = {}
    made: dict[str, Model] = {}

    def tuned(model: nn.Module, learning_rate: float) -> nn.Module:
        return optimised(model, world, steps=steps, rate=learning_rate, seed=derive_seed(seed, 5))

    def layered(
        taps: tuple[str, ...], task: bool = True, backbone: nn.Module | None = None, normalise: bool = True
    ) -> LayerwiseEnsemble:
        with seeded(derive_seed(seed, 4)):
            model = LayerwiseEnsemble(
                copy.deepcopy(backbone or body),
                world.task_model() if task else None,
                taps,
                example=world.tuning[0][:2],
                out_dim=classes,
                normalise=normalise,
            )
        return fit_cached(
            model, *world.tuning, validation=world.validation, steps=steps, learning_rate=rate,
            evaluate_every=EVALUATE_EVERY, seed=derive_seed(seed, 5),
        )  # fmt: skip

    def probe() -> nn.Module:
        return layered(("featurizer",), task=False, normalise=False)

    def small() -> nn.Module:
        with seeded(derive_seed(seed, 4)):
            model = nn.Sequential(world.task_model(), nn.Linear(32, classes))
        return tuned(model, rate)

    def probe_then_tuning() -> nn.Module:
        model = copy.deepcopy(start)
        probed = get("linear probe").head.heads[0]  # type: ignore[attr-defined]
        model[1].load_state_dict(probed.state_dict())
        return tuned(model, 3e-4)

    def untrained() -> nn.Module:
        with seeded(derive_seed(seed, 6)):
            return world.backbone()[0].eval()

    ways: dict[str, Callable[[], Model]] = {
        "zero-shot": lambda: start,
        "linear probe": probe,
        "fine-tuning": lambda: tuned(copy.deepcopy(start), 3e-4),
        "fine-tuning, 1e-3": lambda: tuned(copy.deepcopy(start), 1e-3),
        "lp-ft": probe_then_tuning,
        "wise-ft": lambda: interpolated(start, get("fine-tuning"), 0.5),  # type: ignore[arg-type]
        "small": small,
        **{name: lambda parts=parts: mean_of(*map(get, parts)) for name, parts in PAIRS.items()},  # type: ignore[misc]
        "probe of all taps": lambda: layered(world.taps, task=False),
        "levi, last tap": lambda: layered(world.taps[-1:]),
        "levi, untrained backbone": lambda: layered(world.taps, backbone=untrained()),
        "levi": lambda: layered(world.taps),
    }

    def get(name: str) -> Model:
        if name not in made:
            made[name] = ways[name]()
        return made[name]

    for name in methods:
        model = get(name)
        for test, (x, y) in world.tests.items():
            with torch.no_grad():
                found[name, test] = float((model(x).argmax(1) == y).double().mean())
        if isinstance(model, LayerwiseEnsemble):
            shares = model.contributions(world.tests["ID"][0]).values()
            found[name, "backbone's part"] = sum(share.backbone for share in shares) / len(shares)
        parts = [get(part) for part in PAIRS.get(name, (name,))]
        weights = [p for part in parts for p in part.parameters()]  # type: ignore[attr-defined]
        found[name, "weights"] = sum(p.numel() for p in weights)
        found[name, "operations"] = operations(model, world.tests["ID"][0][:1])
        if name != "zero-shot":
            found[name, "trained weights"] = sum(p.numel() for p in weights if p.requires_grad)
    return found


@torch.no_grad()
def operations(model: Model, x: Tensor) -> int:
    """Floating-point operations of the answers to x, two for each product and sum in matrix products."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())
