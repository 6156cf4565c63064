import copy

import pytest
import torch
from outlier_data import accuracy, trained
from torch import nn

from unseen.errors import InputError
from unseen.objectives.normalised_outputs import LogitNorm, T2FNorm


def test_logitnorm_is_the_published_formula_and_blind_to_the_scale_of_logits(model, batch):
    loss = LogitNorm(0.04)(model, batch).total
    f = model(batch.x)
    expected = nn.functional.cross_entropy(f / (0.04 * (f.norm(dim=1, keepdim=True) + 1e-7)), batch.y)
    torch.testing.assert_close(loss, expected)
    louder = copy.deepcopy(model)
    with torch.no_grad():
        louder.head.weight *= 7
        louder.head.bias *= 7
    torch.testing.assert_close(LogitNorm(0.04)(louder, batch).total, loss, rtol=1e-5, atol=1e-6)
    assert not torch.isclose(LogitNorm(0.4)(model, batch).total, loss)


def test_the_gradient_of_logitnorm_does_not_lengthen_logits(model, batch):
    logits = model(batch.x).detach().requires_grad_()
    norms = logits.norm(dim=1, keepdim=True) + 1e-7
    nn.functional.cross_entropy(logits / norms / 0.04, batch.y).backward()
    along = (logits.grad * logits).sum(1) / logits.norm(dim=1) / logits.grad.norm(dim=1).clamp(min=1e-12)
    assert along.abs().max() < 1e-4


def test_t2fnorm_is_the_published_formula_and_blind_to_the_norm_of_features(model, batch):
    loss = T2FNorm(0.1)(model, batch).total
    h = model.featurizer(batch.x)
    logits = (h / h.norm(dim=1, keepdim=True) / 0.1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, batch.y))


def test_after_training_the_head_answers_to_features_over_the_temperature(model):
    class Stage:
        network = copy.deepcopy(model)

    T2FNorm(0.1).finish(Stage)
    x = torch.randn(4, 6, dtype=torch.float64)
    h = model.featurizer(x)
    torch.testing.assert_close(Stage.network(x), model.head(h / 0.1))


def test_both_learn_and_t2fnorm_scales_once():
    for objective in ("logitnorm", "t2fnorm"):
        assert accuracy(trained(objective)[2]) > 0.95
    sharp, soft = (trained(f"t2fnorm(temperature={t})", steps=1, learning_rate=1e-9)[0] for t in (0.1, 0.2))
    torch.testing.assert_close(sharp.head.weight, 2 * soft.head.weight, rtol=1e-4, atol=1e-6)


def test_errors():
    for kind in (LogitNorm, T2FNorm):
        for wrong in (0, -0.1, float("inf")):
            with pytest.raises(InputError, match="temperature"):
                kind(temperature=wrong)
