import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.transfer import Transfer, adversarial_head


def slow_ascent(features, head, batch, radius, steps, rate):
    """Algorithm 1's inner loop on a copied layer, by autograd."""
    adversary = nn.Linear(head.in_features, head.out_features).double()
    adversary.load_state_dict(head.state_dict())
    centre = [p.detach().clone() for p in head.parameters()]

    def gap(z):
        risks = [
            nn.functional.cross_entropy(adversary(z[batch.domain == d]), batch.y[batch.domain == d])
            for d in range(3)
        ]
        return max(risks) - min(risks)

    for _ in range(steps):
        slopes = torch.autograd.grad(gap(features.detach()), list(adversary.parameters()))
        with torch.no_grad():
            for p, slope in zip(adversary.parameters(), slopes, strict=True):
                p += rate * slope
            moved = [p - c for p, c in zip(adversary.parameters(), centre, strict=True)]
            distance = torch.cat([m.flatten() for m in moved]).norm()
            if distance > radius:
                for p, c, m in zip(adversary.parameters(), centre, moved, strict=True):
                    p.copy_(c + m * radius / distance)
    for p in adversary.parameters():
        p.requires_grad_(False)
    return gap(features)


@pytest.mark.parametrize(("radius", "rate"), [(2.0, 1e-3), (0.5, 0.3)])
def test_loss_is_risk_plus_gap_at_the_adversary(radius, rate, model, batch, built, same_with_gradients):
    features = model.featurizer(batch.x)
    risk = nn.functional.cross_entropy(model.head(features), batch.y)
    gap = slow_ascent(features, model.head, batch, radius, 6, rate)
    objective = built("transfer", radius=radius, rate=rate, steps=6)
    same_with_gradients(objective(model, batch).total, risk + gap)


def test_the_adversary_widens_the_gap_and_stays_in_the_ball(model, batch, built):
    gaps = []
    for steps in (0, 5, 40):
        objective = built("transfer", radius=0.5, rate=0.3, steps=steps)
        gaps.append(float(objective(model, batch).parts["penalty"].detach()))
    assert gaps == sorted(gaps) and gaps[-1] > 1.2 * gaps[0]
    head = torch.cat([model.head.weight, model.head.bias.unsqueeze(1)], 1)
    found = adversarial_head(
        model.featurizer(batch.x), head, batch.y, batch.domain, 3, radius=0.5, steps=40, rate=0.3
    )
    assert not found.requires_grad
    assert float((found - head.detach()).norm()) == pytest.approx(0.5)


def test_a_missing_domain_is_neither_extreme(model, batch, built):
    objective = built("transfer(steps=0)")
    rest = batch.take(batch.domain != 1)
    risks = [nn.functional.cross_entropy(model(p.x), p.y) for p in map(rest.of_domain, (0, 2))]
    torch.testing.assert_close(objective(model, rest).parts["penalty"], (risks[0] - risks[1]).abs())
    assert objective(model, batch.of_domain(0)).parts["penalty"] == 0


def test_errors(model, batch):
    with pytest.raises(InputError, match="radius, rate or steps: are 0,"):
        Transfer(radius=0)
    model.head = nn.Sequential(model.head)
    with pytest.raises(InputError, match="closed forms"):
        Transfer()(model, batch)
