import pytest
import torch
from torch import nn

from unseen.adaptation.normalisation import (
    MixedBatchNorm,
    RobustBatchNorm,
    normalisation_parameters,
    use_test_statistics,
)
from unseen.errors import InputError


@pytest.fixture(
    params=[(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm1d, (6, 4, 5)), (nn.BatchNorm2d, (6, 4, 3, 5))]
)
def layer_and_input(request, generator):
    kind, shape = request.param
    layer = kind(4)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            tensor.normal_(generator=generator)
        layer.running_var.uniform_(0.5, 2, generator=generator)
    return layer, 3 * torch.randn(shape, generator=generator) + 1


def test_without_prior_it_is_the_layer_in_training(layer_and_input):
    layer, x = layer_and_input
    torch.testing.assert_close(MixedBatchNorm(layer, 0.0)(x), layer.train()(x))


def test_with_a_huge_prior_it_is_the_layer_in_evaluation(layer_and_input):
    layer, x = layer_and_input
    torch.testing.assert_close(MixedBatchNorm(layer, 1e9)(x), layer.eval()(x), rtol=1e-4, atol=1e-4)


def test_statistics_are_mixed_by_numbers_of_examples(layer_and_input):
    layer, x = layer_and_input
    found = MixedBatchNorm(layer, 2.0)(x)
    for channel in range(4):
        values = x[:, channel]
        mean = (2 * layer.running_mean[channel] + 6 * values.mean()) / 8
        variance = (2 * layer.running_var[channel] + 6 * values.var(correction=0)) / 8
        expected = (values - mean) / (variance + layer.eps).sqrt() * layer.weight[channel] + layer.bias[
            channel
        ]
        torch.testing.assert_close(found[:, channel], expected)


def test_robust_statistics_move_in_training_mode_only(layer_and_input):
    layer, x = layer_and_input
    robust = RobustBatchNorm(layer, 0.1)
    start = layer.running_mean.clone()
    torch.testing.assert_close(robust.eval()(x), layer.eval()(x))
    assert torch.equal(robust.running_mean, start)
    moved = robust.train()(x)
    means = x.transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(robust.running_mean, 0.9 * start + 0.1 * means)
    torch.testing.assert_close(moved, robust.eval()(x))  # it normalises by the moved ones


def test_names_of_the_state_stay(small_network):
    network, exchanged = small_network(), small_network()
    assert use_test_statistics(exchanged, 0.0) == 1
    assert list(exchanged.state_dict()) == list(network.state_dict())
    network.load_state_dict(exchanged.state_dict())


def test_a_batch_of_one_has_no_statistics(small_network):
    network = small_network()
    use_test_statistics(network, 0.0)
    with pytest.raises(InputError, match=r"batch of one example.*prior=16"):
        network(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("prior", [-1.0, float("nan")])
def test_priors_are_numbers_of_examples(prior, small_network):
    with pytest.raises(InputError, match="prior: is"):
        use_test_statistics(small_network(), prior)


def test_statistics_of_training_are_needed_for_mixing():
    network = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(InputError, match="keeps no statistics of training"):
        use_test_statistics(network, 16.0)
    use_test_statistics(network, 0.0)
    assert network(torch.randn(4, 3)).mean().abs() < 1e-6


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4)])
def test_scales_and_shifts_of_every_normalisation_are_found(layer):
    network = nn.ModuleDict({"stem": nn.Linear(4, 4), "norm": layer})
    names = {f"norm.{name}" for name, _ in layer.named_parameters()}
    assert set(normalisation_parameters(network)) == names


def test_what_has_nothing_to_adapt_is_told_so():
    with pytest.raises(InputError, match=r"has no normalisation layer.*lame or t3a"):
        normalisation_parameters(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InputError, match="nothing to adapt"):
        normalisation_parameters(nn.Sequential(nn.LayerNorm(3, elementwise_affine=False)))
    network = nn.ModuleDict({"layer4": nn.Sequential(nn.LayerNorm(3))})
    with pytest.raises(InputError, match=r"only within layer4.*skip=\(\)"):
        normalisation_parameters(network, ("layer4",))


def test_modules_are_skipped_by_whole_names():
    blocks = nn.ModuleDict({str(i): nn.LayerNorm(2) for i in (1, 9, 10)})
    found = normalisation_parameters(nn.ModuleDict({"blocks": blocks}), ("blocks.1",))
    assert {name.split(".")[1] for name in found} == {"9", "10"}
