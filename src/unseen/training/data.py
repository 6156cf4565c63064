"""A split made ready for training: encoded once, kept whole in memory, indexed batch by batch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from unseen.errors import UnseenWarning
from unseen.networks import Bank, Network
from unseen.networks.modes import evaluating
from unseen.networks.taps import tapped
from unseen.registry import Spec
from unseen.shifts import Batch, Split
from unseen.shifts.preprocessing import Preprocessing, fit_preprocessing
from unseen.shifts.sampling import DomainSampler, derive_seed
from unseen.shifts.shift import count_rows, take

Role = Literal["train", "validation", "unseen", "unlabelled"]


class Observer(Protocol):
    """What keeps more of a pass than features and logits: a detector."""

    @property
    def observes(self) -> bool: ...

    def observe(self, network: Network, inputs: Any, layers: dict[str, Tensor]) -> dict[str, Tensor]: ...


class TrainingData:
    """All rows of a split's shift, encoded by a preprocessing that was fitted on the training rows."""

    def __init__(self, split: Split, backbone: Spec | None = None):
        self.split = split
        if backbone is None:
            self.preprocessing: Preprocessing = fit_preprocessing(split.shift, split.train)
        else:
            from unseen.networks.frozen import FrozenBackbone

            self.preprocessing = FrozenBackbone.fit(split.shift, split.train, backbone)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenWarning)  # that a held-out domain has categories of its own
            self.stored = self.preprocessing.encode(split.shift.inputs)
        self.domain = split.train_domain_index(torch.arange(len(split.shift)))
        self.remembered: dict[Any, Any] = {}
        """What is the same for every network that is judged on these data."""

    def sampler(self, per_domain: int, seed: int) -> DomainSampler:
        return DomainSampler(self.split.train, self.domain[self.split.train], per_domain, seed)

    def unlabelled_sampler(self, per_domain: int, seed: int) -> DomainSampler:
        """Draws as many rows without labels as `sampler` draws with labels, whatever their domains."""
        rows = self.split.unlabelled
        count = per_domain * len(self.split.train_domains)
        return DomainSampler(rows, torch.zeros_like(rows), count, derive_seed(seed, 3))

    @cached_property
    def stored_outliers(self) -> Any:
        """The shift's known outliers, encoded as its examples are: nothing is fitted on them."""
        return self.preprocessing.encode(self.split.shift.outliers)

    def outlier_sampler(self, per_domain: int, seed: int) -> DomainSampler:
        """Draws as many outliers as `sampler` draws examples; a smaller set starts over within the step."""
        rows = torch.arange(count_rows(self.stored_outliers))
        count = per_domain * len(self.split.train_domains)
        return DomainSampler(rows, torch.zeros_like(rows), count, derive_seed(seed, 4))

    def batch(
        self,
        rows: Tensor,
        step: int,
        device: torch.device | str = "cpu",
        unlabelled: Tensor | None = None,
        outliers: Tensor | None = None,
    ) -> Batch:
        """The batch of the given rows, of rows without labels and of outliers, on `device`, with finished inputs."""
        shift = self.split.shift
        batch = Batch(
            x=take(self.stored, rows),
            y=shift.labels[rows],
            domain=self.domain[rows],
            domains=len(self.split.train_domains),
            ids=rows,
            group=None if shift.group is None else shift.group[rows],
            weight=None if shift.weight is None else shift.weight[rows],
            step=step,
            unlabelled=None if unlabelled is None else take(self.stored, unlabelled),
            auxiliary=None if outliers is None else take(self.stored_outliers, outliers),
        ).to(device)
        batch.x = self.preprocessing.finish(batch.x)
        if batch.unlabelled is not None:
            batch.unlabelled = self.preprocessing.finish(batch.unlabelled)
        if batch.auxiliary is not None:
            batch.auxiliary = self.preprocessing.finish(batch.auxiliary)
        return batch

    def bank(
        self,
        network: Network,
        role: Role | Tensor,
        device: torch.device | str = "cpu",
        observers: Sequence[Observer] = (),
    ) -> Bank:
        """Outputs of `network` for the rows of a role (or for given rows), and what `observers` keep of the pass."""
        rows = role if isinstance(role, Tensor) else self.split.rows(role)
        if hasattr(network.featurizer, "support") and len(rows):
            # neighbours are seen together, and must be of one domain
            bank = self._bank_by_domain(network, rows, device, observers)
        else:
            bank = network_outputs(
                network, self.preprocessing, take(self.stored, rows), device, observers=observers
            )
        bank.labels, bank.domain, bank.ids = (
            self.split.shift.labels[rows],
            self.split.shift.domain[rows],
            rows,
        )
        bank.domains, bank.network_hash = self.split.shift.domains, weights_hash(network)
        return bank

    def _bank_by_domain(
        self, network: Network, rows: Tensor, device: torch.device | str, observers: Sequence[Observer]
    ) -> Bank:
        domain = self.split.shift.domain[rows]
        order = domain.argsort(stable=True)
        parts = rows[order].split(domain.bincount().tolist())
        banks = [
            network_outputs(network, self.preprocessing, take(self.stored, part), device, observers=observers)
            for part in parts
            if len(part)
        ]
        back = order.argsort()
        features, logits = (torch.cat([getattr(b, n) for b in banks])[back] for n in ("features", "logits"))
        layers = {name: torch.cat([bank.layers[name] for bank in banks])[back] for name in banks[0].layers}
        return Bank(features, logits, head=network.head, layers=layers)


def weights_hash(network: Network) -> int:
    """A number that tells networks with other weights apart, from 1."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest()[:7], "big") + 1


@torch.inference_mode()
def network_outputs(
    network: Network,
    preprocessing: Preprocessing,
    stored: object,
    device: torch.device | str = "cpu",
    size: int = 512,
    observers: Sequence[Observer] = (),
) -> Bank:
    """Features and logits of stored inputs, `size` at a time, in evaluation mode: one pass for all observers.

    observers  what they keep of each batch is in the bank's `layers`; smaller batches where there are any
    """
    features, logits = [], []
    kept: dict[str, list[Tensor]] = {}
    observers = [observer for observer in observers if observer.observes]
    count, size = count_rows(stored), min(size, 128) if observers else size
    with evaluating(network):
        # an empty set passes, too, where something is kept of it: names and widths are known then
        for start in range(0, max(count, 1) if observers else count, size):
            part = take(stored, torch.arange(start, min(start + size, count)))
            part = {k: v.to(device) for k, v in part.items()} if isinstance(part, dict) else part.to(device)
            inputs = preprocessing.finish(part)
            with ExitStack() as stack:
                layers = stack.enter_context(tapped(network)) if observers else {}
                features.append(network.featurizer(inputs).float())
                logits.append(network.head(features[-1]).float())
            for observer in observers:
                for name, value in observer.observe(network, inputs, layers).items():
                    kept.setdefault(name, [])
                    if len(kept[name]) < len(features):  # two detectors may keep the same
                        kept[name].append(value.detach())
    empty = [torch.zeros(0, network.features)], [torch.zeros(0, network.classes)]
    return Bank(
        torch.cat(features or empty[0]).cpu(),
        torch.cat(logits or empty[1]).cpu(),
        head=network.head,
        layers={name: torch.cat(parts).cpu() for name, parts in kept.items()},
    )
