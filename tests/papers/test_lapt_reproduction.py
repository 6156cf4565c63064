import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.papers.lapt import BEST, NEGATIVES, NOISES, WORST, LAPTReproduction, thing_rows
from unseen.papers.named_things import (
    THINGS,
    captioned,
    draw_setting,
    draw_things,
    moved_look,
    pictures_of,
)
from unseen.registry import papers


@pytest.fixture(scope="module")
def table():
    rows = thing_rows(0, pairs=512, clip_epochs=1, epochs=1, per_name=2, tests=4)
    return pd.DataFrame(
        [(seed, r.condition, r.metric, r.value + 0.001 * seed) for seed in range(3) for r in rows],
        columns=["seed", "condition", "metric", "value"],
    )


def claim(name):
    return next(c for c in LAPTReproduction.claims if c.name == name)


class TestWorld:
    def test_near_things_share_two_attributes_and_far_ones_none(self):
        setting = draw_setting(torch.Generator().manual_seed(0))
        assert len(setting.classes) == 20 and len(set(setting.classes)) == 20
        assert all(max(t.shares(c) for c in setting.classes) == 2 for t in setting.near)
        assert all(max(t.shares(c) for c in setting.classes) == 0 for t in setting.far)
        assert len(setting.far) == 6 and not set(setting.near) & set(setting.classes)

    def test_classes_are_no_candidates_and_some_near_things_are_withheld(self):
        setting = draw_setting(torch.Generator().manual_seed(0))
        assert not set(setting.names) & set(setting.candidates)
        offered = [t for t in setting.near if t.name in setting.candidates]
        assert len(offered) == len(setting.near) - round(0.3 * len(setting.near))
        assert len(setting.candidates) >= NEGATIVES

    def test_noise_is_the_share_of_pictures_of_another_thing(self):
        names = [t.name for t in THINGS[:10]] + ["old day"]
        clean, noisy = (pictures_of(names, 40, n, torch.Generator().manual_seed(0)) for n in (0.0, 0.5))
        assert torch.equal(clean[1], noisy[1]) and clean[1].tolist() == sorted(clean[1].tolist())
        assert clean[0].shape == (440, 3, 16, 16)

    def test_things_differ_in_each_attribute(self):
        first = draw_things(torch.tensor([[0, 0, 0]] * 50), torch.Generator().manual_seed(0)).mean(0)
        for other in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
            found = draw_things(torch.tensor([other] * 50), torch.Generator().manual_seed(0)).mean(0)
            assert (first - found).abs().max() > 0.1

    def test_captions_are_wrong_as_often_as_told(self):
        _, right = captioned(2000, torch.Generator().manual_seed(0), wrong=0.0)
        _, wrong = captioned(2000, torch.Generator().manual_seed(0), wrong=0.6)
        assert len(right) == len(wrong) == 2000 and right != wrong
        moved = moved_look(torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(0))
        assert moved.shape == (4, 3, 16, 16) and moved.max() <= 1


class TestReproduction:
    def test_every_row_is_declared_and_every_claim_judged(self, table):
        assert isinstance(papers.build("lapt"), LAPTReproduction)
        assert set(table.condition) == {c.name for c in LAPTReproduction.conditions}
        assert set(table.metric) == set(LAPTReproduction.metrics)
        for each in LAPTReproduction.claims:
            assert np.isfinite(each.judge(table).mean), each.name

    def test_neglabel_is_judged_by_its_best_template(self, table):
        value = table.groupby(["condition", "metric"]).value.mean()
        assert value[BEST, "near AUROC"] >= value[WORST, "near AUROC"]

    def test_the_share_of_the_gain_is_of_means(self):
        rows = [
            (seed, name, "near AUROC", value + 0.01 * seed)
            for seed in range(3)
            for name, value in (("samples only", 0.8), ("cross-modal", 0.83), ("lapt", 0.84))
        ]
        table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
        assert claim("cross-modal mixing").pooled(table) == pytest.approx(0.75)
        table.loc[table.condition == "lapt", "value"] = 0.7
        assert claim("cross-modal mixing").pooled(table) == 0

    def test_the_benefit_is_compared_between_noises(self):
        measured = {
            (name, f"near AUROC, noise {n} %"): 0.9 - slope * n
            for name, slope in (("samples only", 0.003), ("cross-modal", 0.001))
            for n in NOISES
        }
        assert claim("more with more noise").value(measured) == pytest.approx(0.08)

    def test_plot(self, table):
        assert len(LAPTReproduction().plot(table).axes) == 2


class TestFullScale:
    def test_a_missing_folder_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("UNSEEN_LAPT", str(tmp_path))
        with pytest.raises(InputError, match="names.txt"):
            LAPTReproduction().measure("all", 0, "full")

    def test_it_reads_a_folder_and_an_encoder(self, monkeypatch, tmp_path):
        from PIL import Image

        from unseen.networks import dual_encoder
        from unseen.papers.named_things import things_clip

        clip = things_clip(0, pairs=256, epochs=1)

        class Bytes(type(clip)):
            def encode_image(self, images):
                return self.image(images.float() / 255)

        clip.__class__ = Bytes
        monkeypatch.setattr(dual_encoder, "dual_encoder", lambda name: clip)
        monkeypatch.setattr("unseen.papers.lapt.EPOCHS", 1)
        monkeypatch.setenv("UNSEEN_CLIP", "tiny")
        monkeypatch.setenv("UNSEEN_LAPT", str(tmp_path))
        monkeypatch.setattr("unseen.papers.lapt.PLAIN_TEMPLATES", ("a photo of a {}",))
        names, others = ["plain red disk", "plain red ring"], ["dotted blue bar", "old day", "new trip"]
        (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
        (tmp_path / "candidates.txt").write_text("\n".join(others))
        generator = np.random.default_rng(0)
        parts = [f"train/{n}" for n in names + others]
        parts += [f"test/{part}/{n}" for part in ("id", "shifted") for n in names]
        parts += ["test/near/x", "test/far/y"]
        for part in parts:
            (tmp_path / part).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / f"{i}.png")
        rows = LAPTReproduction().measure("all", 0, "full")
        assert {row.condition for row in rows} == {c.name for c in LAPTReproduction.conditions}
        assert {row.metric for row in rows} == set(LAPTReproduction.metrics)
        (tmp_path / "candidates.txt").unlink()
        pools = {"nouns": others[:1], "adjectives": others[1:]}
        monkeypatch.setattr("unseen.papers.lapt.wordnet_candidates", lambda: pools)
        assert LAPTReproduction().measure("all", 0, "full") == rows
