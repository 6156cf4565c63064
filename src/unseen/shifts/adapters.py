"""Data of other libraries as shifts: Hugging Face data sets, WILDS data sets, PyTorch Geometric graphs."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.shifts.arrays import from_arrays
from unseen.shifts.coding import complete_rows, encode, some
from unseen.shifts.images import Images, common_size, is_grey, upright_size
from unseen.shifts.shift import Shift
from unseen.shifts.tables import from_dataframe

__all__ = ["from_arrays", "from_dataframe", "from_datasets", "from_graphs", "from_wilds"]

SAMPLED = 100
"""Images opened to learn the size and channels of a data set that has no cheap headers."""
LARGEST_GRAPHS = 4 << 30
"""Bytes of padded graphs above which `from_graphs` refuses."""


class DatasetImages(Images):
    """Images that another library's data set opens: `dataset[row]`, then the item named `column`.

    dataset   anything with `dataset[row]`
    column    a key (Hugging Face) or position (WILDS) in what `dataset[row]` gives
    rows      the data set's rows that are used
    identity  names the data set and its version, for the fingerprint
    """

    def __init__(
        self,
        dataset: Any,
        column: str | int,
        rows: np.ndarray,
        identity: str,
        image_size: int | tuple[int, int] | None,
    ):
        self.dataset, self.column, self.rows, self.identity = dataset, column, rows, identity
        spread = np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int)
        sample = [image for row in spread if (image := self._try(row)) is not None]
        if not sample:
            raise InputError(f"image column {column!r}", "has no image to decode", "Check the data.")
        size = common_size([upright_size(image) for image in sample], image_size)
        super().__init__(len(rows), size, 1 if all(is_grey(image) for image in sample) else 3)

    def _try(self, row: int) -> Image.Image | None:
        try:
            return self.open(row)
        except Exception:  # decoders raise many types; `take` and `find_bad` report them with the row
            return None

    def open(self, row: int) -> Image.Image:
        return self.dataset[int(self.rows[row])][self.column]

    def name(self, row: int) -> str:
        return f"row {self.rows[row]}"

    def _select(self, rows: list[int]) -> None:
        self.rows = self.rows[rows]

    @property
    def fingerprint(self) -> str:
        text = f"{self.identity} {self.column} {self.size} {self.channels}"
        return hashlib.sha256(text.encode() + np.asarray(self.rows, np.int64).tobytes()).hexdigest()[:16]


def from_datasets(
    dataset: Any,
    *,
    label: str,
    domain: str,
    image: str | None = None,
    text: str | None = None,
    features: Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    name: str = "dataset",
) -> Shift:
    """A shift from a Hugging Face `datasets.Dataset`.

    image     column of images -> kind "image", decoded when asked for. None: the image column, if there is
              one and neither `text` nor `features` is given
    text      column of texts -> kind "text"
    features  columns to learn from -> kind "table"; None takes all without another role

    Numbers of a `ClassLabel` column become its names. The other arguments are those of `from_dataframe`
    and `open_shift`. Raises `InputError` for a `DatasetDict`: choose or concatenate its splits first.
    """
    if isinstance(dataset, dict):
        raise InputError(
            "dataset",
            f"has several splits: {', '.join(map(repr, dataset))}",
            "Give one, dataset['train'], or datasets.concatenate_datasets(list(dataset.values())).",
        )
    if not hasattr(dataset, "num_rows"):
        raise InputError(
            f"data set of type {type(dataset).__name__}",
            "has no rows to count or to choose from",
            "Give a datasets.Dataset; load it without streaming=True.",
        )
    kinds = {column: type(feature).__name__ for column, feature in dataset.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    if image is None and text is None and features is None and images:
        image = images[0]
    if image is not None and image not in images:
        raise InputError(f"image column {image!r}", "is not a column of images", nearest(image, images))
    # The table of everything but images is small; images stay where they are.
    light = dataset.select_columns([column for column in kinds if column not in images])
    frame = light.to_pandas()
    for column, kind in kinds.items():
        if kind == "ClassLabel":
            names = dict(enumerate(dataset.features[column].names))
            frame[column] = frame[column].map(names)  # a missing label (-1 or None) has no name
    if image is None:
        roles: dict[str, Any] = {"group": group, "time": time, "text": text, "features": features}
        return from_dataframe(frame, label, domain, **roles, skip_bad=skip_bad, name=name)
    table = from_dataframe(
        frame.assign(**{image: 0}), label, domain, group=group, time=time, features=[image], skip_bad=skip_bad
    )
    rows = np.asarray(table.ids)
    identity = str(getattr(dataset, "_fingerprint", name))
    return _with_images(table, DatasetImages(dataset, image, rows, identity, image_size), name, skip_bad)


def from_wilds(
    dataset: Any,
    domain_field: str,
    *,
    group_field: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    name: str | None = None,
) -> Shift:
    """A shift from a WILDS data set (Koh et al. 2021, arXiv 2012.07421) or a subset of one.

    domain_field  one of `dataset.metadata_fields`, such as "hospital" in Camelyon17; `group_field` likewise
    skip_bad      leave rows without a label (NaN) out, with a warning, instead of raising

    Inputs are images (decoded when asked for), texts, or tensors of one shape. Field values are named by
    `dataset.metadata_map` where it knows them. Raises `InputError` for an unknown field or graph inputs.
    """
    fields = list(dataset.metadata_fields)
    metadata = np.asarray(dataset.metadata_array)

    def column(field: str) -> pd.Series:
        if field not in fields:
            raise InputError(f"metadata field {field!r}", "is not in the data set", nearest(field, fields))
        values = pd.Series(metadata[:, fields.index(field)])
        names = (getattr(dataset, "metadata_map", None) or {}).get(field)
        return values if names is None else values.map(dict(enumerate(map(str, names))))

    name = name or str(getattr(dataset, "dataset_name", "wilds"))
    labels = np.asarray(dataset.y_array)
    if labels.ndim > 1 and labels.shape[1] > 1:
        raise InputError(f"data set {name!r}", f"has {labels.shape[1]} tasks", "Give one with one task.")
    frame = pd.DataFrame({"y": labels.reshape(-1), "domain": column(domain_field), "input": 0})
    if group_field is not None:
        frame["group"] = column(group_field)
    group = None if group_field is None else "group"
    table = from_dataframe(frame, "y", "domain", group=group, features=["input"], skip_bad=skip_bad)
    rows = np.asarray(table.ids)
    first = dataset[int(rows[0])][0]
    if isinstance(first, Image.Image):
        # A subset of a WILDS data set knows which rows of the whole it has.
        indices = np.asarray(getattr(dataset, "indices", ())).tobytes()
        identity = f"{name} {getattr(dataset, 'version', '')} {hashlib.sha256(indices).hexdigest()}"
        return _with_images(table, DatasetImages(dataset, 0, rows, identity, image_size), name, skip_bad)
    if not isinstance(first, (str, Tensor, np.ndarray)):
        raise InputError(
            f"data set {name!r}", f"has inputs of type {type(first).__name__}", "Use from_graphs for graphs."
        )
    inputs = [dataset[int(row)][0] for row in rows]
    if isinstance(first, str):
        return replace(table, name=name, kind="text", inputs=inputs)
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) > 1:
        raise InputError(f"data set {name!r}", f"has inputs of {len(shapes)} shapes", "Give them one shape.")
    return replace(
        table, name=name, kind="array", inputs=torch.stack([torch.as_tensor(x).float() for x in inputs])
    )


def from_graphs(
    graphs: Sequence[Any],
    domain: Any,
    *,
    label: Any = "y",
    skip_bad: bool = False,
    name: str = "graphs",
) -> Shift:
    """A shift of kind "graph" from PyTorch Geometric `Data` objects.

    domain  N names or numbers, or the name of an attribute of the graphs
    label   N class names or numbers, or the name of an attribute of the graphs

    Inputs are a dict of float tensors padded to the largest graph: "nodes" (N, n, d), "adjacency" (N, n, n)
    with `edge_weight` or 1 at [target, source], "mask" (N, n) with 1 at real nodes. Graphs without node
    features get each node's degree as their one feature. Edge features (`edge_attr`) have no place in this
    form. Raises `InputError` for graphs without nodes, of unlike features, or too large to pad.
    """
    graphs = list(graphs)
    if not graphs:
        raise InputError("graphs", "are none", "Give a list of torch_geometric.data.Data.")
    roles = {
        role: _graph_column(graphs, values, role) for role, values in (("label", label), ("domain", domain))
    }
    rows = complete_rows(roles, skip_bad)
    labels, classes = encode(roles["label"].iloc[rows], "label")
    domains, domain_names = encode(roles["domain"].iloc[rows], "domain")
    return Shift(
        name=name,
        kind="graph",
        inputs=_padded([graphs[row] for row in rows], rows),
        labels=labels,
        domain=domains,
        classes=classes,
        domains=domain_names,
        ids=rows.tolist(),
    )


def _graph_column(graphs: list[Any], values: Any, role: str) -> pd.Series:
    if isinstance(values, str):
        found = [getattr(graph, values, None) for graph in graphs]
        found = [None if callable(value) else value for value in found]  # Data has methods such as `size`
        if all(value is None for value in found):
            raise InputError(f"{role} {values!r}", "is no attribute of the graphs", "Give N values instead.")
        values = found
    values = [value.item() if isinstance(value, (Tensor, np.generic)) else value for value in values]
    if len(values) != len(graphs):
        raise InputError(role, f"has {len(values)} values for {len(graphs)} graphs", "Give one for each.")
    return pd.Series(values)


def _padded(graphs: list[Any], rows: np.ndarray) -> dict[str, Tensor]:
    sizes = [int(graph.num_nodes) for graph in graphs]
    widths = [1 if graph.x is None else math.prod(graph.x.shape[1:]) for graph in graphs]
    for row, size, width in zip(rows, sizes, widths, strict=True):
        if size == 0:
            raise InputError(f"graph {row}", "has no nodes", "Leave it out.")
        if width != widths[0]:
            raise InputError(
                f"graph {row}",
                f"has {width} node features, but graph {rows[0]} has {widths[0]}",
                "Give every graph the same features.",
            )
    most = max(sizes)
    needed = 4 * len(graphs) * most * (most + widths[0] + 1)
    if needed > LARGEST_GRAPHS:
        raise InputError(
            "graphs",
            f"need {needed / 2**30:.0f} GiB when padded to the largest, which has {most} nodes",
            f"Leave the largest out; half of the graphs have at most {int(np.median(sizes))} nodes.",
        )
    nodes = torch.zeros(len(graphs), most, widths[0])
    adjacency = torch.zeros(len(graphs), most, most)
    mask = torch.zeros(len(graphs), most)
    for place, (graph, size) in enumerate(zip(graphs, sizes, strict=True)):
        sources, targets = graph.edge_index
        weight = getattr(graph, "edge_weight", None)
        adjacency[place, targets, sources] = 1.0 if weight is None else weight.float()
        mask[place, :size] = 1
        features = adjacency[place, :size].count_nonzero(1) if graph.x is None else graph.x
        nodes[place, :size] = features.reshape(size, -1).float()
    return {"nodes": nodes, "adjacency": adjacency, "mask": mask}


def _with_images(table: Shift, images: DatasetImages, name: str, skip_bad: bool) -> Shift:
    """`table` with its inputs replaced; with `skip_bad`, rows whose image cannot be decoded are left out."""
    broken = images.find_bad(range(len(images))) if skip_bad else {}
    if broken:
        listed = some([images.name(row) for row in broken])
        warnings.warn(
            f"data set {name!r}: {len(broken)} image(s) cannot be decoded and were left out: {listed}",
            UnseenWarning,
            stacklevel=3,
        )
        good = torch.tensor([row for row in range(len(images)) if row not in broken])
        table, images = table.subset(good), images.select(good)
    return replace(table, name=name, kind="image", inputs=images)
