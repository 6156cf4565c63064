import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kendalltau, spearmanr, ttest_1samp, ttest_rel

from unseen.errors import InputError
from unseen.studies.statistics import (
    accuracy_interval,
    effective_robustness,
    holm,
    mean_interval,
    paired_comparison,
    proportion_interval,
    rank_correlation,
    worst_group,
)


def test_mean_interval_against_scipy():
    values = [0.81, 0.84, 0.79, 0.86]
    found = mean_interval(values, 0.9)
    expected = ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert str(mean_interval([0.5, 0.5])) == "0.500 [0.500, 0.500]"
    single = mean_interval(torch.tensor([0.5]))
    assert single.estimate == 0.5 and np.isnan(single.low) and np.isnan(single.high)


@pytest.mark.parametrize("successes, examples", [(0, 12), (3, 12), (12, 12), (950, 1000), (0, 1)])
def test_proportion_interval_against_scipy(successes, examples):
    found = proportion_interval(successes, examples)
    expected = binomtest(successes, examples).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_accuracy_interval_of_one_seed_is_wilson():
    correct = np.arange(40)[None] % 4 != 0
    assert accuracy_interval(correct) == proportion_interval(30, 40)
    perfect = accuracy_interval(np.ones((5, 40)))
    assert perfect.high == 1 and perfect.low == proportion_interval(40, 40).low


def test_repeating_a_seed_adds_nothing():
    once = np.random.default_rng(0).random(500) < 0.7
    one, three = accuracy_interval(once[None]), accuracy_interval(np.tile(once, (3, 1)))
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=1e-3)


def test_independent_examples_pool():
    """Without effects of seeds or of examples, S x N outcomes are as good as S N examples."""
    correct = np.random.default_rng(1).random((10, 2000)) < 0.8
    pooled = proportion_interval(correct.sum(), correct.size)
    found = accuracy_interval(correct)
    assert found.high - found.low == pytest.approx(pooled.high - pooled.low, rel=0.35)


def crossed(random, seeds, examples, of_seed, of_example, mean=1.0):
    """Outcomes under crossed effects on the logit scale; returns a function that draws one learner's."""
    example = of_example * random.normal(size=examples)

    def learner():
        logits = mean + of_seed * random.normal(size=(seeds, 1)) + example
        return random.random((seeds, examples)) < 1 / (1 + np.exp(-logits))

    return learner


def expected_accuracy(of_seed, of_example, mean=1.0):
    draws = np.random.default_rng(9).normal(size=10**6)
    return (1 / (1 + np.exp(-(mean + np.hypot(of_seed, of_example) * draws)))).mean()


@pytest.mark.parametrize("seeds, examples, of_seed, of_example", [(3, 150, 0.3, 2.0), (8, 60, 0.5, 1.0)])
def test_accuracy_interval_covers_and_its_parts_do_not(seeds, examples, of_seed, of_example):
    random = np.random.default_rng(2)
    truth, runs = expected_accuracy(of_seed, of_example), 400
    hits = seeds_only = examples_only = 0
    for _ in range(runs):
        correct = crossed(random, seeds, examples, of_seed, of_example)()
        both = accuracy_interval(correct)
        hits += both.low <= truth <= both.high
        means = mean_interval(correct.mean(1))
        seeds_only += means.low <= truth <= means.high
        pooled = proportion_interval(correct.sum(), correct.size)
        examples_only += pooled.low <= truth <= pooled.high
    assert 0.90 <= hits / runs <= 0.99
    assert min(seeds_only, examples_only) / runs < 0.90  # what ignoring one of the two costs


def test_comparison_covers_the_spread_of_crossed_effects():
    random = np.random.default_rng(3)
    tables = [
        random.normal(0, 1, (4, 1)) + random.normal(0, 2, (1, 50)) + random.normal(0, 3, (4, 50))
        for _ in range(1500)
    ]
    halves = [paired_comparison(table, np.zeros((4, 50))) for table in tables]
    covered = np.mean([c.low <= 0 <= c.high for c in halves])
    spread = np.var([table.mean() for table in tables])
    assert spread == pytest.approx(1 / 4 + 4 / 50 + 9 / 200, rel=0.1)  # what the interval has to cover
    assert 0.93 <= covered <= 0.985


def test_paired_comparison_over_seeds_is_the_paired_t_test():
    a, b = [0.80, 0.84, 0.79, 0.83], [0.78, 0.80, 0.79, 0.80]
    found, expected = paired_comparison(a, b), ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)
    mirrored = paired_comparison(b, a)
    assert (mirrored.difference, mirrored.low) == pytest.approx((-found.difference, -found.high))


def test_paired_comparison_of_two_fixed_models_is_over_examples():
    random = np.random.default_rng(4)
    a, b = random.random((1, 300)) < 0.8, random.random((1, 300)) < 0.7
    expected = ttest_rel(a[0].astype(float), b[0].astype(float))
    assert paired_comparison(a, b).p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_paired_comparison_false_alarms_and_power():
    random = np.random.default_rng(5)
    alarms = found = 0
    for _ in range(300):
        learner = crossed(random, 5, 150, 0.2, 2.0)
        a, b = learner(), learner()
        alarms += paired_comparison(a, b).p_value < 0.05
        found += paired_comparison(a | (random.random(a.shape) < 0.4), b).p_value < 0.05
    assert alarms / 300 <= 0.09
    assert found / 300 >= 0.8


def test_paired_comparison_without_variation():
    same = paired_comparison(np.ones((3, 4)), np.ones((3, 4)))
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    shifted = paired_comparison([0.5, 0.6], [0.25, 0.35])
    assert shifted.difference == pytest.approx(0.25)
    constant = paired_comparison(np.ones((3, 4)), np.zeros((3, 4)))
    assert constant.difference == 1 and np.isnan(constant.p_value) and np.isnan(constant.low)


def test_worst_group():
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 1, 1])
    group = np.array(["a", "a", "a", "b", "b", "b", "b", "c", "c"])
    found = worst_group(correct, group)
    expected = proportion_interval(1, 4)
    assert (found.group, found.accuracy, found.count) == ("b", 0.25, 4)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert worst_group(torch.tensor(correct), torch.tensor([0, 0, 0, 7, 7, 7, 7, 2, 2])).group == 7
    over_seeds = worst_group(np.stack([correct, 1 - correct]), group)
    assert over_seeds.accuracy == pytest.approx(0.5) and over_seeds.group == "b"  # all equal: the largest
    assert worst_group([True], np.array(["x"], dtype=object)).group == "x"


@pytest.mark.parametrize("scaling", ["logit", "probit", "linear"])
def test_models_on_the_line_are_not_effectively_robust(scaling):
    reference = np.array([0.6, 0.7, 0.8])
    assert effective_robustness(reference, reference, reference, reference, scaling) == pytest.approx(
        0, abs=1e-9
    )
    above = effective_robustness(0.75, 0.8, reference, reference, scaling)
    assert above.shape == () and float(above) == pytest.approx(0.05)


def test_effective_robustness_by_hand():
    # references on logit(ood) = logit(id) - ln 4: odds 4 -> 1 and 9 -> 9/4; odds 19 -> 19/4
    found = effective_robustness([0.95, 0.95], [0.9, 0.0], [0.8, 0.9], [0.5, 9 / 13])
    assert found == pytest.approx([0.9 - 19 / 23, -19 / 23])


@pytest.mark.parametrize("method, reference", [("spearman", spearmanr), ("kendall", kendalltau)])
def test_rank_correlation(method, reference):
    random = np.random.default_rng(6)
    x = random.normal(size=15).round(1)
    y = x + random.normal(size=15).round(1)
    found = rank_correlation(x, y, method, resamples=300)
    assert found.estimate == pytest.approx(reference(x, y).statistic)
    assert -1 <= found.low < found.estimate < found.high <= 1
    assert rank_correlation(np.exp(x), y**3, method, resamples=300) == found  # ranks only
    assert rank_correlation(x, y, method, resamples=300, seed=1) != found
    negative = rank_correlation(x, -y, method, resamples=300)
    assert (negative.low, negative.high) == pytest.approx((-found.high, -found.low))


def test_rank_correlation_without_an_interval():
    three = rank_correlation([1, 2, 3], [1, 3, 2])
    assert three.estimate == 0.5 and np.isnan(three.low)
    assert np.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).estimate)


def test_holm():
    # Holm's own procedure by hand: sorted p times 4, 3, 2, 1, made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]


def test_holm_keeps_the_familywise_error():
    random = np.random.default_rng(7)
    assert np.mean([(holm(random.random(6)) <= 0.05).any() for _ in range(2000)]) <= 0.065


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: mean_interval([]), "values: is empty"),
        (lambda: mean_interval([0.1, np.nan]), "values: has 1 NaN of 2 values, the first at index 1"),
        (lambda: mean_interval([0.1, 0.2], 95), "confidence: is 95"),
        (lambda: proportion_interval(3, 2), "successes, examples: are 3, 2"),
        (lambda: accuracy_interval([1, 0]), r"correct: has shape \(2,\)"),
        (lambda: accuracy_interval([[2, 0]]), "correct: has values in"),
        (lambda: paired_comparison([1, 2], [1, 2, 3]), "a, b: have shapes"),
        (lambda: paired_comparison([1], [2]), "a, b: hold a single pair"),
        (lambda: worst_group([1, 0], [0]), "group: has 1 entries, but correct 2"),
        (
            lambda: effective_robustness(0.9, 0.8, [0.7, 1.0], [0.6, 0.7]),
            "reference_id: has an accuracy of 0 or 1",
        ),
        (lambda: effective_robustness(0.9, 0.8, [0.7, 0.7], [0.6, 0.7]), "reference_id: has fewer than two"),
        (lambda: effective_robustness(0.9, 0.8, [0.7, 0.8], [0.6]), "reference_ood: has 1 entries"),
        (lambda: effective_robustness(0.9, 0.8, [0.7, 0.8], [0.6, 0.7], "log"), "scaling: is 'log'"),
        (lambda: rank_correlation([1, 2], [1]), "y: has 1 entries, but x 2"),
        (lambda: rank_correlation([1, 2], [1, 2], "pearson"), "method: is 'pearson'"),
        (lambda: holm([1.5]), "p_values: has values in"),
    ],
)
def test_errors_name_the_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
