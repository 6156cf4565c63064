"""Unfamiliar texts: how surprised a language model is that was trained on the familiar ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unseen.errors import InputError, TrainingDiverged
from unseen.networks.modes import evaluating

TextLoss = Callable[[Tensor, Tensor], Any]
"""(ids (B, T), mask (B, T)) -> loss, or a tuple that begins with it, as `MultiLevelDistillation` gives."""


class LanguageModelOOD:
    """Detector of unfamiliar texts by perplexity, without labels: `fit(texts)`, then `score(texts)`.

        teacher = LanguageModelOOD(pretrained, tokenizer).fit(texts)
        distillation = MultiLevelDistillation(teacher.model, student)
        detector = LanguageModelOOD(student, tokenizer).fit(texts, loss=distillation)

    model      causal: ids (B, T) int64 to logits (B, T, V), or to an object with `.logits` (transformers). Texts are
               padded at the right, where a causal model doesn't look, so no attention mask is needed; a model that
               does look there is refused
    tokenizer  a function of a text that gives its ids, a tokenizer of transformers or of tokenizers
    length     tokens of a text that are read; what follows is cut
    start      id that stands before every text, so that the first token is scored, too; None: it is given
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, length: int = 128, start: int | None = None):
        if length < 2:
            raise InputError("length", f"is {length}", "Give 2 tokens or more.")
        self.model, self.tokenizer, self.length, self.start = model, tokenizer, length, start
        self.held_out_losses: list[float] = []
        self._vocabulary = _causal_vocabulary(model)

    def fit(
        self,
        texts: Sequence[str],
        *,
        loss: TextLoss | None = None,
        epochs: int = 5,
        learning_rate: float = 5e-5,
        batch_size: int = 8,
        held_out: Sequence[str] | None = None,
        patience: int = 1,
        seed: int = 0,
    ) -> Self:
        """Train the model on familiar texts by AdamW at a constant rate (defaults: Wu et al. 2023).

        loss      of ids and mask, see `TextLoss`; None: cross-entropy of the next token. The parameters of a loss
                  that is a module are trained with the model's
        held_out  other familiar texts: training ends when their mean score hasn't fallen for `patience` epochs,
                  and the weights of the best epoch stay. `held_out_losses` has the score after each
        seed      of the order of texts, and of dropout

        Raises `InputError` for texts that are no text or empty, `TrainingDiverged` for a loss that isn't finite.
        """
        if not (epochs > 0 and learning_rate > 0 and batch_size > 0 and patience > 0):
            problem = f"are {epochs}, {learning_rate}, {batch_size}, {patience}"
            raise InputError("epochs, learning_rate, batch_size, patience", problem, "Give positive numbers.")
        encoded = self._encode(texts)
        objective = loss or self._cross_entropy
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if isinstance(objective, nn.Module):
            parameters += objective.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        best, self.held_out_losses = None, []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(epochs):
                self.model.train()
                order = torch.randperm(len(encoded), generator=generator).tolist()
                for ids, mask in self._batches([encoded[row] for row in order], batch_size):
                    _step(optimizer, objective(ids, mask))
                self.model.eval()
                if held_out is None:
                    continue
                self.held_out_losses.append(float(self.score(held_out).mean()))
                if self.held_out_losses[-1] == min(self.held_out_losses):
                    best = copy.deepcopy(self.model.state_dict())
                elif int(np.argmin(self.held_out_losses)) + patience < len(self.held_out_losses):
                    break
        if best is not None:
            self.model.load_state_dict(best)
        return self

    def score(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float64]:
        """(N,) mean negative log-likelihood (nats) of a token, the logarithm of perplexity: higher is less familiar.

        Means of short texts are noisy: compare familiar and unfamiliar texts of the same lengths. Raises
        `InputError` for a text without a token to score.
        """
        encoded = self._encode(texts)
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))  # little padding
        scores = np.zeros(len(encoded))
        with evaluating(self.model), torch.no_grad():
            for start, (ids, mask) in enumerate(self._batches([encoded[row] for row in order], batch_size)):
                counts = mask[:, 1:].sum(1)
                losses = next_token_losses(_logits(self.model(ids)), ids, mask).split(counts.tolist())
                means = [float(each.double().mean()) for each in losses]
                scores[order[start * batch_size : (start + 1) * batch_size]] = means
        return scores

    def _cross_entropy(self, ids: Tensor, mask: Tensor) -> Tensor:
        return next_token_losses(_logits(self.model(ids)), ids, mask).mean()

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str) or not len(texts):
            problem = "are one string" if isinstance(texts, str) else "are none"
            raise InputError("texts", problem, "Give a list of strings.")
        first = [] if self.start is None else [self.start]
        encoded = []
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number}", f"is a {type(text).__name__}", "Give strings.")
            ids = [*first, *_ids(self.tokenizer, text)][: self.length]
            if len(ids) < 2:
                problem = f"has no token to score: {text[:40]!r}"
                raise InputError(
                    f"text {number}", problem, "Leave out empty texts, or give a start token for short ones."
                )
            if not 0 <= min(ids) <= max(ids) < self._vocabulary:
                problem = (
                    f"has ids from {min(ids)} to {max(ids)} and the model knows {self._vocabulary} tokens"
                )
                raise InputError(f"text {number}", problem, "Use the model's own tokenizer.")
            encoded.append(ids)
        return encoded

    def _batches(self, encoded: list[list[int]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.model.parameters()).device
        for start in range(0, len(encoded), size):
            rows = [torch.tensor(ids) for ids in encoded[start : start + size]]
            lengths = torch.tensor([len(row) for row in rows])
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            yield ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def next_token_losses(
    logits: Tensor, ids: Tensor, mask: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """(K,) cross-entropy (nats) of the K real tokens that follow another, row by row.

    logits  (B, T, V), at t for the token t + 1
    ids     (B, T) int64
    mask    (B, T), nonzero for real tokens

    Raises `InputError` for shapes that don't fit, ids beyond the vocabulary, and when no token is left to predict.
    """
    if ids.is_floating_point() or ids.dim() != 2 or logits.shape[:2] != ids.shape or logits.dim() != 3:
        problem = f"have shapes {tuple(logits.shape)} and {tuple(ids.shape)} ({ids.dtype})"
        raise InputError("logits and ids", problem, "Give (B, T, V) and whole numbers (B, T).")
    following = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    targets = ids[:, 1:][following[:, 1:]]
    if not len(targets):
        problem = "have no token to predict: all are masked, or come first"
        raise InputError("ids", problem, "Give two real tokens or more.")
    if int(targets.max()) >= logits.shape[-1]:
        problem = f"go up to {int(targets.max())} and the model knows {logits.shape[-1]} tokens"
        raise InputError("ids", problem, "Use the model's own tokenizer.")
    return nn.functional.cross_entropy(
        logits[:, :-1][following[:, 1:]], targets, reduction="none", label_smoothing=label_smoothing
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    found = tokenizer(text) if callable(tokenizer) else tokenizer.encode(text)
    found = found["input_ids"] if isinstance(found, Mapping) else getattr(found, "ids", found)
    return [int(each) for each in found]


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.dim() != 3:
        problem = f"gives {tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}"
        raise InputError("model", problem, "Give one that maps ids (B, T) to logits (B, T, V).")
    return found


@torch.no_grad()
def _causal_vocabulary(model: nn.Module) -> int:
    """V; raises `InputError` when another last token changes what the model says before it."""
    ids = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 1]], device=next(model.parameters()).device)
    with evaluating(model):
        logits = _logits(model(ids))
    if logits.shape[:2] != ids.shape:
        raise InputError(
            "model", f"gives {tuple(logits.shape)} for 2 x 6 ids", "Give one with logits for each token."
        )
    one, other = logits[:, :-1].float()
    if not torch.allclose(one, other, atol=1e-2 * float(one.std()), rtol=0):
        problem = "looks at the tokens that it should predict"
        raise InputError("model", problem, "Give a causal language model: a decoder, or one told to be.")
    return logits.shape[-1]


def _step(optimizer: torch.optim.Optimizer, found: Any) -> None:
    loss = found[0] if isinstance(found, tuple) else found
    if not math.isfinite(loss.item()):
        raise TrainingDiverged(f"the loss of texts is {loss.item()}: lower the learning rate")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
