from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.networks.low_rank import low_rank_updates, parameter_counts
from unseen.papers import pego, pego_runs
from unseen.papers.pego import Pego
from unseen.papers.pego_runs import METHODS, STYLES, WEIGHT, Protocol, judge, make_digits, pretrained, tune
from unseen.papers.styled_characters import BROAD, CHARACTERS, Style, corpus_batch, glyphs, styled
from unseen.registry import Spec, papers

TINY = Protocol(
    network="transformer(width=32, depth=1, patch=7)",
    pretraining=2,
    pretraining_batch=8,
    train=20,
    held=20,
    steps=6,
    batch=4,
    evaluations=2,
)


def images(count=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 28, 28), generator=generator).to(torch.uint8), torch.arange(
        count
    ) % 10


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this module's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSEEN_CACHE", str(folder))
        yield folder
    pretrained.cache_clear()


@pytest.fixture(scope="module")
def digits():
    return make_digits(images(), images(seed=1), 0, TINY)


class TestCorpus:
    def test_every_character_in_every_font(self):
        drawn, labels = glyphs()
        assert len(drawn) == len(labels) == 36 * 21 and len(CHARACTERS) == 36
        assert drawn.amax((1, 2)).min() > 0.5 and drawn.min() == 0
        first = drawn[labels == CHARACTERS.index("A")]
        assert len(torch.unique(first.flatten(1), dim=0)) > 10

    def test_batches_are_a_function_of_the_generator(self):
        batches = [corpus_batch(16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(batches[0][0], batches[1][0]) and not torch.equal(batches[0][0], batches[2][0])
        assert batches[0][0].shape == (16, 1, 28, 28)
        assert batches[0][0].min() >= 0 and batches[0][0].max() <= 1


class TestStyles:
    def test_the_plain_style_changes_nothing(self, generator):
        plain = images()[0].float() / 255
        assert torch.equal(styled(plain, Style(), generator)[:, 0], plain)

    @pytest.mark.parametrize("name", [*STYLES, "broad"])
    def test_every_other_one_does(self, name, generator):
        plain = glyphs()[0][:50]
        changed = styled(plain, {**STYLES, "broad": BROAD}[name], generator)[:, 0]
        assert changed.shape == plain.shape and changed.min() >= 0 and changed.max() <= 1
        assert ((changed - plain).abs().amax((1, 2)) > 0.05).float().mean() > 0.8

    def test_inversion_and_blur_are_what_they_say(self, generator):
        plain = glyphs()[0][:20]
        torch.testing.assert_close(styled(plain, Style(invert=1.0), generator)[:, 0], 1 - plain)
        flat = torch.full((3, 28, 28), 0.3)
        torch.testing.assert_close(styled(flat, Style(blur=2.0), generator)[:, 0], flat)
        blurred = styled(plain, Style(blur=3.0), generator)[:, 0]
        assert blurred.diff(dim=1).abs().mean() < plain.diff(dim=1).abs().mean()


class TestDigits:
    def test_roles_are_disjoint(self):
        coded, labels = images()
        coded = torch.zeros_like(coded)
        coded[:, 0, 0] = torch.arange(len(coded)).to(torch.uint8)  # each image tells its number
        data = make_digits((coded, labels), (coded, labels), 0, TINY)
        roles = torch.cat([x[:20, 0, 0, 0] for x, _ in (data.train, data.validation, data.test)])
        held = set(((roles + 1) * 127.5).round().int().tolist())
        assert len(held) == 60
        inverted = ((1 - data.unseen["inverted"][0][:, 0, 0, 0]) * 127.5).round().int().tolist()
        assert len(inverted) == 40 and not held & set(inverted)

    def test_they_are_a_function_of_the_seed(self, digits):
        again, other = (make_digits(images(), images(seed=1), seed, TINY) for seed in (0, 1))
        assert torch.equal(again.train[0], digits.train[0])
        assert torch.equal(again.unseen["noisy"][0], digits.unseen["noisy"][0])
        assert not torch.equal(other.train[0], digits.train[0])


def test_pretraining_is_done_once(cache, monkeypatch):
    pretrained.cache_clear()
    first = pretrained(TINY).state_dict()
    (file,) = (cache / "pretrained").iterdir()
    monkeypatch.setattr(pego_runs, "_pretrain", None)
    pretrained.cache_clear()
    again = pretrained(TINY).state_dict()
    assert file.suffix == ".safetensors"
    assert all(torch.equal(first[name], again[name]) for name in first)


class TestTuning:
    def test_pretrained_weights_stay_in_low_rank_methods_and_are_shared(self, digits):
        base = pretrained(TINY).featurizer.state_dict()
        for name in ("lora", "pego"):
            network, _ = tune(METHODS[name], digits, 0.01, 0, TINY)
            for _, frozen, update in low_rank_updates(network):
                assert torch.equal(frozen, base["1.layers.0.self_attn.in_proj_weight"])
                assert update.up.abs().sum() > 0
        full, _ = tune(METHODS["full"], digits, 0.01, 0, TINY)
        assert not torch.equal(full.featurizer.state_dict()["0.position"], base["0.position"])
        for name, value in pretrained(TINY).featurizer.state_dict().items():
            assert torch.equal(value, base[name]), name

    def test_lora_and_groups_have_equally_many_parameters(self, digits):
        protocol = Protocol(**{**vars(TINY), "network": "transformer(width=64, depth=1, patch=7)"})
        counts = {name: parameter_counts(pego_runs._start(METHODS[name], 0, protocol))[0] for name in METHODS}
        assert counts["lora"] == counts["group"] == counts["pego"] == counts["shrunk"]
        assert counts["probe"] == 65 * 10 < counts["lora"] < counts["full"] == counts["scratch"]

    def test_methods_of_a_seed_differ_in_the_penalty_alone(self, digits):
        """Same digits, batches and first factors: without weight, PEGO is the group."""
        silent = replace(METHODS["pego"], objective=Spec.make("pego", penalty_weight=0.0))
        group, score = tune(METHODS["group"], digits, 0.01, 3, TINY)
        same, same_score = tune(silent, digits, 0.01, 3, TINY)
        assert score == pytest.approx(same_score, abs=1e-9)
        for name, value in group.state_dict().items():
            torch.testing.assert_close(value, same.state_dict()[name])

    def test_the_kept_step_is_that_of_the_best_validation(self, digits):
        network, score = tune(METHODS["group"], digits, 0.01, 0, TINY)
        assert pego_runs._score(network, *digits.validation) == pytest.approx(score, abs=1e-9)

    def test_decay_shrinks_the_updates(self, digits):
        sizes = []
        for decay in (0.0, 10.0):
            network, _ = tune(METHODS["shrunk"], digits, 0.01, 0, TINY, decay=decay)
            sizes.append(judge(network, digits, TINY)["update size"])
        assert sizes[1] < sizes[0]

    def test_l2_sp_stays_nearer_to_the_pretrained_weights(self, digits):
        strong = replace(METHODS["l2-sp"], towards=10.0)
        base = pretrained(TINY).featurizer
        far, near = (
            sum(
                float((p - a).detach().square().sum())
                for p, a in zip(n.featurizer.parameters(), base.parameters(), strict=True)
            )
            for n in (tune(m, digits, 0.01, 0, TINY)[0] for m in (METHODS["full"], strong))
        )
        assert near < far

    def test_global_random_state_is_left_alone(self, digits):
        before = torch.random.get_rng_state()
        tune(METHODS["pego"], digits, 0.01, 0, TINY)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_the_weight_is_the_papers_at_this_width(self):
        """Sums over 768 x 768 entries became sums over 64 x 64."""
        assert pytest.approx(0.144) == WEIGHT


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pego_runs, "_digits", lambda seed, protocol: make_digits(images(), images(seed=1), seed, protocol)
        )
        rows = [
            (seed, *row)
            for seed in range(3)
            for name in METHODS
            for row in pego_runs.tuned_digits(name, seed, TINY)
        ]
    return pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])


class TestReproduction:
    def test_it_is_registered(self):
        built = papers.build("pego")
        assert isinstance(built, Pego)
        assert built.units("laptop") == [condition.name for condition in built.conditions]
        assert [name for name in built.units("full") if name.startswith("left out: ")]

    def test_every_condition_gives_declared_numbers(self, table):
        assert np.isfinite(table.value).all()
        assert set(table.metric) == set(Pego.metrics) - {"left out"}
        shrunk = table[(table.condition == "shrunk") & (table.metric == "update size")].value.mean()
        assert shrunk < table[(table.condition == "group") & (table.metric == "update size")].value.mean()

    def test_every_claim_is_judged(self, table):
        for claim in Pego.claims:
            assert np.isfinite(claim.judge(table).mean), claim.name

    def test_arithmetic_of_the_claims(self):
        accuracy = {"pego": 0.7, "group": 0.69, "lora": 0.6, "lora-slow": 0.68}
        measured = {(name, "unseen styles"): value for name, value in accuracy.items()}
        measured |= {("pego", "preserve cosine"): 0.02, ("group", "preserve cosine"): 0.08}
        claims = {claim.name: claim for claim in Pego.claims}
        assert claims["the penalty gains"].value(measured) == pytest.approx(0.01)
        assert claims["better than LoRA"].value(measured) == pytest.approx(0.02)
        assert claims["preserves"].value(measured) == pytest.approx(0.25)
        rows = [
            (seed, name, "unseen styles", value + (name == "pego") * (-0.05 if seed == 0 else 0.05))
            for seed in range(4) for name, value in accuracy.items()
        ]  # fmt: skip
        seeds = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
        assert claims["in most seeds"].pooled(seeds) == pytest.approx(0.75)

    def test_plot(self, table):
        left, right = Pego().plot(table).axes
        assert len(left.get_yticklabels()) == len(METHODS)
        assert len(right.collections) == sum(m.trained == "low-rank" for m in METHODS.values())


def test_the_papers_scale_tunes_a_transformers_backbone(tmp_path, monkeypatch):
    """A tiny vision transformer and a folder of images stand for CLIP and PACS."""
    transformers = pytest.importorskip("transformers", reason="extra `backbones` is absent")
    from PIL import Image

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    for domain in ("a", "b", "c"):
        for label, shade in (("dark", 20), ("light", 220)):
            folder = tmp_path / "images" / domain / label
            folder.mkdir(parents=True)
            for index in range(10):
                Image.new("RGB", (32, 32), (shade + index,) * 3).save(folder / f"{index}.png")
    monkeypatch.setenv("UNSEEN_BACKBONE", f"transformers:{tmp_path / 'vit'}")
    monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "images"))
    settings = pego._full_settings
    monkeypatch.setattr(
        pego,
        "_full_settings",
        lambda name: {**settings(name), "steps": 2, "batch_size": 4, "evaluations": 1},
    )
    (row,) = Pego().measure("left out: pego", 0, "full")
    assert row.metric == "left out" and 0 <= row.value <= 1
