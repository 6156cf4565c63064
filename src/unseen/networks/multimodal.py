"""Several sequences of one example (words, sound, pictures) fused by attention over every set of modalities."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network
from unseen.networks.causal_head import CausalHead
from unseen.registry import networks


class SubsetAttention(nn.Module):
    """Self-attention over M concatenated sequences in which one score matrix serves every set of modalities.

    A position of modality m attends, once for each set that contains m, to the positions of that set; each set
    has its own output projection; the 2^(M-1) results of m are concatenated and projected back to `width`.

    Attention to a set is a mixture of attentions to its modalities, weighted by their softmax normalisers: so
    M softmaxes serve all 2^M - 1 sets.
    """

    def __init__(self, lengths: tuple[int, ...], width: int, heads: int):
        super().__init__()
        modalities = range(len(lengths))
        sets = [s for size in modalities for s in combinations(modalities, size + 1)]
        self.lengths, self.heads = list(lengths), heads
        self.sets_of = [[i for i, members in enumerate(sets) if m in members] for m in modalities]
        place = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        elsewhere = place != torch.arange(len(lengths)).unsqueeze(1)
        outside = torch.tensor([[m not in members for m in modalities] for members in sets])
        self.register_buffer("elsewhere", elsewhere.unsqueeze(1), persistent=False)  # (M, 1, T)
        self.register_buffer("outside", outside.unsqueeze(2), persistent=False)  # (sets, M, 1)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.of_set = nn.ModuleList(nn.Linear(width, width) for _ in sets)
        each = 2 ** (len(lengths) - 1)
        self.of_modality = nn.ModuleList(nn.Linear(each * width, width) for _ in lengths)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, width) -> the same shape, and the scores (B, heads, T, T) before any mask or softmax."""
        parts = self.queries_keys_values(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        masked = scores.unsqueeze(2).masked_fill(self.elsewhere, -torch.inf)  # (B, heads, M, T, T)
        attended = masked.softmax(-1) @ values.unsqueeze(2)  # (B, heads, M, T, d)
        normaliser = masked.logsumexp(-1).unsqueeze(2).masked_fill(self.outside, -torch.inf)
        mixed = torch.einsum("bhsmt,bhmtd->sbthd", normaliser.softmax(3), attended).flatten(3)
        of_sets = [projection(part) for projection, part in zip(self.of_set, mixed, strict=True)]
        pieces = zip(*(part.split(self.lengths, 1) for part in of_sets), strict=True)
        results = [
            projection(torch.cat([piece[i] for i in chosen], -1))
            for projection, piece, chosen in zip(self.of_modality, pieces, self.sets_of, strict=True)
        ]
        return torch.cat(results, 1), scores


class _FusionLayer(nn.Module):
    """Pre-norm transformer layer around `SubsetAttention`."""

    def __init__(self, lengths: tuple[int, ...], width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SubsetAttention(lengths, width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        attended, scores = self.attention(self.norm1(h))
        h = h + self.dropout(attended)
        return h + self.dropout(self.mlp(self.norm2(h))), scores


class _WordAlignment(nn.Module):
    """Cross-attention, words to frames: every modality gets the length of the text (single head)."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, words: Tensor, frames: Tensor) -> Tensor:
        scores = self.query(words) @ self.key(frames).transpose(1, 2) / words.shape[-1] ** 0.5
        return scores.softmax(-1) @ frames


class _Decoder(nn.Module):
    """Hidden states (B, T, width) back to the features of a modality (B, length, size)."""

    def __init__(self, hidden_length: int, length: int, width: int, size: int):
        super().__init__()
        self.time = nn.Linear(hidden_length, length) if hidden_length != length else nn.Identity()
        self.features = nn.Linear(width, size)

    def forward(self, states: Tensor) -> Tensor:
        return self.features(torch.relu(self.time(states.transpose(1, 2))).transpose(1, 2))


class MultimodalEncoder(nn.Module):
    """{name: (B, T, D) float, or (B, T) int64 tokens} to features (B, M * width); equal lengths in a batch.

    Embedding or linear map to `width`, alignment to the words if asked for, a GRU a modality, fusion layers,
    attention pooling a modality, a residual perceptron. `outputs` names what distillation compares.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        align: str | None,
    ):
        super().__init__()
        self.shapes, self.align, self.width = shapes, align, width
        lengths = {name: shapes[align or name][0] for name in shapes}
        self.size = {name: width if len(shape) == 1 else shape[1] for name, shape in shapes.items()}
        self.embed = nn.ModuleDict(
            {
                name: nn.Embedding(vocabulary, width) if len(shape) == 1 else nn.Linear(shape[1], width)
                for name, shape in shapes.items()
            }
        )
        others = [name for name in shapes if align is not None and name != align]
        self.alignment = nn.ModuleDict({name: _WordAlignment(width) for name in others})
        self.recurrent = nn.ModuleDict({name: nn.GRU(width, width, batch_first=True) for name in shapes})
        self.fusion = nn.ModuleList(
            _FusionLayer(tuple(lengths.values()), width, heads, dropout) for _ in range(layers)
        )
        self.pool = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)) for name in shapes}
        )
        joint = len(shapes) * width
        self.joint = nn.Sequential(
            nn.Linear(joint, joint), nn.ReLU(), nn.Dropout(dropout), nn.Linear(joint, joint)
        )
        self.decoders = nn.ModuleDict(
            {
                name: _Decoder(lengths[name], shape[0], width, self.size[name])
                for name, shape in shapes.items()
            }
        )
        self.lengths = list(lengths.values())

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self._encode(x)[0]

    def outputs(self, x: dict[str, Tensor]) -> dict[str, Any]:
        """Named outputs of all levels.

        features        (B, M * width)
        attention       (B, heads, T, T) scores of the last fusion layer, before mask and softmax
        reconstruction  {name: (B, T, D)} decoded from the last hidden states; D is `width` for tokens
        originals       {name: (B, T, D)} what is reconstructed: the inputs, or embeddings of tokens, detached
        """
        features, attention, states, embedded = self._encode(x)
        return {
            "features": features,
            "attention": attention,
            "reconstruction": {name: self.decoders[name](h) for name, h in states.items()},
            "originals": {
                name: (value if value.is_floating_point() else embedded[name]).detach()
                for name, value in x.items()
            },
        }

    def _encode(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        if set(x) != set(self.shapes):
            raise InputError(
                "inputs", f"are {sorted(x)}", f"The network was built for {sorted(self.shapes)}."
            )
        embedded = {name: self.embed[name](x[name]) for name in self.shapes}
        aligned = dict(embedded)
        for name, alignment in self.alignment.items():
            aligned[name] = alignment(embedded[self.align], embedded[name])  # type: ignore[index]
        h = torch.cat([self.recurrent[name](aligned[name])[0] for name in self.shapes], 1)
        for layer in self.fusion:
            h, scores = layer(h)
        states = dict(zip(self.shapes, h.split(self.lengths, 1), strict=True))
        pooled = torch.cat([(self.pool[name](s).softmax(1) * s).sum(1) for name, s in states.items()], 1)
        return pooled + self.joint(pooled), scores, states, embedded


@networks.register(
    "multimodal",
    summary="Sequences of several modalities, fused by attention over every set of them",
    paper="Zhong et al. 2025, arXiv 2506.10452",
)
def multimodal(
    *,
    input_shape: Any,
    classes: int,
    vocabulary: int = 0,
    width: int = 32,
    layers: int = 1,
    heads: int = 1,
    dropout: float = 0.0,
    align: str | None = None,
    causal: bool = False,
) -> Network:
    """For inputs of shapes {name: (T, D)}, or (T,) for tokens below `vocabulary`, of which 0 means unknown.

    align   the modality (words) to whose positions the others are brought by cross-attention
    causal  a `CausalHead` instead of a linear one: the objective `cider` sets its prototypes before training

    All sequences of a modality have one length; what pads a shorter one is attended to like any other input.
    """
    if not isinstance(input_shape, dict) or len(input_shape) < 2:
        raise InputError(
            "multimodal", f"cannot read inputs of shape {input_shape}", "It takes several sequences by name."
        )
    shapes = {name: tuple(shape) for name, shape in input_shape.items()}
    for name, shape in shapes.items():
        if len(shape) not in (1, 2):
            raise InputError(
                f"modality {name!r}", f"has shape {shape}", "Give (T, D), or (T,) for token ids."
            )
        if len(shape) == 1 and vocabulary < 1:
            raise InputError("vocabulary", f"is {vocabulary}", f"Give the number of tokens of {name!r}.")
    if align is not None and align not in shapes:
        raise InputError("align", f"is {align!r}", f"Give one of {sorted(shapes)}.")
    if width % heads or layers < 1:
        raise InputError(
            "multimodal", f"cannot have width {width}, {heads} heads, {layers} layers",
            "Width is a multiple of heads, and there is at least one layer.",
        )  # fmt: skip
    encoder = MultimodalEncoder(shapes, vocabulary, width, layers, heads, dropout, align)
    network = Network(encoder, len(shapes) * width, classes)
    if causal:
        sizes = {name: vocabulary if len(shape) == 1 else shape[1] for name, shape in shapes.items()}
        network.head = CausalHead(network.features, classes, sizes, width)  # type: ignore[assignment]
    return network
