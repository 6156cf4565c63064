"""Scores of features, logits and head: SHE, fDBD, NCI, NNGuide."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from unseen.detection import guided_neighbours
from unseen.errors import InputError
from unseen.registry import detectors
from unseen.testing import check_detector

NAMES = ["she", "fdbd", "nci", "nnguide"]


@pytest.mark.parametrize("spec", [*NAMES, "nci(alpha=0)", "nnguide(k=3, largest=50)"])
def test_contract(spec):
    check_detector(spec)


def slow_she(train, feature, logits) -> float:
    right = [
        f for f, out, y in zip(train.features, train.logits, train.labels, strict=True)
        if out.argmax() == y == logits.argmax()
    ]  # fmt: skip
    return float(feature @ (sum(right) / len(right)))


def slow_fdbd(train, feature, logits) -> float:
    weight, predicted = train.head.weight.detach(), int(logits.argmax())
    others = [c for c in range(len(weight)) if c != predicted]
    distances = [(logits[predicted] - logits[c]) / (weight[predicted] - weight[c]).norm() for c in others]
    return float(sum(distances) / len(others) / (feature - train.features.mean(0)).norm())


def slow_nci(train, feature, logits) -> float:
    centred = feature - train.features.mean(0)
    aligned = centred @ train.head.weight.detach()[logits.argmax()] / centred.norm()
    return float(aligned + 1e-4 * feature.abs().sum())


def slow_nnguide(train, feature, logits) -> float:
    similar = [
        float(feature @ f / feature.norm() / f.norm()) * math.log(sum(math.exp(v) for v in out))
        for f, out in zip(train.features, train.logits.tolist(), strict=True)
    ]
    return float(np.mean(sorted(similar)[-10:]) * math.log(sum(math.exp(v) for v in logits.tolist())))


@pytest.mark.parametrize(
    ("name", "slow"), [("she", slow_she), ("fdbd", slow_fdbd), ("nci", slow_nci), ("nnguide", slow_nnguide)]
)
def test_scores_are_the_slow_loop(name, slow, train, familiar):
    found = detectors.build(name).fit(train).score(familiar)
    expected = [slow(train, f, out) for f, out in zip(familiar.features, familiar.logits, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_no_class_are_less_familiar(name, train, familiar):
    """As large as the classes' features, but without their pattern."""
    shuffled = torch.rand(240, 12, generator=torch.Generator().manual_seed(0)).argsort(1)
    strange = replace(familiar, features=familiar.features.gather(1, shuffled))
    strange.logits = train.head(strange.features).detach()
    detector = detectors.build(name).fit(train)
    assert detector.score(familiar).median() > detector.score(strange).median()


def test_she_stores_a_pattern_for_a_class_that_is_never_right(train, familiar):
    train.logits[:, 2] -= 1e3
    detector = detectors.build("she").fit(train)
    expected = train.features[train.labels == 2].mean(0)
    assert torch.allclose(detector.patterns[2], expected, atol=1e-5)
    with pytest.raises(InputError, match="lack class"):
        detectors.build("she").fit(train.take(train.labels != 2))


def test_classes_of_equal_weights_have_no_boundary(train, familiar):
    with torch.no_grad():
        train.head.weight[1] = train.head.weight[0]
    for bank in (train, familiar):
        bank.logits = train.head(bank.features).detach()
    assert torch.isfinite(detectors.build("fdbd").fit(train).score(familiar)).all()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_do_not_change_the_neighbours(block, train, familiar, monkeypatch):
    detector = detectors.build("nnguide").fit(train)
    expected = detector.score(familiar)
    monkeypatch.setattr(guided_neighbours, "BLOCK", block)
    assert torch.allclose(detector.score(familiar), expected, rtol=1e-5)


def test_nnguide_thins_a_large_bank(train, familiar):
    detector = detectors.build("nnguide(k=100, largest=20)").fit(train)
    assert len(detector.bank) == 20
    assert torch.isfinite(detector.score(familiar)).all()  # k beyond the bank: all of it


@pytest.mark.parametrize("spec", ["nci(alpha=-1)", "nnguide(k=0)", "nnguide(largest=0)"])
def test_options_that_cannot_be_are_refused(spec):
    with pytest.raises(InputError, match=r"is (0|-1)"):
        detectors.build(spec)


@pytest.mark.parametrize("name", ["fdbd", "nci"])
def test_the_head_is_needed(name, train):
    with pytest.raises(InputError, match="has no linear head"):
        detectors.build(name).fit(replace(train, head=None)).score(replace(train, head=None))
    with pytest.raises(InputError, match="are empty"):
        detectors.build(name).fit(train.take(torch.arange(0)))
    one = nn.Linear(12, 1)
    with pytest.raises(InputError, match="there is one class"):
        detectors.build("fdbd").fit(replace(train, head=one))
