import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from unseen.arena import Candidate, candidate
from unseen.arena.backbones import candidate_names
from unseen.arena.baselines import Colours, HashedText, Pixels, _take_statistics
from unseen.errors import InputError
from unseen.networks.backbones import Backbone, FrozenBatchNorm, ImageInput

efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="the weights are not installed"
)


def test_the_width_must_not_depend_on_the_input():
    entrant = Candidate("flat", nn.Flatten(), keep_features=False)
    entrant.features(torch.zeros(3, 3, 4, 4))
    with pytest.raises(InputError, match="gave 48 features before and 75 for other inputs"):
        entrant.features(torch.zeros(3, 3, 5, 5))


def test_features_are_a_finite_matrix():
    with pytest.raises(InputError, match=r"features of shape \(3, 4, 4\)"):
        Candidate("map", nn.Identity(), keep_features=False).features(torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="NaN or infinite"):
        Candidate("nan", nn.Flatten(), keep_features=False).features(torch.full((2, 3), torch.nan))


def test_what_is_declared_must_make_sense():
    with pytest.raises(InputError, match="Give an nn.Module"):
        Candidate("function", lambda x: x)
    with pytest.raises(InputError, match="data_size"):
        Candidate("a", nn.Flatten(), data_size=-1)


def test_preparation_belongs_to_the_backbone_and_to_its_fingerprint():
    def halved(x):
        return x.float() / 2

    linear = nn.Linear(2, 2)
    raw, half = (
        Candidate("raw", linear, reads="array"),
        Candidate("half", linear, prepare=halved, reads="array"),
    )
    x = torch.ones(3, 2)
    torch.testing.assert_close(half.encode(x), linear(x / 2))
    assert raw.fingerprint != half.fingerprint
    assert raw.fingerprint == Candidate("other name", linear, reads="array").fingerprint
    assert Candidate("p", Pixels(4)).fingerprint != Candidate("p", Pixels(8)).fingerprint


def test_flops_are_two_a_product():
    entrant = Candidate(
        "conv", nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten()), keep_features=False
    )
    images = torch.zeros(5, 3, 8, 8)
    assert entrant.flops(images) == 2 * 8 * 8 * 4 * 3 * 9
    assert entrant.params == 4 * 3 * 9 + 4
    assert entrant.attributes(images)["features"] == 4 * 8 * 8


def test_pixels_and_colours():
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    small = Pixels(4)(images).view(2, 3, 4, 4)
    torch.testing.assert_close(small[0, 1, 0, 0], images[0, 1, :4, :4].float().mean() / 255)
    assert Pixels(4)(images[:, :1]).shape == (2, 48)
    found = Colours(8)(images).view(2, 3, 10)
    torch.testing.assert_close(found[0, 2, 0], images[0, 2].float().mean() / 255)
    torch.testing.assert_close(found[..., 2:].sum(2), torch.ones(2, 3))
    assert Colours(8)(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).view(3, 10)[:, -1].tolist() == [
        1,
        1,
        1,
    ]


def test_hashed_texts_do_not_depend_on_other_texts():
    texts = ["a method of the class", "returns the mean", ""]
    for unit in ("words", "letters"):
        encoder = HashedText(unit, 64)
        found = encoder(texts)
        torch.testing.assert_close(found[1:2], encoder(texts[1:2]))
        np.testing.assert_allclose(found[:2].norm(dim=1), 1, atol=1e-6)
        assert found[2].abs().sum() == 0 and (found[0] @ found[1]) < 0.99


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.body(x)


def test_statistics_of_random_weights_are_those_of_what_reaches_each_normalisation():
    rule = ImageInput(32, (0.5,) * 3, (0.5,) * 3)
    built = Backbone(Deep(), name="deep", features=8, input=rule).requires_grad_(False)
    images = torch.rand(6, 3, 32, 32)
    _take_statistics(built, images)
    first, second = (m for m in built.modules() if isinstance(m, FrozenBatchNorm))
    reached = built.body.body[:4](rule.prepare(images))
    torch.testing.assert_close(second.mean, reached.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second.variance, reached.var((0, 2, 3), correction=0), atol=1e-5, rtol=1e-4)
    assert not first._forward_pre_hooks


@efficientnet
def test_packaged_backbones_and_their_random_twins():
    entrant, twin, other = (
        candidate(name)
        for name in (
            "efficientnet-lite0(size=32)",
            "random:efficientnet-lite0(size=32)",
            "random:efficientnet-lite0(size=32, seed=1)",
        )
    )
    assert (entrant.architecture, entrant.objective, entrant.data_size) == ("cnn", "supervised", 1_281_167)
    assert (twin.architecture, twin.objective, twin.data_size) == ("cnn", "none", 0)
    assert entrant.params == twin.params
    assert len({entrant.fingerprint, twin.fingerprint, other.fingerprint}) == 3
    again = candidate("random:efficientnet-lite0(size=32)")
    assert again.fingerprint == twin.fingerprint
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    features = twin.features(images)
    assert features.shape == (4, 1280) and features.std() > 0
    assert candidate("efficientnet-lite0(size=32)", objective="mine").objective == "mine"


def test_a_function_of_a_file_gives_a_backbone(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom unseen.arena import Candidate\n"
        "def flat():\n    return nn.Flatten()\n"
        "def named():\n    return Candidate('named', nn.Flatten(), data_size=7)\n"
    )
    assert candidate(f"{tmp_path}/mine.py:flat").name == "mine:flat"
    assert candidate(f"{tmp_path}/mine.py:named").data_size == 7
    with pytest.raises(InputError, match="Did you mean 'flat'"):
        candidate(f"{tmp_path}/mine.py:flatt")
    with pytest.raises(InputError, match="which is no file"):
        candidate(f"{tmp_path}/yours.py:flat")


def test_names_that_are_not_known():
    with pytest.raises(InputError, match="Did you mean 'pixels'"):
        candidate("pixel")
    with pytest.raises(InputError, match="does not take the options bins"):
        candidate("pixels(bins=3)")
    with pytest.raises(InputError, match="seed of backbone"):
        candidate("random:efficientnet-lite0(seed=-1)")
    assert {"pixels", "minilm", "random:NAME"} <= set(candidate_names())
