"""From raw inputs to what a network takes. Fitted on training rows only, saved with the model as JSON.

`encode` runs once over all rows (impute, one-hot, count words); `finish` runs on every batch on its device
(uint8 images to normalised floats). Frozen pretrained encoders add themselves in `unseen.networks`.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.shifts.batch import Inputs, map_tensors
from unseen.shifts.shift import Shift, take


class Preprocessing:
    """Turns raw inputs of one kind into network inputs.

    shape   shape of one example as the network sees it, or a dict of shapes
    """

    kinds: ClassVar[dict[str, type[Preprocessing]]] = {}
    kind: ClassVar[str]
    shape: Any

    def __init_subclass__(cls) -> None:
        Preprocessing.kinds[cls.kind] = cls

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor) -> Self:
        """Learn what is needed (means, categories, words) from the given rows of a shift."""
        raise TypeError(f"{cls.__name__} must define fit")

    def encode(self, inputs: Any) -> Any:
        """Raw inputs of N examples to stored inputs: tensors, or anything with `take(rows)`."""
        raise TypeError(f"{type(self).__name__} must define encode")

    def finish(self, stored: Inputs) -> Inputs:
        """A batch of stored inputs to float network inputs; runs on the batch's device."""
        return stored

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **vars(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        values = dict(values)
        kind = values.pop("kind")
        if kind not in cls.kinds:
            raise InputError(f"preprocessing {kind!r}", "is not known", nearest(kind, cls.kinds))
        return cls.kinds[kind](**values)


class ArrayPreprocessing(Preprocessing):
    """Float arrays (N, ...): standardise every coordinate by its training mean and deviation."""

    kind = "array"

    def __init__(self, shape: list[int], mean: list[float], deviation: list[float]):
        self.shape, self.mean, self.deviation = list(shape), mean, deviation

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor) -> Self:
        values = torch.as_tensor(take(shift.inputs, rows)).double().flatten(1)
        deviation = values.std(0, correction=0)
        deviation[deviation < 1e-8 * values.abs().amax(0).clamp(min=1e-12)] = 1  # constant: nothing to scale
        shape = list(torch.as_tensor(shift.inputs[:1]).shape[1:])
        return cls(shape, values.mean(0).tolist(), deviation.tolist())

    def encode(self, inputs: Any) -> Tensor:
        values = torch.as_tensor(np.asarray(inputs) if not isinstance(inputs, Tensor) else inputs)
        if list(values.shape[1:]) != self.shape:
            raise InputError(
                "input array",
                f"has examples of shape {tuple(values.shape[1:])}",
                f"The model was trained on examples of shape {tuple(self.shape)}.",
            )
        bad = ~torch.isfinite(values.double().flatten(1)).all(1)
        if bad.any():
            raise InputError(
                "input array",
                f"has NaN or infinite values in {int(bad.sum())} row(s), first in row {int(bad.nonzero()[0])}",
                "Remove or impute them.",
            )
        mean, deviation = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.deviation))
        return ((values.double().flatten(1) - mean) / deviation).float().view(values.shape)


class ImagePreprocessing(Preprocessing):
    """uint8 images (N, C, H, W): kept as they are, normalised per channel batch by batch."""

    kind = "image"

    def __init__(self, shape: list[int], mean: list[float], deviation: list[float]):
        self.shape, self.mean, self.deviation = list(shape), mean, deviation

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor, most: int = 2000) -> Self:
        spread = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]
        images = take(shift.inputs, spread).float() / 255
        deviation = images.std((0, 2, 3)).clamp(min=1e-3)
        return cls(list(images.shape[1:]), images.mean((0, 2, 3)).tolist(), deviation.tolist())

    def encode(self, inputs: Any) -> Any:
        if isinstance(inputs, np.ndarray):
            inputs = torch.from_numpy(inputs)
        if isinstance(inputs, Tensor):
            if inputs.dtype != torch.uint8:
                raise InputError("images", f"have dtype {inputs.dtype}", "Give uint8 values from 0 to 255.")
            found = list(inputs.shape[1:])
        else:
            found = [inputs.channels, *inputs.size]
        if found != self.shape:
            raise InputError(
                "images",
                f"have shape {tuple(found)} (channels, height, width)",
                f"The model was trained on {tuple(self.shape)}.",
            )
        return inputs

    def finish(self, stored: Inputs) -> Inputs:
        assert isinstance(stored, Tensor)
        mean = stored.new_tensor(self.mean, dtype=torch.float32).view(-1, 1, 1)
        deviation = stored.new_tensor(self.deviation, dtype=torch.float32).view(-1, 1, 1)
        return (stored.float() / 255 - mean) / deviation


class TablePreprocessing(Preprocessing):
    """Tables: numbers are imputed by the median and standardised, categories become one-hot columns.

    A numeric column with missing values in training gets a further 0/1 column that says so. Categories that
    training did not have become all zeros, with a warning.
    """

    kind = "table"

    def __init__(self, columns: list[dict[str, Any]]):
        self.columns = columns
        width = sum(
            len(c["categories"]) if c["type"] == "category" else 1 + c["has_missing"] for c in columns
        )
        self.shape = [width]

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor, most_categories: int = 100) -> Self:
        frame = take(shift.inputs, rows)
        columns: list[dict[str, Any]] = []
        for name in frame.columns:
            values = frame[name]
            if _is_numeric(values):
                numbers = _numbers(values, name)
                median = float(np.nanmedian(numbers)) if np.isfinite(numbers).any() else 0.0
                filled = np.where(np.isnan(numbers), median, numbers)
                columns.append(
                    {
                        "name": str(name),
                        "type": "datetime" if pd.api.types.is_datetime64_any_dtype(values) else "number",
                        "median": median,
                        "mean": float(filled.mean()),
                        "deviation": float(filled.std()) or 1.0,
                        "has_missing": bool(np.isnan(numbers).any()),
                    }
                )
            else:
                counts = values.dropna().astype(str).value_counts()
                kept = sorted(counts.index[:most_categories])
                columns.append({"name": str(name), "type": "category", "categories": kept})
        return cls(columns)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "columns": self.columns}

    @property
    def names(self) -> list[str]:
        """The columns that a table must have."""
        return [column["name"] for column in self.columns]

    def encode(self, inputs: pd.DataFrame) -> Tensor:
        names = self.names
        missing = [name for name in names if name not in inputs.columns]
        if missing:
            raise InputError(
                "table",
                "lacks the column(s) " + ", ".join(map(repr, missing)) + " that the model was trained on",
                nearest(missing[0], [str(c) for c in inputs.columns]),
            )
        extra = [str(name) for name in inputs.columns if str(name) not in names]
        if extra:
            warnings.warn(
                f"table: the column(s) {', '.join(map(repr, extra))} were not in training and are ignored",
                UnseenWarning,
                stacklevel=2,
            )
        parts: list[np.ndarray] = []
        for column in self.columns:
            values = inputs[column["name"]]
            if column["type"] == "category":
                code = pd.Index(column["categories"]).get_indexer(
                    values.astype(str).where(values.notna(), None)
                )
                unknown = values[(code < 0) & values.notna().to_numpy()]
                if len(unknown):
                    warnings.warn(
                        f"column {column['name']!r}: {len(unknown)} of {len(values)} values, such as "
                        f"{unknown.iloc[0]!r} (row {unknown.index[0]}), are no categories that the model knows "
                        "and count as missing",
                        UnseenWarning,
                        stacklevel=2,
                    )
                parts.append((code[:, None] == np.arange(len(column["categories"]))).astype(np.float32))
                continue
            numbers = _numbers(values, column["name"])
            if np.isinf(numbers).any():
                raise InputError(
                    f"column {column['name']!r}",
                    f"has an infinite value in row {int(np.isinf(numbers).argmax())}",
                    "Replace it by a number or leave it empty.",
                )
            absent = np.isnan(numbers)
            filled = np.where(absent, column["median"], numbers)
            parts.append(((filled - column["mean"]) / column["deviation"])[:, None].astype(np.float32))
            if column["has_missing"]:
                parts.append(absent[:, None].astype(np.float32))
        return torch.from_numpy(np.concatenate(parts, 1))


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)


def _numbers(values: pd.Series, name: str) -> np.ndarray:
    """Numbers as float64 with NaN for missing; dates as days since 1970."""
    if pd.api.types.is_datetime64_any_dtype(values):
        days = (values - pd.Timestamp(0, tz=values.dt.tz)) / pd.Timedelta(days=1)
        return days.to_numpy(np.float64)
    try:
        return pd.to_numeric(values, errors="raise").to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        bad = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
        raise InputError(
            f"column {name!r}",
            f"holds {bad.iloc[0]!r} (row {bad.index[0]}) where the model expects a number",
            "Write numbers only, or leave the cell empty.",
        ) from None


class TextPreprocessing(Preprocessing):
    """Texts: TF-IDF of the most frequent words and word pairs of training (Salton & Buckley 1988)."""

    kind = "text"

    def __init__(self, words: list[str], idf: list[float]):
        self.words, self.idf = words, idf
        self.shape = [len(words)]

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor, most_words: int = 2000) -> Self:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(**_TEXT_OPTIONS, max_features=most_words)
        try:
            vectorizer.fit(take(shift.inputs, rows))
        except ValueError as error:
            raise InputError(
                "text", f"holds no words to learn from ({error})", "Give texts with words."
            ) from None
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.tolist())

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "words": self.words, "idf": self.idf}

    def encode(self, inputs: Any) -> Tensor:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(**_TEXT_OPTIONS, vocabulary=self.words)
        vectorizer.idf_ = np.asarray(self.idf)
        matrix = vectorizer.transform([str(text) for text in inputs])
        # TF-IDF rows have unit length; scaled so that a coordinate has about unit size, as other inputs do
        return torch.from_numpy(matrix.toarray().astype(np.float32)) * len(self.words) ** 0.5


_TEXT_OPTIONS: dict[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True, "strip_accents": "unicode"}


class GraphPreprocessing(Preprocessing):
    """Padded graphs: nodes (N, n, d), adjacency (N, n, n) and mask (N, n), standardised over real nodes."""

    kind = "graph"

    def __init__(self, shape: dict[str, list[int]], mean: list[float], deviation: list[float]):
        self.shape, self.mean, self.deviation = shape, mean, deviation

    @classmethod
    def fit(cls, shift: Shift, rows: Tensor) -> Self:
        inputs = take(shift.inputs, rows)
        nodes = inputs["nodes"][inputs["mask"].bool()].float()
        shape = {name: list(value.shape[1:]) for name, value in shift.inputs.items()}
        return cls(shape, nodes.mean(0).tolist(), nodes.std(0, correction=0).clamp(min=1e-6).tolist())

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = map_tensors(lambda t: torch.as_tensor(t).float(), inputs)
        if inputs["nodes"].shape[-1] != len(self.mean):
            raise InputError(
                "graphs",
                f"have {inputs['nodes'].shape[-1]} node features",
                f"The model was trained on {len(self.mean)}.",
            )
        scaled = (inputs["nodes"] - torch.tensor(self.mean)) / torch.tensor(self.deviation)
        return {**inputs, "nodes": scaled * inputs["mask"].unsqueeze(-1)}


def fit_preprocessing(shift: Shift, rows: Tensor) -> Preprocessing:
    """The preprocessing for a shift's kind of inputs, fitted on the given (training) rows."""
    return Preprocessing.kinds[shift.kind].fit(shift, rows)
