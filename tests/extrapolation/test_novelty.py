import warnings

import numpy as np
import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.extrapolation import novelty_report
from unseen.extrapolation.novelty import (
    chance_copies,
    domain_auc,
    energy_distance,
    near_copies,
    plain_features,
)
from unseen.shifts.arrays import from_arrays


def cloud(centre, size=60, seed=0):
    return np.random.default_rng(seed).normal(centre, 1.0, (size, 4))


def shift(parts, name="real"):
    x = np.concatenate(list(parts.values()))
    domain = np.repeat(list(parts), [len(part) for part in parts.values()])
    return from_arrays(x, np.arange(len(x)) % 2, domain, name=name)


REAL = shift({"farm": cloud(0), "zoo": cloud(8, seed=1)})


def test_distance_and_auc_say_which_is_new():
    made = shift({"like farm": cloud(0, seed=2), "between": cloud(4, seed=3), "far": cloud(-20, seed=4)})
    table = novelty_report(made, REAL, unseen="zoo")
    assert table["nearest training"].unique().tolist() == ["farm"]
    near, between, far = (table.loc[name] for name in ("like farm", "between", "far"))
    assert near["distance training"] < between["distance training"] < far["distance training"]
    assert abs(near["auc training"] - 0.5) < 0.2 and far["auc training"] > 0.99 < near["auc unseen"]
    assert between["distance unseen"] < near["distance unseen"]
    assert (table["copies unseen"] == 0).all()


def test_copies_of_unseen_examples_are_warned_of():
    leaked = cloud(8, seed=1)[:10] + 1e-3
    made = shift({"leak": np.concatenate([leaked, cloud(3, 30, seed=5)]), "clean": cloud(3, seed=6)})
    with pytest.warns(UnseenWarning, match=r"1 synthetic domain\(s\) hold near copies .* such as 'leak'"):
        table = novelty_report(made, REAL, unseen=["zoo"])
    assert table.loc["leak", "copies unseen"] == pytest.approx(0.25)


def test_energy_distance_by_definition():
    a, b = cloud(0, 7), cloud(1, 5, seed=2)

    def mean(x, y, same=False):
        values = [
            np.linalg.norm(p - q) for i, p in enumerate(x) for j, q in enumerate(y) if not same or i != j
        ]
        return np.mean(values)

    expected = np.sqrt(2 * mean(a, b) - mean(a, a, True) - mean(b, b, True))
    assert energy_distance(a, b) == pytest.approx(expected)
    assert energy_distance(a, a) == 0.0


def test_near_copies_by_definition():
    real = np.array([[0.0], [1.0], [5.0]])
    made = np.array(
        [[0.4], [0.6], [4.0], [2.9], [5.0]]
    )  # next real: 0, 1, 5, 1, 5; half ways .5, .5, 2, .5, 2
    assert near_copies(made, real) == pytest.approx(4 / 5)
    assert np.isnan(near_copies(made, real[:1])) and np.isnan(domain_auc(made[:2], real))


def test_copies_by_chance_are_no_leak():
    real = cloud(0, 40, seed=3)[:, :2]
    each = [near_copies(real[i : i + 1], np.delete(real, i, axis=0)) for i in range(len(real))]
    assert chance_copies(real) == pytest.approx(np.mean(each)) and 0 < np.mean(each) < 1
    assert np.isnan(chance_copies(real[:2]))
    made = shift({"another zoo": cloud(8, seed=9)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert novelty_report(made, REAL, unseen="zoo")["copies unseen"].item() > 0


def test_images_of_any_size_and_texts():
    generator = torch.Generator().manual_seed(0)
    images = [
        from_arrays(
            (torch.rand(20, 3, side, side, generator=generator) * 255).byte(), [0, 1] * 10, [name] * 20
        )
        for side, name in ((8, "small"), (32, "large"))
    ]
    a, b = plain_features(*images)
    assert len(a) == len(b) == 20 and np.isfinite(a).all()
    texts = [
        from_arrays([f"{word} {i}" for i in range(20)], [0, 1] * 10, [word] * 20) for word in ("snow", "sand")
    ]
    table = novelty_report(texts[0], texts[1])
    assert table.loc["snow", "auc training"] > 0.9 and "copies unseen" not in table
    with pytest.raises(InputError, match="no plain features"):
        novelty_report(texts[0], images[0])


def test_features_of_the_users():
    table = novelty_report(REAL, REAL, features=lambda s: np.asarray(s.inputs)[:, :1])
    assert (table["copies training"] == 1).all() and (table["distance training"] == 0).all()
    with pytest.raises(InputError, match="features"):
        novelty_report(REAL, REAL, features=lambda s: np.zeros(3))
    with pytest.raises(InputError, match="Did you mean 'zoo'"):
        novelty_report(REAL, REAL, unseen="zo")
