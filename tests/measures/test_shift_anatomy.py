import numpy as np
import pytest

from unseen.errors import InputError, UnseenWarning
from unseen.measures.shift_anatomy import shift_anatomy

N = 4000


def draw(seed, positive=0.5, shift=0.0, flipped=0.0):
    """Inputs (N, 2), labels and the errors of the rule "the first coordinate is positive"."""
    random = np.random.default_rng(seed)
    labels = (random.random(N) < positive).astype(int)
    x = random.normal(size=(N, 2)) + np.stack([1.2 * (2 * labels - 1), np.zeros(N)], 1)
    x[:, 1] += shift
    said = np.where(random.random(N) < flipped, 1 - labels, labels)
    return x, said, ((x[:, 0] > 0.8).astype(int) != said).astype(float)


def anatomy(source, target, labels=True, **options):
    (a, y, losses), (b, z, others) = source, target
    return shift_anatomy(losses, others, a, b, *((y, z) if labels else ()), resamples=100, **options)


def test_the_parts_add_up_and_equal_sets_have_none():
    found = anatomy(draw(0), draw(1))
    total = found.label.value + found.covariate + found.concept.value
    assert found.drop.value == pytest.approx(total)
    for part in (found.drop, found.label, found.covariate_out, found.concept, found.covariate_in):
        assert part.low < 0.001 and part.high > -0.001 and abs(part.value) < 0.03
    assert found.overlap > 0.95


def test_other_frequencies_of_classes_are_label_shift():
    found = anatomy(draw(0), draw(1, positive=0.9))
    assert found.drop.value > 0.1, "the rule errs more often on positives"
    assert found.label.value == pytest.approx(found.drop.value, abs=0.03)
    assert abs(found.covariate) < 0.03 and abs(found.concept.value) < 0.03
    without = anatomy(draw(0), draw(1, positive=0.9), labels=False)
    assert without.label.value == 0 and without.covariate + without.concept.value > 0.1


def test_other_labels_of_the_same_inputs_are_concept_shift():
    found = anatomy(draw(0), draw(1, flipped=0.3))
    assert found.concept.value == pytest.approx(found.drop.value, abs=0.03) and found.concept.low > 0.05
    assert abs(found.label.value) < 0.03 and abs(found.covariate) < 0.03


def covariate(seed, hard):
    """Inputs beyond 1 are mistaken, wherever they come from."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, 1)) + (0.8 if hard else -0.8)
    return x, (x[:, 0] > 1).astype(float)


def test_other_inputs_with_the_same_labels_are_covariate_shift():
    (a, losses), (b, others) = covariate(0, False), covariate(1, True)
    found = shift_anatomy(losses, others, a, b, resamples=100)
    assert found.drop.value > 0.3
    assert found.covariate == pytest.approx(found.drop.value, abs=0.04)
    assert abs(found.concept.value) < 0.04 and found.concept.low < 0 < found.concept.high + 0.02
    assert found.covariate_in.value > 0.1 and found.covariate_out.value > 0


def test_shared_inputs_by_known_densities():
    # two discrete inputs: P = (3/4, 1/4), Q = (1/4, 3/4); p q / (p + q) is equal for both
    a, b = np.repeat([0.0, 1.0], [300, 100]), np.repeat([0.0, 1.0], [100, 300])
    losses, others = np.where(a == 0, 0.1, 0.5), np.where(b == 0, 0.2, 0.9)
    found = shift_anatomy(losses, others, a[:, None], b[:, None], resamples=5)
    assert found.drop.value == pytest.approx(0.725 - 0.2)
    assert found.covariate_out.value == pytest.approx(0.3 - 0.2, abs=0.01)
    assert found.concept.value == pytest.approx(0.55 - 0.3, abs=0.01)
    assert found.covariate_in.value == pytest.approx(0.725 - 0.55, abs=0.01)
    assert found.overlap == pytest.approx(0.75, abs=0.02)


def test_sets_that_share_nothing_are_warned_about():
    with pytest.warns(UnseenWarning, match="share few inputs"):
        anatomy(draw(0), draw(1, shift=12.0), labels=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_losses": np.zeros(3)}, "target_losses: has 3 entries"),
        ({"source_losses": np.full(40, np.inf)}, "source_losses: has infinite"),
        ({"source_labels": np.zeros(40)}, "labels: are given for one"),
        ({"source_labels": np.zeros(40), "target_labels": np.ones(40)}, r"target_labels: have class\(es\) 1"),
        ({"folds": 1}, "folds"),
        ({"confidence": 95}, "confidence"),
        ({"target_features": np.zeros((40, 3))}, "3 features, but first 2"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    random = np.random.default_rng(0)
    given = {
        "source_losses": np.zeros(40), "target_losses": np.zeros(40),
        "source_features": random.normal(size=(40, 2)), "target_features": random.normal(size=(40, 2)),
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        shift_anatomy(**{**given, **change})
