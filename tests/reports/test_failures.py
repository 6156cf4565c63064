import base64
import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unseen.reports.failures import MOST_CHARACTERS, confident_mistakes
from unseen.shifts import Shift

LABELS = torch.tensor([0, 1, 0, 1, 0, 1])
DOMAIN = torch.tensor([0, 0, 1, 1, 1, 1])
PROBABILITY_OF_1 = np.array([[0.7, 0.95, 0.2, 0.4]])  # of domain "b": rows 2 to 5, labels 0, 1, 0, 1


def mistakes(kind, inputs, **fields):
    """The chosen learner's mistakes on domain "b"; it is wrong on row 2 (70 %) and on row 5 (60 %)."""
    shift = Shift("s", kind, inputs, LABELS, DOMAIN, ("cat", "dog"), ("a", "b"), **fields)
    results = SimpleNamespace(
        unseen_domains=["a", "b"],
        labels=LABELS.numpy(),
        has=lambda method, domain: domain == "b",
        rows=lambda domain: np.arange(2, 6),
        probabilities=lambda method, domain: np.stack([1 - PROBABILITY_OF_1, PROBABILITY_OF_1], -1),
    )
    return confident_mistakes(results, shift, "erm")


def test_mistakes_by_confidence_with_names_labels_and_counts():
    (found,) = mistakes("text", list("abcdef"), ids=[f"row-{i}" for i in range(6)])
    assert (found.domain, found.wrong, found.n) == ("b", 2, 4)
    assert [(m.name, m.label, m.predicted, m.text) for m in found.mistakes] == [
        ("row-2", "cat", "dog", "c"),
        ("row-5", "dog", "cat", "f"),
    ]
    assert [m.confidence for m in found.mistakes] == pytest.approx([0.7, 0.6])


def test_images_keep_their_pixels():
    inputs = torch.randint(256, (6, 3, 9, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (found,) = mistakes("image", inputs)
    kind, data = found.mistakes[0].image.split(",")
    assert kind == "data:image/png;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert (picture == inputs[2].permute(1, 2, 0).numpy()).all()


def test_large_images_become_small():
    (found,) = mistakes("image", torch.zeros(6, 1, 300, 600, dtype=torch.uint8))
    picture = Image.open(io.BytesIO(base64.b64decode(found.mistakes[0].image.split(",")[1])))
    assert max(picture.size) <= 112 and picture.size[0] == 2 * picture.size[1]


def test_tables_show_columns_and_missing_values():
    frame = pd.DataFrame({"age": [1.0, 2, np.nan, 4, 5, 6.123456], "place": list("uvwxyz")})
    (found,) = mistakes("table", frame)
    assert found.columns == ("age", "place")
    assert [m.values for m in found.mistakes] == [("–", "w"), ("6.123", "z")]


def test_long_texts_are_cut():
    (found,) = mistakes("text", ["word " * 500] * 6)
    assert len(found.mistakes[0].text) <= MOST_CHARACTERS and found.mistakes[0].text.endswith("…")


def test_arrays_are_drawn_when_they_look_like_images_and_listed_otherwise():
    (found,) = mistakes("array", torch.randn(6, 1, 8, 8))
    assert found.mistakes[0].image.startswith("data:image/png")
    (found,) = mistakes("array", torch.arange(6 * 20.0).view(6, 20))
    assert found.mistakes[0].text == ", ".join(str(v) for v in range(40, 52)) + ", … (20 values)"


def test_graphs_are_named_at_least():
    (found,) = mistakes("graph", {"nodes": torch.zeros(6, 7, 2), "edges": torch.zeros(6, 7, 7)})
    assert found.mistakes[0].text == "graph, padded to 7 nodes" and found.mistakes[0].name == "2"
