"""Dual encoders: images and texts in one space. What teachers, prompts and zero-shot detectors read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from unseen.errors import InputError, MissingExtra
from unseen.networks.backbones import ImageInput


@runtime_checkable
class DualEncoder(Protocol):
    """Anything that embeds images and texts alike: an open_clip or transformers CLIP, a small one of your own.

    `logit_scale` multiplies cosines to give logits (CLIP's exponentiated temperature, about 100).
    """

    logit_scale: float

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, D) embeddings of N images as the encoder takes them; their length is free."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), D) embeddings; their length is free."""
        ...


class TransformersDualEncoder(nn.Module):
    """A CLIP or SigLIP of transformers as a `DualEncoder`: any model with get_image_features and get_text_features.

    model      such as `CLIPModel.from_pretrained(folder)`; it is put into evaluation mode
    tokenizer  the one that was saved with it, `AutoTokenizer.from_pretrained(folder)`
    images     how images enter, such as `ImageInput(224, mean, deviation)`; None: `encode_image` takes finished pixels

    Texts are cut after as many tokens as the model reads. SigLIP was trained on texts padded to that length, and
    gets them so. Its logit bias is left out: it moves all classes alike.
    """

    def __init__(self, model: Any, tokenizer: Any, images: ImageInput | None = None):
        super().__init__()
        for method in ("get_image_features", "get_text_features", "logit_scale"):
            if not hasattr(model, method):
                raise InputError(
                    f"model {type(model).__name__}",
                    f"has no {method}",
                    "Give a model of images and texts, such as transformers.CLIPModel.",
                )
        self.model, self.tokenizer, self.images = model.eval(), tokenizer, images
        self.tokens: int = model.config.text_config.max_position_embeddings
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.padding = "max_length" if "siglip" in model.config.model_type else "longest"

    def encode_image(self, images: Tensor) -> Tensor:
        pixels = images if self.images is None else self.images.prepare(images)
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts), padding=self.padding, truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        device = self.model.logit_scale.device
        read = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask") if name in tokens}
        return _pooled(self.model.get_text_features(**read))


class OpenClipDualEncoder(nn.Module):
    """A model of open_clip as a `DualEncoder`.

    model      what `open_clip.create_model` gives; it is put into evaluation mode
    tokenizer  what `open_clip.get_tokenizer` gives: texts to tokens (N, length)
    images     how images enter, or None: `encode_image` takes finished pixels
    """

    def __init__(
        self, model: Any, tokenizer: Callable[[list[str]], Tensor], images: ImageInput | None = None
    ):
        super().__init__()
        self.model, self.tokenizer, self.images = model.eval(), tokenizer, images
        self.logit_scale = float(model.logit_scale.detach().exp())

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images if self.images is None else self.images.prepare(images))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.model.logit_scale.device))


def dual_encoder(name: str) -> DualEncoder:
    """A pretrained dual encoder by name: "transformers:FOLDER_OR_NAME" or "open_clip:ARCHITECTURE/PRETRAINED".

    Raises `InputError` for another form and `MissingExtra` where the library is not installed. Images enter as
    uint8 or floats in [0, 1] of any size, as the model's own rule says.
    """
    library, colon, model = name.partition(":")
    if library == "transformers" and colon:
        return _of_transformers(model)
    if library == "open_clip" and colon and "/" in model:
        return _of_open_clip(*model.split("/", 1))
    raise InputError(
        f"dual encoder {name!r}",
        "is not known",
        'Write "transformers:NAME_OR_FOLDER" or "open_clip:ARCHITECTURE/PRETRAINED".',
    )


def _of_transformers(model: str) -> DualEncoder:
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError:
        raise MissingExtra(f"dual encoder 'transformers:{model}'", "backbones") from None
    try:
        network = AutoModel.from_pretrained(model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model)
        stored, _ = ImageProcessingMixin.get_image_processor_dict(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"dual encoder 'transformers:{model}'",
            f"cannot be loaded ({str(error).splitlines()[0]})",
            "Give a folder with model, tokenizer and image processor, or a model of the Hugging Face hub.",
        ) from None
    side = network.config.vision_config.image_size
    rule = ImageInput(side, tuple(stored["image_mean"]), tuple(stored["image_std"]))
    return TransformersDualEncoder(network, tokenizer, rule)


def _of_open_clip(architecture: str, pretrained: str) -> DualEncoder:
    try:
        import open_clip
    except ImportError:
        raise MissingExtra(f"dual encoder 'open_clip:{architecture}/{pretrained}'", "open-clip") from None
    network = open_clip.create_model(architecture, pretrained=pretrained)
    data = open_clip.get_model_preprocess_cfg(network)
    side = data["size"] if isinstance(data["size"], int) else data["size"][0]
    rule = ImageInput(side, tuple(data["mean"]), tuple(data["std"]))
    return OpenClipDualEncoder(network, open_clip.get_tokenizer(architecture), rule)


def _pooled(output: Any) -> Tensor:
    """transformers gives the embeddings themselves up to version 4, an output that holds them from version 5."""
    return output if isinstance(output, Tensor) else output.pooler_output
