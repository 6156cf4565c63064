"""Scores that read the head's gradient, regret or sparse weights: pNML, GradNorm, DICE."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.registry import detectors
from unseen.testing import check_detector


@pytest.mark.parametrize(
    "spec",
    ["pnml", "pnml(shrinkage=0.001)", "gradnorm", "gradnorm(temperature=2)", "dice", "dice(sparsity=0)"],
)
def test_contract(spec):
    check_detector(spec)


# ---- pNML ----


def slow_regret(train, feature) -> float:
    unit = train.features.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    x = feature.double().numpy() / np.linalg.norm(feature.double().numpy())
    r = x @ np.linalg.solve(unit.T @ unit, x)
    logits = train.head.weight.detach().double().numpy() @ x + train.head.bias.detach().double().numpy()
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return math.log(sum(value / (value + (1 - value) * value ** (r / (1 + r))) for value in p))


def test_pnml_is_the_slow_loop(train, familiar):
    found = detectors.build("pnml(shrinkage=1e-12)").fit(train).score(familiar)
    expected = [-slow_regret(train, feature) for feature in familiar.features]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert (found <= 0).all() and (found >= -math.log(4)).all()


def test_pnml_regrets_directions_that_training_lacks(train):
    """s = 1: every class could have been learnt, and the regret is log of the sum of 1 / (2 - p)."""
    wide = replace(train, features=torch.cat([train.features, torch.zeros(240, 1)], 1), head=nn.Linear(13, 4))
    outside = wide.take(torch.arange(3))
    outside.features = 5 * torch.eye(13)[[12, 12, 12]]
    p = torch.softmax(wide.head(torch.eye(13)[12]), -1).detach()
    scores = detectors.build("pnml").fit(wide).score(outside)
    np.testing.assert_allclose(scores, [-math.log((1 / (2 - p)).sum())] * 3, rtol=1e-3)
    assert (detectors.build("pnml").fit(wide).score(wide) > scores[0]).all()


# ---- GradNorm ----


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradnorm_is_the_norm_of_the_gradient(familiar, temperature):
    expected = []
    for feature in familiar.features[:40]:
        familiar.head.zero_grad()
        log_p = torch.log_softmax(familiar.head(feature) / temperature, -1)
        (-log_p.mean()).backward()  # cross-entropy of the uniform distribution: KL up to a constant
        expected.append(familiar.head.weight.grad.abs().sum().item())
    found = detectors.build(f"gradnorm(temperature={temperature})").score(familiar.take(torch.arange(40)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gradnorm_refuses_a_temperature_that_is_not_positive():
    with pytest.raises(InputError, match="temperature: is 0"):
        detectors.build("gradnorm(temperature=0)")


# ---- DICE ----


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_dice_is_the_slow_loop(train, familiar, sparsity):
    weight, bias = train.head.weight.detach().numpy(), train.head.bias.detach().numpy()
    contribution = sorted(
        (float(weight[c, d] * train.features[:, d].mean()), c, d) for c in range(4) for d in range(12)
    )
    kept = np.zeros_like(weight)
    for _, c, d in contribution[math.ceil(sparsity * 47 + 1e-9) if sparsity else 0 :]:
        kept[c, d] = weight[c, d]
    expected = np.logaddexp.reduce(familiar.features.numpy() @ kept.T + bias, axis=1)
    found = detectors.build(f"dice(sparsity={sparsity})").fit(train).score(familiar)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if sparsity == 0:
        assert torch.allclose(found, detectors.build("energy").score(familiar), atol=1e-4)


def test_dice_refuses_what_cannot_be():
    for sparsity in (-0.1, 1):
        with pytest.raises(InputError, match="sparsity: is"):
            detectors.build(f"dice(sparsity={sparsity})")


# ---- all ----


@pytest.mark.parametrize("name", ["pnml", "dice"])
def test_the_head_is_needed(name, train):
    with pytest.raises(InputError, match="has no linear head"):
        detectors.build(name).fit(replace(train, head=None)).score(replace(train, head=None))
    with pytest.raises(InputError, match="are empty"):
        detectors.build(name).fit(train.take(torch.arange(0)))
