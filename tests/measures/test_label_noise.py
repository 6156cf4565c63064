import numpy as np
import pytest

from unseen.errors import InputError
from unseen.measures.label_noise import label_noise

pytest.importorskip("cleanlab", reason="the extra 'labels' is not installed")


def noisy(rate, count=1500, classes=3):
    random = np.random.default_rng(0)
    truth = np.arange(count) % classes
    wrong = random.random(count) < rate
    labels = np.where(wrong, (truth + random.integers(1, classes, count)) % classes, truth)
    logits = random.normal(size=(count, classes)) + 4 * np.eye(classes)[truth]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels, wrong


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_the_share_of_wrong_labels_is_found(rate):
    probabilities, labels, wrong = noisy(rate)
    found = label_noise(probabilities, labels, resamples=50)
    assert found.rate == pytest.approx(rate, abs=0.04) and found.low <= found.rate <= found.high
    assert found.joint.sum() == pytest.approx(1) and found.joint.shape == (3, 3)
    if rate:
        assert wrong[found.suspects].mean() > 0.9 and wrong[found.suspects].sum() > 0.8 * wrong.sum()
        assert found.quality[wrong].mean() < found.quality[~wrong].mean() - 0.5


def test_a_class_without_examples_is_named():
    probabilities, labels, _ = noisy(0.1)
    with pytest.raises(InputError, match=r"no example of class\(es\) 2"):
        label_noise(probabilities[labels != 2], labels[labels != 2])
