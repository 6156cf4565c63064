import numpy as np
import pandas as pd
import pytest

from unseen.errors import InputError
from unseen.papers import exact_inductive_bias as paper
from unseen.registry import papers

pytestmark = pytest.mark.filterwarnings("ignore:rare events", "ignore:hypothesis spaces")


def measured(rows):
    return {(row.condition, row.metric): row.value for row in rows}


def claim(name):
    return next(each for each in paper.ExactInductiveBias.claims if each.name == name)


def test_calibration_and_dimension_in_miniature():
    found = measured(paper.sine_rows(7, (2, 8), samples=1500))
    assert found["empirical", "1 %, d = 8"] == pytest.approx(np.log(100), abs=0.2)
    assert abs(found["ncx2", "1 %, d = 8"] - np.log(100)) < abs(found["normal", "1 %, d = 8"] - np.log(100))
    assert found["GP, sine", "nats, d = 8"] > found["GP, sine", "nats, d = 2"] + 10


def test_test_digits_stay_when_the_training_digits_grow():
    (few, _), test = paper.digits(3, 50)
    (many, labels), again = paper.digits(3, 400)
    assert np.array_equal(few, many[:50]) and np.array_equal(test[0], again[0])
    assert labels.shape == (400, 10) and (labels.sum(1) == 1).all() and many.shape == (400, 1, 8, 8)


def test_networks_are_of_one_size():
    sizes = [
        sum(p.numel() for p in build((1, 8, 8)).parameters())
        for build in (paper.perceptron, paper.convolutional)
    ]
    assert sizes == [8970, 8734]


def test_the_arithmetic_of_the_claims():
    rows = [("GP", f"nats, n = {n}", v) for n, v in ((100, 9.0), (200, 6.0), (400, 4.0))]
    rows += [("GP, sine", f"nats, d = {d}", float(d)) for d in paper.DIMENSIONS]
    rows += [(name, "nats at 0.02", v) for name, v in (
        ("MLP", 5.0), ("CNN", 3.0), ("MLP, pixels permuted", 5.0), ("CNN, pixels permuted", 4.5))]  # fmt: skip
    rows += [(name, f"1 %, d = {d}", np.log(100) + d / 10) for name in ("ncx2", "normal") for d in (4, 6, 8)]
    table = pd.DataFrame(rows, columns=["condition", "metric", "value"])
    values = {(r.condition, r.metric): r.value for r in table.itertuples()}
    assert claim("falls with data").value(values) == 2
    assert claim("CNN encodes more than MLP").value(values) == 2
    assert claim("it is the order of pixels").value(values) == pytest.approx(0.75)
    assert claim("calibrated").value(values) == pytest.approx(0.8)
    assert claim("rises with dimension").pooled(table) == pytest.approx(1)
    assert claim("strictly from d = 2").pooled(table) == 1


def test_full_scale_reads_your_data(tmp_path, monkeypatch):
    monkeypatch.delenv("UNSEEN_INDUCTIVE_BIAS", raising=False)
    with pytest.raises(InputError, match=r"mnist\.npz"):
        papers["exact-inductive-bias"].target().measure("your data", 0, "full")
    (x, y), _ = paper.digits(0, 120)
    np.savez(tmp_path / "mnist.npz", x=x, y=y.argmax(1))
    monkeypatch.setenv("UNSEEN_INDUCTIVE_BIAS", str(tmp_path))
    monkeypatch.setattr(paper, "FITS", 0.2)
    found = measured(paper.own_data(0, networks=30, epochs=10, n_samples=500))
    assert found["GP", "nats at 0.06"] > 10 and found["CNN", "kept"] == 1
