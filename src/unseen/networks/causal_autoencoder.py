"""A sequential autoencoder of tables: semantic and environment latents, each with and without a sensitive attribute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network, build_network
from unseen.networks.column_kinds import ColumnKinds
from unseen.networks.gaussian_latents import Gaussian, GaussianHead, RecurrentPrior
from unseen.networks.simple import default_network
from unseen.registry import Spec, networks

Prior = Literal["lstm", "gru", "static"]
DIMENSIONS = (4, 4, 2, 2)


class Latents(NamedTuple):
    """Posteriors of an example's latents; those named `_a` may depend on the attribute."""

    semantic_a: Gaussian
    semantic: Gaussian
    environment_a: Gaussian
    environment: Gaussian


class SemanticEncoder(nn.Module):
    """Inputs (B, ...) to the posterior means of the semantic latents (B, s + ns): what the head classifies.

    The columns that hold the attribute, once `find_attribute` has seen them, reach `semantic_a` alone.
    hides  (D,) True for columns that hold the attribute
    holds  (A, D) their values for each value of the attribute
    reads  whether the attribute is read from them, or kept from the network altogether
    """

    hides: Tensor
    holds: Tensor
    reads: Tensor

    def __init__(self, trunk: nn.Module, size: int, features: int, attributes: int, dims: Sequence[int]):
        super().__init__()
        self.trunk, self.attributes = trunk, attributes
        self.semantic_a = GaussianHead(features + attributes, dims[0])
        self.semantic = GaussianHead(features, dims[1])
        self.register_buffer("hides", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("holds", torch.zeros(attributes, size))
        self.register_buffer("reads", torch.tensor(False))

    @torch.no_grad()
    def find_attribute(self, x: Tensor, attribute: Tensor, read: bool = True) -> bool:
        """Look for columns of inputs (N, D) that are a function of the attribute (N,); whether it can be read.

        read  False keeps what is found from the network instead
        """
        rows = [x[attribute == value] for value in range(self.attributes)]
        seen = [value for value, own in enumerate(rows) if len(own)]
        first = torch.stack([own[0] if len(own) else torch.full_like(x[0], torch.inf) for own in rows])
        constant = torch.stack([(rows[value] == first[value]).all(0) for value in seen]).all(0)
        found = constant & (first[seen] != first[seen[0]]).any(0)
        values = {tuple(row) for row in first[seen][:, found].tolist()}
        told = len(seen) > 1 and len(values) == len(seen)
        self.hides.copy_(found & told)
        self.holds.copy_(first.nan_to_num(posinf=1e6))
        self.reads.fill_(read and told)
        return told

    def attribute(self, x: Tensor) -> Tensor:
        """(B, A) one-hot attribute as the columns say it, zeros where it is not read.

        Zeros, too, for what is farther from every known value than half the way between two of them: a category
        that training did not have is not taken for one that it had.
        """
        least, chosen = self._squared_distances(x.flatten(1)).min(1)
        apart = self._squared_distances(self.holds)
        apart = apart.masked_fill(apart == 0, torch.inf).min()
        known = (4 * least <= apart).unsqueeze(1)
        return nn.functional.one_hot(chosen, self.attributes).to(x.dtype) * (self.reads & known)

    def _squared_distances(self, rows: Tensor) -> Tensor:
        """(B, A) of rows (B, D) from what each value of the attribute looks like."""
        return ((rows.unsqueeze(1) - self.holds).square() * self.hides).sum(-1)

    def hidden(self, x: Tensor) -> Tensor:
        """(B, F) features of the inputs without the attribute."""
        return self.trunk(torch.where(self.hides, 0.0, x.flatten(1)).view_as(x))

    def posteriors(self, hidden: Tensor, attribute: Tensor) -> tuple[Gaussian, Gaussian]:
        return self.semantic_a(torch.cat([hidden, attribute], 1)), self.semantic(hidden)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.posteriors(self.hidden(x), self.attribute(x))
        return torch.cat([first.mean, second.mean], 1)


class CausalAutoencoder(Network):
    """Predicts from semantic latents alone; also generates what an example were with another attribute.

    domains     T, number of training domains, in their order
    attributes  A, number of values of the sensitive attribute
    dims        sizes of the latents: semantic with and without the attribute, environment with and without it
    prior       of the environment: "lstm" or "gru" over domains, or "static", N(0, 1)
    width       of the decoder's hidden layer

    prior_means   (A, s) mean of the semantic latent under each value of the attribute
    domain_means  (T, v1 + v2) mean environment of each training domain, once training is over
    """

    featurizer: SemanticEncoder
    domain_means: Tensor

    def __init__(
        self,
        network: Network,
        size: int,
        domains: int,
        attributes: int = 2,
        dims: Sequence[int] = DIMENSIONS,
        prior: Prior = "lstm",
        width: int = 64,
    ):
        nn.Module.__init__(self)
        check_architecture(attributes, dims, prior, width)
        self.domains, self.attributes, self.dims = domains, attributes, tuple(dims)
        self.featurizer = SemanticEncoder(network.featurizer, size, network.features, attributes, dims)
        self.head = nn.Linear(dims[0] + dims[1], network.classes)
        self.environment_a = GaussianHead(network.features + attributes, dims[2])
        self.environment = GaussianHead(network.features, dims[3])
        self.prior_means = nn.Parameter(torch.zeros(attributes, dims[0]))
        self.prior_a = self.prior = None
        if prior != "static":
            self.prior_a = RecurrentPrior(dims[2], prior, attributes)
            self.prior = RecurrentPrior(dims[3], prior)
        self.decoder = nn.Sequential(
            nn.Linear(sum(dims) + attributes, width), nn.ReLU(), nn.Linear(width, size)
        )
        self.columns = ColumnKinds(size)
        self.register_buffer("domain_means", torch.zeros(domains, dims[2] + dims[3]))

    def encode(self, x: Tensor) -> Latents:
        """Posteriors of all latents of inputs (B, ...)."""
        hidden, attribute = self.featurizer.hidden(x), self.featurizer.attribute(x)
        environment_a = self.environment_a(torch.cat([hidden, attribute], 1))
        return Latents(
            *self.featurizer.posteriors(hidden, attribute), environment_a, self.environment(hidden)
        )

    def decode(self, latents: Tensor, attribute: Tensor) -> Tensor:
        """(B, D) outputs for `columns`, from latents (B, all) side by side and attributes (B, A), one-hot."""
        return self.decoder(torch.cat([latents, attribute], 1))

    def environment_priors(
        self, means: Tensor, present: Tensor, domain: Tensor, attribute: Tensor
    ) -> tuple[Gaussian | None, Gaussian | None]:
        """Priors of both environment latents of examples in `domain` (B,) with `attribute` (B, A), one-hot.

        means, present  (T, v1 + v2) mean environments of the domains, and (T,) which of them are known
        None stands for N(0, 1).
        """
        if self.prior_a is None or self.prior is None:
            return None, None
        first, second = means.split(self.dims[2:], 1)
        states_a, states = self.prior_a.states(first, present), self.prior.states(second, present)
        return self.prior_a(states_a[domain], attribute), self.prior(states[domain])

    def generate(self, x: Tensor, attribute: Tensor, new: Tensor) -> Tensor:
        """Inputs as they were had the attribute been `new`, both (B, A) and one-hot.

        Latents that depend on the attribute move as their priors do, the others stay; what the decoder says of the
        difference is added to the inputs, so that what it does not explain of an example stays, too. Categories and
        binary columns become probabilities, up to that.
        """
        posteriors = self.encode(x)
        latents = torch.cat([posterior.mean for posterior in posteriors], 1)
        moves = [torch.zeros_like(posterior.mean) for posterior in posteriors]
        moves[0] = (new - attribute) @ self.prior_means
        if self.prior_a is not None:
            moves[2] = self.prior_a.shift(new - attribute)
        before = self.columns.means(self.decode(latents, attribute))
        after = self.columns.means(self.decode(latents + torch.cat(moves, 1), new))
        changed = x.flatten(1) + after - before
        return torch.where(self.featurizer.hides, new @ self.featurizer.holds, changed).view_as(x)

    @torch.no_grad()
    def latents(self, x: Tensor) -> dict[str, Tensor]:
        """Posterior means of the latents of inputs (B, ...), by name."""
        return {name: posterior.mean for name, posterior in self.encode(x)._asdict().items()}

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """(B, C) probabilities of the classes; raises InputError for an attribute that training did not have.

        `forward`, which a predictor calls, reads such an attribute as unknown instead.
        """
        if bool(self.featurizer.reads):
            self.read_attribute(x)
        return torch.softmax(self(x), 1)

    @torch.no_grad()
    def counterfactual(
        self, x: Tensor, new: Tensor, attribute: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs and probabilities (B, C) had the attribute been `new` (B,) instead of `attribute` (B,).

        attribute  None reads it from the inputs
        Raises InputError for a value out of range, for one that stays, and where inputs do not tell the attribute.
        """
        known = self.read_attribute(x) if attribute is None else attribute
        for name, values in (("attribute", known), ("new", new)):
            if len(values) != len(x) or bool(((values < 0) | (values >= self.attributes)).any()):
                raise InputError(name, "is not one value an example", f"Give 0 to {self.attributes - 1}.")
        if bool((known == new).any()):
            raise InputError("new", f"is the old value in {int((known == new).sum())} rows", "Change it.")
        one_hot = (nn.functional.one_hot(values, self.attributes).to(x.dtype) for values in (known, new))
        made = self.generate(x, *one_hot)
        return made, self.predict_proba(made)

    @torch.no_grad()
    def read_attribute(self, x: Tensor) -> Tensor:
        """(B,) the attribute that the inputs hold; raises InputError where they hold none, or an unknown value."""
        if not bool(self.featurizer.hides.any()):
            raise InputError("inputs", "do not hold the attribute", "Give attribute=...")
        apart = (x.flatten(1).unsqueeze(1) - self.featurizer.holds).abs() * self.featurizer.hides
        least, chosen = apart.amax(-1).min(1)
        if bool((least > 1e-3).any()):
            row = int((least > 1e-3).nonzero()[0])
            raise InputError(
                "inputs", f"hold an attribute that training did not have (row {row})", "Give attribute=..."
            )
        return chosen

    @torch.no_grad()
    def upcoming_environment(self, steps: int, attribute: int = 0) -> tuple[Gaussian, Gaussian]:
        """Priors (1, d) of both environment latents `steps` domains after the last one of training (from 1)."""
        if steps < 1:
            raise InputError("steps", f"are {steps}", "Give a whole number from 1.")
        means = nn.functional.pad(self.domain_means, (0, 0, 0, steps))
        present = means.new_ones(len(means))
        present[self.domains :] = 0
        domain = torch.tensor([len(means) - 1], device=means.device)
        one_hot = nn.functional.one_hot(domain * 0 + attribute, self.attributes).to(means.dtype)
        found = self.environment_priors(means, present, domain, one_hot)
        zeros = (means.new_zeros(1, size) for size in self.dims[2:])
        first, second = (p or Gaussian(z, z) for p, z in zip(found, zeros, strict=True))
        return first, second


def check_architecture(attributes: int, dims: Sequence[int], prior: str, width: int) -> None:
    """Raise `InputError` for sizes or a prior that no `CausalAutoencoder` has."""
    if attributes < 2:
        raise InputError("attributes", f"are {attributes}", "Give the number of values, from 2.")
    if isinstance(dims, int) or len(dims) != 4 or any(size < 1 for size in dims):
        raise InputError(
            "dims", f"are {dims}", "Give four sizes from 1: semantic with and without the attribute, "
            "environment with and without it.",
        )  # fmt: skip
    if prior not in ("lstm", "gru", "static"):
        raise InputError(f"prior {prior!r}", "is not known", "Use lstm, gru or static.")
    if width < 1:
        raise InputError("width", f"is {width}", "Give a whole number from 1.")


def input_size(network: Network) -> int:
    """D, the number of columns that a network of vectors reads: of its first layer, which must be linear."""
    layers = (m for m in network.featurizer.modules() if next(m.parameters(recurse=False), None) is not None)
    first = next(layers, network.head)
    if not isinstance(first, nn.Linear):
        raise InputError(
            f"network {getattr(network, 'spec', type(network).__name__)}",
            f"begins with {type(first).__name__}",
            "A causal autoencoder reads tables: choose a network of vectors, such as mlp.",
        )
    return first.in_features


def as_causal_autoencoder(network: Network, domains: int, **options: Any) -> CausalAutoencoder:
    """A `CausalAutoencoder` whose trunk is the featurizer of `network`; options are its own."""
    made = CausalAutoencoder(network, input_size(network), domains, **options)
    if hasattr(network, "spec"):  # else it was made by hand and cannot be saved by name, either way
        made.spec = Spec.make("causal-autoencoder", domains=domains, of=str(network.spec), **options)
    return made


@networks.register(
    "causal-autoencoder",
    summary="Sequential autoencoder of tables, whose latents part what a sensitive attribute moves",
    paper="Lin et al. 2023, arXiv 2309.13005",
)
def causal_autoencoder(
    *,
    input_shape: Any,
    classes: int,
    domains: int = 2,
    of: str = "auto",
    attributes: int = 2,
    dims: Sequence[int] = DIMENSIONS,
    prior: Prior = "lstm",
    width: int = 64,
) -> CausalAutoencoder:
    """On the network `of`, "mlp(width=64)": what CDSAE trains."""
    spec = Spec.of(of)
    if spec.name == "auto":
        spec = Spec(default_network(input_shape), spec.parameters)
    network = build_network(spec, input_shape, classes)
    return as_causal_autoencoder(
        network, domains, attributes=attributes, dims=tuple(dims), prior=prior, width=width
    )
