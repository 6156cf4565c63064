import pytest
import torch

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.mixstyle import MixStyle, mix_styles


def slow_mix(maps, partner, share):
    out = torch.zeros_like(maps)
    for i in range(len(maps)):
        for c in range(maps.shape[1]):
            own, other = maps[i, c], maps[partner[i], c]
            deviations = [(m.var() + 1e-6).sqrt() for m in (own, other)]
            s = float(share[i])
            mean, deviation = (
                s * own.mean() + (1 - s) * other.mean(),
                s * deviations[0] + (1 - s) * deviations[1],
            )
            out[i, c] = (own - own.mean()) / deviations[0] * deviation + mean
    return out


def test_mixing_equals_loops_over_maps(generator):
    maps = torch.randn(4, 3, 5, 6, generator=generator).double()
    share, partner = torch.rand(4, 1, 1, 1, generator=generator).double(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(mix_styles(maps, partner, share), slow_mix(maps, partner, share))
    torch.testing.assert_close(mix_styles(maps, partner, torch.ones_like(share)), maps)


def test_gradients_do_not_run_through_the_statistics(generator):
    maps = torch.randn(2, 1, 3, 3, generator=generator).double().requires_grad_()
    mixed = mix_styles(maps, torch.tensor([1, 0]), torch.zeros(2, 1, 1, 1).double())
    (slope,) = torch.autograd.grad(mixed[0].sum(), maps)
    deviations = (maps.var((1, 2, 3)) + 1e-6).sqrt().detach()
    torch.testing.assert_close(slope[0], torch.full_like(slope[0], float(deviations[1] / deviations[0])))
    assert not slope[1].any()


def test_it_mixes_in_training_alone_and_as_often_as_asked(generator):
    maps = torch.randn(6, 2, 4, 4, generator=generator)
    torch.manual_seed(0)
    often = MixStyle(0.5, 0.1)
    assert 60 < sum(not torch.equal(often(maps), maps) for _ in range(200)) < 140
    assert torch.equal(MixStyle(0.0, 0.1)(maps), maps)
    assert not torch.equal(MixStyle(1.0, 0.1)(maps), maps)
    assert torch.equal(MixStyle(1.0, 0.1).eval()(maps), maps)


@pytest.mark.parametrize(
    ("base", "places"), [("cnn(width=8)", [3, 7]), ("resnet(width=8, depth=14)", [3, 6])]
)
def test_it_stands_after_the_first_two_stages(base, places):
    network = build_network(f"mixstyle(base={base!r})", (3, 16, 16), 4)
    layers = list(network.featurizer)
    assert [i for i, layer in enumerate(layers) if isinstance(layer, MixStyle)] == places
    plain = build_network(base, (3, 16, 16), 4)
    parts = [layer for layer in layers if not isinstance(layer, MixStyle)]
    for own, other in zip(parts, plain.featurizer, strict=True):
        own.load_state_dict(other.state_dict())
    network.head.load_state_dict(plain.head.state_dict())
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(network.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("spec", "shape", "sentence"),
    [
        ("mixstyle", (12,), "feature maps"),
        ("mixstyle(base='mlp')", (3, 8, 8), "is not cut into stages"),
        ("mixstyle(probability=2.0)", (3, 8, 8), "probability or alpha"),
        ("mixstyle(alpha=0.0)", (3, 8, 8), "probability or alpha"),
    ],
)
def test_errors(spec, shape, sentence):
    with pytest.raises(InputError, match=sentence):
        build_network(spec, shape, 2)
