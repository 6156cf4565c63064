from html import unescape

import numpy as np
import pytest

from unseen.reports.trust import Outputs, abstention, calibration, familiarity, run_outputs


def outputs(confidence, correct, scores=None):
    """A run on two classes with the given confidences; label 0 where right."""
    confidence, correct = np.array(confidence), np.array(correct)
    return Outputs(
        0,
        np.stack([confidence, 1 - confidence], 1),
        np.where(correct, 0, 1),
        np.zeros(len(correct), int),
        scores,
    )


def test_calibration_rows_are_means_over_runs():
    known = outputs([0.9] * 10, [1] * 9 + [0])
    runs = [(known, outputs([0.8, 0.8], [1, 0])), (known, outputs([0.6, 0.6], [1, 1]))]
    figure, (familiar, unseen) = calibration(runs)
    assert (familiar.excess, familiar.error) == pytest.approx((0, 0))
    assert (unseen.confidence, unseen.accuracy, unseen.excess) == pytest.approx((0.7, 0.75, -0.05))
    assert unseen.error == pytest.approx((0.3 + 0.4) / 2)
    assert figure.startswith("<svg")


def test_abstention_reads_the_error_rate_at_each_share():
    scores = np.arange(100.0)
    unseen = outputs(np.full(100, 0.7), scores >= 50, scores)  # the familiar half is right
    known = outputs(np.full(100, 0.9), np.ones(100, bool), scores)
    _, rows = abstention([(known, unseen)], "knn")
    table = dict(rows)
    assert table["unseen, by knn"] == pytest.approx([0.5, 40 / 90, 25 / 75, 0], abs=0.01)
    assert table["unseen, by confidence"] == pytest.approx([0.5] * 4)  # all tied: abstaining gains nothing
    assert table["ID validation, by confidence"] == pytest.approx([0] * 4)
    assert "unseen, by knn" not in dict(abstention([(known, unseen)], None)[1])


def test_outputs_of_a_study_agree_with_its_results(study):
    results, _ = study
    method = results.choice.method
    pairs = run_outputs(results, method, "knn")
    assert len(pairs) == 6  # three domains, two seeds
    for index, domain in enumerate(results.domains):
        mine = [unseen.correct for _, unseen in pairs if (unseen.domain == index).all()]
        assert (np.stack(mine) == results.correct(method, domain)).all()
    for known, unseen in pairs:
        assert known.scores is not None and len(known.scores) == len(known.labels)
        assert not set(known.domain) & set(unseen.domain)


def test_histograms_are_of_the_first_run_that_held_the_domain_out(study):
    results, _ = study
    method = results.choice.method
    found = familiarity(results, run_outputs(results, method, "knn"))
    assert [h.domain for h in found] == results.unseen_domains
    cells = results.selected[(results.selected.method == method) & (results.selected.seed == 0)]
    for histogram in found:
        (cell,) = cells[[names == (histogram.domain,) for names in cells.unseen]].cell
        known, unseen = results.arrays(cell, "validation/score/knn", "unseen/score/knn")
        accepted = (unseen >= np.sort(known)[::-1][int(np.ceil(0.95 * len(known))) - 1]).mean()
        assert f"{100 * accepted:.0f}% of the unseen domain's inputs score above" in unescape(
            histogram.figure
        )
        assert histogram.seed == 0
