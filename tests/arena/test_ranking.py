import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress, zscore

from unseen.arena import attribute_regression, recommend, task_correlation, zscore_ranking
from unseen.arena.ranking import zscores
from unseen.errors import InputError

SETTINGS = [("probe", "a"), ("probe", "b"), ("probe", "c"), ("ood", "d")]


def results(backbones=5, seeds=2, seed=0, settings=SETTINGS, metric="accuracy"):
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            (
                f"b{b}",
                task,
                setting,
                metric,
                s,
                generator.random(),
                10.0 ** (b + 5),
                "cnn" if b % 2 else "vit",
            )
            for b in range(backbones)
            for task, setting in settings
            for s in range(seeds)
        ],
        columns=["backbone", "task", "setting", "metric", "seed", "value", "params", "architecture"],
    )


def test_scores_are_scipys_z_within_settings_then_means_within_tasks_then_over_tasks():
    frame = results()
    ranking = zscore_ranking(frame)
    mean = frame.pivot_table(index="backbone", columns="setting", values="value")
    z = mean.apply(zscore)
    expected = (z[["a", "b", "c"]].mean(axis=1) + z["d"]) / 2  # three settings count no more than one
    pd.testing.assert_series_equal(ranking.score.sort_index(), expected, check_names=False)
    assert list(ranking.score) == sorted(expected, reverse=True)
    assert list(ranking["rank"]) == [1, 2, 3, 4, 5]
    assert list(zscore_ranking(frame, by="task").columns) == ["probe", "ood"]


def test_seeds_give_a_range_whose_mean_is_the_score():
    frame = results(seeds=2)
    ranking = zscore_ranking(frame)
    np.testing.assert_allclose((ranking.low + ranking.high) / 2, ranking.score)
    assert (ranking.high > ranking.low).all()
    one = zscore_ranking(results(seeds=1))
    np.testing.assert_allclose(one.low, one.score)


def test_lower_is_better_turns_the_sign():
    frame = results(metric="error")
    turned = zscore_ranking(frame.assign(metric="accuracy"))
    np.testing.assert_allclose(
        zscore_ranking(frame).score.sort_index(), -turned.score.sort_index(), atol=1e-12
    )
    declared = frame.assign(metric="mine", higher_is_better=False)
    pd.testing.assert_series_equal(zscore_ranking(declared).score, zscore_ranking(frame).score)


def test_scale_and_offset_of_a_metric_change_nothing_another_backbone_does():
    frame = results()
    moved = frame.assign(value=np.where(frame.setting == "a", 100 * frame.value - 7, frame.value))
    pd.testing.assert_frame_equal(zscore_ranking(moved), zscore_ranking(frame))
    pool = zscore_ranking(frame[frame.backbone != "b0"])
    assert not np.allclose(pool.score["b1"], zscore_ranking(frame).score["b1"])  # z depends on the pool


def test_weights_count_tasks():
    frame = results()
    tasks = zscore_ranking(frame, by="task")
    weighed = zscore_ranking(frame, weights={"ood": 0.0}).score
    pd.testing.assert_series_equal(weighed.sort_index(), tasks["probe"].sort_index(), check_names=False)
    with pytest.raises(InputError, match="weighs no task"):
        zscore_ranking(frame, weights={"odd": 1.0})
    with pytest.raises(InputError, match="all 0"):
        zscore_ranking(frame, weights={"ood": 0.0, "probe": 0.0})
    with pytest.raises(InputError, match="is -1"):
        zscore_ranking(frame, weights={"ood": -1.0})


def test_a_setting_of_two_backbones_or_without_difference_has_no_z():
    with pytest.raises(InputError, match=r"has 2 backbone\(s\)"):
        zscore_ranking(results(backbones=2))
    frame = results()
    frame.loc[frame.setting == "b", "value"] = 0.5
    with pytest.raises(InputError, match="'probe / b / accuracy': is the same for all"):
        zscore_ranking(frame)


def test_missing_cells_are_an_error_or_what_was_asked_for():
    frame = results()
    holed = frame[~((frame.backbone == "b1") & (frame.setting == "d"))]
    with pytest.raises(InputError, match="no value of 'b1' for seed 0, 1"):
        zscore_ranking(holed)
    assert zscores(holed, missing="mean").loc["b1", ("ood", "d", "accuracy")] == 0
    worst = zscores(holed, missing="worst")[("ood", "d", "accuracy")]
    assert worst["b1"] == worst.drop("b1").min()
    assert np.isfinite(zscore_ranking(holed, missing="mean").to_numpy()).all()
    of_a_seed = frame[~((frame.backbone == "b1") & (frame.setting == "d") & (frame.seed == 1))]
    with pytest.raises(InputError, match="for seed 1"):
        zscore_ranking(of_a_seed)


def test_frames_that_cannot_be_ranked():
    frame = results()
    with pytest.raises(InputError, match="in the results twice"):
        zscore_ranking(pd.concat([frame, frame.tail(1)]))
    with pytest.raises(InputError, match="no declared direction"):
        zscore_ranking(results(metric="surprise"))
    with pytest.raises(InputError, match="two directions"):
        zscore_ranking(frame.assign(higher_is_better=frame.seed == 0))
    with pytest.raises(InputError, match="has a value nan"):
        zscore_ranking(frame.assign(value=np.nan))
    with pytest.raises(InputError, match="lacks the column 'seed'"):
        zscore_ranking(frame.drop(columns="seed"))
    with pytest.raises(InputError, match="Choose 'task' or 'overall'"):
        zscore_ranking(frame, by="backbone")
    with pytest.raises(InputError, match="Choose 'error', 'mean' or 'worst'"):
        zscore_ranking(frame, missing="zero")


def test_correlation_of_tasks():
    frame = results()
    tasks = zscore_ranking(frame, by="task")
    expected = np.corrcoef(tasks["probe"], tasks["ood"])[0, 1]
    assert task_correlation(frame).loc["probe", "ood"] == pytest.approx(expected)


def test_regression_on_one_number_is_scipys():
    frame = results()
    score = zscore_ranking(frame).score.sort_index()
    line = linregress(np.arange(5) + 5, score)  # params are 10^(5 + b): they enter as their log10
    found = attribute_regression(frame, ["params"]).loc["log10(params)"]
    assert found.coefficient == pytest.approx(line.slope)
    assert found.standard_error == pytest.approx(line.stderr)
    assert found.p == pytest.approx(line.pvalue)
    assert found.r2 == pytest.approx(line.rvalue**2)


def test_regression_finds_what_made_the_scores():
    frame = results(backbones=8)
    frame["value"] += np.where(frame.architecture == "cnn", 3.0, 0.0)
    found = attribute_regression(frame, ["architecture", "params"])
    assert list(found.index) == ["intercept", "architecture=vit", "log10(params)"]
    assert found.coefficient["architecture=vit"] < -1.5
    assert found.p["architecture=vit"] < 0.001 < found.p["log10(params)"]


def test_regressions_that_cannot_be():
    frame = results()
    with pytest.raises(InputError, match="Name fewer factors"):
        attribute_regression(results(backbones=3), ["params", "architecture"])
    with pytest.raises(InputError, match="determine each other"):
        attribute_regression(frame.assign(family=frame.architecture), ["architecture", "family"])
    with pytest.raises(InputError, match="is not in the results"):
        attribute_regression(frame, ["parms"])
    with pytest.raises(InputError, match="unknown for backbone"):
        attribute_regression(frame.assign(flops=np.nan), ["flops"])
    with pytest.raises(InputError, match="varies within"):
        attribute_regression(frame.assign(luck=np.arange(len(frame))), ["luck"])


@pytest.mark.parametrize(
    "constraints",
    [{"params": "<1e7"}, ["params < 1e7"], {"params": lambda p: p < 1e7}],
    ids=["named text", "text", "function"],
)
def test_recommends_the_best_that_keeps_the_constraints(constraints):
    frame = results()
    ranking = zscore_ranking(frame)
    advice = recommend(frame, constraints)
    small = [name for name in ranking.index if name in ("b0", "b1")]
    assert advice.best == small[0] and list(advice.table.index) == small
    assert set(advice.excluded) == {"b2", "b3", "b4"}
    assert advice.table.score[small[0]] == ranking.score[small[0]]  # z of the whole pool


def test_constraints_on_texts_and_unknown_values():
    frame = results()
    assert set(recommend(frame, ["architecture=cnn"]).table.index) == {"b1", "b3"}
    holed = frame.assign(params=np.where(frame.backbone == "b0", np.nan, frame.params))
    assert "b0" in recommend(holed, ["params<1e9"]).excluded


def test_backbones_within_the_range_over_seeds_are_named():
    frame = results(backbones=3, settings=[("probe", "a")])
    frame["value"] = [1.0, 0.0, 0.9, 0.1, -5.0, -5.1]
    assert recommend(frame).close == ["b1"] or recommend(frame).close == ["b0"]
    frame["value"] = [1.0, 1.01, 0.5, 0.51, -5.0, -5.1]
    assert recommend(frame).best == "b0" and recommend(frame).close == []


def test_constraints_that_cannot_be():
    frame = results()
    with pytest.raises(InputError, match="leave no backbone"):
        recommend(frame, ["params<10"])
    with pytest.raises(InputError, match="cannot be read"):
        recommend(frame, ["small"])
    with pytest.raises(InputError, match="no number"):
        recommend(frame, ["params<many"])
    with pytest.raises(InputError, match="does not fit"):
        recommend(frame, ["architecture<3"])
    with pytest.raises(InputError, match="is not in the results"):
        recommend(frame, ["parms<3"])
