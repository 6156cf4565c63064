import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.registry import detectors
from unseen.testing import check_detector


@pytest.mark.parametrize("spec", ["residual", "residual(dimensions=2)", "vim", "vim(dimensions=3)"])
def test_contract(spec):
    check_detector(spec)


def slow_scores(train, bank, kept: int) -> tuple[list[float], list[float]]:
    """Residual and ViM, input by input in float64: what is left after the principal directions are taken out."""
    weight, bias = (p.detach().double().numpy() for p in (train.head.weight, train.head.bias))
    origin = -np.linalg.lstsq(weight, bias, rcond=1e-5)[0]
    principal = np.linalg.svd(train.features.double().numpy() - origin)[2][:kept]

    def residual(feature) -> float:
        left = feature - origin
        for direction in principal:
            left = left - (left @ direction) * direction
        return float(np.linalg.norm(left))

    alpha = sum(max(row) for row in train.logits.tolist())
    alpha /= sum(residual(f) for f in train.features.double().numpy())
    plain = [-residual(f) for f in bank.features.double().numpy()]
    energy = np.logaddexp.reduce(bank.logits.double().numpy(), axis=1)
    return plain, [float(e + alpha * r) for e, r in zip(energy, plain, strict=True)]


@pytest.mark.parametrize("kept", [2, 6, 11])
def test_scores_are_the_slow_loop(train, familiar, kept):
    plain, virtual = slow_scores(train, familiar, kept)
    for name, expected in (("residual", plain), ("vim", virtual)):
        found = detectors.build(f"{name}(dimensions={kept})").fit(train).score(familiar)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    default, half = (detectors.build(s).fit(train).score(familiar) for s in ("vim", "vim(dimensions=6)"))
    assert torch.equal(default, half)


@pytest.mark.parametrize("name", ["residual", "vim"])
def test_far_inputs_are_less_familiar(name, train, familiar, far):
    detector = detectors.build(name).fit(train)
    assert detector.score(familiar).median() > detector.score(far).median()


@pytest.mark.parametrize("name", ["residual", "vim"])
def test_what_cannot_be_is_refused(name, train):
    with pytest.raises(InputError, match="dimensions: is 12 with features of size 12"):
        detectors.build(f"{name}(dimensions=12)").fit(train)
    with pytest.raises(InputError, match="dimensions: is 0"):
        detectors.build(f"{name}(dimensions=0)")
    with pytest.raises(InputError, match="are empty"):
        detectors.build(name).fit(train.take(torch.arange(0)))
    train.head = nn.Linear(5, 4)
    with pytest.raises(InputError, match="features of size 12, but a head for size 5"):
        detectors.build(name).fit(train)
    train.head = None
    with pytest.raises(InputError, match="has no linear head"):
        detectors.build(name).fit(train)


def test_features_of_few_dimensions_and_negative_logits_keep_the_order(train, familiar, far):
    for bank in (train, familiar, far):
        bank.features = torch.cat([bank.features, torch.zeros(len(bank), 20)], 1)
        bank.head = None
    far.features[:, 20:] = 1.0
    head = nn.Linear(32, 4)
    nn.init.zeros_(head.bias)
    train.head = head
    train.logits = train.logits - 1e3
    detector = detectors.build("vim").fit(train)
    assert torch.isfinite(detector.score(familiar)).all()
    assert detector.score(familiar).min() > detector.score(far).max()
