"""Small models and examples to choose from."""

import torch
from torch import nn

from unseen.curation import Pool
from unseen.networks import Network


def make_pool(count=40, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Pool(
        torch.randn(count, 6, generator=generator),
        torch.arange(count) % classes,
        torch.arange(count) * 2 // count,
    )


def make_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5), nn.ReLU())
        return Network(body, 5, 3).train()


class TinyLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens)))


def language_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyLanguageModel()


def token_pool():
    tokens = torch.randint(7, (9, 6), generator=torch.Generator().manual_seed(0))
    targets = tokens.clone()
    targets[:, :2] = -100
    targets[::2, 4:] = -100
    return Pool(tokens, targets)
