import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier

from unseen.errors import InputError
from unseen.measures.two_samples import classifier_test, cramer_von_mises, kolmogorov_smirnov

DRAW = np.random.default_rng(0)
FIRST, SECOND = DRAW.normal(size=(60, 3)), DRAW.normal(size=(45, 3)) + np.array([0, 0.2, 1.0])


@pytest.mark.parametrize("test, peer", [
    (kolmogorov_smirnov, stats.ks_2samp), (cramer_von_mises, stats.cramervonmises_2samp)
])  # fmt: skip
def test_one_feature_is_scipys_test(test, peer):
    found, expected = test(FIRST[:, 1], SECOND[:, 1]), peer(FIRST[:, 1], SECOND[:, 1])
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.sizes == (60, 45)


def test_corrections_over_features():
    raw = np.array([stats.ks_2samp(FIRST[:, i], SECOND[:, i]).pvalue for i in range(3)])
    order = raw.argsort()
    holm = kolmogorov_smirnov(FIRST, SECOND).feature_p_values
    slow, worst = np.empty(3), 0.0
    for rank, feature in enumerate(order):
        worst = max(worst, min(1.0, (3 - rank) * raw[feature]))
        slow[feature] = worst
    np.testing.assert_allclose(holm, slow)
    bh = kolmogorov_smirnov(FIRST, SECOND, correction="bh")
    np.testing.assert_allclose(bh.feature_p_values, stats.false_discovery_control(raw))
    assert bh.p_value == bh.feature_p_values.min() and (bh.feature_p_values <= holm).all()
    assert holm.argmin() == 2 and holm[2] == 3 * raw[2]


def test_the_cvm_effect_is_the_distance_of_distribution_functions():
    first, second = np.arange(4.0), np.arange(4.0) + 10  # apart: the gap climbs to 1 and falls to 0
    gaps = np.array([0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert cramer_von_mises(first, second).effect == pytest.approx(np.sqrt((gaps**2).mean()))
    assert cramer_von_mises(first, first).effect == 0


def test_ties_do_not_reject():
    """Scipy's asymptotic p-value of CvM does: it finds equal sets of mostly zeros different nearly always."""
    draw, alone, ours = np.random.default_rng(5), 0, 0
    for seed in range(60):
        first, second = (np.maximum(draw.normal(size=n) - 1, 0) for n in (100, 200))
        alone += stats.cramervonmises_2samp(first, second).pvalue <= 0.1
        ours += cramer_von_mises(first, second, seed=seed).p_value <= 0.1
    assert ours <= 13 < 50 < alone
    assert kolmogorov_smirnov(np.zeros(50), np.zeros(50)).p_value == 1


def test_an_enormous_difference_keeps_a_positive_p_value():
    found = kolmogorov_smirnov(np.zeros(5000), np.ones(5000))
    assert 0 < found.p_value < 1e-100 and found.effect == 1


@pytest.mark.parametrize("test", [kolmogorov_smirnov, cramer_von_mises, classifier_test])
def test_equal_sets_are_rarely_rejected_and_shifted_ones_are(test):
    draw = np.random.default_rng(1)
    rejected = sum(
        test(draw.normal(size=(40, 4)), draw.normal(size=(40, 4))).p_value <= 0.1 for _ in range(60)
    )
    assert rejected <= 13  # of 60 at level 0.1: more has a chance below 1 in 200
    assert test(draw.normal(size=(60, 4)), draw.normal(size=(60, 4)) + 1).p_value < 0.01


def test_folds_of_a_classifier_are_not_independent():
    """Pooling them as if they were rejects equal sets more often; twice the mean of p-values doesn't."""
    draw, pooled, valid = np.random.default_rng(2), 0, 0
    for _ in range(100):
        found = classifier_test(draw.normal(size=(40, 2)), draw.normal(size=(40, 2)))
        z = (found.statistic - 0.5) / np.sqrt((20 + 20 + 1) / (12 * 20 * 20) / 2)  # two folds of 20 and 20
        pooled += stats.norm.sf(z) <= 0.05
        valid += found.p_value <= 0.05
    assert valid <= 9 < pooled


def test_a_classifier_of_ones_own_sees_what_lines_cannot():
    draw = np.random.default_rng(3)
    narrow, wide = draw.normal(size=(120, 1)), 4 * draw.normal(size=(120, 1))
    lines = classifier_test(narrow, wide)
    trees = classifier_test(
        narrow, wide, classifier=RandomForestClassifier(30, min_samples_leaf=5, random_state=0)
    )
    assert trees.p_value < 0.001 < lines.p_value and trees.effect > 0.3 > lines.effect


@pytest.mark.parametrize("first, second, words", [
    (FIRST, SECOND[:, :2], "second: has 2 features, but first 3"),
    (FIRST[:1], SECOND, "first: has one example"),
    ([[np.nan], [1.0]], [[1.0], [2.0]], "first: has 1 NaN"),
    ([1.0, 2.0], [np.inf, 2.0], "second: has infinite values"),
    ([], [1.0, 2.0], "first: is empty"),
])  # fmt: skip
def test_sets_that_cannot_be_compared(first, second, words):
    with pytest.raises(InputError, match=words):
        kolmogorov_smirnov(first, second)


def test_unknown_options():
    with pytest.raises(InputError, match="'holm', 'bh' or 'by'"):
        kolmogorov_smirnov(FIRST, SECOND, correction="none")
    with pytest.raises(InputError, match="Give 2 to 45"):
        classifier_test(FIRST, SECOND, folds=46)
