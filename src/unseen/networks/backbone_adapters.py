"""Backbones of other libraries: transformers, timm, torchvision, open_clip; each imported when it is named."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, MissingExtra
from unseen.networks.backbones import IMAGENET_DEVIATION, IMAGENET_MEAN, Backbone, ImageInput, TextInput


class _MeanOfTokens(nn.Module):
    """A text encoder; the features are the mean over real tokens, scaled to length 1 (Reimers & Gurevych 2019)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        states = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1)


@dataclass
class _Tokenize:
    """Texts to padded tokens; a class, because worker processes cannot be sent a local function."""

    tokenizer: Any
    tokens: int

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        return dict(
            self.tokenizer(texts, padding=True, truncation=True, max_length=self.tokens, return_tensors="pt")
        )


class _ImageFeatures(nn.Module):
    """An image encoder; the features are the model's own pooled output, else its first token or mean position."""

    def __init__(self, model: nn.Module, options: dict[str, Any]):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.model(pixel_values=pixels, **self.options)
        if getattr(output, "image_embeds", None) is not None:
            return output.image_embeds
        if getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)
        states = output.last_hidden_state
        return states[:, 0] if states.dim() == 3 else states.mean((2, 3))


def from_transformers(model: str, *, size: int | None = None, tokens: int | None = None) -> Backbone:
    """`transformers:NAME_OR_PATH`: an image or text encoder that transformers' Auto classes can load.

    size    side of images in pixels; default: what the model was made for
    tokens  texts are cut after so many; default: what the model can read, 512 at most
    """
    try:
        import transformers
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError:
        raise MissingExtra(f"backbone 'transformers:{model}'", "backbones") from None
    name = f"transformers:{model}"
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"backbone {name!r}",
            f"cannot be loaded ({str(error).splitlines()[0]})",
            "Give a folder that save_pretrained wrote, or a model of the Hugging Face hub.",
        ) from None
    vision = getattr(config, "vision_config", config)
    for option, value, fits in (
        ("size", size, hasattr(vision, "num_channels")),
        ("tokens", tokens, not hasattr(vision, "num_channels")),
    ):
        if value is not None and not fits:
            raise InputError(
                f"option {option!r} of backbone {name!r}", "does not fit its inputs", "Leave it."
            )
    if not hasattr(vision, "num_channels"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        most = tokens or min(512, tokenizer.model_max_length)
        body = _MeanOfTokens(transformers.AutoModel.from_pretrained(model, dtype=torch.float32))
        return Backbone(
            body,
            name=name,
            features=config.hidden_size,
            input=TextInput(most),
            tokenize=_Tokenize(tokenizer, most),
        )
    try:
        stored, _ = ImageProcessingMixin.get_image_processor_dict(model)
    except OSError:
        stored = {}  # a model saved without its processor
    if hasattr(config, "vision_config"):  # image and text towers: take the projected image tower
        tower = {"clip": "CLIPVisionModelWithProjection"}.get(config.model_type)
        if tower is None:
            raise InputError(
                f"backbone {name!r}",
                f"is a {config.model_type!r} model of several towers",
                "Name its vision model.",
            )
        network = getattr(transformers, tower).from_pretrained(model, dtype=torch.float32)
    else:
        network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32)
    native = getattr(vision, "image_size", None) or 224
    native = native if isinstance(native, int) else native[0]
    # position embeddings belong to one size; other sizes interpolate them
    options = (
        {"interpolate_pos_encoding": True} if size not in (None, native) and _has_positions(network) else {}
    )
    rule = ImageInput(
        size or native,
        tuple(stored.get("image_mean", IMAGENET_MEAN)),
        tuple(stored.get("image_std", IMAGENET_DEVIATION)),
    )
    return _image_backbone(_ImageFeatures(network, options), name, rule)


def from_timm(model: str, *, size: int | None = None) -> Backbone:
    """`timm:NAME`: a pretrained image model of timm (which needs torchvision), without its classifier."""
    try:
        import timm
    except ImportError:
        raise MissingExtra(f"backbone 'timm:{model}'", "timm") from None
    network = timm.create_model(model, pretrained=True, num_classes=0)
    data = timm.data.resolve_model_data_config(network)
    rule = ImageInput(size or data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))
    return _image_backbone(network, f"timm:{model}", rule)


def from_torchvision(model: str, *, size: int | None = None) -> Backbone:
    """`torchvision:NAME` or `torchvision:NAME/WEIGHTS`, as in "resnet50/IMAGENET1K_V1": without its classifier."""
    try:
        import torchvision
    except ImportError:
        raise MissingExtra(f"backbone 'torchvision:{model}'", "timm") from None  # which brings it
    name, _, wanted = model.partition("/")
    try:
        known = torchvision.models.get_model_weights(name)
        weights = known[wanted] if wanted else known.DEFAULT
    except (ValueError, KeyError, AttributeError):
        raise InputError(
            f"backbone 'torchvision:{model}'",
            "is none of torchvision's models with weights",
            "See torchvision.models.list_models().",
        ) from None
    network, rule = torchvision.models.get_model(name, weights=weights), weights.transforms()
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    classes = len(weights.meta["categories"])
    if not linear or network.get_submodule(linear[-1]).out_features != classes:
        raise InputError(
            f"backbone 'torchvision:{model}'", "does not end in a linear classifier", "Name another model."
        )
    network.set_submodule(linear[-1], nn.Identity())
    images = ImageInput(size or rule.crop_size[0], tuple(rule.mean), tuple(rule.std))
    return _image_backbone(network, f"torchvision:{model}", images)


class _ImageTower(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model: nn.Module = model.visual

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.normalize(self.model(pixels), dim=-1)


def from_open_clip(model: str) -> Backbone:
    """`open_clip:ARCHITECTURE/PRETRAINED`, as in "open_clip:ViT-B-32/openai": image embeddings of length 1."""
    try:
        import open_clip
    except ImportError:
        raise MissingExtra(f"backbone 'open_clip:{model}'", "open-clip") from None
    architecture, slash, pretrained = model.partition("/")
    if not slash:
        raise InputError(
            f"backbone 'open_clip:{model}'",
            "names no weights",
            "Write ARCHITECTURE/PRETRAINED, as in ViT-B-32/openai.",
        )
    network = open_clip.create_model(architecture, pretrained=pretrained)
    data = open_clip.get_model_preprocess_cfg(network)
    size = data["size"] if isinstance(data["size"], int) else data["size"][0]
    rule = ImageInput(size, tuple(data["mean"]), tuple(data["std"]))
    return _image_backbone(_ImageTower(network), f"open_clip:{model}", rule)


def _has_positions(network: nn.Module) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(network.forward).parameters


def _image_backbone(body: nn.Module, name: str, rule: ImageInput) -> Backbone:
    """The number of features is what one grey image gives: no library names it in the same way."""
    body.eval()
    with torch.inference_mode():
        found = body(rule.prepare(torch.full((1, 3, rule.size, rule.size), 0.5)))
    if found.dim() != 2:
        raise InputError(
            f"backbone {name!r}",
            f"gives features of shape {tuple(found.shape[1:])}",
            "Name a model that pools.",
        )
    return Backbone(body, name=name, features=found.shape[1], input=rule)
