"""A judge that learns from episodes whether an image is of the class of one exemplar rather than of another's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from unseen.errors import InputError, TrainingDiverged
from unseen.relabelling.questions import Questions


class MatchingNetwork(nn.Module):
    """Logit of P(query is of the positive exemplar's class): a cos(query, positive) - b cos(query, negative) + c.

    encoder  images to embeddings (N, D)
    Its method `verify` is a `Verifier`. It knows no class by name, so it judges classes that it was not trained on
    (after Vinyals et al. 2016). a and b begin at 10, lest cosines near one leave nothing to learn from.
    """

    def __init__(self, encoder: nn.Module, batch_size: int = 256):
        super().__init__()
        self.encoder, self.batch_size = encoder, batch_size
        self.weights = nn.Parameter(torch.tensor([10.0, -10.0]))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(B,) logits of embeddings (B, D), whose length is free."""
        q, p, n = (normalize(each, dim=1) for each in (query, positive, negative))
        return torch.stack([(q * p).sum(1), (q * n).sum(1)], 1) @ self.weights + self.offset

    @torch.no_grad()
    def verify(self, questions: Questions) -> Tensor:
        """P(True), (Q,); each image is encoded once, however often it is asked about."""
        images, support = self._embed(questions.images), self._embed(questions.support)
        logits = self(images[questions.query], support[questions.positive], support[questions.negative])
        return logits.sigmoid()

    def _embed(self, images: Tensor) -> Tensor:
        return torch.cat([self.encoder(part) for part in images.split(self.batch_size)])


def train_matching(
    network: MatchingNetwork,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> MatchingNetwork:
    """Train in place by episodes: a positive and a negative exemplar, and a query of either class or of another.

    images (N, ...), labels (N,) int64: of classes that the judge will not be asked about, or not only these.
    Raises `InputError` with fewer than two classes of two images each.
    """
    rows = [(labels == c).nonzero().flatten() for c in labels.unique()]
    rows = [own for own in rows if len(own) > 1]
    if len(rows) < 2:
        raise InputError(
            "labels", "have fewer than two classes of two images", "Give more images or classes."
        )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    network.train()
    for _ in range(steps):
        picked, truth = _episodes(rows, batch_size, generator)
        embedded = network.encoder(images[picked.flatten()]).unflatten(0, (batch_size, 3))
        loss = binary_cross_entropy_with_logits(network(*embedded.unbind(1)), truth)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the loss is {float(loss.detach())}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _episodes(rows: list[Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 3) images: query, positive, negative; and (count,) whether the query is of the positive's class. If not,
    it is of the negative's or, as often, of any other class."""
    sizes = torch.tensor([len(own) for own in rows])
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positive = torch.randint(len(rows), (count,), generator=generator)
    negative, other = (
        (positive + torch.randint(1, len(rows), (count,), generator=generator)) % len(rows) for _ in range(2)
    )
    kind = torch.rand(count, generator=generator)
    true = kind < 0.5
    asked = torch.where(true, positive, torch.where(kind < 0.75, negative, other))

    def image(classes: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        place = (torch.rand(count, generator=generator) * sizes[classes]).long()
        if skip is not None:  # another image than the exemplar
            place = torch.where(place == skip, (place + 1) % sizes[classes], place)
        return padded[classes, place], place

    shown, place_p = image(positive)
    rival, place_n = image(negative)
    query, _ = image(asked, torch.where(true, place_p, torch.where(asked == negative, place_n, -1)))
    return torch.stack([query, shown, rival], 1), true.float()
