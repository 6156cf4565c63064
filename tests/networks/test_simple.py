"""Small networks: shapes, gradients to every parameter, and errors that name the input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.simple import default_network

GRAPH = {"nodes": (5, 4), "adjacency": (5, 5), "mask": (5,)}


def graphs(count: int, generator: torch.Generator, sizes=(5, 3, 2)) -> dict[str, torch.Tensor]:
    """`count` random undirected graphs of the given numbers of nodes, padded to five."""
    mask = torch.stack([(torch.arange(5) < sizes[i % len(sizes)]).float() for i in range(count)])
    links = (torch.rand(count, 5, 5, generator=generator) < 0.5).float().triu(1)
    links = (links + links.transpose(1, 2)) * mask.unsqueeze(1) * mask.unsqueeze(2)
    nodes = torch.randn(count, 5, 4, generator=generator) * mask.unsqueeze(2)
    return {"nodes": nodes, "adjacency": links, "mask": mask}


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("linear", (7,)),
        ("linear", (3, 8, 8)),
        ("mlp", (7,)),
        ("mlp(width=16, depth=3, dropout=0.1)", (2, 3)),
        ("mlp(depth=0)", (7,)),
        ("cnn(width=8)", (1, 8, 8)),
        ("cnn(width=6)", (3, 11, 9)),
        ("cnn", (3, 32, 32)),
        ("resnet(depth=8, width=8)", (1, 8, 8)),
        ("resnet(depth=8)", (3, 32, 32)),
        ("transformer(width=16)", (1, 8, 8)),
        ("transformer(width=16, patch=8, heads=2)", (3, 32, 16)),
        ("transformer(width=16, depth=1)", (12, 5)),
        ("gcn(width=8, depth=2)", GRAPH),
    ],
)
def test_shapes_and_gradients(spec, shape, generator):
    network = build_network(spec, shape, 3)
    x = graphs(4, generator) if isinstance(shape, dict) else torch.randn(4, *shape, generator=generator)
    features = network.featurizer(x)
    assert features.shape == (4, network.features)
    assert network(x).shape == (4, network.classes) == (4, 3)
    nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 0])).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 32), st.integers(8, 32), st.integers(1, 4))
def test_convolutions_take_images_of_any_size(height, width, channels):
    x = torch.rand(2, channels, height, width)
    for spec in ("cnn(width=8)", "resnet(depth=8, width=8)"):
        assert build_network(spec, (channels, height, width), 5)(x).shape == (2, 5)


@pytest.mark.parametrize("spec", ["cnn(width=8)", "resnet(depth=8, width=8)", "transformer(width=16)", "mlp"])
def test_examples_do_not_influence_each_other(spec, generator):
    network = build_network(spec, (3, 16, 16), 4)  # in training mode: no statistics over the batch
    x = torch.randn(5, 3, 16, 16, generator=generator)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=1e-4)


def test_resnet_depth_is_the_number_of_weight_layers():
    for depth in (8, 14, 20):
        network = build_network(f"resnet(depth={depth})", (3, 32, 32), 10)
        layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len([m for m in layers if getattr(m, "kernel_size", 0) != (1, 1)]) == depth


def test_graph_network_ignores_order_and_padding(generator):
    network = build_network("gcn(width=8)", GRAPH, 3)
    x = graphs(3, generator)
    order = torch.tensor([2, 0, 1, 3, 4])
    shuffled = {
        "nodes": x["nodes"][:, order],
        "adjacency": x["adjacency"][:, order][:, :, order],
        "mask": x["mask"][:, order],
    }
    torch.testing.assert_close(network(shuffled)[:1], network(x)[:1])  # the first graph has all five nodes
    larger = {
        "nodes": nn.functional.pad(x["nodes"], (0, 0, 0, 2)),
        "adjacency": nn.functional.pad(x["adjacency"], (0, 2, 0, 2)),
        "mask": nn.functional.pad(x["mask"], (0, 2)),
    }
    torch.testing.assert_close(network(larger), network(x))


def test_transformer_reads_positions(generator):
    network = build_network("transformer(width=16)", (6, 5), 3).eval()
    x = torch.randn(2, 6, 5, generator=generator)
    assert not torch.allclose(network(x), network(x.flip(1)), atol=1e-4)


def test_default_network():
    assert default_network((3, 8, 8)) == "cnn"
    assert default_network([12, 4]) == "transformer"
    assert default_network((7,)) == "mlp"
    assert default_network(GRAPH) == "gcn"


@pytest.mark.parametrize(
    ("spec", "shape", "word"),
    [
        ("cnn", (7,), "images"),
        ("resnet", (3, 8), "images"),
        ("resnet(depth=9)", (3, 8, 8), "6 n"),
        ("resnet(width=12)", (3, 8, 8), "multiple of 8"),
        ("transformer", (3, 9, 8), "patches"),
        ("transformer", (7,), "sequences"),
        ("gcn", (3, 8, 8), "graphs"),
        ("mlp", GRAPH, "several inputs"),
        ("linear", GRAPH, "several inputs"),
        ("mlp(widht=3)", (7,), "'width'"),
        ("mpl", (7,), "'mlp'"),
    ],
)
def test_errors(spec, shape, word):
    with pytest.raises(InputError, match=word):
        build_network(spec, shape, 2)
