"""CDSAE: a sequential autoencoder whose classifier gives the same answer had a sensitive attribute been another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.networks.causal_autoencoder import (
    DIMENSIONS,
    CausalAutoencoder,
    Latents,
    Prior,
    as_causal_autoencoder,
    check_architecture,
)
from unseen.networks.gaussian_latents import kl_gaussian
from unseen.objectives.base import Loss, Objective, domain_means, example_losses
from unseen.objectives.stages import Stage
from unseen.objectives.total_correlation import TotalCorrelation
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


@objectives.register(
    "cdsae",
    summary="Sequential autoencoder over ordered domains; predictions that another sex or race would not change",
    paper="Lin et al. 2023, arXiv 2309.13005",
    search={"fairness": ("log", 1e-1, 1e1), "correlation": ("log", 1e-1, 1e1)},
)
class CDSAE(Objective):
    """Cross-entropy + elbo x (reconstruction + KL) + fairness x L_f + correlation x L_TC, the domains in order.

    The network is made into a `CausalAutoencoder`; `batch.group` is the sensitive attribute. Where columns of the
    inputs hold it, too, the encoders of what it influences read it there. L_f is the squared distance of the
    predictions for an example and for its counterfactual, which the decoder makes and the encoder reads anew: a
    classifier that ignores the attribute itself does not get away with what the attribute has done to the rest.
    No gradient of L_f goes into the generator, which could otherwise meet it by changing nothing. L_TC is the
    density ratio between the latents and those whose block without the attribute belongs to another example.

    fairness, correlation  weights of L_f and L_TC; 0 and 0 give a sequential autoencoder as LSSAE
    elbo           weight of the evidence bound beside the cross-entropy (LSSAE weights the latter 200 times)
    warmup_steps   in which KL, L_f and L_TC rise to their weights
    attributes     number of values of the attribute
    use_attribute  False keeps columns that hold the attribute from the network: it predicts without it
    columns        kinds of the encoded inputs as for `ColumnKinds.set`; None reads them from the training rows
    dims, prior, width  of `CausalAutoencoder`
    noise_seed     draws are a function of it and of the training step

    The paper's weights are not known. Discriminator and network take one joint step, all at one learning rate (LSSAE
    trains environments at a tenth of it and also smooths them, which is left out here). Without a group there is
    nothing to be fair about: L_f and L_TC are left out, with an UnseenWarning.
    """

    needs_domains = True

    def __init__(
        self,
        fairness: float = 1.0,
        correlation: float = 1.0,
        elbo: float = 0.2,
        warmup_steps: int = 100,
        attributes: int = 2,
        use_attribute: bool = True,
        columns: Sequence[Literal["number", "binary"] | int] | None = None,
        dims: Sequence[int] = DIMENSIONS,
        prior: Prior = "lstm",
        width: int = 64,
        noise_seed: int = 0,
    ):
        super().__init__()
        for name, value in (("fairness", fairness), ("correlation", correlation), ("elbo", elbo)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(name, f"is {value}", "Give a finite weight from 0.")
        check_architecture(attributes, dims, prior, width)
        self.fairness, self.correlation, self.elbo = fairness, correlation, elbo
        self.warmup_steps, self.attributes, self.use_attribute = warmup_steps, attributes, use_attribute
        self.columns, self.noise_seed = columns, noise_seed
        self.dims, self.prior, self.width = tuple(dims), prior, width

    def make_network(self, build: Callable[[], Network], *, domains: int) -> Network:
        return as_causal_autoencoder(
            build(), domains, attributes=self.attributes, dims=self.dims, prior=self.prior, width=self.width
        )

    def setup(self, *, features: int, classes: int, domains: int) -> None:
        if self.correlation:
            self.total_correlation = TotalCorrelation(self.attributes + sum(self.dims), self.width)

    def begin(self, stage: Stage) -> None:
        """Read from the training rows what the columns are, and which of them hold the attribute."""
        network, batch = stage.network, stage.batch(stage.rows("train"))
        assert isinstance(network, CausalAutoencoder)
        size = len(network.columns.kind)
        if not isinstance(batch.x, Tensor) or batch.x[0].numel() != size:
            raise InputError("objective 'cdsae'", "got inputs that are no vectors", "Give it a table.")
        x = batch.x.flatten(1)
        network.columns.infer(x)
        if self.columns is not None:
            network.columns.set(self.columns)
        if batch.group is None:
            _warn("the data has no group, so there is no attribute to be fair about; name the group column")
            return
        self._check_attribute(batch)
        found = network.featurizer.find_attribute(x, batch.group, read=self.use_attribute)
        network.columns.leave_out(network.featurizer.hides)
        if self.use_attribute and not found:
            _warn(
                "no column of the inputs holds the attribute, so predictions are made without it; name the group "
                "among the features, too, or set use_attribute=False"
            )

    def _check_attribute(self, batch: Batch) -> None:
        assert batch.group is not None
        if int(batch.group.max()) >= self.attributes:
            values = int(batch.group.max()) + 1
            raise InputError(
                "objective 'cdsae'", f"got {values} values of the attribute", f"Set attributes={values}."
            )
        for domain in range(batch.domains):
            own = batch.group[batch.domain == domain]
            if len(own.unique()) < 2:
                raise InputError(
                    f"training domain number {domain + 1}",
                    "has a single value of the attribute",
                    "What the attribute does cannot be told from what the domain does: join domains.",
                )

    def forward(self, model: Network, batch: Batch) -> Loss:
        assert isinstance(model, CausalAutoencoder) and isinstance(batch.x, Tensor)
        x, count = batch.x, len(batch)
        group = torch.zeros_like(batch.domain) if batch.group is None else batch.group
        attribute = nn.functional.one_hot(group, self.attributes).to(x.dtype)
        random = np.random.default_rng(derive_seed(self.noise_seed, batch.step))
        noise = torch.from_numpy(random.standard_normal((count, sum(self.dims)))).to(x).split(self.dims, 1)

        posteriors = model.encode(x)
        drawn = [posterior.sample(own) for posterior, own in zip(posteriors, noise, strict=True)]
        semantic, environment = torch.cat(drawn[:2], 1), torch.cat([p.mean for p in posteriors[2:]], 1)
        priors = model.environment_priors(*domain_means(environment, batch), batch.domain, attribute)
        off_prior = posteriors.semantic_a._replace(
            mean=posteriors.semantic_a.mean - attribute @ model.prior_means
        )
        divergence = kl_gaussian(off_prior) + kl_gaussian(posteriors.semantic)
        for posterior, prior in zip(posteriors[2:], priors, strict=True):
            divergence = divergence + kl_gaussian(posterior, prior)
        outputs = model.decode(torch.cat(drawn, 1), attribute)
        parts = {
            "label": example_losses(model.head(semantic), batch).mean(),
            "reconstruction": model.columns.losses(outputs, x.flatten(1)).mean(),
            "divergence": divergence.mean(),
        }
        rising = min(1.0, (batch.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        total = parts["label"] + self.elbo * (parts["reconstruction"] + rising * parts["divergence"])
        if batch.group is not None and self.fairness:
            # a value other than the present one, at random where there are several
            step = torch.from_numpy(random.integers(1, self.attributes, count)).to(group)
            new = nn.functional.one_hot((group + step) % self.attributes, self.attributes).to(x.dtype)
            parts["fairness"] = counterfactual_gap(model, posteriors, x, attribute, new)
            total = total + rising * self.fairness * parts["fairness"]
        if self.correlation:
            bound = torch.cat([attribute, drawn[0], drawn[2]], 1)
            free = torch.cat([drawn[1], drawn[3]], 1)
            order = torch.from_numpy(random.permutation(count)).to(group)
            parts["discriminator"] = self.total_correlation.loss(bound, free, order)
            total = total + parts["discriminator"]
            if batch.group is not None:
                parts["correlation"] = self.total_correlation.estimate(bound, free)
                total = total + rising * self.correlation * parts["correlation"]
        return Loss(total, parts)

    def finish(self, stage: Stage) -> None:
        """Keep the mean environment of every training domain: what the prior goes on from."""
        network, batch = stage.network, stage.batch(stage.rows("train"))
        assert isinstance(network, CausalAutoencoder)
        named = network.latents(batch.x)  # type: ignore[arg-type]
        means, _ = domain_means(torch.cat([named["environment_a"], named["environment"]], 1), batch)
        network.domain_means.copy_(means)


def counterfactual_gap(
    model: CausalAutoencoder, posteriors: Latents, x: Tensor, attribute: Tensor, new: Tensor
) -> Tensor:
    """Mean squared distance of the class probabilities of inputs and of their counterfactuals."""
    with torch.no_grad():
        made = model.generate(x, attribute, new)
    actual = model.head(torch.cat([posteriors.semantic_a.mean, posteriors.semantic.mean], 1))
    return (actual.softmax(1) - model(made).softmax(1)).square().sum(1).mean()


def _warn(problem: str) -> None:
    warnings.warn(f"objective 'cdsae': {problem}", UnseenWarning, stacklevel=3)
