"""Judges that need no training: nearest neighbours in an embedding, and a person at the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.relabelling.questions import Questions


class NearestNeighbourVerifier:
    """P(True) = 1 / (1 + exp(-(cos(query, positive) - cos(query, negative)) / temperature)) in any embedding.

    encoder  images to embeddings (N, D), such as `dual_encoder.encode_image` or a network's featurizer
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor], temperature: float = 0.1, batch_size: int = 256):
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number.")
        self.encoder, self.temperature, self.batch_size = encoder, temperature, batch_size

    @torch.no_grad()
    def __call__(self, questions: Questions) -> Tensor:
        images, support = (
            normalize(torch.cat([self.encoder(part) for part in x.split(self.batch_size)]).flatten(1), dim=1)
            for x in (questions.images, questions.support)
        )
        query = images[questions.query]
        nearer = (query * (support[questions.positive] - support[questions.negative])).sum(1)
        return torch.sigmoid(nearer / self.temperature)


class HumanVerifier:
    """Asks a person: writes exemplar and query side by side to a picture and waits for yes, no or don't know.

    picture  PNG file that is written anew for each question; images are (3, H, W) or (1, H, W) in [0, 1]
    ask      gives the person's answer to a question, by default at the terminal
    """

    def __init__(self, picture: str | Path, ask: Callable[[str], str] = input):
        self.picture, self.ask = Path(picture), ask

    def __call__(self, questions: Questions) -> Tensor:
        return torch.tensor([self._one(questions, index) for index in range(len(questions))])

    def _one(self, questions: Questions, index: int) -> float:
        shown = (questions.support[questions.positive[index]], questions.images[questions.query[index]])
        write_png(side_by_side(*shown), self.picture)
        text = (
            f"{self.picture}: the left image is of {questions.name[index]!r}. "
            "Is the right one, too? [y]es, [n]o, [?] "
        )
        while True:
            answer = self.ask(text).strip().lower()
            if answer in ("y", "yes", "n", "no", "?"):
                return {"y": 1.0, "n": 0.0, "?": 0.5}[answer[0]]


def side_by_side(*images: Tensor) -> Tensor:
    """Images (1 or 3, H, W) of one size in a row, white between them."""
    check_pictures(*images)
    gap = torch.ones(images[0].shape[0], images[0].shape[1], 2)
    parts = [part for image in images for part in (image.cpu().float(), gap)]
    return torch.cat(parts[:-1], 2)


def check_pictures(*images: Tensor) -> None:
    """Raise `InputError` unless images can be shown: (1 or 3, H, W) in [0, 1]."""
    for image in images:
        if image.dim() != 3 or image.shape[0] not in (1, 3) or not bool(((image >= 0) & (image <= 1)).all()):
            raise InputError("images", "cannot be shown", "Give (1 or 3, H, W) with values in [0, 1].")


def write_png(image: Tensor, path: Path) -> None:
    """Write an image (1 or 3, H, W) in [0, 1]; whole, or not at all."""
    from PIL import Image

    pixels = (image.cpu() * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).contiguous()
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        Image.fromarray(pixels.numpy()).save(file, "png")
    os.replace(temporary, path)
