"""Small networks that train from scratch in seconds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network
from unseen.registry import networks


@networks.register("linear", summary="A linear classifier on flattened inputs or on frozen features")
def linear(*, input_shape: Any, classes: int) -> Network:
    return Network(nn.Flatten(), math.prod(_one(input_shape, "linear")), classes)


@networks.register("mlp", summary="A multi-layer perceptron with ReLU")
def mlp(*, input_shape: Any, classes: int, width: int = 128, depth: int = 2, dropout: float = 0.0) -> Network:
    """`depth` hidden layers of `width` units, each followed by ReLU and dropout."""
    size = math.prod(_one(input_shape, "mlp"))
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        size = width
    return Network(nn.Sequential(*layers), size, classes)


@networks.register("cnn", summary="Three convolutions with group norm, for images from 8 x 8")
def cnn(*, input_shape: Any, classes: int, width: int = 16) -> Network:
    """Convolutions of width, 2 and 4 x width channels, the first two with stride 2; mean pooling at the end.

    The strides come early because full-size activations, not products, cost most of a small network's time.
    """
    channels = _image(input_shape, "cnn")
    layers: list[nn.Module] = []
    for inner, outer, kernel, stride in (
        (channels, width, 5, 2),
        (width, 2 * width, 3, 2),
        (2 * width, 4 * width, 3, 1),
    ):
        layers += [
            nn.Conv2d(inner, outer, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.GroupNorm(8 if outer % 8 == 0 else 1, outer),
            nn.ReLU(),
        ]
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4 * width, classes)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016, pre-activation, group norm)."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(inner, outer, 1, stride=stride, bias=False)
            if stride != 1 or inner != outer
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        return self.shortcut(active) + self.conv2(torch.relu(self.norm2(self.conv1(active))))


@networks.register(
    "resnet",
    summary="A small pre-activation ResNet with group norm, for images",
    paper="He et al. 2016, arXiv 1603.05027",
)
def resnet(*, input_shape: Any, classes: int, width: int = 16, depth: int = 20) -> Network:
    """`depth` = 6 n + 2 layers in three stages of width, 2 and 4 x width channels (multiples of 8)."""
    channels = _image(input_shape, "resnet")
    if (depth - 2) % 6 or width % 8:
        raise InputError(
            "resnet",
            f"cannot have depth {depth} and width {width}",
            "Depth is 6 n + 2, width a multiple of 8.",
        )
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    inner = width
    for stage in range(3):
        outer = width * 2**stage
        for block in range((depth - 2) // 6):
            layers.append(_Residual(inner, outer, stride=2 if stage and not block else 1))
            inner = outer
    layers += [nn.GroupNorm(8, inner), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(*layers), inner, classes)


class _PatchTokens(nn.Module):
    """Images (B, C, H, W) to patches, sequences (B, T, d) as they are; adds learned positions and a class token."""

    def __init__(self, shape: tuple[int, ...], width: int, patch: int):
        super().__init__()
        self.patch = patch
        if len(shape) == 3:
            channels, height, wide = shape
            if height % patch or wide % patch:
                raise InputError(
                    "transformer",
                    f"cannot cut {height} x {wide} images into patches of {patch}",
                    "Choose a patch size that divides both.",
                )
            count = (height // patch) * (wide // patch)
            self.embed: nn.Module = nn.Conv2d(channels, width, patch, stride=patch)
        else:
            count = shape[0]
            self.embed = nn.Linear(shape[1], width)
        self.position = nn.Parameter(torch.randn(1, count + 1, width) * 0.02)
        self.first = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        if tokens.dim() == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), tokens], 1) + self.position


class _FirstToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


@networks.register(
    "transformer",
    summary="A tiny pre-norm transformer over image patches or sequences of vectors",
    paper="Dosovitskiy et al. 2021, arXiv 2010.11929",
)
def transformer(
    *,
    input_shape: Any,
    classes: int,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    patch: int = 4,
    dropout: float = 0.0,
) -> Network:
    shape = _one(input_shape, "transformer")
    if len(shape) not in (2, 3):
        raise InputError(
            "transformer",
            f"cannot read inputs of shape {shape}",
            "It takes images (C, H, W) or sequences (T, d).",
        )
    block = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    featurizer = nn.Sequential(
        _PatchTokens(shape, width, patch),
        nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False),
        _FirstToken(),
    )
    return Network(featurizer, width, classes)


class _GraphConvolutions(nn.Module):
    """Graph convolutions over padded graphs, mean and max over real nodes (Kipf & Welling 2017)."""

    def __init__(self, size: int, width: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size if i == 0 else width, width) for i in range(depth))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        nodes, mask = x["nodes"], x["mask"].unsqueeze(-1)
        links = x["adjacency"] + torch.diag_embed(x["mask"])  # every node also hears itself
        scale = links.sum(-1).clamp(min=1).rsqrt()
        links = scale.unsqueeze(-1) * links * scale.unsqueeze(-2)
        for layer in self.layers:
            nodes = torch.relu(layer(links @ nodes)) * mask
        mean = nodes.sum(1) / mask.sum(1).clamp(min=1)
        return torch.cat([mean, nodes.amax(1)], 1)


@networks.register(
    "gcn", summary="Graph convolutions on padded graphs", paper="Kipf & Welling 2017, arXiv 1609.02907"
)
def gcn(*, input_shape: Any, classes: int, width: int = 64, depth: int = 3) -> Network:
    if not isinstance(input_shape, dict) or "nodes" not in input_shape:
        raise InputError("gcn", f"cannot read inputs of shape {input_shape}", "It takes graphs.")
    return Network(_GraphConvolutions(input_shape["nodes"][-1], width, depth), 2 * width, classes)


def default_network(input_shape: Any) -> str:
    """The network that `auto` stands for: convolutions for images, an MLP for vectors, a GCN for graphs."""
    if isinstance(input_shape, dict):
        return "gcn" if "nodes" in input_shape else "multimodal"
    return {3: "cnn", 2: "transformer"}.get(len(input_shape), "mlp")


def _one(shape: Any, name: str) -> tuple[int, ...]:
    if isinstance(shape, dict):
        raise InputError(
            name, f"cannot read several inputs ({', '.join(shape)})", "Choose a network that does."
        )
    return tuple(shape)


def _image(shape: Any, name: str) -> int:
    shape = _one(shape, name)
    if len(shape) != 3:
        raise InputError(
            name, f"cannot read inputs of shape {shape}", "It takes images (channels, height, width)."
        )
    return shape[0]
