"""Data of other kinds: opened, made, checked against the study's own, and judged beside ID validation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError, UnseenWarning
from unseen.shifts import Shift
from unseen.studies import Results, Study
from unseen.studies.plan import DETECTORS
from unseen.studies.unfamiliar import Tuning, Unfamiliar, hold_out_classes, row_hashes

SMALL = {"seeds": 2, "steps": 20, "batch_size": 8, "network": "mlp(width=8)", "evaluations": 1}


@pytest.fixture(scope="module")
def results(toy, tmp_path_factory) -> Results:
    far = Shift("elsewhere", "array", toy.inputs[:50] + 30, toy.labels[:50], toy.domain[:50], "xyz", "abcd")
    study = Study(
        toy,
        ["erm"],
        unseen="a",
        detectors=["msp", "knn", "gram", "odin"],
        held_out_classes=["z"],
        far=["noise", far],
        **SMALL,
    )
    assert study.shift.classes == ("x", "y") and len(study.shift) < len(toy)
    return study.run(tmp_path_factory.mktemp("unfamiliar"), engine="serial")


def test_every_set_is_judged_by_every_detector_with_intervals(results):
    table = results.unfamiliar
    sets = table.groupby(["set", "nearness"], sort=False).size()
    assert dict(sets) == {
        ("unseen domains", "shifted"): 4,
        ("class z", "near"): 4,
        ("noise", "far"): 4,
        ("elsewhere", "far"): 4,
    }
    assert ((table.auroc_low <= table.auroc) & (table.auroc <= table.auroc_high)).all()
    assert ((table.fpr95_low <= table.fpr95) & (table.fpr95 <= table.fpr95_high)).all()
    knn = table[table.detector == "knn"].set_index("set")
    assert knn.auroc["elsewhere"] > 0.95 and knn.n["elsewhere"] == 50
    cells = results.selected.cell
    each = []
    for cell in cells:
        known, new = results.arrays(cell, "validation/score/knn", "unfamiliar/class z/score/knn")
        each.append(ood_metrics(known, new).auroc)
    assert knn.auroc["class z"] == pytest.approx(np.mean(each))
    assert results.to_json()["unfamiliar"][0]["set"] == "unseen domains"


def test_other_detectors_make_other_cells(toy):
    every = ({}, {"detectors": ["knn"]}, {"far": ["noise"]}, {"detectors": DETECTORS})
    plans = [Study(toy, ["erm"], unseen="a", **SMALL, **options).plan for options in every]
    keys = [plan.cells[0].key for plan in plans]
    assert keys[0] == keys[3] and len(set(keys)) == 3  # what is the default by name needs no new run


def test_a_detector_that_cannot_work_is_refused_before_training(toy):
    with pytest.raises(InputError, match="rankfeat: needs a layer that is a map"):
        Study(toy, ["erm"], unseen="a", detectors=["rankfeat"], **SMALL)
    with pytest.raises(InputError, match="mc-dropout: needs a network with dropout"):
        Study(toy, ["erm"], unseen="a", detectors=["mc-dropout"], **SMALL)
    with pytest.raises(InputError, match="deep-ensemble: reads the answers of several networks"):
        Study(toy, ["erm"], unseen="a", detectors=["deep-ensemble"], **SMALL)


def test_shared_examples_are_counted(toy):
    new = toy.inputs[:10] + 1
    with pytest.warns(UnseenWarning, match="7 of 17 examples are also among those of 'toy'"):
        found = Unfamiliar.of("mixed", "near", torch.cat([toy.inputs[:7], new]), toy)
    assert found.overlap == 7
    with pytest.raises(InputError, match="share 10 of 10 examples with the outliers that training sees"):
        Unfamiliar.of("same", "far", new, toy.with_outliers(new))


def test_empty_and_unfitting_data_are_refused(toy):
    with pytest.raises(InputError, match="unfamiliar data 'none': have no examples"):
        Unfamiliar.of("none", "far", toy.inputs[:0], toy)
    table = Shift("other", "table", pd.DataFrame({"a": [1, 2]}), [0, 1], [0, 0], "xy", "a")
    with pytest.raises(InputError, match="are of kind 'table', and the models read 'array'"):
        Unfamiliar.open(table, "far", toy)
    with pytest.raises(InputError, match="'noise': are given twice"):
        Study(toy, ["erm"], unseen="a", near=["noise"], far=["noise"], **SMALL)


def test_noise_fills_the_range_and_scrambling_keeps_the_values(toy):
    noise = Unfamiliar.open("noise", "far", toy).inputs
    assert (noise >= toy.inputs.amin(0)).all() and (noise <= toy.inputs.amax(0)).all()
    scrambled = Unfamiliar.open("scrambled", "far", toy).inputs
    assert torch.equal(scrambled.sort(1).values, toy.inputs.sort(1).values)
    assert not torch.equal(scrambled, toy.inputs)
    assert Unfamiliar.open("noise", "far", toy).key == Unfamiliar.open("noise", "far", toy).key
    images = Shift(
        "i", "image", torch.arange(2 * 3 * 16).view(2, 3, 4, 4).to(torch.uint8), [0, 1], [0, 1], "xy", "ab"
    )
    mixed = Unfamiliar.open("scrambled", "far", images).inputs
    assert torch.equal(mixed[:, 0] + 16, mixed[:, 1])  # colours stay together
    texts = Shift("t", "text", ["one two three", "four five"], [0, 1], [0, 1], "xy", "ab")
    assert [sorted(t.split()) for t in Unfamiliar.open("scrambled", "far", texts).inputs] == [
        ["one", "three", "two"],
        ["five", "four"],
    ]
    with pytest.raises(InputError, match="cannot be made of data of kind 'text'"):
        Unfamiliar.open("noise", "far", texts)


def test_held_out_classes_are_numbered_anew(toy):
    inside, held = hold_out_classes(toy, ["y"])
    assert inside.classes == ("x", "z") and held.name == "class y"
    assert torch.equal(inside.labels, toy.labels[toy.labels != 1] // 2)
    assert torch.equal(torch.as_tensor(held.inputs), toy.inputs[toy.labels == 1])
    with pytest.raises(InputError, match="class 'q': is not a class of the data"):
        hold_out_classes(toy, ["q"])
    with pytest.raises(InputError, match="leave 1 to learn"):
        hold_out_classes(toy, ["x", "y"])


def test_equal_rows_have_equal_hashes_in_every_form():
    frame = pd.DataFrame({"a": [1.0, 1.0, 2.0], "b": ["u", "u", "u"]})
    for rows in (frame, ["s", "s", "t"], {"x": torch.tensor([[1], [1], [2]])}, np.array([[1], [1], [2]])):
        first, second, third = row_hashes(rows)
        assert first == second != third


def test_tuning_data_that_judge_are_refused(toy):
    fresh = toy.inputs[:30] + 1
    near = Unfamiliar.of("near", "near", fresh, toy)
    for source, judging, problem in (
        (Unfamiliar("same", "far", fresh[:7]), [near], "'same': share 7 of 7 examples with .* data 'near'"),
        (
            Unfamiliar("own", "far", toy.inputs[:4]),
            [],
            "'own': share 4 of 4 examples with the study's own data",
        ),
        ("noise", [Unfamiliar.open("noise", "far", toy)], "'noise': are among those that judge"),
        (Unfamiliar("none", "far", fresh[:0]), [], "tuning data 'none': have no examples"),
        ("nowhere", [], "nowhere"),
        ("fog", [], "'fog': cannot be made of data of kind 'array'"),
    ):
        with pytest.raises(InputError, match=problem):
            Tuning.open(source, 5, toy, judging)
    with pytest.raises(InputError, match="tuning draws: are 0"):
        Tuning.open("noise", 0, toy, [])
    opened = Tuning.open(Shift("other", "array", fresh, [0] * 30, [0] * 30, "x", "a"), 5, toy, [])
    assert opened.data.name == "other" and len(opened.data) == 30
    assert opened.key != Tuning.open(opened.data, 6, toy, []).key


def test_what_is_made_for_tuning_is_made_of_training_rows(toy):
    split = toy.split("a")
    lone = replace(toy, inputs=toy.inputs.clone())
    lone.inputs[split.unseen] = 1e6  # would widen the range of the noise
    found = Tuning.open("noise", 5, lone, []).inputs(lone.split("a"))
    assert float(found.max()) < 100
    given = Unfamiliar("given", "far", toy.inputs[:5] + 9)
    assert Tuning.open(given, 5, toy, []).inputs(split) is given.inputs


def test_corruptions_are_made_of_images():
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = Shift("i", "image", pixels.to(torch.uint8), [0, 1] * 3, [0, 1] * 3, "xy", "ab")
    strong, weak = (Unfamiliar.open(s, "far", images) for s in ("contrast", "contrast(severity=1)"))
    assert strong.name == "contrast" and strong.source == "contrast" and len(strong) == 6
    change = [(each.inputs.float() - pixels).abs().mean() for each in (strong, weak)]
    assert change[0] > change[1] > 0
    with pytest.raises(InputError, match="have an unknown option 'strength'"):
        Unfamiliar.open("contrast(strength=1)", "far", images)
    with pytest.raises(InputError, match="severity"):
        Unfamiliar.open("contrast(severity=9)", "far", images)
