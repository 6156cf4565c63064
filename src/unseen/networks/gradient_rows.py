"""Gradients of n examples in one parameter: whole, or as factors that are never multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor


class DenseRows:
    """Gradients (n, *shape), one an example."""

    def __init__(self, values: Tensor):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @property
    def like(self) -> Tensor:
        """A tensor with the gradients' dtype and device."""
        return self.values

    def flat(self) -> Tensor:
        """(n, P), each gradient as a row."""
        return self.values.flatten(1)

    def checksums(self) -> Tensor:
        """(n,) numbers that are finite only if the gradients are, at the least cost."""
        return self.flat().sum(1)

    def squared_norms(self) -> Tensor:
        """(n,)"""
        return self.flat().square().sum(1)

    def products(self, other: Rows) -> Tensor:
        """(n, m) inner products with the gradients of other examples in the same parameter."""
        return self.flat() @ other.flat().T

    def along(self, direction: Tensor) -> Tensor:
        """(n,) inner products with one direction of the parameter's shape."""
        return self.flat() @ direction.flatten()

    def sums(self, weights: Tensor) -> Tensor:
        """(G, *shape) sums of the gradients, weighted by (G, n)."""
        return (weights @ self.flat()).view(len(weights), *self.values.shape[1:])

    def sum_of_squares(self) -> Tensor:
        """(*shape) sum over examples of the squared gradient, coordinate by coordinate."""
        return self.values.square().sum(0)


class OuterRows:
    """Gradients left' right (n, C, F) of a linear layer's weight, kept as left (n, T, C) and right (n, T, F).

    T counts the positions (tokens) at which an example passes the layer; for vectors it is 1, and all but
    `flat` cost O(n (C + F)) memory.
    """

    def __init__(self, left: Tensor, right: Tensor):
        self.left, self.right = left, right

    def __len__(self) -> int:
        return len(self.left)

    @property
    def like(self) -> Tensor:
        return self.left

    @property
    def _single(self) -> bool:
        return self.left.shape[1] == 1

    def _whole(self) -> Tensor:
        return self.left.transpose(1, 2) @ self.right

    def flat(self) -> Tensor:
        return self._whole().flatten(1)

    def checksums(self) -> Tensor:
        return self.left.sum((1, 2))  # inputs that are not finite have outputs, and a loss, that are not

    def squared_norms(self) -> Tensor:
        if self._single:
            return self.left.square().sum((1, 2)) * self.right.square().sum((1, 2))
        positions, (outputs, inputs) = self.left.shape[1], (self.left.shape[2], self.right.shape[2])
        if positions * positions > outputs * inputs:
            return self._whole().square().sum((1, 2))
        # |sum_t l_t r_t'|^2 = sum_ts <l_t, l_s> <r_t, r_s>
        return ((self.left @ self.left.mT) * (self.right @ self.right.mT)).sum((1, 2))

    def products(self, other: Rows) -> Tensor:
        if isinstance(other, OuterRows) and self._single and other._single:
            return (self.left[:, 0] @ other.left[:, 0].T) * (self.right[:, 0] @ other.right[:, 0].T)
        return self.flat() @ other.flat().T

    def along(self, direction: Tensor) -> Tensor:
        return ((self.left @ direction) * self.right).sum((1, 2))

    def sums(self, weights: Tensor) -> Tensor:
        scaled = (weights[:, :, None, None] * self.left).flatten(1, 2)
        return scaled.mT @ self.right.flatten(0, 1)

    def sum_of_squares(self) -> Tensor:
        if self._single:
            return self.left[:, 0].square().T @ self.right[:, 0].square()
        return self._whole().square().sum(0)


Rows = DenseRows | OuterRows


def full_precision(tensor: Tensor) -> Tensor:
    """Squared gradients underflow in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
