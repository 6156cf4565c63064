import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.feature_maps import FINEST, StoredMaps, feature_maps

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shapes(encoder, images=IMAGES):
    with torch.inference_mode():
        return [tuple(each.shape[1:]) for each in feature_maps(encoder.eval(), images)]


def test_the_last_map_of_each_resolution_finest_first():
    encoder = build_network("resnet", (3, 32, 32), 2).featurizer.eval()
    found = feature_maps(encoder, IMAGES)
    assert [tuple(each.shape[1:]) for each in found] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    torch.testing.assert_close(
        found[2].mean((2, 3)), encoder(IMAGES)
    )  # what the pooling reads, after the norm
    torch.testing.assert_close(found[1], encoder[:7](IMAGES))  # a whole block and no layer of the next one
    assert not any(module._forward_hooks for module in encoder.modules())


def test_layers_in_a_row_count_up_to_the_activation():
    encoder = build_network("cnn", (3, 32, 32), 2).featurizer.eval()
    first, second = feature_maps(encoder, IMAGES)
    torch.testing.assert_close(first, encoder[:3](IMAGES))
    torch.testing.assert_close(second.mean((2, 3)), encoder(IMAGES))


def test_gradients_reach_the_encoder():
    encoder = build_network("cnn", (3, 32, 32), 2).featurizer
    sum(each.sum() for each in feature_maps(encoder, IMAGES)).backward()
    assert encoder[0].weight.grad.abs().sum() > 0


def test_tokens_of_places_become_a_map_without_the_class_token():
    encoder = build_network("transformer", (3, 32, 32), 2).featurizer.eval()
    (found,) = feature_maps(encoder, IMAGES)
    tokens = encoder[:2](IMAGES)
    assert found.shape == (3, 64, 8, 8)
    torch.testing.assert_close(found[:, :, 2, 5], tokens[:, 1 + 2 * 8 + 5])


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_maps_with_channels_last_are_turned():
    encoder = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), ChannelsLast(), nn.ReLU())
    found = feature_maps(encoder, IMAGES)
    torch.testing.assert_close(found[0], encoder[0](IMAGES).relu())


def test_what_is_padded_on_the_way_is_no_resolution_of_its_own():
    layers = [
        nn.ZeroPad2d(1),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(8, 8, 5)),
    ]
    encoder = nn.Sequential(*layers, nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten())
    assert shapes(encoder) == [(8, 16, 16), (4, 8, 8)]


def test_maps_finer_than_needed_are_left_out():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.MaxPool2d(2))
    assert shapes(encoder, torch.rand(2, 3, 2 * FINEST, 2 * FINEST)) == [
        (4, FINEST, FINEST),
        (4, FINEST // 2, FINEST // 2),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="the weights are not installed"
)
@pytest.mark.parametrize(
    ("size", "sides"), [(64, [32, 16, 8, 4, 2]), (96, [24, 12, 6, 3]), (100, [25, 13, 7, 4])]
)
def test_efficientnet_has_its_strides(size, sides):
    from unseen.networks.backbones import backbone

    built = backbone("efficientnet-lite0", size=size)
    with torch.inference_mode():
        found = feature_maps(built, IMAGES)
        features = built(IMAGES)
    assert [each.shape[2] for each in found] == sides
    torch.testing.assert_close(found[-1].mean((2, 3)), features)


def test_a_transformer_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=4,
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    (found,) = feature_maps(model, IMAGES)
    tokens = model(IMAGES).last_hidden_state
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens[:, 1:])


class Own(nn.Module):
    def __init__(self, *shapes):
        super().__init__()
        self.given = shapes

    def feature_maps(self, images):
        return [torch.zeros(shape) for shape in self.given]


def test_an_encoder_may_say_what_its_maps_are():
    assert shapes(Own((3, 2, 4, 4), (3, 1, 9, 9))) == [(1, 9, 9), (2, 4, 4)]
    with pytest.raises(InputError, match=r"gives a map of shape \(3, 2, 4, 5\) for 3 images"):
        feature_maps(Own((3, 2, 4, 5)), IMAGES)
    with pytest.raises(InputError, match=r"gives a map of shape \(1, 2, 4, 4\) for 3 images"):
        feature_maps(Own((1, 2, 4, 4)), IMAGES)


@pytest.mark.parametrize(
    "encoder", [nn.Flatten(), Own(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())]
)
def test_an_encoder_without_maps(encoder):
    with pytest.raises(InputError, match="Give it a method feature_maps"):
        feature_maps(encoder, IMAGES)


def test_stored_maps_are_cut_from_rows():
    first, second = torch.rand(4, 3, 6, 6).half(), torch.rand(4, 5, 2, 2).half()
    stored = StoredMaps(np.concatenate([first.flatten(1), second.flatten(1)], 1), [(3, 6), (5, 2)])
    rows = torch.tensor([2, 0, 2])
    for found, each in zip(stored.take(rows), (first, second), strict=True):
        assert torch.equal(found, each[rows].float())
