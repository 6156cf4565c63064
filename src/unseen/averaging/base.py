"""The averaging contract: how the weights seen in training become the final ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unseen.networks.freezing import is_frozen
from unseen.networks.modes import modes_kept

StateDict = dict[str, Tensor]


class Averaging:
    """Sees the network after every step and gives the final weights.

    Only floating-point entries are averaged; others (counters) are taken from the last network seen.
    """

    elementwise = False
    """Whether each number is averaged by itself, whatever the others and the validation loss are: then many
    runs can be averaged as one stack."""

    chooses = False
    """Whether `choose` does anything: such a run is trained by itself, not in a stack."""

    def setup(self, *, steps: int) -> None:
        """Called once before training with the planned number of updates."""

    def begin(self, model: nn.Module) -> None:
        """Called once before the first update, on the weights that training starts from; not in a resumed run."""

    def observe(self, step: int, model: nn.Module, validation_loss: float | None) -> None:
        """Called after update `step` (from 0); `validation_loss` (ID) is given at evaluations, else None."""
        raise TypeError(f"{type(self).__name__} must define observe")

    def choose(self, score: Callable[[StateDict], float]) -> dict[str, Any]:
        """Called once after the last update if `chooses`: settle what is left open by scores (higher is better) of
        states on ID validation data. Gives facts about the choice, for the record of the run. Who asks for scores
        has a result."""
        return {}

    def result(self) -> StateDict | None:
        """The averaged state, or None when nothing was collected (keep the trained weights)."""
        raise TypeError(f"{type(self).__name__} must define result")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after an interruption: tensors and plain values."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


@torch.no_grad()
def snapshot(model: nn.Module) -> StateDict:
    """A copy of the network's state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class RunningMean:
    """Mean of states, kept as one state: no copies of the states that went in."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: StateDict = {}

    @torch.no_grad()
    def add(self, state: Mapping[str, Tensor], count: int = 1) -> None:
        """Add a state that is itself the mean of `count` states."""
        self.count += count
        for name, value in state.items():
            if name not in self.mean or not value.is_floating_point():
                self.mean[name] = value.detach().clone()
            else:
                self.mean[name].lerp_(value, count / self.count)


def has_batch_statistics(model: nn.Module) -> bool:
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules()
    )


@torch.no_grad()
def estimate_batch_statistics(model: nn.Module, batches: Callable[[], Any]) -> None:
    """Recompute running means and variances of batch normalisation: averaged weights have others.

    `batches()` iterates over network inputs (Izmailov et al. 2018, section 3.2). Frozen layers keep theirs.
    """
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    layers = [layer for layer in norms if not is_frozen(layer)]
    momenta = [layer.momentum for layer in layers]
    with modes_kept(model):
        model.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative mean
        for x in batches():
            model(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
