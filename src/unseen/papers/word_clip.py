"""A small CLIP whose text tower is a transformer over words: what prompts can be learnt in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unseen.errors import InputError, nearest
from unseen.papers.tiny_world import ImageEncoder
from unseen.prompts.text import Tokens
from unseen.training.system import seeded

PAD = 0
LONGEST = 24
"""Words of a text, learnt ones included."""


class WordTransformer(nn.Module):
    """Two layers over word vectors, which see all words; their mean goes to features (N, size)."""

    def __init__(self, words: Sequence[str], *, width: int = 64, size: int = 64, layers: int = 2):
        super().__init__()
        self.numbers = {word: number for number, word in enumerate(words, start=1)}
        self.words = nn.Embedding(len(words) + 1, width)
        self.places = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
            )
            for _ in range(layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size, bias=False))
        nn.init.normal_(self.words.weight, std=0.02)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word numbers (N, T) and lengths (N,); a word that is not known is an error."""
        rows = []
        for text in texts:
            words = text.split()
            for word in words:
                if word not in self.numbers:
                    raise InputError(f"word {word!r}", "is not known", nearest(word, self.numbers))
            rows.append(torch.tensor([self.numbers[word] for word in words]))
        lengths = torch.tensor([len(row) for row in rows])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD), lengths

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """(N, size) of word vectors (N, T, width), of which the first `lengths` count."""
        present = torch.arange(vectors.shape[1]) < lengths.unsqueeze(1)
        hidden = vectors + self.places[: vectors.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~present)
        mean = (hidden * present.unsqueeze(2)).sum(1) / lengths.unsqueeze(1)
        return self.out(mean)


class WordClip(nn.Module):
    """Image encoder and word transformer as a `PromptableEncoder`."""

    def __init__(self, image: nn.Module, text: WordTransformer, logit_scale: float):
        super().__init__()
        self.image, self.text, self.logit_scale = image, text, logit_scale

    @property
    def width(self) -> int:
        return self.text.words.embedding_dim

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image(images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.encode_embeddings(self.embed_tokens(texts))

    def embed_tokens(self, texts: Sequence[str]) -> Tokens:
        ids, lengths = self.text.tokenize(texts)
        return Tokens(ids, self.text.words(ids), lengths)

    def encode_embeddings(self, tokens: Tokens) -> Tensor:
        tokens = tokens.upto(LONGEST)
        return self.text(tokens.vectors, tokens.lengths)


def train_word_clip(
    images: Tensor,
    captions: Sequence[str],
    words: Sequence[str],
    *,
    seed: int,
    epochs: int,
    width: int = 32,
    size: int = 64,
    batch: int = 256,
) -> WordClip:
    """A CLIP after contrastive training on pairs of images (N, 3, 16, 16) and captions; frozen.

    Symmetric InfoNCE in which equal captions are positives of each other, AdamW at 1e-3 falling to zero.

    words  the vocabulary
    width  channels of the first convolution
    """
    with seeded(seed):
        clip = WordClip(ImageEncoder(width, size), WordTransformer(words, size=size), 0.0)
        scale = nn.Parameter(torch.tensor(10.0).log())
    ids, lengths = clip.text.tokenize(captions)
    steps = epochs * math.ceil(len(images) / batch)
    optimizer = torch.optim.AdamW([*clip.parameters(), scale], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            text = normalize(clip.text(clip.text.words(ids[rows]), lengths[rows]), dim=-1)
            logits = scale.clamp(max=math.log(100)).exp() * clip.image(images[rows]) @ text.T
            same = (ids[rows].unsqueeze(1) == ids[rows]).all(2).float()
            same = same / same.sum(1, keepdim=True)
            loss = (cross_entropy(logits, same) + cross_entropy(logits.T, same)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    clip.logit_scale = float(scale.detach().clamp(max=math.log(100)).exp())
    return clip.eval().requires_grad_(False)
