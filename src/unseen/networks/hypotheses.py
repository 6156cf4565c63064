"""Several hypotheses in one network: K linear heads on one featurizer, or K whole members.

Both give logits (K, B, C), and both are a `Network`: its head is the mixture of the K heads that `choose` names,
itself linear. So a choice is a buffer that is saved with the weights, and may be made anew after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network, build_network
from unseen.registry import Spec, networks


class HypothesisHead(nn.Module):
    """K linear heads that act as one: `weight` (C, in_features) and `bias` (C,) of their mixture.

    mixture  (K,) shares of the hypotheses, which sum to one
    Subclasses hold the heads and define `weight`, `bias` and `all_logits`.
    """

    mixture: Tensor

    def __init__(self, count: int, in_features: int, classes: int):
        super().__init__()
        if count < 2:
            raise InputError("hypotheses", f"are {count}", "Give at least two.")
        self.count, self.in_features, self.out_features = count, in_features, classes
        self.register_buffer("mixture", torch.full((count,), 1 / count))

    @property
    def weight(self) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define weight")

    @property
    def bias(self) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define bias")

    def all_logits(self, features: Tensor) -> Tensor:
        """(K, B, C) logits of every hypothesis."""
        raise TypeError(f"{type(self).__name__} must define all_logits")

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def choose(self, index: int | None) -> None:
        """Answer with one hypothesis from now on, or with the mean of all logits (None)."""
        if index is not None and not 0 <= index < self.count:
            raise InputError(
                "hypothesis", f"is {index}", f"Give a number from 0 to {self.count - 1}, or None."
            )
        self.mixture.fill_(1 / self.count if index is None else 0.0)
        if index is not None:
            self.mixture[index] = 1.0


class SharedHeads(HypothesisHead):
    """K heads on the same D features: one parameter (K, C, D), one matrix product."""

    def __init__(self, count: int, features: int, classes: int):
        super().__init__(count, features, classes)
        heads = [nn.Linear(features, classes) for _ in range(count)]
        self.weights = nn.Parameter(torch.stack([head.weight.detach() for head in heads]))
        self.biases = nn.Parameter(torch.stack([head.bias.detach() for head in heads]))

    @property
    def weight(self) -> Tensor:
        return torch.einsum("k,kcd->cd", self.mixture, self.weights)

    @property
    def bias(self) -> Tensor:
        return self.mixture @ self.biases

    def all_logits(self, features: Tensor) -> Tensor:
        flat = nn.functional.linear(features, self.weights.flatten(0, 1), self.biases.flatten())
        return flat.unflatten(-1, (self.count, -1)).movedim(-2, 0)


class SeparateHeads(HypothesisHead):
    """The heads of K members, each on its own D of the K D features: a frozen member's gets no gradient at all."""

    def __init__(self, heads: Sequence[nn.Linear]):
        super().__init__(len(heads), len(heads) * heads[0].in_features, heads[0].out_features)
        self.heads: Any = nn.ModuleList(heads)

    @property
    def weight(self) -> Tensor:
        return torch.cat(
            [share * head.weight for share, head in zip(self.mixture, self.heads, strict=True)], 1
        )

    @property
    def bias(self) -> Tensor:
        return self.mixture @ torch.stack([head.bias for head in self.heads])

    def all_logits(self, features: Tensor) -> Tensor:
        own = features.unflatten(-1, (self.count, -1)).movedim(-2, 0)
        weights = torch.stack([head.weight for head in self.heads])
        return torch.baddbmm(torch.stack([head.bias for head in self.heads]).unsqueeze(1), own, weights.mT)


class Hypotheses(Network):
    """A network of K hypotheses: `all_logits(x)` (K, B, C); it answers as `head.choose` says.

    Methods that know nothing of hypotheses see features, a linear head and logits (B, C) as in any network.
    """

    head: HypothesisHead  # type: ignore[assignment]

    def __init__(self, featurizer: nn.Module, head: HypothesisHead):
        nn.Module.__init__(self)
        self.featurizer, self.head = featurizer, head  # type: ignore[assignment]

    @property
    def count(self) -> int:
        """K, the number of hypotheses."""
        return self.head.count

    def all_logits(self, x: Any) -> Tensor:
        """(K, B, C) logits of every hypothesis."""
        return self.head.all_logits(self.featurizer(x))


class _SideBySide(nn.Module):
    """Features of K featurizers one after the other, (B, K D)."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members: Any = nn.ModuleList(members)

    def forward(self, x: Any) -> Tensor:
        return torch.cat([member(x) for member in self.members], 1)


class Members(Hypotheses):
    """K whole networks of one architecture; trained one after the other or side by side."""

    featurizer: _SideBySide
    head: SeparateHeads

    def member_logits(self, index: int, x: Any) -> Tensor:
        """(B, C) logits of one member; the others are not evaluated."""
        return self.head.heads[index](self.featurizer.members[index](x))

    def freeze(self, index: int) -> None:
        """Put a member in evaluation mode: its batch statistics and dropout must not follow new inputs."""
        self.featurizer.members[index].eval()


def with_heads(network: Network, count: int) -> Hypotheses:
    """K new linear heads on the featurizer of `network`; they answer with the mean of their logits."""
    found = Hypotheses(network.featurizer, SharedHeads(count, network.features, network.classes))
    return _named("heads", found, network)


def with_members(members: Sequence[Network]) -> Members:
    """Networks of one architecture as one; it answers with the last of them."""
    sizes = {(member.features, member.classes) for member in members}
    if len(sizes) > 1:
        raise InputError(
            "members", f"differ in features and classes ({sorted(sizes)})", "Give equal networks."
        )
    found = Members(
        _SideBySide([member.featurizer for member in members]), SeparateHeads([m.head for m in members])
    )
    found.head.choose(len(members) - 1)
    return _named("members", found, members[0])


def _named(name: str, made: Any, of: Network) -> Any:
    if hasattr(of, "spec"):  # else it was made by hand and cannot be saved by name, either way
        made.spec = Spec.make(name, count=made.count, of=str(of.spec))
    return made


@networks.register("heads", summary="Several linear heads on the featurizer of another network")
def heads(*, input_shape: Any, classes: int, count: int = 2, of: str = "mlp") -> Hypotheses:
    """`count` heads on the network `of`, "mlp(width=64)": what DivDis trains."""
    return with_heads(build_network(of, input_shape, classes), count)


@networks.register("members", summary="Several networks of one architecture side by side")
def members(*, input_shape: Any, classes: int, count: int = 2, of: str = "mlp") -> Members:
    """`count` networks `of` one kind, "mlp(width=64)": what D-BAT trains."""
    return with_members([build_network(of, input_shape, classes) for _ in range(count)])
