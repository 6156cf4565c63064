import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from unseen.errors import InputError, UnseenWarning
from unseen.shifts.adapters import from_datasets, from_graphs, from_wilds
from unseen.shifts.checks import check_shift

IMAGES = load_digits().images[:8].astype(np.uint8) * 15
LABELS = load_digits().target[:8]
PLACES = ["ward", "clinic"] * 4


def read(call, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.fixture
def hugging_face():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "digit": datasets.ClassLabel(names=[f"digit {i}" for i in range(10)]),
            "place": datasets.Value("string"),
            "note": datasets.Value("string"),
            "ink": datasets.Value("float32"),
        }
    )
    columns = {
        "image": [Image.fromarray(image) for image in IMAGES],
        "digit": LABELS.tolist(),
        "place": PLACES,
        "note": [f"note {i}" for i in range(8)],
        "ink": IMAGES.mean((1, 2)).tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_hugging_face_images(hugging_face):
    shift = from_datasets(hugging_face, label="digit", domain="place")
    assert shift.kind == "image" and shift.domains == ("clinic", "ward") and shift.classes[3] == "digit 3"
    assert (shift.inputs.size, shift.inputs.channels) == ((8, 8), 1)
    np.testing.assert_array_equal(shift.take(torch.tensor([6, 1]))[:, 0], IMAGES[[6, 1]])
    again = from_datasets(hugging_face, label="digit", domain="place")
    assert again.fingerprint == shift.fingerprint
    assert from_datasets(hugging_face, label="digit", domain="place", image_size=4).inputs.size == (4, 4)


def test_hugging_face_text_and_columns(hugging_face):
    texts = from_datasets(hugging_face, label="digit", domain="place", text="note")
    assert texts.kind == "text" and texts.inputs[2] == "note 2"
    table = from_datasets(hugging_face, label="digit", domain="place", features=["ink"])
    assert table.kind == "table" and list(table.inputs.columns) == ["ink"]


def test_hugging_face_bad_images_are_left_out(hugging_face):
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "png")
    data = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": buffer.getvalue()}, {"bytes": b"no picture"}] * 2,
            "y": [0, 0, 1, 1],
            "d": ["a", "a", "b", "b"],
        }
    ).cast_column("image", datasets.Image())
    shift = from_datasets(data, label="y", domain="d")
    with pytest.warns(UnseenWarning):  # each class is in one domain only
        read(lambda: check_shift(shift), "image 'row 1'", "cannot be decoded")
    with pytest.warns(UnseenWarning, match="2 image.s. cannot be decoded .*'row 1', 'row 3'"):
        kept = from_datasets(data, label="y", domain="d", skip_bad=True)
    assert kept.ids == [0, 2] and tuple(kept.take(torch.arange(2)).shape) == (2, 1, 8, 8)


def test_hugging_face_mistakes_are_named(hugging_face):
    datasets = pytest.importorskip("datasets")
    read(lambda: from_datasets(hugging_face, label="digits", domain="place"), "'digits'", "'digit'")
    read(lambda: from_datasets(hugging_face, label="digit", domain="place", image="img"), "'img'", "'image'")
    splits = datasets.DatasetDict(train=hugging_face, test=hugging_face)
    read(
        lambda: from_datasets(splits, label="digit", domain="place"),
        "'train', 'test'",
        "concatenate_datasets",
    )
    stream = hugging_face.to_iterable_dataset()
    read(lambda: from_datasets(stream, label="digit", domain="place"), "IterableDataset", "streaming")


class WildsLike:
    """What a WILDS data set offers: y_array, metadata_array, metadata_fields, metadata_map, [row]."""

    dataset_name, version = "wards", "1.0"
    metadata_fields = ("hospital", "slide", "y")
    metadata_map = {"hospital": ["north", "south"]}  # noqa: RUF012

    def __init__(self, inputs):
        self.inputs = inputs
        self.y_array = torch.tensor(LABELS % 2)
        self.metadata_array = torch.tensor([[i % 2, i // 2, int(LABELS[i] % 2)] for i in range(8)])

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        return self.inputs[row], self.y_array[row], self.metadata_array[row]


def test_wilds_images_are_decoded_when_asked_for():
    shift = from_wilds(
        WildsLike([Image.fromarray(image) for image in IMAGES]), "hospital", group_field="slide"
    )
    assert (shift.name, shift.kind, shift.domains) == ("wards", "image", ("north", "south"))
    assert shift.groups == ("0", "1", "2", "3") and shift.classes == ("0", "1")
    assert shift.domain.tolist() == [0, 1] * 4 and shift.labels.tolist() == (LABELS % 2).tolist()
    np.testing.assert_array_equal(shift.take(torch.tensor([5]))[0, 0], IMAGES[5])


def test_wilds_texts_and_tensors():
    assert from_wilds(WildsLike([f"post {i}" for i in range(8)]), "hospital").inputs[7] == "post 7"
    tensors = from_wilds(WildsLike(list(torch.from_numpy(IMAGES))), "slide")
    assert tensors.kind == "array" and tuple(tensors.inputs.shape) == (8, 8, 8)
    read(lambda: from_wilds(WildsLike([{}] * 8), "hospital"), "type dict", "from_graphs")
    ragged = WildsLike([torch.ones(i + 1) for i in range(8)])
    read(lambda: from_wilds(ragged, "hospital"), "8 shapes")


def test_wilds_fields_and_missing_labels_are_named():
    data = WildsLike(list(torch.from_numpy(IMAGES)))
    read(lambda: from_wilds(data, "hospitl"), "field 'hospitl'", "Did you mean 'hospital'")
    data.y_array = torch.tensor([0, 1, torch.nan, 1, 0, 1, 0, 1])
    read(lambda: from_wilds(data, "hospital"), "missing in 1 of 8 rows", "row 2")
    with pytest.warns(UnseenWarning, match="1 of 8 rows"):
        assert len(from_wilds(data, "hospital", skip_bad=True)) == 7


@pytest.fixture
def graphs():
    """A path of three nodes and a triangle with a tail, three times each, with sizes as domains."""
    data = pytest.importorskip("torch_geometric.data")
    path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    tail = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 3]])
    return [
        data.Data(x=torch.rand(n, 2), edge_index=edges, y=torch.tensor([i % 2]), nodes_in_all=n)
        for i in range(3)
        for n, edges in ((3, path), (4, tail))
    ]


def test_graphs_are_padded_to_the_largest(graphs):
    shift = from_graphs(graphs, domain="nodes_in_all")
    nodes, adjacency, mask = (shift.inputs[name] for name in ("nodes", "adjacency", "mask"))
    assert shift.kind == "graph" and shift.domains == ("3", "4") and shift.classes == ("0", "1")
    assert tuple(nodes.shape) == (6, 4, 2) and tuple(adjacency.shape) == (6, 4, 4)
    assert mask.sum(1).tolist() == [3, 4] * 3 and (nodes[0, 3] == 0).all()
    for i, graph in enumerate(graphs):
        assert torch.equal(nodes[i, : graph.num_nodes], graph.x)
        edges = {(int(s), int(t)) for t, s in adjacency[i].nonzero()}
        assert edges == set(map(tuple, graph.edge_index.T.tolist()))


def test_graphs_without_features_get_degrees(graphs):
    for graph in graphs:
        graph.x = None
        graph.num_nodes = graph.nodes_in_all
    shift = from_graphs(graphs, domain=["small", "large"] * 3)
    assert shift.inputs["nodes"][0, :, 0].tolist() == [1, 2, 1, 0] and shift.domains == ("large", "small")


def test_graph_mistakes_are_named(graphs, monkeypatch):
    read(lambda: from_graphs([], domain="nodes_in_all"), "graphs", "none")
    read(lambda: from_graphs(graphs, domain="scaffold"), "domain 'scaffold'", "no attribute")
    read(lambda: from_graphs(graphs, domain="size"), "domain 'size'", "no attribute")  # a method of Data
    read(lambda: from_graphs(graphs, domain=[0, 1]), "domain", "2 values for 6 graphs")
    monkeypatch.setattr("unseen.shifts.adapters.LARGEST_GRAPHS", 100)
    read(lambda: from_graphs(graphs, domain="nodes_in_all"), "padded", "4 nodes", "Leave the largest out")
    monkeypatch.undo()
    graphs[2].x = torch.rand(3, 5)
    read(lambda: from_graphs(graphs, domain="nodes_in_all"), "graph 2", "5 node features")
