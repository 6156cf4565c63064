import numpy as np
import pytest
from PIL import Image

from unseen.errors import InputError
from unseen.papers.detectors_compared import (
    DETECTORS,
    KNOWN,
    SETS,
    UNTRAINED,
    DetectorsCompared,
    _data,
    compared,
    near_to_far,
    winners,
)
from unseen.registry import papers


@pytest.fixture(scope="module")
def rows():
    return compared(0, train=200, test=120, epochs=1)


def test_every_detector_is_measured_on_every_set(rows):
    found = {(row.condition, row.metric) for row in rows}
    assert found == {(name, each) for name in (*DETECTORS, UNTRAINED) for each in SETS}
    assert len(DETECTORS) >= 12 and all(0 <= row.value <= 1 for row in rows)
    assert papers["detectors-compared"].target is DetectorsCompared
    assert {c.name for c in DetectorsCompared.conditions} == {row.condition for row in rows}


def test_no_set_holds_a_digit_that_is_learnt_and_none_is_trained_on():
    (x, y), known, others = _data(0, 200, 120)
    assert int(y.max()) < KNOWN and set(others) == set(SETS)
    trained = {image.numpy().tobytes() for image in x}
    for images in (known, *others.values()):
        assert not trained & {image.numpy().tobytes() for image in images}
    inside = known.flatten(1).sort(1).values
    assert np.allclose(others["scrambled digits"].flatten(1).sort(1).values, inside)


def test_the_claims_are_their_arithmetic():
    measured = {(d, s): 0.9 if kind == "far" else 0.7 for d in DETECTORS for s, kind in SETS.items()}
    measured[UNTRAINED, "held-out digits"] = 0.5
    assert near_to_far(measured) == pytest.approx(0.2)
    assert winners(measured) == 1
    measured["knn", "noise"] = 1.0
    assert winners(measured) == 2
    measured["relative-mahalanobis", "letters"] = 0.8
    values = {claim.name: claim.value(measured) for claim in DetectorsCompared.claims}
    assert values["relative Mahalanobis near"] == pytest.approx(0.05)
    assert values["training tells"] == 0.5


def test_the_full_scale_reads_a_folder_of_images(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for domain in "ab":
        for label in "xyz":
            (tmp_path / domain / label).mkdir(parents=True)
            for number in range(6):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / label / f"{number}.png")
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path))
    monkeypatch.setenv("UNSEEN_NETWORK", "cnn(width=8)")
    monkeypatch.setenv("UNSEEN_STEPS", "2")
    monkeypatch.setattr("unseen.papers.detectors_compared.DETECTORS", ("msp", "knn(k=1)", "gram"))
    rows = DetectorsCompared().measure("all", 0, "full")
    assert {row.metric for row in rows} == {"held-out digits", "scrambled digits", "noise", "shifted digits"}
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "none"))
    with pytest.raises(InputError, match="does not exist"):
        DetectorsCompared().measure("all", 0, "full")
