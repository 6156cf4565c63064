"""A learner: network + objective + update rule + averaging + optimizer settings, as one value."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from unseen.errors import InputError, nearest
from unseen.networks.layers import parse_layers
from unseen.registry import Spec, averaging, networks, objectives, updates


@dataclass(frozen=True)
class Learner:
    """A way to learn: hashable, comparable, picklable, printable; `Learner(objective="irm", update="sam")`.

    objective, update, averaging, network, backbone
                     registered names, with options: "irm(penalty_weight=10)"; averaging and backbone may be None
    optimizer        "adam", "adamw" or "sgd" (momentum 0.9)
    learning_rate    peak learning rate
    layer_decay      the rate of each layer is this times that of the layer above, in (0, 1]; the head has the whole
    layers           which layers are trained, by position from the inputs to the head: ":" all, "-1" the head
                     alone, "0" the first, "1:-1" those between (see `unseen.networks.layers`)
    weight_decay     decoupled for adamw, an L2 penalty otherwise
    schedule         "constant", "linear" or "cosine" (both to zero)
    warmup           share of the steps in which the learning rate rises linearly, in [0, 1)
    steps            number of updates
    batch_size       examples of each training domain in a step
    clip             largest norm of the gradient, or None
    evaluations      how often ID validation (and, for the record, the unseen domains) is measured
    patience         stop after so many evaluations without a better ID validation, or None
    keep             "best": weights of the best ID validation; "last": the last ones. Averaging overrides it.
    """

    objective: Spec = Spec("erm")
    update: Spec = Spec("plain")
    averaging: Spec | None = None
    network: Spec = Spec("auto")
    backbone: Spec | None = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    layer_decay: float = 1.0
    layers: str = ":"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    steps: int = 300
    batch_size: int = 32
    clip: float | None = None
    evaluations: int = 10
    patience: int | None = None
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        for name in ("objective", "update", "averaging", "network", "backbone"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Spec.of(value))
        for name, choices in (
            ("optimizer", ("adam", "adamw", "sgd")),
            ("schedule", ("constant", "linear", "cosine")),
            ("keep", ("best", "last")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} {getattr(self, name)!r}", "is not known", nearest(getattr(self, name), choices)
                )
        for name in ("steps", "batch_size", "evaluations", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(name, f"is {getattr(self, name)}", "Give a whole number from 1.")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                "weight_decay", f"is {self.weight_decay}", "Give a number from 0, such as 0.0001."
            )
        if self.clip is not None and not self.clip > 0:
            raise InputError("clip", f"is {self.clip}", "Give the largest norm of the gradient, such as 1.0.")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise InputError(
                "learning_rate", f"is {self.learning_rate}", "Give a positive number such as 0.001."
            )
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                "layer_decay", f"is {self.layer_decay}", "Give a factor in (0, 1], such as 0.75."
            )
        parse_layers(self.layers)
        if not 0 <= self.warmup < 1:
            raise InputError("warmup", f"is {self.warmup}", "Give the share of steps, from 0 to below 1.")

    @classmethod
    def parse(cls, text: str, **settings: Any) -> Learner:
        """From a string of registered names: "irm", "hgp(alpha=0.01)+sam+swad"; settings are the other fields.

        Each name is looked up among objectives, update rules and averaging; what is not named stays default.
        """
        chosen: dict[str, Any] = {}
        for part in split_outside_parentheses(text, "+"):
            spec = Spec.of(part)
            kinds = {"objective": objectives, "update": updates, "averaging": averaging}
            kind = next((k for k, registry in kinds.items() if spec.name in registry), None)
            if kind is None and spec.name in networks:
                raise InputError(
                    f"learner {text!r}",
                    f"names {spec.name!r}, which is a network",
                    f"Give it as the network of another learner: network={str(spec)!r}; on the command line --network.",
                )
            if kind is None:
                names = [name for registry in kinds.values() for name in registry.names()]
                raise InputError(
                    f"learner {text!r}", f"names {spec.name!r}, which is not known", nearest(spec.name, names)
                )
            if kind in chosen:
                raise InputError(
                    f"learner {text!r}", f"names two of the kind {kind!r}", "Name one of each kind."
                )
            chosen[kind] = spec
        learner = cls(**{**settings, **chosen})
        learner.check()
        return learner

    def check(self) -> None:
        """Build every named piece once, so that a wrong name or option is reported before training."""
        objectives.build(self.objective)
        updates.build(self.update)
        if self.averaging is not None:
            averaging.build(self.averaging)
        if self.network.name != "auto":  # it cannot be built before the shape of its inputs is known
            networks.check(self.network, context=("input_shape", "classes"))

    @property
    def name(self) -> str:
        """Short and readable: "irm+sam+swad"; what is plain or absent is left out."""
        parts = [str(self.objective)]
        if self.update != Spec("plain"):
            parts.append(str(self.update))
        if self.averaging is not None:
            parts.append(str(self.averaging))
        return "+".join(parts)

    def replace(self, **changes: Any) -> Learner:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value.to_json() if isinstance(value, Spec) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Learner:
        return cls(**values)

    @property
    def key(self) -> str:
        """Hash of everything that decides the result, equal in every process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return self.name

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of update `step` (from 0)."""
        rising = self.warmup * self.steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        progress = (step - rising) / max(1.0, self.steps - rising)
        if self.schedule == "linear":
            return self.learning_rate * (1 - progress)
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate

    def evaluation_steps(self) -> list[int]:
        """Steps after which validation is measured: `evaluations` of them, evenly spread, the last included."""
        count = min(self.evaluations, self.steps)
        return sorted({round((i + 1) * self.steps / count) - 1 for i in range(count)})


def split_outside_parentheses(text: str, mark: str) -> list[str]:
    """Parts of `text` between marks that are not inside parentheses; empty parts are left out."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == mark and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [part for part in [*parts, current] if part.strip()]
