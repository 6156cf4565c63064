"""What the columns of an encoded table are, and how likely a decoder finds them: numbers, two values, categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError

NUMBER, BINARY, LEFT_OUT = -1, -2, -3
"""Kinds of a column; from 0 on, the number of the categorical variable that it is one value of."""
LOG_NOISE = (-6.0, 2.0)
PACE = 10.0
"""Log-variance by parameter: a few hundred of Adam's steps must reach the noise of columns decoded well."""


class ColumnKinds(nn.Module):
    """Likelihood of D columns given D outputs of a decoder: Gaussian, Bernoulli or, over one-hot columns, softmax.

    All columns are numbers until `set` or `infer` says otherwise.
    kind   (D,) NUMBER, BINARY (two values: `low` and `low` + `span`), LEFT_OUT, or a categorical variable
    noise  (D,) a tenth of the log-variance of numbers around what is decoded, learned; that is held to -6 to 2
    """

    kind: Tensor
    low: Tensor
    span: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("kind", torch.full((size,), NUMBER))
        self.register_buffer("low", torch.zeros(size))
        self.register_buffer("span", torch.ones(size))
        self.noise = nn.Parameter(torch.zeros(size))

    def set(self, columns: Sequence[Literal["number", "binary"] | int]) -> None:
        """Say what the columns are, in their order; a whole number k stands for a variable of k one-hot columns.

        Which two values a binary column has is what `infer` saw, else 0 and 1.
        """
        kinds, variables = [], 0
        for column in columns:
            if isinstance(column, int) and column >= 2:
                kinds += [variables] * column
                variables += 1
            elif column in ("number", "binary"):
                kinds.append(NUMBER if column == "number" else BINARY)
            else:
                raise InputError(
                    f"column {column!r}", "is of no known kind", "Use number, binary, or k from 2 categories."
                )
        if len(kinds) != len(self.kind):
            raise InputError("columns", f"are {len(kinds)}", f"The inputs have {len(self.kind)}.")
        self.kind.copy_(torch.tensor(kinds))

    @torch.no_grad()
    def infer(self, x: Tensor) -> None:
        """Read the kinds from examples (N, D): neighbouring 0/1 columns of which each row has exactly one are a
        categorical variable, other columns of two values are binary, the rest are numbers."""
        low, high = x.amin(0), x.amax(0)
        two = ((x == low) | (x == high)).all(0) & (low < high)
        is_bit = (two & (low == 0) & (high == 1)).tolist()
        kinds = torch.where(two, BINARY, NUMBER).tolist()
        first, variables = 0, 0
        while first < len(kinds):
            end = _end_of_variable(x, is_bit, first)
            if end is not None:
                kinds[first:end] = [variables] * (end - first)
                variables += 1
            first = end or first + 1
        self.kind.copy_(torch.tensor(kinds))
        self.low.copy_(torch.where(two, low, 0.0))
        self.span.copy_(torch.where(two, high - low, 1.0))

    @torch.no_grad()
    def leave_out(self, columns: Tensor) -> None:
        """Neither decode nor judge the columns of a mask (D,)."""
        self.kind.masked_fill_(columns, LEFT_OUT)

    def means(self, outputs: Tensor) -> Tensor:
        """(B, D) expected values of the columns; of those left out, zero."""
        likely = torch.where(self.kind == BINARY, self.low + self.span * torch.sigmoid(outputs), outputs)
        likely = torch.where(self.kind >= 0, self._log_probabilities(outputs).exp(), likely)
        return likely * (self.kind != LEFT_OUT)

    def losses(self, outputs: Tensor, x: Tensor) -> Tensor:
        """(B,) negative log-likelihood of inputs (B, D), in nats, summed over columns, but for a constant."""
        noise = (PACE * self.noise).clamp(*LOG_NOISE)
        number = ((x - outputs).square() * (-noise).exp() + noise) / 2
        bit = (x - self.low) / self.span
        binary = nn.functional.softplus(outputs) - bit * outputs
        category = -x * self._log_probabilities(outputs)
        each = torch.where(self.kind == NUMBER, number, torch.where(self.kind == BINARY, binary, category))
        return torch.where(self.kind == LEFT_OUT, 0.0, each).sum(-1)

    def _log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log-softmax over the columns of each categorical variable; zero elsewhere."""
        inside = self.kind >= 0
        place = self.kind.clamp(min=0).expand_as(outputs)
        peak = torch.full_like(outputs, -torch.inf)
        peak = peak.scatter_reduce(-1, place, outputs.detach().masked_fill(~inside, -torch.inf), "amax")
        shifted = torch.where(inside, outputs - peak.gather(-1, place), 0.0)
        sums = torch.zeros_like(outputs).scatter_add(-1, place, shifted.exp() * inside)
        return torch.where(inside, shifted - sums.gather(-1, place).clamp(min=1).log(), 0.0)


def _end_of_variable(x: Tensor, is_bit: list[bool], first: int) -> int | None:
    """Where a categorical variable that begins at a column ends, or None where none begins."""
    held = torch.zeros_like(x[:, 0])
    for end in range(first, len(is_bit)):
        if not is_bit[end]:
            return None
        held = held + x[:, end]
        if bool((held > 1).any()):
            return None
        if bool((held == 1).all()):
            return end + 1
    return None
