"""Options chosen on tuning data: by their AUROC alone, and judged on data that the choice has not seen."""

import json

import numpy as np
import pytest
import torch

from unseen.detection import Detector
from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import Bank, build_network
from unseen.registry import Spec, detectors, shifts
from unseen.shifts import Shift
from unseen.shifts.preprocessing import ArrayPreprocessing
from unseen.studies import Study
from unseen.studies.deploy import train_for_deployment
from unseen.studies.evaluate import evaluate
from unseen.studies.store import CellResult
from unseen.studies.tuned_detectors import choose, require_apart, tune_detector, tuning_half
from unseen.training.data import TrainingData, network_outputs
from unseen.training.fit import train
from unseen.training.system import build_system, seeded


def points(count: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.fixture(scope="module")
def world():
    x, y = points(120, 0), torch.arange(120) % 3
    x[torch.arange(120), y] += 3
    shift = Shift("toy", "array", x, y, torch.zeros(120), "xyz", "a")
    with seeded(0):
        network = build_network("mlp(width=8)", (6,), 3).eval()
    return {
        "network": network,
        "preprocessing": ArrayPreprocessing.fit(shift, torch.arange(120)),
        "train": (x, y),
        "familiar": (points(40, 1), points(40, 2)),
        "tuning": points(40, 3, 1.5),
        "test": {"near": points(40, 4, 1.0), "far": points(30, 5, 4.0)},
    }


@pytest.mark.parametrize("name", ["relation", "odin"])  # of features, and one that observes the pass
def test_the_best_on_tuning_data_is_kept_and_judged_on_the_test(name, world):
    tuned = tune_detector(name, draws=4, **world)
    assert list(tuned.draws.draw) == [0, 1, 2, 3, 4] and tuned.draws.detector[0] == name
    assert tuned.draws.detector[tuned.draws.tuning_auroc.argmax()] == str(tuned.spec)
    assert tuned.draws.detector.nunique() > 2
    fresh = detectors.build(tuned.spec)

    def bank(x):
        pre = world["preprocessing"]
        return network_outputs(world["network"], pre, pre.encode(x), observers=[fresh])

    learnt = bank(world["train"][0])
    learnt.labels = world["train"][1]
    fresh.fit(learnt)
    (one, two), test = world["familiar"], world["test"]
    expected = ood_metrics(fresh.score(bank(one)), fresh.score(bank(world["tuning"]))).auroc
    assert tuned.draws.tuning_auroc.max() == pytest.approx(expected)
    for row in tuned.judged.itertuples():
        other = bank(test[row.set])
        assert row.auroc == pytest.approx(ood_metrics(fresh.score(bank(two)), fresh.score(other)).auroc)
        assert row.auroc_low <= row.auroc <= row.auroc_high and row.n == len(test[row.set])
    assert list(tuned.judged.set) == ["near", "far"]


def test_test_data_do_not_change_the_choice(world):
    other = {**world, "test": {"other": points(25, 9, -2.0)}}
    one, two = (tune_detector("relation", draws=4, **each) for each in (world, other))
    assert one.spec == two.spec and one.draws.equals(two.draws)


@pytest.mark.parametrize("used", ["tuning", "train"])
def test_test_data_that_were_used_are_refused(used, world):
    taken = world["train"][0] if used == "train" else world[used]
    mixed = torch.cat([world["test"]["near"], taken[:3]])
    with pytest.raises(InputError, match=rf"'near': share 3 of 43 examples with the {used}"):
        tune_detector("relation", **{**world, "test": {"near": mixed}})


def test_familiar_inputs_are_kept_apart_too(world):
    own = world["familiar"][0]
    with pytest.raises(InputError, match="familiar data.*share 40 of 40"):
        tune_detector("relation", **{**world, "familiar": (own, own)})
    require_apart({"a": np.zeros((2, 3))}, {"b": np.ones((2, 3))})


def test_errors(world):
    with pytest.raises(InputError, match="has no options with a search range"):
        tune_detector("msp", **world)
    with pytest.raises(InputError, match="draws: are 0"):
        tune_detector("relation", draws=0, **world)
    with pytest.raises(InputError, match="has no unfamiliar data"):
        tune_detector("relation", **{**world, "test": {}})


class Fixed(Detector):
    """Scores by a row of its own; NaN, or an error of fitting, for the options that say so."""

    def __init__(self, column: int, broken: str = ""):
        super().__init__()
        self.column, self.broken = column, broken

    def fit(self, bank):
        if self.broken == "fit":
            raise InputError("k", "is too large")
        return self

    def score(self, bank):
        return bank.features[:, self.column] * (float("nan") if self.broken == "score" else 1)


def column_bank(*columns):
    features = torch.tensor(columns, dtype=torch.float32).T
    return Bank(features, features[:, :2])


def test_the_highest_is_chosen_and_candidates_that_fail_are_left_out():
    inside, outside = (
        column_bank([5, 6, 7], [2, 5, 6], [9, 9, 9]),
        column_bank([1, 5, 9], [1, 2, 3], [0, 0, 0]),
    )
    specs = [Spec.make("fixed", number=number) for number in range(4)]
    built = dict(zip(specs, [Fixed(0), Fixed(2, "fit"), Fixed(2, "score"), Fixed(1)], strict=True))
    found = choose(built, inside, inside, outside)
    assert found.spec == specs[3]
    expected = [ood_metrics(inside.features[:, c], outside.features[:, c]).auroc for c in (0, 1)]
    assert [found.aurocs[specs[0]], found.aurocs[specs[3]]] == pytest.approx(expected)
    assert np.isnan(found.aurocs[specs[1]]) and np.isnan(found.aurocs[specs[2]])
    assert found.facts["given_auroc"] == pytest.approx(expected[0]) and found.facts["candidates"] == 4
    tied = choose(dict(zip(specs, [Fixed(1), Fixed(1)], strict=False)), inside, inside, outside)
    assert tied.spec == specs[0]  # the given options
    first_fails = dict(zip(specs, [Fixed(2, "score"), Fixed(0)], strict=False))
    assert choose(first_fails, inside, inside, outside).spec == specs[1]
    with pytest.raises(InputError, match="is too large"):
        choose({specs[0]: Fixed(0, "fit")}, inside, inside, outside)


def test_equal_inputs_are_in_one_half():
    inputs = torch.arange(10).repeat_interleave(3)[:, None]
    half = tuning_half(inputs, seed=3)
    assert half.sum() == 15 and (half.view(10, 3).float().mean(1) % 1 == 0).all()
    assert torch.equal(half, tuning_half(inputs, 3)) and not torch.equal(half, tuning_half(inputs, 4))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tuning_half(inputs[order], 3), half[order])  # whatever the order
    with pytest.raises(InputError, match="has 1 distinct"):
        tuning_half(inputs[:3], 0)


TUNED = {
    "seeds": 2, "steps": 20, "batch_size": 8, "network": "mlp(width=32)", "evaluations": 1, "unseen": "a",
    "detectors": ["msp", "relation", "odin"], "held_out_classes": ["z"], "far": ["noise"],
    "tune_detectors": "scrambled", "tuning_draws": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned_study(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    study = Study(toy, ["erm"], **TUNED)
    return study, study.run(folder, engine="serial")


def test_every_run_chooses_on_its_half_and_is_judged_on_the_other(tuned_study):
    study, results = tuned_study
    assert results.detectors == ["msp", "relation", "odin", "relation tuned", "odin tuned"]
    table = results.unfamiliar.set_index(["set", "detector"])
    each: list[float] = []
    for cell in results.selected.itertuples():
        spec = Spec.of(cell.facts["tuned"]["relation"]["spec"])
        data = TrainingData(study.shift.split("a", seed=cell.seed))
        network = build_system(study.plan.learners[0], data, cell.seed).network
        trained = train(study.plan.learners[0], data, seed=cell.seed)
        network.load_state_dict(trained.state)
        bank = data.bank(network, "validation")
        fitted = detectors.build(spec).fit(data.bank(network, "train"))
        chose, known, new = results.arrays(
            cell.cell,
            "validation/chose",
            "validation/score/relation tuned",
            "unfamiliar/class z/score/relation tuned",
        )
        assert torch.allclose(fitted.score(bank), torch.from_numpy(known.copy()), atol=1e-6)
        assert abs(chose.sum() - len(chose) / 2) <= 1
        each.append(ood_metrics(known[~chose], new).auroc)
        stored = data.preprocessing.encode(study.plan.tuning.inputs(data.split))
        other = network_outputs(network, data.preprocessing, stored)
        best = ood_metrics(fitted.score(bank.take(torch.from_numpy(chose.copy()))), fitted.score(other)).auroc
        assert cell.facts["tuned"]["relation"]["auroc"] == pytest.approx(best, abs=1e-6)
        assert best >= cell.facts["tuned"]["relation"]["given_auroc"]
    assert table.auroc["class z", "relation tuned"] == pytest.approx(np.mean(each))
    assert set(results.tuned.detector) == {"relation", "odin"} and results.tuned.runs.sum() == 4
    assert results.to_json()["tuned"][0]["detector"] == "odin"


def test_a_tuned_study_is_the_same_on_processes_and_when_it_is_resumed(tuned_study, toy, tmp_path):
    _, results = tuned_study
    study = Study(toy, ["erm"], **TUNED)
    with study.open_store(tmp_path) as store:  # the first cell is there already
        (cell, other) = study.plan.cells
        data = TrainingData(study.shift.split("a", seed=cell.seed))
        trained = train(cell.learner, data, seed=cell.seed)
        network = build_system(cell.learner, data, cell.seed).network
        network.load_state_dict(trained.state)
        records, arrays, facts = evaluate(network, data, *study.plan.judging)
        store.add(
            [(cell, CellResult(cell.key, [*trained.history, *records], arrays, {**trained.facts, **facts}))]
        )
    again = study.run(tmp_path, engine="local", workers=1)
    for each in (cell, other):
        for name in (
            "validation/score/odin tuned",
            "unfamiliar/noise/score/relation tuned",
            "validation/chose",
        ):
            assert np.array_equal(results.arrays(each.key, name)[0], again.arrays(each.key, name)[0])
    assert results.tuned.equals(again.tuned)


def test_tuning_makes_other_cells_and_keeps_the_scores_of_the_others(tuned_study, toy, tmp_path):
    study, results = tuned_study
    plain = Study(toy, ["erm"], **{**TUNED, "tune_detectors": None})
    keys = {Study(toy, ["erm"], **{**TUNED, "tuning_draws": n}).plan.cells[0].key for n in (4, 5)}
    assert len(keys | {plain.plan.cells[0].key}) == 3
    untuned = plain.run(tmp_path, engine="serial")
    for one, two in zip(plain.plan.cells, study.plan.cells, strict=True):
        for name in ("validation/score/odin", "unseen/score/msp", "unfamiliar/noise/score/relation"):
            assert np.array_equal(untuned.arrays(one.key, name)[0], results.arrays(two.key, name)[0])
    assert untuned.tuned.empty and untuned.detectors == ["msp", "relation", "odin"]


def test_the_deployed_detector_is_tuned_anew(tuned_study, toy):
    study, results = tuned_study
    model = train_for_deployment(results, study.shift, detector="relation", tuning=study.plan.tuning)
    found = model.facts["detector_tuning"]
    assert Spec.of(found["spec"]) == model.familiarity.spec and found["data"] == "scrambled"
    assert found["auroc"] >= found["given_auroc"] and "accept" in model.predict(study.shift.inputs[:3])
    assert model.familiarity.detector.power == model.familiarity.spec.options["power"]
    plain = train_for_deployment(results, study.shift, detector="msp", tuning=study.plan.tuning)
    assert "detector_tuning" not in plain.facts and plain.familiarity.spec == Spec("msp")


def test_a_study_without_a_detector_to_tune_is_refused(toy):
    with pytest.raises(InputError, match=r"of msp, none has options with a search range.*gram, .*relation"):
        Study(toy, ["erm"], **{**TUNED, "detectors": ["msp"]})


def test_the_command_line_tunes_and_the_report_says_what_was_chosen(command, tmp_path):
    folder = tmp_path / "run"
    options = [
        "gaussian-shift", "--unseen", shifts.build("gaussian-shift").domains[0], "--learners", "erm", "--seeds", 1,
        "--steps", 3, "--engine", "serial", "--detectors", "msp", "--detector", "relation", "--far", "noise",
        "--tune-detectors", "scrambled", "--tuning-draws", 3, "--out", folder,
    ]  # fmt: skip
    said = command("run", *options)
    assert said.code == 0, said.err
    assert "relation tuned" in said.out and "Tuned on scrambled: relation" in said.out
    chosen = Spec.of(json.loads((folder / "model" / "model.json").read_text())["familiarity"]["detector"])
    card = (folder / "model" / "README.md").read_text()
    assert f"scored by `{chosen}`" in card and "on tuning data (scrambled) that judged no detector" in card
    page = (folder / "report.html").read_text()
    assert "What tuning chose" in page and 'relation<span class="tag">model to deploy' in page
    assert f"<code>{chosen}</code>" in page and "tune_detectors=&#39;scrambled&#39;" in page
    assert 'relation tuned<span class="tag">shown' in page
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["deployed"]["detector"] == "relation" and numbers["tuned"][0]["runs"] == 1
    said = command("report", folder)
    assert said.code == 0 and (folder / "report.html").read_text().count("relation tuned") == page.count(
        "relation tuned"
    )


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--far", "noise", "--tune-detectors", "noise"], "are among those that judge"),
        (["--tune-detectors", "nowhere.csv"], "nowhere.csv"),
        (["--tune-detectors", "noise", "--tuning-draws", 0], "are 0"),
        (["--tune-detectors", "noise", "--detectors", "msp", "--detector", "msp"], "none has options"),
        (["--tune-detectors", "gaussian-shift"], "with the study's own data"),
    ],
)
def test_the_command_line_refuses_bad_tuning_before_training(options, problem, command, tmp_path):
    said = command("run", "gaussian-shift", "--learners", "erm", "--out", tmp_path / "run", *options)
    assert said.code != 0 and problem in " ".join((said.out + said.err).split())
    assert not (tmp_path / "run").exists()
