"""The network contract: a featurizer and a linear head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unseen.registry import Spec, networks


class Network(nn.Module):
    """`logits = head(featurizer(x))`, with `head` a linear layer from D features to C classes.

    Methods that act on the last layer (closed-form penalties, Mahalanobis distances, head refitting) rely on
    the cut; methods that do not simply call the network. `spec` is the name it was built by, or one that its
    factory chose: what builds the same architecture again when a saved model brings the weights.
    """

    spec: Spec

    def __init__(self, featurizer: nn.Module, features: int, classes: int):
        super().__init__()
        self.featurizer = featurizer
        self.head = nn.Linear(features, classes)

    @property
    def features(self) -> int:
        """D, the number of features that enter the head."""
        return self.head.in_features

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.head.out_features

    def forward(self, x: Any) -> Tensor:
        return self.head(self.featurizer(x))


def build_network(spec: Spec | str, input_shape: Any, classes: int) -> Network:
    """The named network for inputs of `input_shape` (one example, or a dict of shapes) and C classes."""
    network = networks.build(spec, input_shape=input_shape, classes=classes)
    if not hasattr(network, "spec"):
        network.spec = Spec.of(spec)
    return network
