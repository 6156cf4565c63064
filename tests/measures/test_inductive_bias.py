import math

import numpy as np
import pytest
from scipy import stats

from unseen.errors import InputError, UnseenWarning
from unseen.measures.inductive_bias import compare_spaces, inductive_bias

LOSSES = stats.ncx2.rvs(40, 10, size=2000, random_state=0) / 1000


def test_the_value_of_a_quantile_and_of_a_far_target():
    found = inductive_bias(LOSSES, float(np.quantile(LOSSES, 0.01)))
    assert found.value == pytest.approx(math.log(100), abs=0.3)
    assert found.ci[0] < found.value < found.ci[1] < found.ci[0] + 1
    assert not found.extrapolated and found.decades == 0 and found.family == "ncx2" and found.pvalue > 0.1
    far = inductive_bias(LOSSES, 0.002)
    assert far.value == pytest.approx(-stats.ncx2.logcdf(2.0, 40, 10), rel=0.1)
    assert far.extrapolated and far.decades == pytest.approx(math.log10(LOSSES.min() / 0.002))
    assert set(far.params) == {"df", "nc", "scale"}


def test_targets_far_below_any_float_are_finite():
    """The trap: ln of a distribution function that underflows is -inf from 700 nats on."""
    losses = stats.gamma.rvs(400, size=1000, random_state=0) / 1000
    assert stats.gamma.logcdf(0.1, 400) == -math.inf
    found = inductive_bias(losses, 1e-4, "gamma", bootstrap=20)
    assert found.value > 700 and np.isfinite(found.ci).all()
    other = inductive_bias(losses, 1e-4, bootstrap=20)
    assert math.isfinite(other.value) and np.isfinite(other.ci).all()


def test_bits_and_seeds():
    nats, bits = (inductive_bias(LOSSES, 0.02, "gamma", unit) for unit in ("nats", "bits"))
    assert bits.value * math.log(2) == pytest.approx(nats.value)
    assert bits.ci[0] * math.log(2) == pytest.approx(nats.ci[0]) and bits.unit == "bits"
    assert inductive_bias(LOSSES, 0.02, "gamma", seed=0) == inductive_bias(LOSSES, 0.02, "gamma", seed=0)
    assert inductive_bias(LOSSES, 0.02, "gamma", seed=1).ci != nats.ci


def test_the_interval_is_as_wide_as_samples_differ():
    truth, found = -stats.ncx2.logcdf(28.0, 40, 10), []
    for seed in range(10):
        losses = stats.ncx2.rvs(40, 10, size=300, random_state=seed)
        found.append(inductive_bias(losses, 28.0, bootstrap=40))
    values, (low, high) = [each.value for each in found], np.array([each.ci for each in found]).T
    assert np.mean(values) == pytest.approx(truth, abs=0.3)
    assert ((low <= truth) & (truth <= high)).sum() >= 7
    assert (high - low).mean() == pytest.approx(3.92 * np.std(values), rel=0.5)


def test_the_empirical_interval_is_exact_also_where_nothing_was_seen():
    none = inductive_bias(LOSSES, 1e-6, "empirical")
    assert none.value == math.inf == none.ci[1] and none.extrapolated
    assert none.ci[0] == pytest.approx(-math.log(1 - 0.025 ** (1 / 2000)), rel=1e-6)
    everything = inductive_bias(LOSSES, 10.0, "empirical")
    assert everything.value == 0 and math.copysign(1, everything.value) == 1


def test_spaces_side_by_side():
    table = compare_spaces({"good": LOSSES / 2, "poor": LOSSES}, [0.04, 0.02, 0.01], bootstrap=20)
    assert list(table.columns[:5]) == ["space", "target", "value", "low", "high"] and len(table) == 6
    wide = table.pivot(index="target", columns="space", values="value")
    assert (wide.good < wide.poor).all() and wide.poor.is_monotonic_decreasing
    assert (table.low <= table.value + 0.5).all() and table.extrapolated.any()
    single = inductive_bias(LOSSES, 0.02, bootstrap=20)
    row = table[(table.space == "poor") & (table.target == 0.02)].iloc[0]
    assert (row.value, row.low, row.high) == pytest.approx((single.value, *single.ci))


def test_a_rejected_fit_is_said():
    two = np.concatenate([np.linspace(1, 1.01, 200), np.linspace(9, 10, 200)])
    with pytest.warns(UnseenWarning, match="its tail is a guess"):
        assert inductive_bias(two, 0.5, bootstrap=20).pvalue < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inductive_bias(LOSSES, 0), "target: is"),
        (lambda: inductive_bias(LOSSES, -1.0), "target: is"),
        (lambda: inductive_bias(LOSSES, 0.1, unit="bytes"), "unit 'bytes'"),
        (lambda: inductive_bias(LOSSES, 0.1, "beta"), "family 'beta'"),
        (lambda: inductive_bias(LOSSES[:29], 0.1), "are 29"),
        (lambda: inductive_bias(-LOSSES, 0.1), "negative"),
        (lambda: inductive_bias(np.append(LOSSES, np.inf), 0.1), "infinite"),
        (lambda: inductive_bias(np.full(100, 0.3), 0.1), "all the same"),
        (lambda: inductive_bias(LOSSES, 0.1, bootstrap=3), "bootstrap: is 3"),
        (lambda: compare_spaces({}, [0.1]), "spaces: are none"),
        (lambda: compare_spaces({"a": LOSSES}, []), "target: is"),
    ],
)
def test_errors_name_the_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
