import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.trm import TRM, inverse_hessian_products
from unseen.shifts import Batch


def slow_loss(model, batch, alpha, *, implicit, steps=30, rate=0.1, terms=10):
    """Heads, Hessians and the implicit part by autograd, one domain at a time; alpha[Q][P] are given."""
    features = model.featurizer(batch.x)
    risk = nn.functional.cross_entropy(model.head(features), batch.y)
    parts = [(features[batch.domain == d], batch.y[batch.domain == d]) for d in range(3)]

    def cross_entropy(flat, part):
        head = flat.view(3, 9)
        return nn.functional.cross_entropy(part[0] @ head[:, :8].T + head[:, 8], part[1])

    total = 0.0
    for q in range(3):
        fixed = parts[q][0].detach(), parts[q][1]
        head = torch.cat([model.head.weight, model.head.bias.unsqueeze(1)], 1).detach().flatten()
        for _ in range(steps):
            head.requires_grad_()
            (slope,) = torch.autograd.grad(cross_entropy(head, fixed), head)
            head = (head - rate * slope).detach()
        head.requires_grad_()
        elsewhere = sum(alpha[q][p] * cross_entropy(head, parts[p]) for p in range(3) if p != q)
        (vector,) = torch.autograd.grad(elsewhere, head, retain_graph=True)
        hessian = torch.autograd.functional.hessian(lambda h: cross_entropy(h, fixed), head.detach())  # noqa: B023
        inputs = torch.cat([fixed[0], torch.ones(len(fixed[0]), 1).double()], 1)
        size = 1 / max(1.0, float(inputs.square().sum(1).mean()) / 2)
        step = torch.eye(27).double() - size * hessian
        inverse = size * sum(torch.linalg.matrix_power(step, k) for k in range(terms + 1))
        (own,) = torch.autograd.grad(cross_entropy(head, parts[q]), head, create_graph=True)
        total = total + elsewhere.clone() - implicit * (inverse @ vector) @ own
    return risk + total / 3


def test_loss_and_gradient_equal_the_published_ones_by_autograd(model, batch, built, same_with_gradients):
    objective = built("trm(implicit_weight=0.5, step_size=0.0)")
    expected = slow_loss(model, batch, torch.full((3, 3), 0.5).double(), implicit=0.5)
    same_with_gradients(objective(model, batch).total, expected)


def test_weights_follow_the_domains_where_a_head_does_worst(model, batch, built):
    objective = built("trm(step_size=1.0, implicit_weight=0.0)")
    first = objective(model, batch)
    weights = objective.weights.clone()
    assert not torch.allclose(weights, torch.full((3, 3), 0.5).double())
    other = weights * (1 - torch.eye(3).double())
    alpha = other / other.sum(1, keepdim=True)
    torch.testing.assert_close(first.total, slow_loss(model, batch, alpha, implicit=0.0))
    torch.testing.assert_close(objective(model, batch.again()).total, first.total)
    assert torch.equal(objective.weights, weights)


def test_a_missing_domain_is_no_target_of_transfer(model, batch, built):
    rest = batch.take(batch.domain != 1)
    two = Batch(x=rest.x, y=rest.y, domain=(rest.domain > 0).long(), domains=2, step=rest.step)
    pair = TRM(step_size=0.0)
    pair.setup(features=8, classes=3, domains=2)
    found = built("trm(step_size=0.0)")(model, rest).parts["penalty"]
    torch.testing.assert_close(found, pair.double()(model, two).parts["penalty"])


def test_warm_up_has_the_risk_alone(model, batch, built):
    batch.step = 99
    loss = built("trm")(model, batch)
    torch.testing.assert_close(loss.total, nn.functional.cross_entropy(model(batch.x), batch.y))
    assert [step for step in range(200) if built("trm").resets_optimizer_at(step)] == [100]


def test_the_series_tends_to_the_inverse_also_where_the_plain_one_diverges(generator):
    inputs = 10 * torch.randn(50, 3, generator=generator).double()
    logits = torch.randn(50, 1, generator=generator).double()
    probabilities = torch.cat([torch.zeros_like(logits), logits], 1).softmax(1)
    rows = torch.full((1, 50), 1 / 50).double()
    vector = torch.randn(3, generator=generator).double()
    vectors = torch.stack([-vector, vector]).unsqueeze(0)  # in the range of the softmax's Hessian
    found = inverse_hessian_products(inputs, probabilities, rows, vectors, 500)
    curvature = probabilities.prod(1)
    hessian = 2 * (inputs.T * curvature) @ inputs / 50  # on vectors (-v, v)
    assert torch.linalg.eigvalsh(hessian).max() > 2
    torch.testing.assert_close(found[0, 1], torch.linalg.solve(hessian, vector))


def test_features_whose_meaning_turns_with_the_domain_cost_more(generator):
    """One input keeps its relation to the class, the other turns it over in the second domain."""
    y, domain = torch.arange(80) % 2, torch.arange(80) // 40
    sign = 2.0 * y - 1
    x = torch.stack([sign, sign * (1 - 2.0 * domain)], 1) + 0.1 * torch.randn(80, 2, generator=generator)
    costs = []
    for shown in (0, 1):
        torch.manual_seed(0)
        objective = TRM()
        objective.setup(features=1, classes=2, domains=2)
        batch = Batch(x=x[:, [shown]], y=y, domain=domain, domains=2, step=1000)
        costs.append(float(objective(Network(nn.Identity(), 1, 2), batch).parts["penalty"].detach()))
    assert costs[1] > 3 * costs[0]


def test_errors(model, batch):
    with pytest.raises(InputError, match="terms: is -1"):
        TRM(terms=-1)
    model.head = nn.Sequential(model.head)
    objective = TRM()
    with pytest.raises(InputError, match="closed forms"):
        objective(model, batch)
