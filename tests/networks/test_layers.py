import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.layers import layer_parameters, parse_layers, train_only
from unseen.registry import networks


def modules_of(layers):
    return [sorted({name.rpartition(".")[0] for name in layer}) for layer in layers]


def test_an_mlp_has_its_linear_layers_and_the_head():
    network = networks.build("mlp", input_shape=(5,), classes=3)
    assert modules_of(layer_parameters(network)) == [["featurizer.1"], ["featurizer.3"], ["head"]]


def test_a_linear_network_has_its_head_alone():
    assert layer_parameters(networks.build("linear", input_shape=(5,), classes=3)) == [
        ["head.weight", "head.bias"]
    ]


def test_normalizations_belong_to_the_layer_before():
    network = networks.build("cnn", input_shape=(1, 8, 8), classes=3)
    assert modules_of(layer_parameters(network))[0] == ["featurizer.0", "featurizer.1"]
    assert len(layer_parameters(network)) == 4


def test_residual_blocks_stay_whole():
    network = networks.build("resnet", input_shape=(1, 8, 8), classes=3, depth=8)
    layers = layer_parameters(network)
    assert len(layers) == 1 + 3 + 1
    assert all(name.startswith("featurizer.1.") for name in layers[1])


class Encoder(nn.Module):
    """As pretrained ones are built: a token of its own, an embedding, blocks in a list inside a module."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.embedding = nn.Linear(4, 4)
        self.stack = nn.Module()
        self.stack.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)


def test_blocks_of_an_encoder_are_found_below_wrappers():
    wrapper = nn.Module()
    wrapper.body = Encoder()
    layers = layer_parameters(Network(wrapper, 4, 2))
    assert len(layers) == 5
    assert layers[0] == [
        "featurizer.body.token",
        "featurizer.body.embedding.weight",
        "featurizer.body.embedding.bias",
    ]
    assert layers[3][-1] == "featurizer.body.norm.bias"


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "resnet", "transformer"])
def test_every_parameter_is_in_one_layer(name):
    network = networks.build(name, input_shape=(1, 8, 8), classes=3)
    placed = [name for layer in layer_parameters(network) for name in layer]
    assert sorted(placed) == sorted(name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (":", "abcd"),
        ("0", "a"),
        ("-1", "d"),
        ("1:-1", "bc"),
        (":2", "ab"),
        ("-2:", "cd"),
        ("2", "c"),
        ("9", ""),
    ],
)
def test_layers_are_counted_as_in_python(text, chosen):
    assert "abcd"[parse_layers(text)] == chosen


@pytest.mark.parametrize("text", ["", "first", "1:2:3", "0,1", "1.5"])
def test_what_is_no_position_is_refused(text):
    with pytest.raises(InputError, match="position or range"):
        parse_layers(text)


def test_only_the_named_layers_are_trained_and_what_was_frozen_stays_so():
    network = networks.build("mlp", input_shape=(5,), classes=3)
    network.featurizer[1].bias.requires_grad_(False)
    train_only(network, ":-1")
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained == ["featurizer.1.weight", "featurizer.3.weight", "featurizer.3.bias"]
    with pytest.raises(InputError, match="nothing to train of 3 layers"):
        train_only(network, "7")


def test_members_side_by_side_have_no_order():
    with pytest.raises(InputError, match="side by side"):
        layer_parameters(networks.build("members", input_shape=(5,), classes=3))
