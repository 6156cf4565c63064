"""Zero-shot classification without image-text pretraining: class names become rows of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.backbones import Backbone, ImageInput, backbone
from unseen.networks.base import Network
from unseen.networks.feature_cache import compute_features
from unseen.networks.frozen import FrozenBackbone
from unseen.networks.pretrained import PretrainedFeaturizer
from unseen.registry import Spec

TEMPLATES = ("a photo of a {}.",)


def imagenet_classes() -> list[str]:
    """The 1,000 ImageNet class names, in the order of the usual classifiers; the first of each one's synonyms."""
    text = files("unseen.networks").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return [line.split(",")[0] for line in text.splitlines() if not line.startswith("#")]


def embed_names(names: Sequence[str], templates: Sequence[str], text: Backbone) -> Tensor:
    """(len(names), D) of length 1: the mean of each name's embedding over templates (Radford et al. 2021)."""
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template {template!r}", "has no place for the class name", "Write {} there.")
    parts = [
        compute_features(text, [t.format(name) for name in names], text.features, text.fingerprint)
        for t in templates
    ]
    return nn.functional.normalize(torch.stack(parts).mean(0), dim=-1)


def ridge_map(inputs: Tensor, outputs: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(D, K) matrix A and (K,) offset c that minimise |inputs A + c - outputs|^2 + penalty |A|^2.

    inputs (N, D), outputs (N, K), penalty > 0; the offset carries no penalty.
    """
    centre, target = inputs.mean(0), outputs.mean(0)
    centred = inputs - centre
    gram = centred.T @ centred + penalty * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    matrix = torch.linalg.solve(gram, centred.T @ (outputs - target))
    return matrix, target - centre @ matrix


def zero_shot_head(
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    backbone: str | Spec | Backbone = "efficientnet-lite0",
    text: str | Spec | Backbone = "minilm",
    penalty: float = 10.0,
) -> nn.Linear:
    """A linear head from the backbone's features to the named classes, made from their names alone.

    A ridge regression maps text embeddings of ImageNet's class names to the rows of the ImageNet classifier that
    came with the backbone; applied to other names it gives rows for them, scaled to ImageNet's mean length.

    templates  sentences with {} for the name; embeddings are averaged over them
    penalty    of the ridge regression, > 0
    """
    if not class_names or isinstance(class_names, str):
        raise InputError("class_names", f"is {class_names!r}", "Give a list of at least one name.")
    if not penalty > 0:
        raise InputError("penalty", f"is {penalty}", "Give a positive number such as 10.")
    images, texts = _built(backbone), _built(text)
    if images.class_head is None:
        raise InputError(
            f"backbone {images.name!r}",
            "brings no ImageNet classifier to learn from",
            "Choose one of the efficientnet-lite or mobilenet backbones.",
        )
    if isinstance(texts.input, ImageInput):
        raise InputError(f"backbone {texts.name!r}", "reads images", "Give a text encoder, such as minilm.")
    rows = images.class_head[0]
    matrix, offset = ridge_map(embed_names(imagenet_classes(), templates, texts), rows, penalty)
    weight = embed_names(list(class_names), templates, texts) @ matrix + offset
    # names far from ImageNet's are pulled to the mean row and would be too short to win
    weight = nn.functional.normalize(weight, dim=-1) * rows.norm(dim=-1).mean()
    head = nn.Linear(images.features, len(class_names))
    head.load_state_dict({"weight": weight, "bias": torch.zeros(len(class_names))})
    return head


def zero_shot_network(
    class_names: Sequence[str],
    preprocessing: FrozenBackbone | None = None,
    *,
    backbone: str | Spec = "efficientnet-lite0",
    templates: Sequence[str] = TEMPLATES,
    text: str | Spec | Backbone = "minilm",
    penalty: float = 10.0,
) -> Network:
    """A network that classifies without training: on its own, or as the start of training.

    preprocessing  a fitted `FrozenBackbone`: the network is linear on what it encodes, with the same
                   parameters as network "linear". None: the network holds `backbone` and takes images that
                   `ImagePreprocessing` standardised, with the same parameters as network "pretrained".
    The rest as for `zero_shot_head`.
    """
    images = preprocessing.module if preprocessing is not None else _built(backbone)
    head = zero_shot_head(class_names, templates=templates, backbone=images, text=text, penalty=penalty)
    if preprocessing is None:
        network = Network(PretrainedFeaturizer(images), images.features, len(class_names))
        network.spec = Spec.make("pretrained", name=str(Spec.of(backbone)))
    else:
        weight = head.weight.detach()  # the network reads z = (f - mean) / scale: fold both into the head
        mean = torch.tensor(preprocessing.mean)
        head.load_state_dict({"weight": weight * preprocessing.scale, "bias": head.bias + weight @ mean})
        network = Network(nn.Flatten(), images.features, len(class_names))
        network.spec = Spec("linear")
    network.head.load_state_dict(head.state_dict())
    return network.eval()


def _built(value: str | Spec | Backbone) -> Backbone:
    return value if isinstance(value, Backbone) else backbone(value)
