"""A head that averages over what class-typical inputs could have confounded (back-door adjustment)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning


def class_prototypes(
    x: Mapping[str, Tensor], labels: Tensor, classes: int, vocabulary: int = 0
) -> dict[str, Tensor]:
    """Mean input of each class and modality: (K, D) of sequences (N, T, D), over examples and time.

    Token sequences (N, T) int64 give the shares of the `vocabulary` tokens, (K, V). A class without an example
    gets zeros.
    """
    member = nn.functional.one_hot(labels, classes).float()
    member = member / member.sum(0).clamp(min=1)
    means = {}
    for name, sequence in x.items():
        if sequence.is_floating_point():
            inputs = sequence.flatten(2).mean(1)
        else:
            inputs = torch.zeros(len(sequence), vocabulary, device=sequence.device)
            inputs.scatter_add_(1, sequence, torch.full_like(sequence, 1, dtype=inputs.dtype))
            inputs = inputs / sequence.shape[1]
        means[name] = member.T @ inputs
    return means


class CausalHead(nn.Module):
    """log P(y | do(x)) = log sum_k P(k) softmax(W_k [h; encoding of prototype k]) for features h (B, D): (B, K).

    Log-probabilities are logits, so every loss on logits takes them. `set_prototypes` before training, or an
    UnseenWarning says that nothing is adjusted. In training P(k) is the class frequency; in evaluation it is 1 / K
    and every prototype the mean of all, as in the published code, so the adjustment acts through training.
    Zhong et al. 2025, arXiv 2506.10452, section 4.

    sizes  number of values of a prototype of each modality
    """

    prior: Tensor

    def __init__(self, features: int, classes: int, sizes: Mapping[str, int], width: int = 32):
        super().__init__()
        self.in_features, self.out_features = features, classes
        self.sizes, self._silent = dict(sizes), False
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(size, width),
                    nn.ReLU(),
                    nn.Linear(width, width),
                    nn.ReLU(),
                    nn.Linear(width, width),
                )
                for name, size in self.sizes.items()
            }
        )
        joint = features + width * len(self.sizes)
        self.classifiers = nn.ModuleList(nn.Linear(joint, classes) for _ in range(classes))
        for name, size in self.sizes.items():
            self.register_buffer(f"prototypes_{name}", torch.zeros(classes, size))
        self.register_buffer("prior", torch.full((classes,), 1 / classes))

    def set_prototypes(self, prototypes: Mapping[str, Tensor], prior: Tensor) -> None:
        """Take over class prototypes {name: (K, D)} and class frequencies (K,) of the training data."""
        if set(prototypes) != set(self.sizes):
            raise InputError(
                "prototypes",
                f"are of {sorted(prototypes)}, but the head was built for {sorted(self.sizes)}",
                "Give one for each modality.",
            )
        for name, size in self.sizes.items():
            expected = (self.out_features, size)
            if tuple(prototypes[name].shape) != expected:
                raise InputError(
                    f"prototypes of {name!r}",
                    f"have shape {tuple(prototypes[name].shape)}",
                    f"Give (classes, values) = {expected}.",
                )
            self.get_buffer(f"prototypes_{name}").copy_(prototypes[name])
        if (
            tuple(prior.shape) != (self.out_features,)
            or not bool((prior >= 0).all())
            or not bool(prior.any())
        ):
            raise InputError("prior", f"is {prior.tolist()}", f"Give {self.out_features} class frequencies.")
        self.prior.copy_(prior / prior.sum())
        self._silent = True

    def forward(self, features: Tensor) -> Tensor:
        if self.training and not self._silent:
            self._silent = True
            warnings.warn(
                "causal head: trains without prototypes, and adjusts for nothing. Train by the objective cider, "
                "which sets them (with weights and rate of 0 it is plain training), or call set_prototypes.",
                UnseenWarning,
                stacklevel=2,
            )
        encoded = torch.cat([encoder(self._prototypes(name)) for name, encoder in self.encoders.items()], 1)
        prior = self.prior if self.training else torch.full_like(self.prior, 1 / self.out_features)
        mixture = []
        for index, classifier in enumerate(self.classifiers):
            joint = torch.cat([features, encoded[index].expand(len(features), -1)], 1)
            mixture.append(prior[index].log() + classifier(joint).log_softmax(-1))
        return torch.stack(mixture).logsumexp(0)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self._silent |= any(bool(self.get_buffer(f"prototypes_{name}").any()) for name in self.sizes)

    def _prototypes(self, name: str) -> Tensor:
        prototypes = self.get_buffer(f"prototypes_{name}")
        return prototypes if self.training else prototypes.mean(0, keepdim=True).expand_as(prototypes)
