import pytest
import torch

from unseen.errors import InputError
from unseen.measures.confidence_gap import confidence_gap, temperature_for_confidence


@pytest.fixture
def logits(generator):
    return torch.randn(200, 5, generator=generator)


@pytest.fixture
def labels(generator):
    return torch.randint(5, (200,), generator=generator)


def test_scaled_logits_dominate(logits, labels):
    found = confidence_gap(logits, 4 * logits, labels)
    assert found.dominant == "b" and confidence_gap(4 * logits, logits, labels).dominant == "a"
    assert found.b.logit_norm == pytest.approx(4 * found.a.logit_norm)
    assert found.a.mean == pytest.approx(float(logits.double().softmax(1).max(1).values.mean()))
    assert found.b.error > found.a.error
    assert confidence_gap(logits, logits, labels).dominant is None


def test_the_norm_does_not_see_what_softmax_does_not_see(logits, labels):
    found = confidence_gap(logits, logits + 7, labels)
    assert found.b.logit_norm == pytest.approx(found.a.logit_norm, rel=1e-5) and abs(found.gap) < 1e-6


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_temperature_gives_the_wanted_confidence(logits, scale):
    temperature = temperature_for_confidence(scale * logits, 0.6)
    confidence = (scale * logits.double() / temperature).softmax(1).max(1).values.mean()
    assert float(confidence) == pytest.approx(0.6, abs=1e-6)


def test_a_confidence_out_of_reach_is_refused(logits):
    for confidence in (0.1, 1.0):
        with pytest.raises(InputError, match="cannot be reached"):
            temperature_for_confidence(logits, confidence)
    with pytest.raises(InputError, match="cannot be reached"):
        temperature_for_confidence(torch.zeros(3, 4), 0.5)


def test_models_of_other_classes_are_refused(logits, labels):
    with pytest.raises(InputError, match="has 4 classes, but a 5"):
        confidence_gap(logits, logits[:, :4], labels)
    with pytest.raises(InputError, match="entries"):
        confidence_gap(logits, logits[:3], labels)
