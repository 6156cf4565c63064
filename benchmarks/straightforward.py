"""Domain penalties as papers' code has them: a list of domain batches, a loop over it, autograd for the rest.

The yardstick of `steps`. Each gives the loss of one training step, with the same work as the objective of the
same name: penalties of gradients and curvature act on the head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from unseen.networks import Network

Domains = list[tuple[Tensor, Tensor]]


def erm(network: Network, domains: Domains) -> Tensor:
    x, y = (torch.cat(parts) for parts in zip(*domains, strict=True))
    return cross_entropy(network(x), y)


def irm(network: Network, domains: Domains) -> Tensor:
    risk = penalty = torch.zeros(())
    for logits, y in _outputs(network, domains):
        scale = torch.ones((), requires_grad=True)
        loss = cross_entropy(logits * scale, y)
        (slope,) = torch.autograd.grad(loss, scale, create_graph=True)
        risk, penalty = risk + loss, penalty + slope.square()
    return (risk + 100.0 * penalty) / len(domains)


def vrex(network: Network, domains: Domains) -> Tensor:
    losses = torch.stack([cross_entropy(logits, y) for logits, y in _outputs(network, domains)])
    return losses.mean() + 10.0 * (losses - losses.mean()).square().mean()


def coral(network: Network, domains: Domains) -> Tensor:
    features = [network.featurizer(x) for x, _ in domains]
    risk = sum(cross_entropy(network.head(z), y) for z, (_, y) in zip(features, domains, strict=True))
    penalty = torch.zeros(())
    for one, other in itertools.combinations(features, 2):
        penalty = penalty + (one.mean(0) - other.mean(0)).square().mean()
        penalty = penalty + (one.T.cov() - other.T.cov()).square().mean()
    pairs = len(domains) * (len(domains) - 1) / 2
    return risk / len(domains) + penalty / pairs


def iga(network: Network, domains: Domains) -> Tensor:
    losses = [cross_entropy(logits, y) for logits, y in _outputs(network, domains)]
    gradients = torch.stack([_head_gradient(loss, network) for loss in losses])
    penalty = (gradients - gradients.mean(0)).square().sum(1).mean()
    return torch.stack(losses).mean() + 1000.0 * penalty


def fishr(network: Network, domains: Domains) -> Tensor:
    parameters = dict(network.head.named_parameters())

    def loss(parameters: dict[str, Tensor], z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(network.head, parameters, (z.unsqueeze(0),)), y.unsqueeze(0))

    features = network.featurizer(torch.cat([x for x, _ in domains])).split([len(x) for x, _ in domains])
    losses, variances = [], []
    for z, (_, y) in zip(features, domains, strict=True):
        losses.append(cross_entropy(network.head(z), y))
        each = vmap(grad(loss), (None, 0, 0))(parameters, z, y)
        variances.append(torch.cat([g.flatten(1) for g in each.values()], 1).var(0, unbiased=False))
    stacked = torch.stack(variances)
    return torch.stack(losses).mean() + 1000.0 * (stacked - stacked.mean(0)).square().mean()


def hgp(network: Network, domains: Domains) -> Tensor:
    losses = [cross_entropy(logits, y) for logits, y in _outputs(network, domains)]
    pooled = torch.stack(losses).mean()
    gradients, products = [], []
    for loss in (*losses, pooled):
        gradient = _head_gradient(loss, network)
        norm = gradient.norm()
        gradients.append(gradient)
        products.append(norm.detach() * _head_gradient(norm, network))
    penalty = torch.zeros(())
    for gradient, product in zip(gradients[:-1], products[:-1], strict=True):
        penalty = penalty + 5e-3 * (gradient - gradients[-1].detach()).square().sum()
        penalty = penalty + 1e-4 * (product - products[-1].detach()).square().sum()
    return pooled + penalty / len(domains)


def hutchinson_diagonal(loss: Tensor, head: torch.nn.Module, probes: int) -> Tensor:
    """Estimate of the diagonal of the Hessian of `loss` in the head: a double backward pass a probe."""
    gradient = torch.autograd.grad(loss, list(head.parameters()), create_graph=True)
    total = [torch.zeros_like(g) for g in gradient]
    for _ in range(probes):
        signs = [torch.randint(0, 2, g.shape) * 2.0 - 1 for g in gradient]
        products = torch.autograd.grad(gradient, list(head.parameters()), signs, create_graph=True)
        total = [t + z * p for t, z, p in zip(total, signs, products, strict=True)]
    return torch.cat([t.flatten() for t in total]) / probes


STRAIGHTFORWARD: dict[str, Callable[[Network, Domains], Tensor]] = {
    f.__name__: f for f in (erm, irm, vrex, coral, iga, fishr, hgp)
}


def _outputs(network: Network, domains: Domains) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of each domain, from one pass over all."""
    logits = network(torch.cat([x for x, _ in domains])).split([len(x) for x, _ in domains])
    return list(zip(logits, (y for _, y in domains), strict=True))


def _head_gradient(loss: Tensor, network: Network) -> Tensor:
    gradient = torch.autograd.grad(loss, list(network.head.parameters()), create_graph=True)
    return torch.cat([g.flatten() for g in gradient])
