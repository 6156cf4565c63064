import numpy as np
import pytest
from PIL import Image

from unseen.errors import InputError
from unseen.papers.adaptation_compared import (
    CLEAN,
    FAST,
    FIRST,
    HELD_OUT,
    KINDS,
    LAST,
    METHODS,
    RATE,
    RATES,
    STEADY,
    STREAMS,
    TUNED,
    AdaptationCompared,
    compared,
)
from unseen.papers.digits_and_letters import digits_and_letters
from unseen.registry import papers


@pytest.fixture(scope="module")
def rows():
    return compared(0, each=4, epochs=1, rounds=2)


def test_every_method_answers_every_stream(rows):
    found = {(row.condition, row.metric) for row in rows}
    expected = {(name, metric) for name in METHODS for metric in (*STREAMS, FIRST, LAST)}
    expected |= {(f"{name}, {CLEAN}", "i.i.d.") for name in ("source", "bn-batch")}
    assert found == expected | {(name, RATE) for name in TUNED}
    assert all(0 <= row.value <= 1 for row in rows) and len(rows) == len(found)
    assert {c.name for c in AdaptationCompared.conditions} == {row.condition for row in rows}
    assert papers["adaptation-compared"].target is AdaptationCompared


def test_the_order_means_nothing_to_the_network_as_it_is(rows):
    values = {row.metric: row.value for row in rows if row.condition == "source"}
    assert values["i.i.d."] == values["mixed"] == values["correlated"]
    assert values[FIRST] == values[LAST]


def test_rates_are_chosen_on_other_images_under_other_corruptions(monkeypatch):
    """Where one rate is made the best on the tuning stream alone, every tuned method is run with it."""
    from unseen.papers import adaptation_compared as module

    seen, honest = [], module.run_stream

    def favour(method, stream, preprocessing, *, reset):
        outcomes = honest(method, stream, preprocessing, reset=reset)
        held_out = any(kind in stream.shift.domains[0] for kind in HELD_OUT)
        rate = getattr(method, "learning_rate", None)
        seen.append((held_out, rate))
        return outcomes.assign(correct=rate == 0.03) if held_out else outcomes

    monkeypatch.setattr(module, "run_stream", favour)
    rows = compared(1, each=4, epochs=1, rounds=1)
    assert {row.value for row in rows if row.metric == RATE} == {0.03}
    assert {rate for held_out, rate in seen if held_out} == set(RATES)
    assert {rate for held_out, rate in seen if not held_out} == {None, 0.03, RATES[-1]}
    assert len(TUNED) * len(RATES) == sum(held_out for held_out, _ in seen)
    assert not set(HELD_OUT) & set(KINDS)


def test_no_image_is_in_two_parts_and_all_have_all_digits():
    parts = digits_and_letters(0, 20)
    images = [{image.numpy().tobytes() for image in shift.inputs} for shift in parts]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]
    for shift, each in zip(parts, (20, 20, 10), strict=True):
        counts = shift.labels.bincount(minlength=36)
        assert counts[:10].tolist() == [each] * 10 and counts.min() > 0 and counts.sum() == each * 36


def test_the_claims_are_their_arithmetic():
    measured = {(name, metric): 0.5 for name in METHODS for metric in (*STREAMS, FIRST, LAST)}
    measured |= {(f"{name}, {CLEAN}", "i.i.d."): 0.1 for name in ("source", "bn-batch")}
    measured |= {("bn-batch", "i.i.d."): 0.2, ("bn-batch", "correlated"): 0.7, ("bn-batch", LAST): 0.3}
    measured |= {("tent", LAST): 0.9, (FAST, LAST): 0.95, ("roid", "i.i.d."): 0.23, (FAST, "i.i.d."): 0.9}
    measured |= {(name, "i.i.d."): 0.2 for name in TUNED if name != "roid"}
    measured |= {("lame", "correlated"): 0.4, ("lame", "i.i.d."): 0.6}
    measured |= {(name, LAST): 0.31 + number / 100 for number, name in enumerate(STEADY)}
    values = {claim.name: claim.value(measured) for claim in AdaptationCompared.claims}
    assert values == pytest.approx(
        {
            "statistics help": 0.3,
            "mixing undoes it": 0.3,
            "correlation hurts": 0.2,
            "Tent collapses": 0.6,
            "Tent collapses when fast": 0.65,
            "no harm when tuned": 0.03,
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
    for domain in ("clean", "fog", "snow"):
        for label in "xy":
            (tmp_path / domain / label).mkdir(parents=True)
            for number in range(10):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / label / f"{number}.png")
    for key, value in {"IMAGES": str(tmp_path), "EPOCHS": "1", "ROUNDS": "2"}.items():
        monkeypatch.setenv(f"UNSEEN_{key}", value)
    rows = AdaptationCompared().measure("all", 0, "full")
    assert {row.condition for row in rows} == {c.name for c in AdaptationCompared.conditions}
    for key, wrong in {"TRAINED": "claen", "HELD_OUT": "clean"}.items():
        monkeypatch.setenv(f"UNSEEN_{key}", wrong)
        with pytest.raises(InputError, match=f"domain '{wrong}': is none of"):
            AdaptationCompared().measure("all", 0, "full")
        monkeypatch.delenv(f"UNSEEN_{key}")
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "none"))
    with pytest.raises(InputError, match="does not exist"):
        AdaptationCompared().measure("all", 0, "full")
