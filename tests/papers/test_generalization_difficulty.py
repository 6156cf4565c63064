import math

import numpy as np
import pytest
from scipy.special import eval_legendre

from unseen.errors import InputError
from unseen.measures.task_difficulty import inductive_bias_complexity
from unseen.papers import generalization_difficulty as paper
from unseen.registry import papers


def measured(rows):
    return {(row.condition, row.metric): row.value for row in rows}


def test_published_numbers_come_out():
    found = measured(paper.published_rows())
    assert max(found[name, "relative error"] for name in paper.PUBLISHED) < 0.01
    assert found["ImageNet", "share"] == found["cart-pole", "share"] == 1


def test_the_resolution_of_a_sphere_gives_back_its_degree():
    for m, degree in ((1, 2), (4, 5), (6, 10)):
        known = inductive_bias_complexity(10, m, 1.0, paper.resolution(m, degree), 2, 0.01)
        assert known.cutoff == pytest.approx(degree)


def test_labels_are_harmonics_of_one_degree():
    x, y = paper.sphere_task(2, 3, 0, 4000)
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(4000)) and y.mean() == pytest.approx(
        0.5, abs=0.01
    )
    random = np.random.default_rng((0, 2, 3))
    random.normal(size=(4000, 3))
    poles = random.normal(size=(64, 3))
    angles = x @ (poles / np.linalg.norm(poles, axis=1, keepdims=True)).T
    values = eval_legendre(3, angles) @ random.normal(size=64)
    assert ((values > np.median(values)) == y).all()


def test_harder_spheres_have_more_bits_and_errors():
    found = measured(paper.sphere_rows(0, (1, 3), train=150))
    assert found["bits", "rank correlation"] > 0.5 and found["bits", "range"] > 0.1
    assert paper.sphere_bits(1, 2, 500) == -math.inf < paper.sphere_bits(6, 10, 500)


def test_full_scale_reads_your_data(tmp_path, monkeypatch):
    reproduction = papers["generalization-difficulty"].target()
    monkeypatch.delenv("UNSEEN_DIFFICULTY", raising=False)
    with pytest.raises(InputError, match=r"mnist\.npz"):
        reproduction.measure("your data", 0, "full")
    x, y = paper.tables()["digits"]
    np.savez(tmp_path / "mnist.npz", x=x.reshape(-1, 8, 8), y=y)
    monkeypatch.setenv("UNSEEN_DIFFICULTY", str(tmp_path))
    found = measured(reproduction.measure("your data", 0, "full"))
    assert 9 < found["MNIST", "log10 bits"] < 14
