import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.information_bottleneck import feature_variance
from unseen.shifts import Batch


def slow_parts(model, batch):
    """Mean risk, variance and squared IRM gradient over the domains, one domain at a time."""
    risks, variances, irm = [], [], []
    for d in range(3):
        part = batch.of_domain(d)
        features = model.featurizer(part.x)
        variances.append(features.var(0).mean())
        risks.append(nn.functional.cross_entropy(model.head(features), part.y))
        scale = torch.ones((), dtype=torch.double, requires_grad=True)
        risk = nn.functional.cross_entropy(scale * model.head(features), part.y)
        irm.append(torch.autograd.grad(risk, scale, create_graph=True)[0] ** 2)
    return [torch.stack(values).mean() for values in (risks, variances, irm)]


def test_losses_are_the_published_sums(model, batch, built, same_with_gradients):
    risk, variance, irm = slow_parts(model, batch)
    same_with_gradients(built("ib-erm")(model, batch).total, risk + 100 * variance)
    risk, variance, irm = slow_parts(model, batch)
    loss = built("ib-irm(penalty_weight=7.0)")(model, batch)
    same_with_gradients(loss.total, risk + 7 * variance + 100 * irm)


def test_warm_up_leaves_the_variance_out_and_irm_at_one(model, batch, built):
    batch.step = 99
    risk, _, irm = slow_parts(model, batch)
    torch.testing.assert_close(built("ib-erm")(model, batch).total, risk)
    torch.testing.assert_close(built("ib-irm")(model, batch).total, risk + irm)
    for name in ("ib-erm", "ib-irm"):
        assert [step for step in range(200) if built(name).resets_optimizer_at(step)] == [100]


def test_single_examples_have_no_variance_and_whole_weights_are_repetitions(model, batch, generator):
    features = model.featurizer(batch.x)
    assert feature_variance(features[:1], batch.domain[:1], 3) == 0
    domain = torch.tensor([0, 0, 1])
    expected = (features[:2].var(0).mean() + 0) / 2
    torch.testing.assert_close(feature_variance(features[:3], domain, 3), expected)
    # an unbiased variance counts weights as importances, not as repetitions: only zero and one agree
    weight = (torch.arange(len(batch)) % 3 > 0).double()
    kept = weight > 0
    torch.testing.assert_close(
        feature_variance(features, batch.domain, 3, weight),
        feature_variance(features[kept], batch.domain[kept], 3),
    )


def test_a_feature_that_does_not_predict_loses_its_variance(built, generator):
    y = torch.arange(60) % 2
    x = torch.stack([2.0 * y - 1, torch.randn(60, generator=generator)], 1)
    batch = Batch(x=x, y=y, domain=torch.arange(60) // 20, domains=3, step=10_000)
    spreads = []
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        model = Network(nn.Linear(2, 2, bias=False), 2, 2)
        objective = built(f"ib-erm(penalty_weight={weight}, warmup_steps=0)")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            objective(model, batch).total.backward()
            optimizer.step()
        spreads.append(float(model.featurizer.weight.detach()[:, 1].norm()))
        assert (model(x).argmax(1) == y).all()
    assert spreads[1] < 0.1 * spreads[0]
