"""Frozen parts of a network: no gradient, and batch statistics and dropout as in evaluation whatever the mode."""

from __future__ import annotations

from typing import Any

from torch import nn


def freeze(module: nn.Module) -> nn.Module:
    """Freeze every part of `module` in place and return it: `train()` of a network around it changes nothing.

    The hooks are no part of its state: names, saved weights and copies stay as they are.
    """
    module.requires_grad_(False)
    for part in module.modules():
        if not is_frozen(part):
            part.register_forward_pre_hook(_stay_in_evaluation)
    return module


def is_frozen(module: nn.Module) -> bool:
    """Whether `freeze` was called on the module or on one that holds it."""
    return _stay_in_evaluation in module._forward_pre_hooks.values()


def _stay_in_evaluation(module: nn.Module, inputs: Any) -> None:
    if module.training:
        module.eval()
