import numpy as np
import pandas as pd
import pytest

from unseen.errors import InputError
from unseen.papers.ogen import WATCHED, OGENReproduction, tiny_rows
from unseen.registry import papers


@pytest.fixture(scope="module")
def table():
    rows = tiny_rows(
        0, pairs=256, clip_epochs=1, tests=2, epochs=12, watched=(2, 4, 6, 8, 10, 12), batch=128
    )  # fmt: skip
    return pd.DataFrame(
        [(seed, r.condition, r.metric, r.value + 0.001 * seed) for seed in range(3) for r in rows],
        columns=["seed", "condition", "metric", "value"],
    )


def claim(name):
    return next(c for c in OGENReproduction.claims if c.name == name)


def test_every_row_is_declared_and_every_claim_judged(table):
    assert isinstance(papers.build("ogen"), OGENReproduction)
    assert set(table.condition) == {c.name for c in OGENReproduction.conditions}
    assert set(table.metric) == set(OGENReproduction.metrics)
    for each in OGENReproduction.claims:
        assert np.isfinite(each.judge(table).mean), each.name


def test_the_last_watched_epoch_is_the_end(table):
    value = table.groupby(["condition", "metric"]).value.mean()
    for condition in ("CoOp", "KgCoOp 8", "OGEN"):
        for what in ("base", "new"):
            assert value[condition, f"{what} at {WATCHED[-1]}"] == pytest.approx(value[condition, what])


def test_the_penalty_is_the_better_of_two_less_a_standard_error():
    values = {"OGEN": (0.6, 0.7, 0.8), "KgCoOp 1": (0.5, 0.5, 0.5), "KgCoOp 8": (0.1, 0.9, 0.2)}
    rows = [(s, name, "harmonic", v[s]) for name, v in values.items() for s in range(3)]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    assert claim("better than a penalty").pooled(table) == pytest.approx(0.2 - 0.1 / np.sqrt(3))


def test_the_pitfall_is_a_fall_of_new_accuracy():
    measured = {("CoOp", "new at 10"): 0.7, ("CoOp", "new at 200"): 0.6}
    assert claim("pitfall over time").value(measured) == pytest.approx(0.1)


def test_plot(table):
    assert len(OGENReproduction().plot(table).axes) == 3


class TestFullScale:
    def test_a_missing_folder_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("UNSEEN_BASE_TO_NEW", str(tmp_path))
        with pytest.raises(InputError, match="names.txt"):
            OGENReproduction().measure("all", 0, "full")

    def test_it_reads_folders_and_an_encoder(self, monkeypatch, tmp_path):
        from PIL import Image

        from unseen.networks import dual_encoder
        from unseen.papers import ogen

        clip = ogen._clip_of_source_looks(0, 128, 1)

        class Bytes(type(clip)):
            def encode_image(self, images):
                return self.image(images.float() / 255)

        clip.__class__ = Bytes
        monkeypatch.setattr(dual_encoder, "dual_encoder", lambda name: clip)
        monkeypatch.setenv("UNSEEN_CLIP", "tiny")
        monkeypatch.setenv("UNSEEN_BASE_TO_NEW", str(tmp_path))
        base, new = ["c0 disk", "c1 ring", "c2 bar", "c3 cross"], ["c4 disk", "c5 ring", "c6 bar"]
        (tmp_path / "names.txt").write_text("c7 disk\nc7 ring\nc7 bar\n")
        generator = np.random.default_rng(0)
        for part in [f"base/{s}/{n}" for s in ("train", "test") for n in base] + [f"new/{n}" for n in new]:
            (tmp_path / part).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / f"{i}.png")
        rows = ogen._full_rows(0, shots=2, epochs=12, watched=(2, 4, 6, 8, 10, 12))
        assert {row.condition for row in rows} == {c.name for c in OGENReproduction.conditions}
