import numpy as np
import pytest
from scipy.special import expit, logit

from unseen.detection.metrics import ood_metrics
from unseen.measures.accuracy_estimates import estimate_accuracy
from unseen.studies.evaluate import evaluate
from unseen.studies.results import Results
from unseen.studies.study import Study
from unseen.training import Learner
from unseen.training.data import TrainingData
from unseen.training.system import build_system

SMALL = {"steps": 8, "batch_size": 16, "network": "linear", "evaluations": 1, "detectors": ("msp", "knn")}


@pytest.fixture(scope="module")
def searched(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    Study(toy, ["erm", "groupdro"], unseen="d", seeds=2, search=8, **SMALL).run(folder)
    return Results(folder)


def test_effective_robustness_is_the_height_above_the_line_of_plain_runs(searched):
    metrics, cells = searched.metrics, searched.cells
    final = metrics[(metrics.step == -1) & (metrics.metric == "accuracy")]
    known, unseen = [], []
    for cell in cells[cells.method == "erm"].cell:
        rows = final[final.cell == cell].set_index(["role", "domain"]).value
        known.append(rows["validation", "all"])
        unseen.append(rows["unseen", "d"])
    slope, intercept = np.polyfit(logit(known), logit(unseen), 1)
    found = searched.effective_robustness.set_index(["method", "domain"])
    for row in searched.table[searched.table.domain == "d"].itertuples():
        expected = row.accuracy - expit(intercept + slope * logit(row.id_accuracy))
        assert found.value[row.method, "d"] == pytest.approx(expected, abs=1e-9)
    assert (found.references == 18).all()


def test_a_line_through_few_runs_is_not_drawn(toy, tmp_path):
    Study(toy, ["erm"], unseen="d", seeds=2, **SMALL).run(tmp_path)
    assert Results(tmp_path).effective_robustness.empty


def test_estimates_and_familiarity_are_those_of_the_stored_outputs(searched):
    chosen = searched.selected[searched.selected.method == searched.choice.method]
    expected = {"cot": [], "auroc": []}
    for cell in chosen.cell:
        known, rows, new = searched.arrays(cell, "validation/logits", "validation/rows", "unseen/logits")
        source, target = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (known, new))
        expected["cot"].append(estimate_accuracy(source, searched.labels[rows], target)["cot"])
        scores = searched.arrays(cell, "validation/score/knn", "unseen/score/knn")
        expected["auroc"].append(ood_metrics(*scores, confidence=None).auroc)
    estimates = searched.estimates.set_index("estimate").value
    assert estimates["cot"] == pytest.approx(np.mean(expected["cot"]), abs=1e-6)
    familiarity = searched.familiarity.set_index("detector")
    assert familiarity.auroc["knn"] == pytest.approx(np.mean(expected["auroc"]))
    assert (familiarity.auroc_low < familiarity.auroc).all() and (
        familiarity.auroc < familiarity.auroc_high
    ).all()
    assert set(familiarity.index) == {"msp", "knn"}


@pytest.mark.parametrize(("network", "alike"), [("linear", True), ("mlp(width=8)", False)])
def test_scores_are_shared_only_where_no_network_shapes_the_features(toy, network, alike):
    data = TrainingData(toy.split("d"))
    first, second = (
        evaluate(build_system(Learner(network=network), data, seed).network, data, ("knn", "msp"))[1]
        for seed in (0, 1)
    )
    assert np.array_equal(first["unseen/score/knn"], second["unseen/score/knn"]) == alike
    assert not np.array_equal(first["unseen/score/msp"], second["unseen/score/msp"])
