"""Views of a pretrained network at several depths, each joined with a small network that the task trains (LEVI)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from unseen.errors import InputError, nearest
from unseen.networks.base import Network, build_network
from unseen.networks.freezing import freeze
from unseen.networks.hypotheses import Hypotheses, HypothesisHead
from unseen.networks.low_rank import inject_low_rank
from unseen.networks.low_rank_network import load_featurizer
from unseen.networks.modes import evaluating
from unseen.networks.simple import default_network
from unseen.networks.taps import layers_of
from unseen.registry import Spec, networks

Taps = int | Sequence[str | int]
Pool = Literal["mean", "cls"] | Callable[[Tensor], Tensor]
Task = Literal["classification", "regression"]
WHOLE = "featurizer"
"""Name of the tap at the whole backbone's output."""


class Contribution(NamedTuple):
    """Shares, summing to one, of the backbone's view and of the task model in what a tap's layer adds up."""

    backbone: float
    task_model: float


class TapHeads(HypothesisHead):
    """One linear head for each tap, on that tap's own stretch of the features; it answers as `mixture` says."""

    def __init__(self, sizes: Sequence[int], outputs: int):
        nn.Module.__init__(self)  # a single tap is allowed, a single hypothesis elsewhere is not
        self.count, self.in_features, self.out_features = len(sizes), sum(sizes), outputs
        self.sizes = list(sizes)
        self.heads: Any = nn.ModuleList(nn.Linear(size, outputs) for size in sizes)
        self.register_buffer("mixture", torch.full((self.count,), 1 / self.count))

    @property
    def weight(self) -> Tensor:
        return torch.cat([share * h.weight for share, h in zip(self.mixture, self.heads, strict=True)], 1)

    @property
    def bias(self) -> Tensor:
        return self.mixture @ torch.stack([head.bias for head in self.heads])

    def all_logits(self, features: Tensor) -> Tensor:
        parts = features.split(self.sizes, -1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])


class TapViews(nn.Module):
    """Inputs to the views of all taps, one after the other: each is a tap's pooled output beside the task model's.

    Both parts are normalised first, lest the larger one drowns the other. With `hidden` units a layer mixes them.
    """

    def __init__(
        self,
        backbone: nn.Module,
        task_model: nn.Module | None,
        taps: Mapping[str, nn.Module],
        pool: Pool,
        example: Any,
        hidden: int,
        normalise: bool,
    ):
        super().__init__()
        self.backbone, self.task_model, self.pool = backbone, task_model, pool
        self.names = tuple(taps)
        self.ranks: dict[str, int] = {}
        with evaluating(self), torch.no_grad():
            widths = [output.shape[1] for output in self.tap_outputs(example).values()]
            z = self.task_features(example)
        extra = 0 if z is None else z.shape[1]

        def norm(width: int) -> nn.Module:
            return nn.LayerNorm(width) if normalise else nn.Identity()

        self.widths, self.task_width = widths, extra
        self.tap_norms: Any = nn.ModuleList(norm(width) for width in widths)
        self.task_norm: Any = norm(extra) if extra else None
        self.mix: Any = nn.ModuleList(nn.Linear(width + extra, hidden) for width in widths if hidden)
        self.sizes = [hidden or width + extra for width in widths]

    def forward(self, x: Any) -> Tensor:
        return self.views(list(self.tap_outputs(x).values()), self.task_features(x))

    def tap_outputs(self, x: Any) -> dict[str, Tensor]:
        """Pooled outputs (N, D) of the taps. Raises `InputError` for what does not fire, fit or stay finite."""
        seen: dict[str, Tensor] = {}

        def watch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[name] = output[0] if isinstance(output, tuple) else output

            return hook

        handles = [
            self.backbone.get_submodule(_path(name)).register_forward_hook(watch(name)) for name in self.names
        ]
        try:
            self.backbone(x)
        finally:
            for handle in handles:
                handle.remove()
        return {name: self._pooled(name, seen) for name in self.names}

    def task_features(self, x: Any) -> Tensor | None:
        """(N, D) of the task model, or None without one."""
        return None if self.task_model is None else self.task_model(x)

    def views(self, taps: Sequence[Tensor], z: Tensor | None) -> Tensor:
        """(N, sum of sizes) from pooled tap outputs and the task model's features."""
        joint = self.joint(taps, z)
        if self.mix:
            joint = [torch.relu(mix(part)) for mix, part in zip(self.mix, joint, strict=True)]
        return torch.cat(joint, 1)

    def joint(self, taps: Sequence[Tensor], z: Tensor | None) -> list[Tensor]:
        """Both parts, normalised, side by side: (N, D_l + D_z) for each tap."""
        own = [] if z is None else [self.task_norm(z)]
        return [torch.cat([norm(tap), *own], 1) for norm, tap in zip(self.tap_norms, taps, strict=True)]

    def _pooled(self, name: str, seen: Mapping[str, Tensor]) -> Tensor:
        if name not in seen:
            raise InputError(
                f"tap {name!r}",
                "did not fire in the backbone's pass",
                "Name a module that every input passes.",
            )
        output = seen[name]
        if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
            kind = f"a tensor of rank {output.dim()}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"tap {name!r}", f"gives {kind}", "Give one of (N, D), (N, T, D), (N, C, H, W).")
        if self.ranks.setdefault(name, output.dim()) != output.dim():
            raise InputError(
                f"tap {name!r}",
                f"gives outputs of rank {self.ranks[name]} and of rank {output.dim()}",
                "Name a module whose outputs always have one rank.",
            )
        pooled = pooled_output(output, self.pool)
        if pooled.dim() != 2:
            raise InputError(
                "pool", f"gives shape {tuple(pooled.shape)}", "Give (N, D) for each tap's output."
            )
        if not torch.isfinite(pooled).all():
            raise InputError(
                f"tap {name!r}", "gives values that are not finite", "Look at inputs and weights."
            )
        return pooled


class LayerwiseEnsemble(Hypotheses):
    """A backbone that stays (nearly) as it is, beside a small task model; a layer for each tap reads both.

    o_l(x) = A_l [h_l(x); z(x)] + b_l with h_l the pooled output of tap l and z the task model's features; it answers
    with the mean of o_l. That is also the mean of log-probabilities, up to a constant for each example: taps are
    joined like a product of experts, so that a tap of larger logits counts more. `weigh_taps` and `head.choose` give
    other mixtures. LEVI (Roh et al. 2024, arXiv 2402.04644); of its unpublished code the defaults here are a guess.

    backbone    any module; a `Network` gives its featurizer. Frozen and always in evaluation mode, unless `lora`
                (options of `inject_low_rank`) or `tune="full"`
    task_model  a module from the same inputs to features (N, D), a `Network` (its featurizer), the name of a
                registered network, "auto" for a small one by kind of input, or None: a probe of several layers
    taps        module names in the backbone, numbers of its layers (negative from the end), or how many, evenly
                spaced with the last among them
    example     a few inputs as the backbone takes them: they are passed once, for the sizes
    out_dim     classes, or numbers to predict
    pool        of (N, T, D): "mean" over tokens or "cls", the first; maps (N, C, H, W) are averaged over places. Or a
                function of a tap's output that gives (N, D)
    hidden      units of a hidden layer in each adapting layer; 0 for a linear one
    normalise   LayerNorm of both parts before they are joined
    Raises `InputError` for unknown, silent or misshapen taps and for a task model that gives logits.
    """

    featurizer: TapViews
    head: TapHeads

    def __init__(
        self,
        backbone: nn.Module,
        task_model: nn.Module | str | None = "auto",
        taps: Taps = 3,
        *,
        example: Any,
        out_dim: int,
        task: Task = "classification",
        pool: Pool = "mean",
        lora: Mapping[str, Any] | None = None,
        tune: Literal["frozen", "full"] = "frozen",
        hidden: int = 0,
        normalise: bool = True,
    ):
        if task not in ("classification", "regression"):
            raise InputError(f"task {task!r}", "is not known", "Use classification or regression.")
        if not callable(pool) and pool not in ("mean", "cls"):
            raise InputError(f"pool {pool!r}", "is not known", "Use mean, cls or a function.")
        if tune not in ("frozen", "full") or (tune == "full" and lora is not None):
            raise InputError(
                "tune", f"is {tune!r}, lora {lora}", "Use frozen or full, and lora with frozen only."
            )
        backbone = backbone.featurizer if isinstance(backbone, Network) else backbone
        chosen = find_taps(backbone, taps)
        if tune == "frozen":
            freeze(backbone)
        if lora is not None:
            inject_low_rank(backbone, **lora)
        model = _task_model(task_model, example, out_dim)
        views = TapViews(backbone, model, chosen, pool, example, hidden, normalise)
        super().__init__(views, TapHeads(views.sizes, out_dim))
        self.task, self.caches = task, tune == "frozen" and lora is None

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps, in the order of the heads."""
        return self.featurizer.names

    def per_tap_outputs(self, x: Any) -> dict[str, Tensor]:
        """Tap -> (N, out_dim) of its own adapting layer."""
        return dict(zip(self.taps, self.all_logits(x), strict=True))

    def loss(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean over taps of each one's own mean loss; the sum weighted by `weights` (K,), which sum to one.

        outputs (K, N, out_dim); y (N,) classes, or numbers (N,) or (N, out_dim).
        """
        own = torch.stack([self._loss(output, y) for output in outputs])
        return own.mean() if weights is None else own @ weights

    @torch.no_grad()
    def contributions(self, x: Any) -> dict[str, Contribution]:
        """Tap -> how much of what its layer adds up comes from which part: norms of each half times its input."""
        views = self.featurizer
        joint = views.joint(list(views.tap_outputs(x).values()), views.task_features(x))
        found = {}
        for name, layer, width, part in zip(
            self.taps, views.mix or self.head.heads, views.widths, joint, strict=True
        ):
            halves = [
                float((part[:, cut] @ layer.weight[:, cut].T).norm(dim=1).mean())
                for cut in (slice(width), slice(width, None))
            ]
            total = sum(halves) or 1.0
            found[name] = Contribution(halves[0] / total, halves[1] / total)
        return found

    @torch.no_grad()
    def weigh_taps(self, x: Any, y: Tensor) -> Tensor:
        """Let the taps count as suits validation examples best; returns the shares (K,), which sum to one.

        They minimise the loss of the mixed outputs, which is convex in them, by exponentiated gradients (stacked
        regression: Wolpert 1992).
        """
        outputs = self.all_logits(x)
        shares = torch.full_like(self.head.mixture, 1 / self.head.count)
        for _ in range(200):
            with torch.enable_grad():
                free = shares.clone().requires_grad_(True)
                slope = torch.autograd.grad(self._loss(torch.einsum("k,knc->nc", free, outputs), y), free)[0]
            shares = torch.softmax(shares.log() - slope / slope.abs().max().clamp(min=1), 0).clamp(min=1e-12)
        self.head.mixture.copy_(shares / shares.sum())
        return self.head.mixture

    def _loss(self, output: Tensor, y: Tensor) -> Tensor:
        if self.task == "classification":
            return cross_entropy(output, y)
        return mse_loss(output, y.view_as(output))


def find_taps(backbone: nn.Module, taps: Taps) -> dict[str, nn.Module]:
    """Name -> module of the taps; see `LayerwiseEnsemble`."""
    layers, known, found = blocks_of(backbone), dict(backbone.named_modules()), {}
    if isinstance(taps, int):
        if not 1 <= taps <= len(layers):
            raise InputError("taps", f"are {taps}", f"The backbone has {len(layers)} layers to choose from.")
        taps = [round((i + 1) * len(layers) / taps) - 1 for i in range(taps)]
    if isinstance(taps, str) or not len(taps):
        raise InputError("taps", f"are {taps!r}", "Give at least one, in a list, or how many.")
    for tap in taps:
        if isinstance(tap, int):
            if not -len(layers) <= tap < len(layers):
                raise InputError(
                    f"tap {tap}", f"is none of the backbone's {len(layers)} layers", "Count from 0."
                )
            module = layers[tap]
            tap = next(name for name, other in known.items() if other is module)
        elif _path(tap) not in known:
            raise InputError(f"tap {tap!r}", "is no module of the backbone", nearest(tap, known))
        found[tap or WHOLE] = known[_path(tap)]
    return found


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The modules that numbers of taps count: the layers, or what the longest sequence inside them holds."""
    choices = [list(layers_of(backbone).values())]
    for module in backbone.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            choices.append([part for part in module if any(p.dim() > 1 for p in part.parameters())])
    return max(choices, key=len)


def pooled_output(output: Tensor, pool: Pool) -> Tensor:
    """(N, D) of a layer's output (N, D), (N, T, D) or (N, C, H, W)."""
    if callable(pool):
        return pool(output)
    if output.dim() == 4:
        return output.mean((2, 3))
    if output.dim() == 3:
        return output[:, 0] if pool == "cls" else output.mean(1)
    return output


def _path(name: str) -> str:
    return "" if name == WHOLE else name


def _task_model(task_model: nn.Module | str | None, example: Any, out_dim: int) -> nn.Module | None:
    if isinstance(task_model, str):
        shape = (
            {key: tuple(value.shape[1:]) for key, value in example.items()}
            if isinstance(example, dict)
            else tuple(example.shape[1:])
        )
        sizes: dict[str, dict[str, int]] = {"mlp": {"width": 32}, "cnn": {"width": 8}}
        kind = default_network(shape)
        spec = Spec.make(kind, **sizes.get(kind, {})) if task_model == "auto" else task_model
        task_model = build_network(spec, shape, out_dim)
    if isinstance(task_model, Network):
        return task_model.featurizer
    if task_model is None:
        return None
    with torch.no_grad():
        training = task_model.training
        features = task_model.eval()(example)
        task_model.train(training)
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise InputError(
            "task model", "gives no features (N, D)", "Pool its outputs to one vector an example."
        )
    if features.shape[1] == out_dim:
        raise InputError(
            "task model",
            f"gives {out_dim} numbers, as many as the task has outputs: logits, not features",
            "Leave its last layer away, or let it have another width.",
        )
    return task_model


@networks.register(
    "layerwise-ensemble",
    summary="Several layers of a frozen network (`of`), each joined with a small network that is trained",
    paper="Roh et al. 2024, arXiv 2402.04644",
)
def layerwise_ensemble(
    *,
    input_shape: Any,
    classes: int,
    of: str = "mlp",
    task_model: str | None = "auto",
    taps: Taps = 2,
    pool: Literal["mean", "cls"] = "mean",
    hidden: int = 0,
    rank: int = 0,
    targets: str | Sequence[str] = ("q", "v"),
    weights: str | None = None,
) -> LayerwiseEnsemble:
    """The objective `each-hypothesis` gives each tap its own loss, as LEVI has it; `erm` that of their mean.

    of          specification of the backbone: "pretrained(name='efficientnet-lite0')", "transformer(width=64)"
    task_model  specification of the small network, "auto" by kind of input, or None for none
    rank        of low-rank updates of the backbone's `targets`; 0 leaves it as it is
    weights     a model folder or safetensors file of `unseen` for the backbone; a saved model brings its own
    """
    base = build_network(of, input_shape, classes)
    if weights is not None:
        load_featurizer(base.featurizer, weights)
    shapes = input_shape if isinstance(input_shape, dict) else {"": input_shape}
    example: Any = {key: torch.zeros(2, *shape) for key, shape in shapes.items()}
    network = LayerwiseEnsemble(
        base,
        task_model,
        taps,
        example=example if isinstance(input_shape, dict) else example[""],
        out_dim=classes,
        pool=pool,
        lora={"rank": rank, "targets": targets} if rank else None,
        hidden=hidden,
    )
    network.spec = Spec.make(
        "layerwise-ensemble", of=str(of), task_model=task_model, taps=taps, pool=pool, hidden=hidden, rank=rank,
        targets=targets,
    )  # fmt: skip
    return network
