import numpy as np
import pytest
from PIL import Image

from unseen.errors import InputError
from unseen.papers.adaptation_compared import (
    CLEAN,
    FIRST,
    LAST,
    METHODS,
    STEADY,
    STREAMS,
    AdaptationCompared,
    _data,
    compared,
)
from unseen.registry import papers


@pytest.fixture(scope="module")
def rows():
    return compared(0, each=4, epochs=1, rounds=2)


def test_every_method_answers_every_stream(rows):
    found = {(row.condition, row.metric) for row in rows}
    expected = {(name, metric) for name in METHODS for metric in (*STREAMS, FIRST, LAST)}
    assert found == expected | {(f"{name}, {CLEAN}", "i.i.d.") for name in ("source", "bn-batch")}
    assert all(0 <= row.value <= 1 for row in rows) and len(rows) == len(found)
    assert {c.name for c in AdaptationCompared.conditions} == {row.condition for row in rows}
    assert papers["adaptation-compared"].target is AdaptationCompared


def test_the_order_means_nothing_to_the_network_as_it_is(rows):
    values = {row.metric: row.value for row in rows if row.condition == "source"}
    assert values["i.i.d."] == values["mixed"] == values["correlated"]
    assert values[FIRST] == values[LAST]


def test_training_and_test_share_no_image_and_have_all_classes():
    train, test = _data(0, 20)
    images = [{image.numpy().tobytes() for image in shift.inputs} for shift in (train, test)]
    assert not images[0] & images[1]
    for shift in (train, test):
        counts = shift.labels.bincount(minlength=36)
        assert counts[:10].tolist() == [20] * 10 and counts.min() > 0 and counts.sum() == 20 * 36


def test_the_claims_are_their_arithmetic():
    measured = {(name, metric): 0.5 for name in METHODS for metric in (*STREAMS, FIRST, LAST)}
    measured |= {(f"{name}, {CLEAN}", "i.i.d."): 0.1 for name in ("source", "bn-batch")}
    measured |= {("bn-batch", "i.i.d."): 0.2, ("bn-batch", "correlated"): 0.7, ("bn-batch", LAST): 0.3}
    measured |= {("tent", LAST): 0.9, ("lame", "correlated"): 0.4, ("lame", "i.i.d."): 0.6}
    measured |= {(name, LAST): 0.31 + number / 100 for number, name in enumerate(STEADY)}
    values = {claim.name: claim.value(measured) for claim in AdaptationCompared.claims}
    assert values == pytest.approx(
        {
            "statistics help": 0.3,
            "mixing undoes it": 0.3,
            "correlation hurts": 0.2,
            "Tent collapses": 0.6,
            "tent, resets: no collapse": 0.01,
            "eata: no collapse": 0.02,
            "sar: no collapse": 0.03,
            "roid: no collapse": 0.04,
            "LAME helps when correlated": 0.1,
            "LAME does not when i.i.d.": -0.1,
            "no shift, no gain": 0.0,
        }
    )


def test_the_full_scale_reads_a_folder_of_images(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for domain in ("clean", "fog"):
        for label in "xy":
            (tmp_path / domain / label).mkdir(parents=True)
            for number in range(10):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / label / f"{number}.png")
    for key, value in {"IMAGES": str(tmp_path), "EPOCHS": "1", "ROUNDS": "2"}.items():
        monkeypatch.setenv(f"UNSEEN_{key}", value)
    rows = AdaptationCompared().measure("all", 0, "full")
    assert {row.condition for row in rows} == {c.name for c in AdaptationCompared.conditions}
    monkeypatch.setenv("UNSEEN_TRAINED", "claen")
    with pytest.raises(InputError, match="claen"):
        AdaptationCompared().measure("all", 0, "full")
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "none"))
    with pytest.raises(InputError, match="does not exist"):
        AdaptationCompared().measure("all", 0, "full")
