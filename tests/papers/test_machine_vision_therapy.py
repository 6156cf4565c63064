"""Machine Vision Therapy's world: roles that do not overlap, baselines by hand; the measure in miniature; claims."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from unseen.networks import Network
from unseen.networks.feature_cache import content_hash
from unseen.papers import machine_vision_therapy_runs as runs
from unseen.papers.base import by_seed
from unseen.papers.machine_vision_therapy import MachineVisionTherapy
from unseen.papers.machine_vision_therapy_full import named_judge, therapy
from unseen.relabelling.labeler import Support
from unseen.shifts.arrays import from_arrays
from unseen.training.system import seeded


@pytest.fixture
def small(monkeypatch):
    model, judge = runs.vision_model(pairs=400, epochs=1), runs.judge(images=300, steps=10)
    monkeypatch.setattr(runs, "vision_model", lambda: model)
    monkeypatch.setattr(runs, "judge", lambda: judge)


def test_no_image_has_two_roles():
    here = runs.world(0, images=400)
    target = [content_hash(image) for part in (here.used[0], here.held_out[0]) for image in part]
    shown = [content_hash(x) for own in (here.support, here.source_support) for x in own.images]
    assert len(set(target)) == len(target) and not set(target) & set(shown)
    assert torch.equal(torch.bincount(here.support.labels), torch.full((runs.CLASSES,), 5))
    assert len(here.used[0]) > 180


def test_the_judge_learns_from_other_colours():
    assert not set(runs.GROUPS.flatten().tolist()) & set(runs.JUDGES_GROUPS.flatten().tolist())
    assert len(runs.NAMES) // 2 > runs.KNOWN_SHAPES


def test_neighbours_by_hand():
    generator = torch.Generator().manual_seed(0)
    model = Network(nn.Identity(), 4, 3)
    given = Support(torch.randn(12, 4, generator=generator), torch.arange(12) % 3, ["a", "b", "c"])
    images = torch.randn(9, 4, generator=generator)
    found = runs.neighbours(model, images, given, 3)
    for x, label in zip(images, found, strict=True):
        cosines = torch.cosine_similarity(x[None], given.images)
        near = cosines.argsort(descending=True)[:3]
        votes = (one_hot(given.labels[near], 3) * (1 + 1e-3 * cosines[near, None])).sum(0)
        assert label == votes.argmax()
    assert torch.equal(runs.neighbours(model, given.images, given, 1), given.labels)


def test_every_condition_is_measured(small):
    found = runs.run(0, images=80, per_class=2)
    assert {c for c, _ in found} == {c.name for c in MachineVisionTherapy.conditions}
    assert {m for _, m in found} == set(MachineVisionTherapy.metrics)
    assert found["true labels", "labels"] == 1 and found["vision model", "queries"] == 0
    assert found["judge alone", "queries"] == 2 * runs.CLASSES
    assert found["dicl, all asked", "queries"] == 18 >= found["dicl", "queries"]
    assert found == runs.run(0, images=80, per_class=2)


def test_claims_compute_what_they_state():
    rows = [
        (0, condition.name, metric, 0.01 * number)
        for number, condition in enumerate(MachineVisionTherapy.conditions)
        for metric in MachineVisionTherapy.metrics
    ]
    measured = by_seed(pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"]))[0]
    values = {claim.name: claim.value(measured) for claim in MachineVisionTherapy.claims}
    assert values["labels improve"] == pytest.approx(0.10)
    assert values["the matrix tells more"] == pytest.approx(0.05)
    assert values["the model helps the judge"] == pytest.approx(0.09)
    assert values["the model improves"] == pytest.approx(0.10)
    assert values["not the exemplars' labels"] == pytest.approx(0.07)


class Encoder(nn.Module):
    logit_scale = 10.0

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.body = nn.Linear(3, 6)

    def encode_image(self, images):
        return self.body(images.mean((2, 3)))

    def encode_text(self, texts):
        return torch.stack([torch.arange(6.0).add(len(text)).sin() for text in texts])


def test_full_scale_in_miniature():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    images[[5, 9, 13, 17]] = images[
        1
    ]  # a picture that the folder holds five times, perhaps among the exemplars
    shift = from_arrays(images, torch.arange(60).numpy() % 2, torch.arange(60).numpy() // 20)
    found = therapy(0, shift, Encoder(), lambda questions: torch.full((len(questions),), 0.4), per_class=2)
    assert {c for c, _ in found} == {"vision model", "dicl"}
    assert {m for _, m in found} == {"labels", "used", "held out"}
    assert all(0 <= value <= 1 for value in found.values())


def test_a_judge_must_be_named(monkeypatch):
    from unseen.errors import InputError

    monkeypatch.delenv("UNSEEN_JUDGE", raising=False)
    with pytest.raises(InputError, match="are not set"):
        named_judge()
    monkeypatch.setenv("UNSEEN_JUDGE", "seer")
    monkeypatch.setenv("UNSEEN_JUDGE_URL", "http://localhost:8000/v1")
    assert named_judge().model == "seer"
