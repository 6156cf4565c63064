"""Networks that also see the domain: what the examples predicted together have in common (ARM, MTL)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network
from unseen.networks.simple import default_network
from unseen.registry import Spec, networks


def group_means(values: Tensor, support: int) -> Tensor:
    """(B, ...) for each row the mean of its group of consecutive rows of `values` (B, ...).

    There are B // support groups (at least one), which differ by one row at most: nobody is left with fewer
    than `support` rows, unless the batch is smaller.
    """
    row = torch.arange(len(values), device=values.device)
    count = torch.ones_like(row).sum()  # a tensor, so that an exported graph takes batches of any size
    group = row * (count // support).clamp(min=1) // count
    together = (group.unsqueeze(1) == group).to(values.dtype)
    return (together / together.sum(1) @ values.flatten(1)).view_as(values)


class _Grouped(nn.Module):
    """A featurizer of groups; in training, rows that are no whole groups are an error."""

    def __init__(self, support: int):
        super().__init__()
        if support < 1:
            raise InputError("support", f"is {support}", "Give the learner's batch_size.")
        self.support = support

    def means(self, values: Tensor) -> Tensor:
        if not self.training or len(values) < self.support:
            return group_means(values, self.support)
        if len(values) % self.support:
            raise InputError(
                f"support {self.support}",
                f"does not divide a training batch of {len(values)}: groups would mix domains",
                "Give the learner's batch_size, the examples of one domain in a step.",
            )
        return values.unflatten(0, (-1, self.support)).mean(1).repeat_interleave(self.support, 0)


class ContextFeaturizer(_Grouped):
    """featurizer([x, c]): c is the mean of `context`(x) over a group, as further channels or coordinates."""

    def __init__(self, context: nn.Module, featurizer: nn.Module, support: int):
        super().__init__(support)
        self.context, self.featurizer = context, featurizer

    def forward(self, x: Tensor) -> Tensor:
        return self.featurizer(torch.cat([x, self.means(self.context(x))], 1))


class MarginalFeaturizer(_Grouped):
    """[f, m]: the features f (B, F) and their mean m over a group, (B, 2 F) together."""

    def __init__(self, featurizer: nn.Module, support: int):
        super().__init__(support)
        self.featurizer = featurizer

    def forward(self, x: Any) -> Tensor:
        features = self.featurizer(x)
        return torch.cat([features, self.means(features)], 1)


def context_network(shape: tuple[int, ...], width: int, size: int) -> nn.Module:
    """Three 5 x 5 convolutions for images (the authors' network), two layers for vectors; `size` outputs."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, size))

    def convolution(inner: int, outer: int) -> nn.Module:
        return nn.Conv2d(inner, outer, 5, padding=2)

    return nn.Sequential(
        convolution(shape[0], width), nn.BatchNorm2d(width), nn.ReLU(),
        convolution(width, width), nn.BatchNorm2d(width), nn.ReLU(),
        convolution(width, size),
    )  # fmt: skip


@networks.register(
    "arm",
    summary="Adaptive risk minimization: a learned context of the batch is a further input (ARM-CML)",
    paper="Zhang et al. 2021, arXiv 2007.02931",
)
def arm(
    *,
    input_shape: Any,
    classes: int,
    base: str = "auto",
    support: int = 32,
    context: int = 1,
    context_width: int = 64,
) -> Network:
    """`base` reads the inputs and the mean of a context network over the examples of one domain.

    support  consecutive examples that share a context. Give the learner's `batch_size`: a training step
             holds so many of one domain after another. At prediction a batch is cut into such groups, too, so
             that an example's prediction depends on its neighbours: predict one domain at a time, and many of
             its examples. ID validation goes over the rows of all domains in their order in the data.
    context  channels (images) or coordinates (vectors) of the context, from hidden layers of `context_width`

    The paper's context network costs 50 times the default `cnn` itself: lower context_width where that matters.

    It is a network, not an objective, because it predicts so, too; it is trained by any objective, `erm` in the
    paper. Defaults are DomainBed's.
    """
    if isinstance(input_shape, dict) or len(input_shape) not in (1, 3):
        raise InputError("arm", f"cannot read inputs of shape {input_shape}", "It takes images or vectors.")
    wider = (input_shape[0] + context, *input_shape[1:])
    inner = _base(base, wider, classes)
    featurizer = ContextFeaturizer(
        context_network(tuple(input_shape), context_width, context), inner.featurizer, support
    )
    return Network(featurizer, inner.features, classes)


@networks.register(
    "mtl",
    summary="Marginal transfer learning: the domain's mean features are further features",
    paper="Blanchard et al. 2021, arXiv 1711.07910",
)
def mtl(*, input_shape: Any, classes: int, base: str = "auto", support: int = 32) -> Network:
    """The head reads an example's features and their mean over examples of its domain, which stands for the
    domain's marginal distribution (equation 12, with the learned features as the kernel's).

    support  as in `arm`, and with the same care at prediction

    DomainBed also averages the mean over steps, with weight 0.01 on earlier ones: left out, as in the paper.
    """
    inner = _base(base, input_shape, classes)
    return Network(MarginalFeaturizer(inner.featurizer, support), 2 * inner.features, classes)


def _base(base: str, shape: Any, classes: int) -> Network:
    spec = Spec.of(base)
    if spec.name == "auto":
        spec = Spec(default_network(shape), spec.parameters)
    return networks.build(spec, input_shape=shape, classes=classes)
