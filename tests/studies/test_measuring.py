import json

import numpy as np
import pandas as pd
import pytest
import torch

import unseen
from unseen.errors import InputError
from unseen.measures.page import cells, write_sections
from unseen.shifts.arrays import from_arrays
from unseen.studies.measuring import Section, measure_data, measure_model, measure_study
from unseen.studies.results import Results
from unseen.studies.study import Study


def toy(flipped: float = 0.0, seed: int = 0):
    """Three places alike in their inputs; in the last one, a share of the labels is turned round."""
    generator = torch.Generator().manual_seed(seed)
    y, place = torch.arange(600) % 2, torch.arange(600) // 200
    x = torch.randn(600, 4, generator=generator) + 2.5 * (2 * y - 1)[:, None] * torch.tensor([1.0, 0, 0, 0])
    turned = (torch.rand(600, generator=generator) < flipped) & (place == 2)
    return from_arrays(x, torch.where(turned, 1 - y, y), np.array(["a", "b", "c"])[place])


def sections(found):
    return {section.name: section for section in found}


@pytest.fixture(scope="module")
def measured():
    return sections(measure_data(toy(0.4), steps=60))


def test_a_place_with_turned_labels_has_a_concept_shift(measured):
    table = measured["anatomy"].table.set_index("domain")
    assert table.loc["c", "drop"] > 0.25 and table.loc["c", "concept low"] > 0.15
    assert abs(table.loc["c", "covariate"]) < 0.15 and table.loc["c", "overlap"] > 0.9
    assert table.loc["a", "drop"] < 0.1


def test_places_alike_are_near_and_wrong_labels_are_suspected(measured):
    assert (measured["distances"].table.a_distance < 0.5).all()
    if "suspects" in measured["noise"].facts:  # with cleanlab
        suspects = torch.tensor(measured["noise"].facts["suspects"])
        assert (toy(0.4).domain[suspects] == 2).float().mean() > 0.7
        assert 0.05 < measured["noise"].table["wrong labels"][0] < 0.25
    geometry = measured["geometry"].table.set_index("measure").value
    assert geometry["dimensions"] == 4 and geometry["intrinsic dimension"] == pytest.approx(4, abs=1)
    assert measured["domains"].table["label shift"].max() < 0.2


def test_a_model_is_compared_with_its_validation(tmp_path):
    split = toy().split("c")
    study = Study(toy(), ["erm"], unseen=["c"], seeds=1, steps=60)
    with study.open_store(tmp_path / "run") as store:
        from unseen.studies.deploy import train_for_deployment
        from unseen.studies.execution import execute

        execute(study.plan, store, engine="serial")
    predictor = train_for_deployment(Results(tmp_path / "run"), study.shift, detector="knn", coverage=0.95)
    found = sections(measure_model(predictor, toy(0.4, seed=1)))
    quality = found["quality"].table.set_index("set")
    assert quality.index.tolist() == ["ID validation", "a", "b", "c"]
    assert quality.accuracy["c"] < quality.accuracy["a"] - 0.2
    assert quality.overconfidence["c"] > 0.2 > abs(quality.overconfidence["a"])
    assert found["anatomy"].table.set_index("domain").loc["c", "concept"] > 0.2
    assert [*sections(measure_model(predictor))] == ["quality", "features"]
    other = from_arrays(split.shift.inputs, np.array(["0", "2"])[split.shift.labels], np.zeros(600))
    with pytest.raises(InputError, match="classes that the model does not know: 2"):
        list(measure_model(predictor, other))
    with pytest.raises(InputError, match="fewer than three models"):
        list(measure_study(Results(tmp_path / "run")))


def test_a_model_without_memory_needs_data():
    predictor = unseen.fit(unseen.Learner(steps=5), toy().split("c"))
    with pytest.raises(InputError, match="remembers no validation"):
        list(measure_model(predictor))


def test_intervals_stand_beside_their_values(tmp_path):
    table = pd.DataFrame(
        {"name": ["a"], "drop": [0.12345], "drop low": [0.1], "drop high": [1.5], "n": [12000], "p": [np.nan]}
    )
    assert cells(table) == (["name", "drop", "n", "p"], [["a", "0.123 [0.10, 1.5]", "12,000", "-"]])
    section = Section("s", "A <title>", "A note.", pd.concat([table, table]), ("name", "drop"), {"more": [1]})
    page = write_sections([section], tmp_path, {"source": "x"})
    text = page.read_text()
    assert "A &lt;title&gt;" in text and "<svg" in text and "0.123 [0.10, 1.5]" in text
    record = json.loads((tmp_path / "measure.json").read_text())
    assert record["s"]["rows"][0]["drop"] == 0.12345 and record["s"]["more"] == [1]
