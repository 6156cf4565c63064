import itertools

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.mmd import MMD, gaussian_gram, mmd_penalty

GAMMAS = [0.001, 0.01, 0.1, 1, 10, 100, 1000]


def kernel(x, y):
    return sum(torch.exp(-gamma * (x - y).square().sum()) for gamma in GAMMAS)


def slow_mmd(first, second):
    def mean(one, other):
        return torch.stack([kernel(a, b) for a in one for b in other]).mean()

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


def test_loss_is_risk_plus_mean_mmd_over_pairs(model, batch, built, same_with_gradients):
    parts = [batch.of_domain(d) for d in range(3)]
    risk = sum(nn.functional.cross_entropy(model(p.x), p.y) for p in parts) / 3
    pairs = [slow_mmd(a, b) for a, b in itertools.combinations([model.featurizer(p.x) for p in parts], 2)]
    same_with_gradients(built("mmd(penalty_weight=2.0)")(model, batch).total, risk + 2 * sum(pairs) / 3)


def test_a_missing_domain_is_left_out(model, batch):
    rest = batch.take(batch.domain != 1)
    features = model.featurizer(rest.x)
    expected = slow_mmd(features[rest.domain == 0], features[rest.domain == 2])
    torch.testing.assert_close(mmd_penalty(features, rest.domain, 3), expected)
    assert mmd_penalty(features[rest.domain == 0], rest.domain[rest.domain == 0], 3) == 0


def test_whole_weights_equal_repeated_examples(model, batch, generator):
    features = model.featurizer(batch.x)
    weight = torch.randint(1, 4, (len(batch),), generator=generator)
    repeated = torch.arange(len(batch)).repeat_interleave(weight)
    torch.testing.assert_close(
        mmd_penalty(features, batch.domain, 3, weight=weight.double()),
        mmd_penalty(features[repeated], batch.domain[repeated], 3),
    )


def test_far_from_the_origin_single_precision_keeps_the_kernel(generator):
    points = torch.randn(20, 8, generator=generator)
    torch.testing.assert_close(gaussian_gram(points + 1000), gaussian_gram(points), rtol=0, atol=0.05)
    assert torch.equal(gaussian_gram(points).diagonal(), torch.full((20,), 7.0))


def test_penalty_falls_as_the_distributions_align(generator):
    domain = torch.arange(60) % 2
    x = torch.randn(60, 4, generator=generator)
    penalties = [
        float(mmd_penalty(x + shift * domain.unsqueeze(1), domain, 2)) for shift in (2.0, 1.0, 0.5, 0.0)
    ]
    assert penalties == sorted(penalties, reverse=True) and penalties[-1] < 0.3 * penalties[0]


def test_gammas_must_be_positive():
    with pytest.raises(InputError, match=r"gammas: are \(1.0, 0.0\)"):
        MMD(gammas=[1.0, 0.0])
