"""Modular addition for a small mixture of experts: training pairs learned by heart first, the rule much later."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unseen.sequences.generalization_monitor import ALL, GeneralizationMonitor
from unseen.sequences.memorization import MemorizationTracker
from unseen.sequences.mixture_of_experts import MoEDecoder

MEMORIZED = 0.5
"""Highest loss (nats) of a memorized sample: its answer is the likeliest. Weight decay lifts losses now and then."""


@dataclass(frozen=True)
class Addition:
    """Tokens "a b =" (N, 3) and answers a + b mod p (N,), for training and for the test."""

    tokens: Tensor
    answers: Tensor
    test_tokens: Tensor
    test_answers: Tensor


@dataclass(frozen=True)
class Protocol:
    """The training: full batch, constant rate.

    share  of the unordered pairs that are for training
    every  steps between checkpoints
    """

    p: int = 23
    share: float = 0.8
    width: int = 48
    layers: int = 3
    experts: int = 6
    hidden: int = 32
    steps: int = 2000
    every: int = 80
    learning_rate: float = 1.5e-3
    balance: float = 0.01


def addition(p: int, share: float, seed: int) -> Addition:
    """All a + b mod p. Both orders of a pair are on the same side: else the test would be known by its mirror."""
    pairs = torch.combinations(torch.arange(p), 2, with_replacement=True)
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    train, test = (_both_orders(part, p) for part in pairs.tensor_split([round(share * len(pairs))]))
    return Addition(*train, *test)


def answer_losses(model: nn.Module, tokens: Tensor, answers: Tensor) -> Tensor:
    """Negative log-likelihood (nats) of each answer after "=", (N,)."""
    return F.cross_entropy(model(tokens)[:, -1], answers, reduction="none")


def grow(seed: int, weight_decay: float, protocol: Protocol) -> pd.DataFrame:
    """Train one model and watch its training samples: `GeneralizationMonitor.table`, and four columns more.

    They are same_answer (pathway distance between samples of one answer), memorized (share of training samples),
    test_accuracy and train_accuracy.
    """
    data = addition(protocol.p, protocol.share, seed)
    model = MoEDecoder(
        protocol.p + 1,
        width=protocol.width,
        layers=protocol.layers,
        experts=protocol.experts,
        hidden=protocol.hidden,
        seed=seed,
    )
    answers = data.answers
    by_answer = [str(answer) for answer in answers.tolist()]
    monitor, same_answer = (
        GeneralizationMonitor(
            data.tokens,
            domains=domains,
            memorization=MemorizationTracker(MEMORIZED, float("inf")),
            losses=lambda model, tokens, mask: answer_losses(model, tokens, answers),
            every=protocol.every,
            batch=len(answers),
            seed=seed,
        )
        for domains in (None, by_answer)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=protocol.learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay
    )
    accuracies = {}
    for step in range(protocol.steps + 1):
        monitor(step, model)
        same_answer(step, model)
        if step % protocol.every == 0:
            accuracies[step] = (
                _accuracy(model, data.test_tokens, data.test_answers),
                _accuracy(model, data.tokens, answers),
            )
        loss = answer_losses(model, data.tokens, answers).mean() + protocol.balance * model.balance()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    table, of_one_answer = (
        found[found.domain == ALL].set_index("step") for found in (monitor.table(), same_answer.table())
    )
    table["same_answer"] = of_one_answer.distance.reindex(table.index).ffill().bfill()
    table["memorized"] = table.samples / len(answers)
    table["test_accuracy"] = [accuracies[step][0] for step in table.index]
    table["train_accuracy"] = [accuracies[step][1] for step in table.index]
    return table.reset_index()


@torch.no_grad()
def _accuracy(model: nn.Module, tokens: Tensor, answers: Tensor) -> float:
    return float((model(tokens)[:, -1].argmax(-1) == answers).float().mean())


def _both_orders(pairs: Tensor, p: int) -> tuple[Tensor, Tensor]:
    mirrored = pairs[pairs[:, 0] != pairs[:, 1]].flip(1)
    pairs = torch.cat([pairs, mirrored])
    return F.pad(pairs, (0, 1), value=p), pairs.sum(1) % p
