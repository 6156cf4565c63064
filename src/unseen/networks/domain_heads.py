"""A head for each training domain and one for all, on one featurizer: what steering chooses from at test time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network, build_network
from unseen.networks.hypotheses import Hypotheses, SharedHeads
from unseen.networks.simple import default_network
from unseen.registry import Spec, networks

MEMORY = 50
"""Training batches that a prototype remembers: each weighs at least a fiftieth."""


class DomainHeads(Hypotheses):
    """K = M + 1 heads: one for each of M training domains, in their order, and last the shared one.

    It answers with the shared head, so that an example's prediction depends on nothing but the example. What the
    other heads say is for `unseen.networks.steering`; `head.choose` makes another head answer from then on.

    prototypes     (M, D) running mean of each domain's features in training
    seen           (M,) batches that each prototype was made of; 0 for one that is not known
    discriminator  from features to M logits of their domain, or None
    """

    head: SharedHeads
    prototypes: Tensor
    seen: Tensor

    def __init__(self, network: Network, domains: int, discriminator: int = 0):
        if domains < 2:
            raise InputError("domain heads", f"are for {domains} domain", "Train on at least two domains.")
        if discriminator < 0:
            raise InputError("discriminator", f"has width {discriminator}", "Give 0 for none, or 64.")
        super().__init__(network.featurizer, SharedHeads(domains + 1, network.features, network.classes))
        self.head.choose(domains)
        self.register_buffer("prototypes", torch.zeros(domains, network.features))
        self.register_buffer("seen", torch.zeros(domains))
        self.discriminator = None
        if discriminator:
            self.discriminator = nn.Sequential(
                nn.Linear(network.features, discriminator), nn.ReLU(), nn.Linear(discriminator, domains)
            )

    @property
    def domains(self) -> int:
        """M, the number of training domains."""
        return len(self.prototypes)

    @torch.no_grad()
    def remember(self, features: Tensor, domain: Tensor, weight: Tensor | None = None) -> None:
        """Move the prototypes towards the mean features (B, D) of the domains (B,) in a training batch.

        weight  (B,) of the examples, or None
        The mean of the first 50 batches; after these, each further one weighs a fiftieth. (The authors keep the
        last 50 batches of features themselves.)
        """
        features = features.detach().to(self.prototypes.dtype)
        member = nn.functional.one_hot(domain, self.domains).to(features.dtype)
        member = member if weight is None else member * weight.to(features.dtype).unsqueeze(1)
        with torch.autocast(features.device.type, enabled=False):
            counts = member.sum(0)
            means = member.T @ features / counts.clamp(min=1e-12).unsqueeze(1)
        present = (counts > 0).to(features.dtype)
        self.seen.add_(present)
        rate = present / self.seen.clamp(min=1, max=MEMORY)
        self.prototypes.add_(rate.unsqueeze(1) * (means - self.prototypes))


def with_domain_heads(network: Network, domains: int, discriminator: int = 0) -> DomainHeads:
    """New heads for `domains` domains and for all of them, on the featurizer of `network`.

    discriminator  hidden units of a network that guesses the domain, 0 for none
    """
    made = DomainHeads(network, domains, discriminator)
    if hasattr(network, "spec"):  # else it was made by hand and cannot be saved by name, either way
        options: dict[str, Any] = {"domains": domains, "of": str(network.spec)}
        made.spec = Spec.make("domain-heads", **options, discriminator=discriminator)
    return made


@networks.register(
    "domain-heads",
    summary="A head for each training domain and one for all, on the featurizer of another network",
    paper="Zhang et al. 2023, arXiv 2208.08661",
)
def domain_heads(
    *, input_shape: Any, classes: int, domains: int = 2, of: str = "auto", discriminator: int = 0
) -> DomainHeads:
    """Heads for `domains` domains on the network `of`, "mlp(width=64)": what DRM trains."""
    spec = Spec.of(of)
    if spec.name == "auto":
        spec = Spec(default_network(input_shape), spec.parameters)
    return with_domain_heads(build_network(spec, input_shape, classes), domains, discriminator)
