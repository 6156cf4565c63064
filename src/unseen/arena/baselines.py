"""Encoders without training: what a backbone must beat. Pixels, colours, hashed words, random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.networks.backbones import Backbone, FrozenBatchNorm, ImageInput
from unseen.networks.feature_maps import FINEST
from unseen.training.system import seeded

CELL = 8
"""Pixels a side of the cells in which detection sees a baseline: the finest stride of the usual networks."""


class Pixels(nn.Module):
    """Images averaged down to `side` x `side` pixels: features (N, 3 side^2)."""

    def __init__(self, side: int = 8):
        super().__init__()
        self.side = side

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The same of each cell of 8 x 8 pixels."""
        return [_by_cell(self, images)]

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(_in_unit_range(images), self.side)
        return small.expand(-1, 3, -1, -1).flatten(1)


class Colours(nn.Module):
    """Mean, deviation and a histogram of `bins` cells of each channel: features (N, 3 (bins + 2))."""

    def __init__(self, bins: int = 8):
        super().__init__()
        self.bins = bins

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The same of each cell of 8 x 8 pixels."""
        return [_by_cell(self, images)]

    def forward(self, images: Tensor) -> Tensor:
        pixels = _in_unit_range(images).flatten(2).expand(-1, 3, -1)
        cells = (pixels * self.bins).long().clamp(max=self.bins - 1)
        shares = nn.functional.one_hot(cells, self.bins).float().mean(2)
        return torch.cat([pixels.mean(2, keepdim=True), pixels.std(2, keepdim=True), shares], 2).flatten(1)


class HashedText(nn.Module):
    """Counts of words or of 3 to 5 letters, hashed into `width` cells, sublinear and of length 1.

    Nothing is fitted. Inverse document frequencies, which would have to be, are what a probe's division of each
    feature by its deviation stands in for.
    """

    def __init__(self, unit: Literal["words", "letters"], width: int = 1024):
        super().__init__()
        self.unit, self.width = unit, width

    def forward(self, texts: Sequence[str]) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        how: dict[str, Any] = (
            {"ngram_range": (1, 2)}
            if self.unit == "words"
            else {"analyzer": "char_wb", "ngram_range": (3, 5)}
        )
        counts = HashingVectorizer(n_features=self.width, alternate_sign=False, norm=None, **how)
        found = torch.from_numpy(counts.transform(list(texts)).toarray()).float()
        return nn.functional.normalize(found.log1p(), dim=-1)


def randomised(encoder: Backbone, seed: int) -> Backbone:
    """The same architecture with new weights, in place: shows what pretraining adds.

    Batch statistics, which belonged to the old weights, are those of one batch of smooth noise.
    """
    with seeded(seed):
        for module in encoder.body.modules():
            if isinstance(module, FrozenBatchNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()  # type: ignore[operator]
        if isinstance(encoder.input, ImageInput):
            _take_statistics(encoder, torch.rand(32, 3, 8, 8))
    return encoder


@torch.no_grad()
def _take_statistics(encoder: Backbone, images: Tensor) -> None:
    """Each normalisation in turn takes mean and variance of what reaches it, so that the next one sees its output."""

    def take(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        variance, mean = torch.var_mean(arguments[0], dim=(0, 2, 3), correction=0)
        norm.mean.copy_(mean)  # type: ignore[union-attr, operator]
        norm.variance.copy_(variance)  # type: ignore[union-attr, operator]

    norms = [module for module in encoder.body.modules() if isinstance(module, FrozenBatchNorm)]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        encoder(images)
    finally:
        for hook in hooks:
            hook.remove()


def _by_cell(encoder: nn.Module, images: Tensor) -> Tensor:
    """An encoder (B, C) on square cells of square images: (B, C, cells, cells)."""
    cells = min(FINEST, max(2, images.shape[-1] // CELL))
    pixels = nn.functional.adaptive_avg_pool2d(_in_unit_range(images), cells * CELL)
    patches = pixels.unfold(2, CELL, CELL).unfold(3, CELL, CELL).permute(0, 2, 3, 1, 4, 5)
    # image by image: the cells of a whole batch would need gigabytes
    return torch.stack([encoder(each.flatten(0, 1)).T.unflatten(1, (cells, cells)) for each in patches])


def _in_unit_range(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
