"""Open-vocabulary distillation: claims by hand, a miniature, and the paper's own scale on a stand-in."""

import pandas as pd
import pytest
import torch
from torch import nn

from unseen.papers import vlm_distill_full, vlm_distill_runs
from unseen.papers.vlm_distill import VLMDistill
from unseen.shifts import Shift


def value_of(name, metric="new", **values):
    claim = next(c for c in VLMDistill.claims if c.name == name)
    return claim.value({(condition, metric): value for condition, value in values.items()})


def test_claims_by_hand():
    assert value_of("all losses", all=0.8, cls=0.7) == pytest.approx(0.1)
    assert value_of("all losses, 64 ways", "new, 64 ways", all=0.5, cls=0.6) == pytest.approx(-0.1)
    assert value_of("images imitated", cls=0.5, **{"cls + mse": 0.7, "cls + contrast": 0.6}) == pytest.approx(
        0.1
    )
    assert value_of("a good teacher", teacher=0.99, **{"opaque, teacher": 0.9}) == 0.9
    assert value_of("its own images", cls=0.5, **{"all, shuffled": 0.3}) == pytest.approx(-0.2)


def test_every_condition_is_measured_on_a_miniature():
    clip = {"pairs": 128, "epochs": 1}
    found = vlm_distill_runs.all_ways(0, steps=2, clip=clip, each=2, test=2)
    assert {condition for condition, _ in found} == {c.name for c in VLMDistill.conditions}
    assert {metric for _, metric in found} <= set(VLMDistill.metrics)
    assert found["teacher", "neighbours"] == pytest.approx(1)
    vlm_distill_runs.teacher.cache_clear()


def test_half_of_the_pairs_are_seen_and_every_shape_and_colour_is():
    seen, new = vlm_distill_runs.SEEN, vlm_distill_runs.NEW
    assert len(seen) == len(new) == 32 and not set(seen.tolist()) & set(new.tolist())
    for column in range(2):
        assert vlm_distill_runs.PAIRS[seen, column].bincount().tolist() == [4] * 8


def test_texts_are_descriptions_or_words_of_their_own():
    enriched, opaque = vlm_distill_runs.enriched(), vlm_distill_runs.opaque()
    assert enriched.shape == opaque.shape and len(enriched.unique(dim=0)) == len(opaque.unique(dim=0)) == 64
    assert enriched.sum(1).unique().tolist() == [3] and opaque.sum(1).unique().tolist() == [2]
    shared = (enriched.unsqueeze(0) * opaque.unsqueeze(1)).sum(2)
    assert bool((shared == 1).all()), "only 'a photo of a' is in both"


class Colours(nn.Module):
    logit_scale = 10.0

    def encode_image(self, images):
        return images.mean((2, 3)) + 0.01

    def encode_text(self, texts):
        known = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0], "grey": [1.0, 1, 1]}
        return torch.tensor([next(v for k, v in known.items() if k in text) for text in texts])


def test_the_papers_scale_on_a_stand_in(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(80) % 4, torch.arange(80) // 40
    colour = torch.tensor([[150, 0, 0], [0, 150, 0], [0, 0, 150], [150, 150, 150]])[labels]
    images = torch.randint(0, 60, (80, 3, 8, 8), generator=generator) + colour.view(-1, 3, 1, 1)
    classes = ("red", "green", "blue", "grey")
    shift = Shift("pictures", "image", images.to(torch.uint8), labels, domain, classes, ("a", "b"))

    def tiny(spec, shape, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))

    monkeypatch.setattr(vlm_distill_full, "build_network", tiny)
    settings = {"steps": 60, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.01, "evaluations": 1}
    found = vlm_distill_full.new_classes("mse alone", 0, shift, Colours(), **settings)
    assert found.keys() == {"seen", "new"} and found["seen"] > 0.9 and 0 <= found["new"] <= 1


def test_the_plot_shows_what_was_measured():
    rows = [
        {"seed": s, "condition": c.name, "metric": m, "value": 0.5 + 0.01 * s}
        for s in range(3)
        for c in VLMDistill.conditions
        for m in VLMDistill.metrics
    ]
    axes = VLMDistill().plot(pd.DataFrame(rows)).axes[0]
    assert len(axes.get_yticklabels()) == len(VLMDistill.conditions)
