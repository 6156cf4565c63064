import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from unseen.networks.prototypes import PrototypeBank
from unseen.papers.merged_digits import Protocol, hidden_digits, merged_digits
from unseen.papers.palm import (
    DETECTORS,
    HIDDEN,
    OBJECTIVES,
    UNMERGED,
    PALMReproduction,
    digit_rows,
    natural_rows,
)
from unseen.registry import Spec, papers

TINY = Protocol(steps=3, batch_size=16, copies=3)


@pytest.fixture(scope="module")
def world():
    return merged_digits(0, TINY)


class TestWorld:
    def test_every_class_is_two_digits_and_no_known_digit_is_unfamiliar(self, world):
        pairs = [world.test_digit[world.test_y == label].unique().tolist() for label in range(3)]
        assert all(len(pair) == 2 for pair in pairs)
        assert len({digit for pair in pairs for digit in pair}) == 6
        known = {tuple(image.tolist()) for image in torch.cat([world.x, world.test_x])}
        assert not any(tuple(image.tolist()) in known for image in world.unfamiliar["near"])
        total = len(world.x) + len(world.test_x) + len(world.unfamiliar["near"])
        assert total == 1797 and world.unfamiliar["far"].shape == (300, 64)

    def test_the_control_has_the_same_images_and_one_digit_a_class(self, world):
        control = merged_digits(0, TINY, merged=False)
        assert torch.equal(world.views, control.views) and torch.equal(world.test_x, control.test_x)
        assert torch.equal(control.y // 2, world.y)
        assert all(len(control.test_digit[control.test_y == label].unique()) == 1 for label in range(6))

    def test_views_are_changed_copies_of_their_image(self, world):
        distance = (world.views[:50] - world.x[:50, None]).square().mean((1, 2))
        other = (world.views[:50] - world.x[50:100, None]).square().mean((1, 2))
        assert 0 < distance.mean() < other.mean() / 2


class TestHiddenDigits:
    class System:
        """Features are images; the projector is none."""

        network = type("Network", (), {"featurizer": staticmethod(lambda x: x)})
        objective = type("Objective", (), {"projector": nn.Identity()})

    def test_one_prototype_a_digit_tells_all_and_one_a_class_nothing(self, world):
        bank = PrototypeBank(3, 2, 64)
        means = []
        for label in range(3):
            for digit in world.test_digit[world.test_y == label].unique():
                means.append(world.test_x[world.test_digit == digit].mean(0))
        bank.weight.copy_(nn.functional.normalize(torch.stack(means), dim=1))
        assert hidden_digits(self.System, bank, world) > 0.5
        assert hidden_digits(self.System, PrototypeBank(3, 1, 64), world) == 0


@pytest.mark.parametrize("unit", ["ce", "palm 6", "palm 2" + UNMERGED])
def test_units_measure_what_is_declared_and_nothing_else_decides(unit):
    torch.manual_seed(5)
    rows = digit_rows(unit, 0, TINY)
    torch.manual_seed(6)
    assert rows == digit_rows(unit, 0, TINY)
    assert {row.metric for row in rows} <= set(PALMReproduction.metrics)
    assert (HIDDEN in {row.metric for row in rows}) == (unit == "palm 6")
    assert all(row.condition == unit and np.isfinite(row.value) for row in rows)


def test_every_unit_has_a_condition():
    reproduction = papers.build("palm")
    assert set(reproduction.units("laptop")) == {condition.name for condition in reproduction.conditions}


def test_claims_compute_what_they_say():
    rows = []
    for end, gain in (("", 0.03), (UNMERGED, 0.01)):
        for name in OBJECTIVES:
            value = 0.9 + (gain if name == "palm 6" else 0)
            rows += [(0, name + end, f"near, {d}", value + (d == "kNN") * 0.03) for d in DETECTORS]
            rows += [(0, name + end, "near, MSP", 0.85), (0, name + end, "accuracy", 0.95)]
    rows.append((0, "palm 6", HIDDEN, 0.5))
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    means = {claim.name: claim.judge(table).mean for claim in PALMReproduction.claims}
    assert means["several beat one"] == pytest.approx(0.03)
    assert means["beats the softmax"] == pytest.approx(0.9 + 0.03 + 0.01 - 0.85)
    assert means["because of the modes"] == pytest.approx(0.02)
    assert means["against cross-entropy"] == pytest.approx(0.04)
    assert means["all have learnt"] == pytest.approx(0.95)
    assert papers.build("palm").plot(pd.concat([table, table.assign(seed=1)])) is not None


def test_natural_images_of_a_file_go_the_whole_way(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 48), ("test", 24)):
        arrays[f"{part}_y"] = np.arange(count) % 3
        arrays[f"{part}_x"] = random.integers(0, 60, (count, 3, 8, 8), dtype=np.uint8)
        arrays[f"{part}_x"][:, 0] += (60 * arrays[f"{part}_y"]).astype(np.uint8)[:, None, None]
    arrays["ood_white"] = random.integers(200, 255, (20, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "ood_images.npz", **arrays)
    settings = {"network": Spec.make("cnn", width=8), "steps": 3, "batch_size": 16, "keep": "last"}
    rows = natural_rows("palm 6", tmp_path / "ood_images.npz", 0, settings)
    assert {row.metric for row in rows} >= {"accuracy", "natural, SSD", "natural, MSP"}
    assert all(0 <= row.value <= 1 for row in rows)
