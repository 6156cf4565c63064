import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unseen.detection.shaping import Shaped
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors
from unseen.testing import check_detector

SPECS = ["react", "vra", "ash", "ash(variant='p')", "ash(variant='b')", "scale"]


@pytest.mark.parametrize("spec", [*SPECS, "react(score='msp')", "scale(score='gen(gamma=0.5)')"])
def test_contract(spec):
    check_detector(spec)


def kept(row: list[float], pruned: float) -> list[int]:
    count = len(row) - round(len(row) * pruned)
    return sorted(range(len(row)), key=lambda d: -row[d])[:count]


def slow_shape(spec: str, train: Bank, row: list[float]) -> list[float]:
    """One input's features, activation by activation."""
    values = sorted(train.features.double().flatten().tolist())
    if spec == "react":
        return [min(v, np.quantile(values, 0.9)) for v in row]
    if spec == "vra":
        low, high = np.quantile(values, [0.1, 0.9])
        return [0.0 if v < low else min(v, high) for v in row]
    top = kept(row, 0.85 if spec == "scale" else 0.65)
    scale = math.exp(sum(row) / sum(row[d] for d in top))
    if spec == "scale":
        return [v * scale for v in row]
    each = {
        "ash": lambda v: v * scale,
        "ash(variant='p')": lambda v: v,
        "ash(variant='b')": lambda v: sum(row) / len(top),
    }
    return [each[spec](v) if d in top else 0.0 for d, v in enumerate(row)]


@pytest.mark.parametrize("spec", SPECS)
def test_shaped_energy_is_the_slow_loop(spec, train, familiar):
    weight, bias = (p.detach().double().numpy() for p in (train.head.weight, train.head.bias))
    shaped = [slow_shape(spec, train, row) for row in familiar.features.double().tolist()]
    expected = np.logaddexp.reduce(np.array(shaped) @ weight.T + bias, axis=1)
    found = detectors.build(spec).fit(train).score(familiar)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", ["msp", "max-logit", "energy(temperature=2)", "entropy", "gen", "gradnorm"])
def test_any_score_of_logits_reads_the_shaped_ones(score, train, familiar):
    detector = detectors.build(f"react(score={score!r})").fit(train)
    features = familiar.features.clamp(max=detector.threshold.item())
    shaped = replace(familiar, features=features, logits=train.head(features).detach())
    assert torch.allclose(detector.score(familiar), detectors.build(score).score(shaped), atol=1e-5)


def test_nothing_pruned_or_clipped_is_plain_energy(train, familiar):
    plain = detectors.build("energy").score(familiar)
    assert torch.allclose(detectors.build("ash(pruned=0, variant='p')").score(familiar), plain, atol=1e-5)
    inside = replace(familiar, features=familiar.features.clamp(max=train.features.max()))
    inside.logits = train.head(inside.features).detach()
    react = detectors.build("react(clip=0.999999)").fit(train).score(inside)
    assert torch.allclose(react, detectors.build("energy").score(inside), atol=1e-2)


@pytest.mark.parametrize("spec", SPECS)
def test_signed_and_empty_features_are_finite(spec, train, familiar):
    generator = torch.Generator().manual_seed(0)
    signed = replace(familiar, features=torch.randn(240, 12, generator=generator))
    signed.features[0], signed.features[1] = 0, -1
    assert torch.isfinite(detectors.build(spec).fit(train).score(signed)).all()


def test_clipping_bounds_what_one_activation_can_do(train, familiar):
    """ReAct's reason: an unfamiliar input with one huge activation looks familiar to the plain energy."""
    weight = train.head.weight.detach()
    spike = replace(familiar, features=familiar.features.clone())
    spike.features[:, int(weight.amax(0).argmax())] = 1e3
    spike.logits = train.head(spike.features).detach()
    assert detectors.build("energy").score(spike).min() > detectors.build("energy").score(familiar).max()
    react = detectors.build("react").fit(train)
    assert react.score(spike).median() < react.score(familiar).max()


@pytest.mark.parametrize("score", ["mahalanobis", "temperature-scaling", "vim", "ash"])
def test_scores_that_learn_or_read_no_logits_are_refused(score):
    with pytest.raises(InputError, match=r"score: is .* not a score of the logits that learns nothing"):
        detectors.build(f"react(score={score!r})")


@pytest.mark.parametrize(
    "spec", ["react(clip=1)", "vra(low=-1)", "vra(low=0.9, high=0.5)", "ash(pruned=1)", "ash(variant='x')"]
)
def test_options_that_cannot_be_are_refused(spec):
    with pytest.raises(InputError, match=" is "):
        detectors.build(spec)


def test_the_head_is_needed(train, familiar):
    for spec in SPECS:
        with pytest.raises(InputError, match="has no linear head"):
            detectors.build(spec).fit(train).score(replace(familiar, head=None))
    for name in ("react", "vra"):
        with pytest.raises(InputError, match="are empty"):
            detectors.build(name).fit(train.take(torch.arange(0)))


def test_a_shaping_of_ones_own_defines_shape(train):
    with pytest.raises(TypeError, match="must define shape"):
        Shaped().score(train)
