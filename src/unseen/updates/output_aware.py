"""What rules share that look at the outputs of the network they train, beside its loss."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from unseen.errors import InputError
from unseen.updates.perturbed import PerturbedStep


class OutputAware(PerturbedStep):
    """A perturbed step that reads the outputs of one network, `module.network`."""

    def bind(self, module: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Self:
        if options.get("stacked"):
            problem, remedy = "reads the outputs of one network at a time", "Train its runs one by one."
            raise InputError(type(self).__name__, problem, remedy)
        network = getattr(module, "network", None)
        if not isinstance(network, nn.Module):
            remedy = "Bind it to a TrainingSystem, or to any module with a module `network`."
            problem = f"finds no network in the {type(module).__name__} that it moves"
            raise InputError(type(self).__name__, problem, remedy)
        if getattr(getattr(module, "objective", None), "several_views", False):
            problem = (
                f"reads inputs as the network does, but {type(module.objective).__name__} makes several views"
            )
            raise InputError(type(self).__name__, problem, "Choose another objective or update rule.")
        super().bind(module, optimizer, **options)
        self.network = network
        return self
