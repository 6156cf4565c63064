"""Debiasing at prediction: subtract what a model would say from the words alone that go with classes too often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError

SMALLEST_LOG_PROBABILITY = -27.6
"""log 1e-12: below it a probability is called zero, so that its log does not decide everything."""


def bias_tokens(
    tokens: Tensor,
    labels: Tensor,
    *,
    classes: int,
    top: int = 100,
    variation: float = 0.1,
    special: Sequence[int] = (),
) -> Tensor:
    """The `top` most frequent tokens, ascending, of those that go unevenly with the classes.

    tokens     (N, T) int64, labels (N,) int64 below `classes`
    variation  least coefficient of variation (deviation by mean) of a token's counts over the classes
    special    ids that are never chosen, such as [CLS]

    Counts, not shares: with classes of unequal size, neutral words vary too. Zhong et al. 2025, section 4.
    """
    if tokens.dim() != 2 or len(tokens) != len(labels):
        raise InputError(
            "tokens", f"have shape {tuple(tokens.shape)} for {len(labels)} labels", "Give (N, T) ids."
        )
    member = nn.functional.one_hot(labels, classes).double()
    present = torch.zeros(len(tokens), int(tokens.max()) + 1, dtype=torch.float64, device=tokens.device)
    present.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=torch.float64))
    counts = present.T @ member
    uneven = counts.std(1, correction=0) >= variation * counts.mean(1)
    uneven &= counts.sum(1) > 0
    if special:
        uneven[[token for token in special if token < len(uneven)]] = False
    order = torch.where(uneven, counts.sum(1), -1.0).argsort(descending=True, stable=True)
    return order[: min(top, int(uneven.sum()))].sort().values


def only_tokens(tokens: Tensor, kept: Tensor, *, mask: int, special: Sequence[int] = ()) -> Tensor:
    """`tokens` (N, T) with the id `mask` in place of all that are neither in `kept` nor `special`."""
    stay = torch.isin(tokens, torch.cat([kept, kept.new_tensor(list(special))]))
    return tokens.where(stay, mask)


def debiased_scores(log_probabilities: Tensor, counterfactual: Tensor, tau: float) -> Tensor:
    """log P(y | x) - tau log P(y | counterfactual x), both (B, K) and cut at log 1e-12."""
    first, second = (
        value.clamp(min=SMALLEST_LOG_PROBABILITY) for value in (log_probabilities, counterfactual)
    )
    return first - tau * second


class CounterfactualDebias:
    """Wraps a model: scores are its log-probabilities minus `tau` times those for the counterfactual input.

    model                inputs to logits (B, K)
    make_counterfactual  inputs to inputs of which only the bias is left (`only_tokens`)
    tau                  0 leaves the model as it is; `choose_tau` sets it
    """

    def __init__(
        self, model: Callable[[Any], Tensor], make_counterfactual: Callable[[Any], Any], tau: float = 1.0
    ):
        if not tau >= 0:
            raise InputError("tau", f"is {tau}", "Give a number from 0.")
        self.model, self.make_counterfactual, self.tau = model, make_counterfactual, tau

    @torch.no_grad()
    def scores(self, x: Any) -> Tensor:
        """(B, K), higher is likelier; no log-probabilities: they do not sum to one."""
        return debiased_scores(*self._both(x), self.tau)

    def predict(self, x: Any) -> Tensor:
        """(B,) int64, the class of the highest score."""
        return self.scores(x).argmax(-1)

    @torch.no_grad()
    def choose_tau(
        self, x: Any, labels: Tensor, candidates: Sequence[float] = tuple(i / 10 for i in range(31))
    ) -> float:
        """Set tau to the candidate with the best accuracy on validation data (the smallest of equals).

        The data must show the shift to be met: on data like the training's, 0 looks best. They must not be the
        test's: what is chosen on labels cannot be judged by them.
        """
        if not len(labels):
            raise InputError("labels", "are empty", "Give validation examples.")
        both = self._both(x)
        accuracies = [
            float((debiased_scores(*both, tau).argmax(-1) == labels).double().mean()) for tau in candidates
        ]
        self.tau = candidates[accuracies.index(max(accuracies))]
        return self.tau

    def _both(self, x: Any) -> tuple[Tensor, Tensor]:
        return tuple(self.model(value).log_softmax(-1) for value in (x, self.make_counterfactual(x)))  # type: ignore[return-value]
