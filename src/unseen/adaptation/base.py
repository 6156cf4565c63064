"""The adaptation contract: answer a batch of a stream, learn from it, and be able to forget."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unseen.adaptation.normalisation import normalisation_parameters, use_test_statistics
from unseen.errors import InputError
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.shift import count_rows

State = dict[str, Any]
"""Tensors, numbers and dicts or lists of these: what `torch.load(weights_only=True)` reads."""


class Adaptation:
    """Answers a stream of unlabelled inputs with a network that it adapts on the way.

    network  a `Network`, anything that holds one as `network` (a predictor), or a module that gives logits. It is
             copied and never changed; the copy stays in evaluation mode
    seed     of everything random (augmentations, restored weights)

    Subclasses define `answer(x)`. Everything that a method learns is in one of five places, so that `reset` is exact
    and `state_dict` complete: tensors of `self.network` that `changing()` names, `self.memory` (which `begin`
    makes), the optimizer, the state of `self.generator`, and `self.prepared` (which `prepare` fills and `reset`
    leaves).
    `unseen.testing.check_adaptation` checks all this.
    """

    needs_head: ClassVar[bool] = False
    """Whether the method reads features and the linear head, so that it needs a `Network`."""

    needs_source: ClassVar[bool] = False
    """Whether `prepare` must be called with inputs of the training distribution before the first batch."""

    def __init__(self, network: nn.Module, *, seed: int = 0):
        module = getattr(network, "network", network)
        if not isinstance(module, nn.Module):
            raise InputError("network", f"is a {type(network).__name__}", "Give a Network or a predictor.")
        if self.needs_head and not (
            hasattr(module, "featurizer") and isinstance(getattr(module, "head", None), nn.Linear)
        ):
            raise InputError(
                f"network {type(module).__name__}",
                f"has no featurizer and linear head, which {type(self).__name__} reads",
                "Wrap it in unseen.networks.Network.",
            )
        self.network = copy.deepcopy(module).eval().requires_grad_(False)
        self.seed = seed
        self.optimizer: torch.optim.Optimizer | None = None
        self.memory: State = {}
        self.prepared: State = {}
        self._configure()
        self.network.eval()  # layers that came in, too
        self._source = {name: tensor.detach().clone() for name, tensor in self.changing().items()}
        self.reset()

    def _configure(self) -> None:
        """Called once on the copy, before anything is learnt: exchange layers, choose parameters."""

    def changing(self) -> dict[str, Tensor]:
        """Tensors of the network's state that adaptation changes, by name; none by default."""
        return {}

    def begin(self) -> State:
        """What the method remembers besides weights, as it is before the first batch."""
        return {}

    def make_optimizer(self) -> torch.optim.Optimizer | None:
        return None

    def prepare(self, source: Iterable[Inputs]) -> None:
        """Learn from batches of network inputs of the training distribution, without labels; most need none.

        A method that does sets `needs_source`, and starts from `reset`.
        """

    def answer(self, x: Inputs) -> Tensor:
        """Logits (B, C) for checked inputs; gradients are enabled."""
        raise TypeError(f"{type(self).__name__} must define answer(x) -> Tensor")

    def adapt(self, x: Inputs) -> Tensor:
        """Answer one batch and learn from it.

        x   inputs as the network takes them, (B, ...) or a dict of such tensors, B >= 1
        Returns logits (B, C) without gradient. Raises InputError for an empty batch and for NaN, which would stay
        in the adapted weights.
        """
        if not count_rows(x):
            raise InputError("batch", "is empty", "Give at least one example.")
        map_tensors(_require_finite, x)
        with torch.inference_mode(False), torch.enable_grad():
            # tensors of inference mode cannot take part in a gradient, copies of them can
            return self.answer(map_tensors(lambda t: t.clone() if t.is_inference() else t, x)).detach()

    def reset(self) -> None:
        """Forget the stream: weights, memory, optimizer and random numbers are what they were at the beginning.

        What `prepare` learnt of the training distribution stays.
        """
        self.restore_weights()
        self.memory = self.begin()
        self.generator = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Give weights and optimizer their first state; memory and random numbers go on."""
        for name, tensor in self.changing().items():
            tensor.copy_(self._source[name])
        self.optimizer = self.make_optimizer()

    def state_dict(self) -> State:
        """A copy of everything learnt from the stream: another instance goes on from it as this one would."""
        return copy.deepcopy(
            {
                "network": {name: tensor.detach() for name, tensor in self.changing().items()},
                "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
                "memory": self.memory,
                "prepared": self.prepared,
                "generator": self.generator.get_state(),
            }
        )

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another instance of the same method on the same network."""
        tensors = self.changing()
        if set(tensors) != set(state["network"]):
            unlike = sorted(set(tensors) ^ set(state["network"]))
            raise InputError(
                "adaptation state",
                f"is of another network or method: {unlike[0]!r} is in one of the two only",
                "Load it into the method that it was saved from.",
            )
        for name, tensor in tensors.items():
            tensor.copy_(state["network"][name])
        self.optimizer = self.make_optimizer()
        if self.optimizer is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.memory = copy.deepcopy(state["memory"])
        self.prepared = copy.deepcopy(state["prepared"])
        self.generator.set_state(state["generator"])


class GradientAdaptation(Adaptation):
    """Learns by gradient steps on a loss of the batch; subclasses define `loss(x)`.

    learning_rate  of the optimizer
    optimizer      "sgd" or "adam"
    momentum       of SGD, or the first beta of Adam
    steps          updates for each batch; the last forward pass before an update is the answer
    prior          how batch normalisation is estimated: 0 takes the statistics of the batch alone, N > 0 mixes in
                   those of training as if they came from N examples (see `unseen.adaptation.normalisation`)
    Learns the scales and shifts of all normalisation layers, unless a subclass chooses other `parameters`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float,
        optimizer: Literal["sgd", "adam"],
        momentum: float = 0.9,
        steps: int = 1,
        prior: float = 0.0,
        seed: int = 0,
    ):
        if not (learning_rate > 0 and 0 <= momentum < 1 and steps >= 1):
            raise InputError(
                "learning_rate, momentum or steps",
                f"are {learning_rate}, {momentum} and {steps}",
                "Give a positive rate, a momentum in [0, 1) and steps from 1.",
            )
        if optimizer not in ("sgd", "adam"):
            raise InputError(f"optimizer {optimizer!r}", "is not known", "Use 'sgd' or 'adam'.")
        self.learning_rate, self.optimizer_name, self.momentum = learning_rate, optimizer, momentum
        self.steps, self.prior = steps, prior
        super().__init__(network, seed=seed)

    def _configure(self) -> None:
        use_test_statistics(self.network, self.prior)
        self._parameters = self.parameters()
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is learnt, by name."""
        return normalisation_parameters(self.network)

    def changing(self) -> dict[str, Tensor]:
        return dict(self._parameters)

    def make_optimizer(self) -> torch.optim.Optimizer:
        parameters = list(self._parameters.values())
        if self.optimizer_name == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate, betas=(self.momentum, 0.999))
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)

    def loss(self, x: Inputs) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C), and the loss to descend, or None where the batch teaches nothing."""
        raise TypeError(f"{type(self).__name__} must define loss(x) -> (logits, loss)")

    def answer(self, x: Inputs) -> Tensor:
        for _ in range(self.steps):
            logits, loss = self.loss(x)
            if loss is not None:
                self.descend(loss)
        return logits

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _require_finite(tensor: Tensor) -> Tensor:
    bad = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.dim() > 1 else ~torch.isfinite(tensor)
    if bad.any():
        raise InputError(
            "batch",
            f"has NaN or infinite values in {int(bad.sum())} row(s), first in row {int(bad.nonzero()[0])}",
            "Leave these examples out.",
        )
    return tensor
