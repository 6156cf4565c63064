import pytest
import torch

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.residual_tuner import ResidualTuner


def test_a_scale_of_zero_leaves_features_as_they_are(generator):
    x = torch.randn(7, 5, generator=generator)
    assert torch.equal(ResidualTuner(5, scale=0.0)(x), x)
    tuner = ResidualTuner(5)
    torch.testing.assert_close(tuner(x), x + tuner.mlp(x))


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_the_network_keeps_the_shape_and_learns_its_scale(normalization, generator):
    network = build_network(f"residual-tuner(normalization='{normalization}', hidden_ratio=2)", (5,), 3)
    x = torch.randn(8, 5, generator=generator)
    assert network(x).shape == (8, 3) and network.featurizer(x).shape == (8, 5)
    assert network.featurizer.mlp[0].out_features == 10
    network(x).square().sum().backward()
    assert network.featurizer.scale.grad.abs().sum() > 0


def test_layer_norm_judges_each_example_by_itself(generator):
    x = torch.randn(8, 5, generator=generator)
    layer, batch = ResidualTuner(5, normalization="layer"), ResidualTuner(5)
    torch.testing.assert_close(layer(x)[:2], layer(x[:2]))
    assert not torch.allclose(batch(x)[:2], batch(x[:2]))


def test_wrong_settings_are_told():
    with pytest.raises(InputError, match="normalization: is 'group'"):
        ResidualTuner(5, normalization="group")
    with pytest.raises(InputError, match="cannot read several inputs"):
        build_network("residual-tuner", {"a": (3,)}, 2)
