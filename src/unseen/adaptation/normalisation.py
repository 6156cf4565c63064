"""Normalisation layers at test time: their statistics, and the scales and shifts that most methods adapt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unseen.errors import InputError

NORMALISATIONS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers whose scale and shift are adapted; of these, batch normalisation alone has statistics to adapt."""


class BatchNormStandIn(nn.Module):
    """What takes the place of a batch normalisation in an adapted network.

    Names of weights and buffers are those of the layer, so the adapted weights load into the original architecture.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm, *, needs_statistics: bool):
        super().__init__()
        if needs_statistics and layer.running_mean is None:
            raise InputError(
                "batch normalisation of the network",
                "keeps no statistics of training (track_running_stats=False)",
                "Choose a method that takes those of the batch alone, with prior=0.",
            )
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))


class MixedBatchNorm(BatchNormStandIn):
    """Batch normalisation by the statistics of training and of the batch at hand.

    With n examples in the batch the mean is (N mu_source + n mu_batch) / (N + n), and the (biased) variance
    likewise: N = `prior` = 0 is prediction-time batch normalisation (Nado et al. 2020, arXiv 2006.10963), N > 0
    Schneider et al. 2020, arXiv 2006.16971.
    examples  n where it is not the size of the batch: 1 for a batch of copies of one example
    """

    def __init__(self, layer: _BatchNorm, prior: float, examples: int | None = None):
        super().__init__(layer, needs_statistics=prior > 0)
        self.prior, self.examples = prior, examples

    def forward(self, x: Tensor) -> Tensor:
        if not self.prior:
            if len(x) == 1:
                raise InputError(
                    "batch of one example",
                    "has no batch statistics",
                    "Give larger batches, or mix in statistics of training with prior=16.",
                )
            return nn.functional.batch_norm(
                x, None, None, self.weight, self.bias, training=True, eps=self.eps
            )
        mean, variance = channel_statistics(x)
        count = self.examples or len(x)
        share = count / (count + self.prior)
        mean = torch.lerp(self.running_mean, mean, share)
        return normalise(x, mean, torch.lerp(self.running_var, variance, share), self)


class RobustBatchNorm(BatchNormStandIn):
    """Batch normalisation by a moving average of statistics, which training mode moves before it is used.

    Yuan et al. 2023, arXiv 2303.13899; `rate` is the weight of the new batch, through which
    gradients flow.
    """

    def __init__(self, layer: _BatchNorm, rate: float):
        super().__init__(layer, needs_statistics=True)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            new_mean, new_variance = channel_statistics(x)
            mean, variance = (
                torch.lerp(mean, new_mean, self.rate),
                torch.lerp(variance, new_variance, self.rate),
            )
            with torch.no_grad():  # in place: a teacher's statistics are tensors that its caller holds
                self.running_mean.copy_(mean)
                self.running_var.copy_(variance)
        return normalise(x, mean, variance, self)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of x (B, C, ...), over examples and positions."""
    variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    return mean, variance


def normalise(x: Tensor, mean: Tensor, variance: Tensor, layer: BatchNormStandIn) -> Tensor:
    """(x - mean) / sqrt(variance + eps), scaled and shifted by the layer's weights; differentiable in all."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    x = (x - mean.view(shape)) * (variance + layer.eps).rsqrt().view(shape)
    return x if layer.weight is None else x * layer.weight.view(shape) + layer.bias.view(shape)


def exchange_batch_norms(network: nn.Module, stand_in: Callable[[_BatchNorm], BatchNormStandIn]) -> int:
    """Exchange, in place, every batch normalisation; returns how many there were."""
    layers = {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm)}
    for name, layer in layers.items():
        network.set_submodule(name, stand_in(layer))
    return len(layers)


def use_test_statistics(network: nn.Module, prior: float, examples: int | None = None) -> int:
    """Let every batch normalisation take statistics of the batch, in place; returns how many there were.

    prior, examples  as for `MixedBatchNorm`
    """
    if not prior >= 0:
        raise InputError("prior", f"is {prior}", "Give a number of examples from 0, such as 16.")
    return exchange_batch_norms(network, lambda layer: MixedBatchNorm(layer, prior, examples))


def normalisation_parameters(network: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """Scales and shifts of all normalisation layers, by name.

    skip   dotted names, such as "layer4" or "blocks.9": layers within modules of that name are left out
    Raises InputError when there is none: the methods that learn them have nothing to adapt.
    """
    found: dict[str, nn.Parameter] = {}
    skipped = 0
    for name, layer in network.named_modules():
        if isinstance(layer, (*NORMALISATIONS, BatchNormStandIn)):
            if any(f".{part}." in f".{name}." for part in skip):
                skipped += 1
                continue
            found |= {f"{name}.{own}": value for own, value in layer.named_parameters(recurse=False)}
    if not found:
        what = (
            f"has normalisation layers only within {', '.join(skip)}"
            if skipped
            else "has no normalisation layer"
        )
        raise InputError(
            f"network {type(network).__name__}",
            f"{what} with weights: there is nothing to adapt",
            "Choose skip=()." if skipped else "Choose lame or t3a, which adapt the outputs, or shot-im.",
        )
    return found
