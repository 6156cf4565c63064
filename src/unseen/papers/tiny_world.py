"""TinyWorld: coloured shapes in eight looks with captions, and a small CLIP that learns them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, max_pool2d, normalize

from unseen.networks import Network
from unseen.prompts.text import Tokens
from unseen.training.system import seeded

SIDE = 16
SHAPES = ("disk", "square", "triangle", "cross", "ring", "bar", "checker", "L")
COLOURS = torch.tensor(
    [[1, 0, 0], [0, 1, 0], [0.2, 0.3, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [1, 0.5, 0]]
)
DOMAINS = ("photo", "sketch", "negative", "noise", "tint", "blur", "dark", "stripe")
WORDS = (*SHAPES, *map(str, range(len(COLOURS))), *DOMAINS, "a photo of a")


def render(shape: Tensor, colour: Tensor, domain: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 3, 16, 16) in [0, 1] of indices (N,) into SHAPES, COLOURS and DOMAINS.

    Sizes and places are drawn, and so are the grounds: dim grey, light in "negative", coloured in "tint".
    """
    count = len(shape)
    draws = torch.rand(count, 4, generator=generator)
    radius, centre = 4 + 2.5 * draws[:, :1, None], 6 + 3 * draws[:, 1:3]
    axis = torch.arange(SIDE).float()
    u = ((axis - centre[:, :1])[:, None, :] / radius).expand(-1, SIDE, -1)
    v = ((axis - centre[:, 1:])[:, :, None] / radius).expand(-1, -1, SIDE)
    inside = _masks(u, v)[shape, torch.arange(count)].unsqueeze(1).float()
    ground = (0.1 + 0.3 * draws[:, 3]).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    tint = torch.rand(count, 3, 1, 1, generator=generator).expand_as(ground)
    ground = torch.where((domain == DOMAINS.index("tint")).view(-1, 1, 1, 1), 0.7 * tint, ground)
    fill = COLOURS[colour].view(-1, 3, 1, 1)
    image = inside * fill + (1 - inside) * ground
    outline = (inside * (1 + max_pool2d(-inside, 3, 1, 1))).expand_as(image)
    soft = avg_pool2d(avg_pool2d(image, 3, 1, 1), 3, 1, 1)
    noise = 0.25 * torch.randn(image.shape, generator=generator)
    stripes = (torch.arange(SIDE) % 4 == 0).float()[:, None] * 0.8
    looks = (image, outline, 1 - image, image + noise, image, soft, 0.35 * image, image.maximum(stripes))
    return torch.stack(looks)[domain, torch.arange(count)].clamp(0, 1)


def _masks(u: Tensor, v: Tensor) -> Tensor:
    """(8, N, 16, 16) booleans: what lies in each shape, in coordinates relative to centre and radius."""
    far, near = u.abs().maximum(v.abs()), u.abs().minimum(v.abs())
    length = (u.square() + v.square()).sqrt()
    return torch.stack([
        length < 1,
        far < 0.85,
        (v < 0.8) & (v > 2 * u.abs() - 1),
        (far < 1) & (near < 0.35),
        (length < 1) & (length > 0.55),
        (v.abs() < 0.35) & (u.abs() < 1),
        (far < 0.95) & ((u > 0) ^ (v > 0)),
        (far < 0.95) & ((u < -0.3) | (v > 0.3)),
    ])  # fmt: skip


def examples(count: int, domains: Sequence[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of `count` random shapes in random colours, evenly of the named domains, and their shapes."""
    shape = torch.randint(len(SHAPES), (count,), generator=generator)
    colour = torch.randint(len(COLOURS), (count,), generator=generator)
    domain = torch.tensor([DOMAINS.index(name) for name in domains])[torch.arange(count) % len(domains)]
    return render(shape, colour, domain, generator), shape


class ImageEncoder(nn.Module):
    """Three convolutions to features (N, size) of length 1."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * width, size),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.body(x), dim=-1)


class TextEncoder(nn.Module):
    """The mean of a caption's word vectors through a perceptron, to length 1; captions are (N, words) of 0 and 1."""

    def __init__(self, size: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(len(WORDS), 64, bias=False), nn.ReLU(), nn.Linear(64, size))

    def forward(self, captions: Tensor) -> Tensor:
        return normalize(self.body(captions / captions.sum(1, keepdim=True)), dim=-1)


def captions_of(*words: Tensor) -> Tensor:
    """(N, words) of 0 and 1 from word numbers (N,), with "a photo of a" in all of them."""
    found = torch.zeros(len(words[0]), len(WORDS))
    found[:, -1] = 1
    for each in words:
        found[torch.arange(len(each)), each] = 1
    return found


class TinyClip(nn.Module):
    """The small CLIP as a `DualEncoder`. Its texts are made of shapes, numbers of colours and domains: "ring 3".

    Words that it does not know are an error, "a photo of a" is always there.
    """

    def __init__(self, image: ImageEncoder, text: TextEncoder, logit_scale: float):
        super().__init__()
        self.image, self.text, self.logit_scale = image, text, logit_scale

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image(images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        found = torch.zeros(len(texts), len(WORDS))
        found[:, -1] = 1
        for row, text in enumerate(texts):
            for word in text.removeprefix(WORDS[-1]).split():
                found[row, WORDS.index(word)] = 1
        return self.text(found)

    @property
    def width(self) -> int:
        return self.text.body[0].out_features  # type: ignore[return-value]

    def embed_tokens(self, texts: Sequence[str]) -> Tokens:
        """The words of each text, "a photo of a" first: what learnt prompts add vectors to."""
        numbers = [
            torch.tensor(
                [len(WORDS) - 1, *map(WORDS.index, dict.fromkeys(text.removeprefix(WORDS[-1]).split()))]
            )
            for text in texts
        ]
        ids = nn.utils.rnn.pad_sequence(numbers, batch_first=True)
        vectors = self.text.body[0].weight.T[ids]  # type: ignore[index]
        return Tokens(ids, vectors, torch.tensor(list(map(len, numbers))))

    def encode_embeddings(self, tokens: Tokens) -> Tensor:
        """The mean of the words' vectors, as the text encoder takes it of captions."""
        mean = (tokens.vectors * tokens.present.unsqueeze(2)).sum(1) / tokens.lengths.unsqueeze(1)
        return normalize(self.text.body[1:](mean), dim=-1)


def train_clip(
    seed: int,
    *,
    pairs: int,
    epochs: int,
    width: int = 32,
    size: int = 64,
    batch: int = 256,
    domains: Sequence[str] = DOMAINS,
) -> tuple[ImageEncoder, TextEncoder, float]:
    """Image and text encoders after contrastive training on the named domains, and the factor of their products.

    Captions name shape and colour and, half of the time, the domain. Images with equal captions are positives of
    each other. Adam at 1e-3.
    """
    generator = torch.Generator().manual_seed(seed)
    shape, colour = (torch.randint(8, (pairs,), generator=generator) for _ in range(2))
    known = torch.tensor([DOMAINS.index(name) for name in domains])
    domain = known[torch.randint(len(known), (pairs,), generator=generator)]
    images = render(shape, colour, domain, generator)
    named = captions_of(shape, 8 + colour, 16 + domain)
    silent = torch.rand(pairs, generator=generator) < 0.5
    named[silent] = captions_of(shape, 8 + colour)[silent]
    with seeded(seed):
        image, text, scale = (
            ImageEncoder(width, size),
            TextEncoder(size),
            nn.Parameter(torch.tensor(10.0).log()),
        )
    optimizer = torch.optim.Adam([*image.parameters(), *text.parameters(), scale], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(pairs, generator=generator).split(batch):
            logits = scale.clamp(max=math.log(100)).exp() * image(images[rows]) @ text(named[rows]).T
            same = (named[rows].unsqueeze(1) == named[rows]).all(2).float()
            loss = (_multi_positive(logits, same) + _multi_positive(logits.T, same)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return image.eval(), text.eval(), float(scale.detach().clamp(max=math.log(100)).exp())


def _multi_positive(logits: Tensor, same: Tensor) -> Tensor:
    return cross_entropy(logits, same / same.sum(1, keepdim=True))


@torch.no_grad()
def zero_shot(image: ImageEncoder, text: TextEncoder, scale: float) -> Network:
    """A network of the eight shapes whose head is the text encoder's: the mean over captions of all colours."""
    shapes = torch.arange(len(SHAPES))
    rows = [text(captions_of(shapes, 8 + torch.full_like(shapes, c))) for c in range(len(COLOURS))]
    weight = normalize(torch.stack(rows).mean(0), dim=-1)
    network = Network(image, weight.shape[1], len(SHAPES))
    network.head.load_state_dict({"weight": scale * weight, "bias": torch.zeros(len(SHAPES))})
    return network.eval()
