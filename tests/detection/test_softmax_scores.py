import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.measures.calibration import fit_temperature
from unseen.networks import Bank
from unseen.registry import detectors
from unseen.testing import check_detector


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(
    "spec", ["temperature-scaling", "entropy", "gen", "gen(gamma=0.5, top=2)", "kl-matching"]
)
def test_contract(spec):
    check_detector(spec)


# ---- temperature scaling ----


def test_temperature_scaling_is_the_softmax_at_the_best_temperature(train, familiar):
    train.logits = 3 * train.logits  # overconfident
    temperature = fit_temperature(train.logits.numpy(), train.labels.numpy())
    detector = detectors.build("temperature-scaling").fit(train)
    assert temperature > 1.2 and detector.temperature.item() == pytest.approx(temperature, rel=1e-6)
    expected = [max(softmax([v / temperature for v in row])) for row in familiar.logits.tolist()]
    np.testing.assert_allclose(detector.score(familiar), expected, rtol=1e-5)


def test_separated_labels_leave_the_temperature_at_one(train, familiar, recwarn):
    train.labels = train.predictions
    scores = detectors.build("temperature-scaling").fit(train).score(familiar)
    assert torch.equal(scores, detectors.build("msp").score(familiar)) and not recwarn


def test_temperature_scaling_needs_labels(train):
    train.labels = None
    with pytest.raises(InputError, match="hold no labels"):
        detectors.build("temperature-scaling").fit(train)


# ---- entropies ----


def test_entropies_are_their_formulas(familiar):
    rows = [softmax(row) for row in familiar.logits.double().tolist()]
    entropy = [sum(p * math.log(p) for p in row) for row in rows]
    np.testing.assert_allclose(detectors.build("entropy").score(familiar), entropy, rtol=1e-3, atol=1e-6)
    for gamma, top in ((0.1, 4), (0.5, 2), (0.9, 1)):
        expected = [-sum((p * (1 - p)) ** gamma for p in sorted(row)[::-1][:top]) for row in rows]
        found = detectors.build(f"gen(gamma={gamma}, top={top})").score(familiar)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    default, all_of_four = (detectors.build(s).score(familiar) for s in ("gen", "gen(top=4)"))
    assert torch.equal(default, all_of_four)  # a tenth, but at least 10


def test_entropies_of_a_confident_network_are_finite_and_ordered():
    logits = torch.tensor([[20.0, 0, 0], [40.0, 0, 0], [1000.0, 0, 0]])
    scores = detectors.build("gen").score(Bank(torch.zeros(3, 1), logits))
    assert torch.isfinite(scores).all() and (scores.diff() > 0).all()
    assert torch.isfinite(detectors.build("entropy").score(Bank(torch.zeros(3, 1), logits))).all()
    one_class = Bank(torch.zeros(3, 1), torch.zeros(3, 1))
    assert torch.equal(detectors.build("gen").score(one_class), torch.zeros(3))


@pytest.mark.parametrize("options", ["gamma=0", "gamma=1", "top=0"])
def test_gen_refuses_what_cannot_be(options):
    with pytest.raises(InputError, match=options.replace("=", ": is ")):
        detectors.build(f"gen({options})")


# ---- KL matching ----


def test_kl_matching_is_the_slow_loop(train, familiar):
    groups: dict[int, list[list[float]]] = {}
    for row in train.logits.double().tolist():
        groups.setdefault(int(np.argmax(row)), []).append(softmax(row))
    typical = [np.mean(group, axis=0) for group in groups.values()]
    expected = []
    for row in familiar.logits.double().tolist():
        p = softmax(row)
        expected.append(-min(sum(a * math.log(a / b) for a, b in zip(p, d, strict=True)) for d in typical))
    np.testing.assert_allclose(
        detectors.build("kl-matching").fit(train).score(familiar), expected, rtol=1e-3, atol=1e-5
    )


def test_kl_matching_needs_no_labels_and_not_every_class(train, familiar):
    train.labels = None
    part = train.take(train.predictions != 2)
    detector = detectors.build("kl-matching").fit(part)
    assert len(detector.log_typical) == 3 and torch.isfinite(detector.score(familiar)).all()
    certain = Bank(train.features, 1e4 * train.logits)
    assert torch.isfinite(detectors.build("kl-matching").fit(certain).score(familiar)).all()
    with pytest.raises(InputError, match="are empty"):
        detectors.build("kl-matching").fit(train.take(torch.arange(0)))


# ---- all ----


@pytest.mark.parametrize("name", ["temperature-scaling", "entropy", "gen", "kl-matching"])
def test_uncertain_inputs_are_less_familiar(name, train, familiar):
    uncertain = replace(familiar, logits=0.1 * familiar.logits)
    detector = detectors.build(name).fit(train)
    known, unknown = detector.score(familiar), detector.score(uncertain)
    assert (known[:, None] > unknown).float().mean() > 0.9
