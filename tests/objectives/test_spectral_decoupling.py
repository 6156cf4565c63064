import torch
from torch import nn

from unseen.objectives.spectral_decoupling import logit_penalty


def test_loss_is_risk_plus_mean_squared_logit(model, batch, built, same_with_gradients):
    logits = torch.stack([model(x) for x in batch.x])
    squares = sum(logits[i, c] ** 2 for i in range(len(batch)) for c in range(3)) / (3 * len(batch))
    expected = nn.functional.cross_entropy(logits, batch.y) + 0.1 * squares
    same_with_gradients(built("sd")(model, batch).total, expected)


def test_weights_multiply_the_squares(generator):
    logits, weight = torch.randn(5, 3, generator=generator), torch.tensor([0.0, 1, 2, 0, 1])
    expected = sum(w * logit.square().mean() for w, logit in zip(weight, logits, strict=True)) / 5
    torch.testing.assert_close(logit_penalty(logits, weight), expected)


def test_a_weak_feature_is_not_starved_by_a_strong_one(built):
    """Two features that each separate the classes, one with a larger margin (section 3.3 of the paper)."""
    y = torch.arange(40) % 2
    sign = 2.0 * y - 1
    x = torch.stack([2.0 * sign, 0.5 * sign], 1)
    shares = []
    for decay in (0.0, 0.2):
        weight = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.05)
        for _ in range(500):
            score = x @ weight
            logits = torch.stack([-score / 2, score / 2], 1)
            loss = nn.functional.cross_entropy(logits, y) + decay * logit_penalty(logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        shares.append(float((x @ weight.detach()).abs().mean()))
    assert shares[1] < 0.7 * shares[0]
