"""Any score of features, taken at every layer and averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from unseen.detection.base import Detector, require_finite
from unseen.errors import InputError
from unseen.networks import Bank, Network
from unseen.networks.taps import as_map
from unseen.registry import detectors


def require_layers(layers: dict[str, Tensor], what: str) -> None:
    if not layers:
        raise InputError(
            what,
            "reads the layers before the head, and the network has none",
            "Choose another network, such as mlp.",
        )


@detectors.register(
    "mahalanobis-ensemble",
    summary="Mahalanobis distances at every layer, each by its own scale, averaged",
    paper="Lee et al. 2018, arXiv 1807.03888, with equal weights",
    preset={"of": "mahalanobis"},
)
@detectors.register(
    "multi-layer", summary="Any score of features, at every layer, each by its own scale, averaged"
)
class MultiLayer(Detector):
    """Mean over layers of (score - mean) / standard deviation, both over the training inputs of that layer.

    of  name or specification of a detector that reads features alone

    A layer's features are its channels, averaged over places. Lee et al. weight the layers by a logistic regression
    on unfamiliar inputs, which nobody has in advance: here all count alike.
    """

    needs_logits = True
    mean: Tensor
    deviation: Tensor

    def __init__(self, of: str = "knn"):
        super().__init__()
        single = detectors.build(of)
        if single.needs_logits:
            raise InputError(
                "of",
                f"is {of!r}, which reads more than features",
                "Give knn, mahalanobis or another of features.",
            )
        self.of = of
        self.parts = nn.ModuleDict()

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        require_layers(layers, "multi-layer")
        return {f"layer/{name}": as_map(output.float()).mean(2) for name, output in layers.items()}

    def fit(self, bank: Bank) -> Self:
        names = [name for name in bank.layers if name.startswith("layer/")] or ["layer/"]
        self.parts = nn.ModuleDict()
        means, deviations = [], []
        for name in names:
            own = self._layer(bank, name)
            part = detectors.build(self.of).fit(own)
            scores = part.score(own).double()
            means.append(scores.mean())
            deviations.append(scores.std(correction=0).clamp(min=1e-12))
            self.parts[_key(name)] = part
        self.keep(bank, mean=torch.stack(means).float(), deviation=torch.stack(deviations).float())
        return self

    def score(self, bank: Bank) -> Tensor:
        self.require_fitted(bank)
        each = []
        for key, part in self.parts.items():
            assert isinstance(part, Detector)
            each.append(part.score(self._layer(bank, key.replace("|", "."))))
        return ((torch.stack(each, 1) - self.mean) / self.deviation).mean(1)

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        own: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            if not path.startswith("parts."):
                own[path] = value
                continue
            _, key, name = path.split(".", 2)
            parts.setdefault(key, {})[name] = value
        self.parts = nn.ModuleDict(
            {key: detectors.build(self.of).restore(part) for key, part in parts.items()}
        )
        return super().restore(own)

    def _layer(self, bank: Bank, name: str) -> Bank:
        require_finite(bank.features, "features")
        return replace(bank, features=self.seen(bank, name), head=None, layers={})


def _key(name: str) -> str:
    """A layer's name as a module may have it: without dots."""
    return name.replace(".", "|")
