"""VL2V-ADiP: claims by hand, every condition on a miniature, and the paper's own scale on a stand-in."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.papers import vl2v_full, vl2v_runs
from unseen.papers.tiny_world import SHAPES
from unseen.papers.vl2v_adip import VL2VADiP
from unseen.shifts import Shift

MINIATURE = {
    "clip": {"pairs": 128, "epochs": 1},
    "test": 8,
    "train": 24,
    "held_out": 6,
    "images": 64,
    "pretraining": 1,
}


def value_of(name, **unseen):
    claim = next(c for c in VL2VADiP.claims if c.name == name)
    return claim.value({(condition, "unseen"): value for condition, value in unseen.items()})


def test_claims_by_hand():
    assert value_of("against fine-tuning", adip=0.8, erm=0.75) == pytest.approx(0.05)
    assert value_of(
        "half the steps",
        **{"adip, half": 0.8, "erm, half": 0.7, "kd, half": 0.6, "joint, half": 0.79},
    ) == pytest.approx(0.01)
    assert value_of("staging", adip=0.7, joint=0.75) == pytest.approx(-0.05)
    assert value_of("the teacher's robustness", adip=0.8, **{"adip, narrow teacher": 0.8}) == 0


def test_every_condition_is_measured_on_a_miniature():
    found = vl2v_runs.all_ways(0, steps=2, **MINIATURE)
    assert {condition for condition, _ in found} == {c.name for c in VL2VADiP.conditions}
    assert {metric for _, metric in found} == {"source", "unseen"}
    assert all(0 <= value <= 1 for value in found.values())


def test_the_task_and_what_the_student_knew():
    here = vl2v_runs.world(0, test=8, train=24, held_out=6, images=64, pretraining=1)
    assert here.train.names == vl2v_runs.SOURCE and here.unseen.names == vl2v_runs.UNSEEN
    assert not set(here.train.names) & set(here.unseen.names)
    assert len(here.train) == 24 and len(here.unseen) == 40
    batch = next(here.train.in_order())
    assert batch.x.shape[1:] == (3, 16, 16) and int(batch.y.max()) < len(SHAPES)
    assert here.student(batch.x).shape == (24, vl2v_runs.FEATURES)


def test_a_probe_moves_the_head_alone_and_lp_ft_everything():
    here = vl2v_runs.world(0, test=8, train=24, held_out=6, images=64, pretraining=1)
    before = here.student.state_dict()
    probe = vl2v_runs.supervised(here, 0, vl2v_runs.ERM(), 0, probe=3)
    both = vl2v_runs.supervised(here, 0, vl2v_runs.ERM(), 3, probe=3)
    moved = [
        any(not torch.equal(v, before[n]) for n, v in network.featurizer.state_dict().items())
        for network in (probe, both)
    ]
    assert moved == [False, True]


def test_logit_distillation_is_zero_only_where_students_agree():
    class Same(nn.Module):
        def forward(self, x):
            return x

    from unseen.shifts import Batch

    logits = torch.randn(5, 3)
    batch = Batch(
        x=logits, y=torch.arange(5) % 3, domain=torch.zeros(5).long(), domains=1, ids=torch.arange(5)
    )
    whole = vl2v_runs.LogitDistillation(logits, share=1.0, temperature=3.0)(Same(), batch)
    assert whole.total.item() == pytest.approx(0, abs=1e-6)
    half = vl2v_runs.LogitDistillation(logits, share=0.5)(Same(), batch).total
    assert half.item() == pytest.approx(0.5 * nn.functional.cross_entropy(logits, batch.y).item(), rel=1e-5)
    other = vl2v_runs.LogitDistillation(logits.flip(0), share=1.0, temperature=3.0)(Same(), batch).total
    p, q = (torch.softmax(v / 3, 1) for v in (logits.flip(0), logits))
    assert other.item() == pytest.approx(9 * float((p * (p / q).log()).sum(1).mean()), rel=1e-4)


class Colours(nn.Module):
    """A dual encoder of images by their mean colour."""

    logit_scale = 10.0

    def encode_image(self, images):
        assert images.min() >= 0 and images.max() <= 1, "the teacher gets pixels, not standardised values"
        return images.mean((2, 3)) + 0.01

    def encode_text(self, texts):
        known = {"red": [1.0, 0, 0], "blue": [0, 0, 1.0]}
        return torch.tensor([next(v for k, v in known.items() if k in text) for text in texts])


@pytest.fixture
def pictures(monkeypatch):
    """Twelve red and twelve blue images of each of two domains, and a backbone that is a tiny network."""
    draws = np.random.default_rng(0)
    labels, domain = np.tile([0, 1], 24), np.repeat([0, 1], 24)
    images = draws.integers(0, 60, (48, 3, 8, 8))
    images[np.arange(48), np.where(labels == 0, 0, 2)] += 150
    shift = Shift(
        "pictures", "image", images.astype(np.uint8), labels, domain, ("red", "blue"), ("photo", "sketch")
    )

    def tiny(spec, shape, classes):
        from unseen.networks import Network

        return Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), 6, classes)

    monkeypatch.setattr(vl2v_full, "build_network", tiny)
    return shift


def test_the_papers_scale_on_a_stand_in(pictures):
    pictures.inputs = torch.from_numpy(pictures.inputs)
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 0.02, "evaluations": 5}
    for condition in ("joint", "adip"):
        assert vl2v_full.left_out(condition, 0, pictures, Colours(), **settings) > 0.9


def test_a_teacher_must_be_named(monkeypatch):
    monkeypatch.delenv("UNSEEN_TEACHER", raising=False)
    with pytest.raises(InputError, match="UNSEEN_TEACHER"):
        vl2v_full.named_teacher()


def test_the_plot_shows_what_was_measured():
    rows = [
        {"seed": s, "condition": c.name, "metric": m, "value": 0.5 + 0.01 * s}
        for s in range(3)
        for c in VL2VADiP.conditions
        for m in ("source", "unseen")
    ]
    axes = VL2VADiP().plot(pd.DataFrame(rows)).axes[0]
    assert len(axes.get_yticklabels()) == len(VL2VADiP.conditions)
