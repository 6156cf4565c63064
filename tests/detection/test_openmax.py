import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import weibull_min

from unseen.detection.openmax import weibull
from unseen.errors import InputError
from unseen.registry import detectors
from unseen.testing import check_detector


@pytest.mark.parametrize("spec", ["openmax", "openmax(tail=5, alpha=2)"])
def test_contract(spec):
    check_detector(spec)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 500.0])
def test_weibull_has_the_most_likelihood(spread):
    tail = spread * np.random.default_rng(0).gamma(3.0, size=20)
    shape, log_scale = weibull(tail)
    scale = 1e4 * math.exp(log_scale)
    shifted = 1e4 + tail - tail.min()

    def likelihood(c: float, scale: float) -> float:
        return float(weibull_min.logpdf(shifted, c, scale=scale).sum())

    best = likelihood(shape, scale)
    for factor in (0.98, 1.02):
        assert likelihood(factor * shape, scale) < best
        assert likelihood(shape, scale + (factor - 1) * spread) < best
    assert best >= likelihood(*(lambda fit: (fit[0], fit[2]))(weibull_min.fit(shifted, floc=0))) - 1e-6


def slow_openmax(train, bank, tail: int, alpha: int) -> list[float]:
    """Input by input, class by class, as the paper's algorithms 1 and 2 are written."""
    x, y = train.logits.double().numpy(), train.labels.numpy()
    correct = x.argmax(1) == y
    means, models = [], []
    for c in range(x.shape[1]):
        own = x[correct & (y == c)]
        means.append(own.mean(0))
        largest = sorted(np.linalg.norm(row - means[c]) for row in own)[-tail:]
        shape, log_scale = weibull(np.array(largest))
        models.append(weibull_min(shape, loc=largest[0] - 1e4, scale=1e4 * math.exp(log_scale)))
    scores = []
    for v in bank.logits.double().numpy():
        revised, unknown = v.copy(), 0.0
        for rank, c in enumerate(np.argsort(-v)[:alpha], start=1):
            w = 1 - (alpha + 1 - rank) / alpha * models[c].cdf(np.linalg.norm(v - means[c]))
            revised[c] = v[c] * w
            unknown += v[c] * (1 - w)
        p = np.exp(np.append(revised, unknown) - max(revised.max(), unknown))
        scores.append(math.log(p[:-1].sum() / p[-1]))
    return scores


@pytest.mark.parametrize(("tail", "alpha"), [(20, 4), (7, 2), (20, 1)])
def test_openmax_is_the_slow_loop(train, familiar, tail, alpha):
    found = detectors.build(f"openmax(tail={tail}, alpha={alpha})").fit(train).score(familiar)
    np.testing.assert_allclose(found, slow_openmax(train, familiar, tail, alpha), rtol=1e-4, atol=1e-4)


def test_logits_far_beyond_those_of_training_are_unknown(train, familiar):
    """Also large ones, which every score of the softmax takes for the most familiar."""
    detector = detectors.build("openmax").fit(train)
    extreme = replace(familiar, logits=10 * familiar.logits)
    assert detector.score(extreme).median() < detector.score(familiar).quantile(0.1)
    softmax = detectors.build("max-logit")
    assert softmax.score(extreme).median() > softmax.score(familiar).quantile(0.9)


def test_what_cannot_be_modelled_is_refused(train):
    with pytest.raises(InputError, match=r"lack class number\(s\) \[1\]"):
        detectors.build("openmax").fit(train.take(train.labels != 1))
    same = train.take(torch.arange(len(train)))
    same.logits[same.labels == 3] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    with pytest.raises(InputError, match=r"class 3 .* all equal"):
        detectors.build("openmax").fit(same)
    for options in ("tail=1", "alpha=0"):
        with pytest.raises(InputError, match=options.replace("=", ": is ")):
            detectors.build(f"openmax({options})")


def test_a_class_that_is_never_right_is_modelled_by_all_its_examples(train, familiar):
    train.logits[:, 2] -= 1e3
    familiar.logits[:, 2] -= 1e3
    assert torch.isfinite(detectors.build("openmax").fit(train).score(familiar)).all()
