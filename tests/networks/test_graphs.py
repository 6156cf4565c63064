import pytest
import torch

from unseen.errors import InputError
from unseen.networks import build_network

SHAPE = {"nodes": [7, 1], "adjacency": [7, 7], "mask": [7]}


def graphs():
    """A path of five nodes and a triangle with a tail, padded to seven."""
    links = torch.zeros(2, 7, 7)
    for graph, edges in enumerate(
        ([(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4)])
    ):
        for a, b in edges:
            links[graph, a, b] = links[graph, b, a] = 1
    mask = torch.zeros(2, 7)
    mask[:, :5] = 1
    return {"nodes": links.sum(2, keepdim=True), "adjacency": links, "mask": mask}


@pytest.fixture(params=["sum", "mean"])
def network(request):
    torch.manual_seed(0)
    return build_network(f"gin(width=8, readout={request.param!r})", SHAPE, 3)


def test_the_order_of_nodes_does_not_matter(network):
    x, order = graphs(), torch.tensor([3, 0, 4, 2, 1, 5, 6])
    turned = {"nodes": x["nodes"][:, order], "adjacency": x["adjacency"][:, order][:, :, order],
              "mask": x["mask"][:, order]}  # fmt: skip
    assert torch.allclose(network(x), network(turned), atol=1e-6)


def test_padding_does_not_matter(network):
    x = graphs()
    noisy = {**x, "nodes": x["nodes"] + 5 * (1 - x["mask"]).unsqueeze(2)}
    assert network.featurizer(x).shape == (2, 8)
    assert torch.allclose(network(x), network(noisy), atol=1e-6)


def test_a_layer_is_the_written_sum():
    torch.manual_seed(0)
    network = build_network("gin(width=4, depth=1)", SHAPE, 2)
    x, featurizer = graphs(), network.featurizer
    with torch.no_grad():
        featurizer.eps.fill_(0.3)
        total = torch.zeros(4)
        for node in range(5):
            near = x["adjacency"][1, node].nonzero().flatten()
            total += torch.relu(featurizer.layers[0](1.3 * x["nodes"][1, node] + x["nodes"][1, near].sum(0)))
        assert torch.allclose(featurizer(x)[1], total / 7, atol=1e-6)


def test_only_the_sum_sees_how_often_a_graph_is_repeated():
    torch.manual_seed(0)
    once = {"nodes": torch.ones(1, 4, 1), "adjacency": torch.zeros(1, 4, 4), "mask": torch.zeros(1, 4)}
    twice = {name: value.clone() for name, value in once.items()}
    once["mask"][:, :2], twice["mask"][:, :4] = 1, 1
    once["nodes"] = once["mask"].unsqueeze(2).clone()
    once["adjacency"][:, 0, 1] = once["adjacency"][:, 1, 0] = 1
    twice["adjacency"][:, [0, 1, 2, 3], [1, 0, 3, 2]] = 1
    shape = {"nodes": [4, 1], "adjacency": [4, 4], "mask": [4]}
    mean, total = (build_network(f"gin(readout={how!r})", shape, 2).featurizer for how in ("mean", "sum"))
    assert torch.allclose(mean(once), mean(twice), atol=1e-6)
    assert torch.allclose(2 * total(once), total(twice), atol=1e-6)


def test_what_is_no_graph_is_refused():
    with pytest.raises(InputError, match="It takes graphs"):
        build_network("gin", [5], 2)
    with pytest.raises(InputError, match="readout"):
        build_network("gin(readout='max')", SHAPE, 2)
