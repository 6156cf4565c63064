"""What may be wrong with data, said before hours of training are spent on them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.shifts.coding import SHOWN, first_rows, some
from unseen.shifts.findings import Finding, error, warning
from unseen.shifts.images import Images
from unseen.shifts.shift import Shift
from unseen.shifts.table_checks import check_table

LOOKED_AT = 50_000
"""Images that are decoded for checking; of a larger set, this many at even distances."""
WARNED_ONE_BY_ONE = 10
"""Domains that get a warning of their own for the classes they lack; more are summed up."""


def check_shift(shift: Shift) -> list[Finding]:
    """Look at all of the data; warn of what is doubtful, raise for what cannot be used.

    Looks at domains and classes, at missing, infinite and mixed values, constant and identifying columns,
    columns that give the label or the domain away, images that cannot be decoded, and copies across domains.

    Returns the findings and emits each warning as `UnseenWarning`. Raises one `InputError` for all errors.
    """
    findings = list(_findings(shift))
    for finding in findings:
        if finding.level == "warning":
            warnings.warn(str(finding), UnseenWarning, stacklevel=2)
    errors = [finding for finding in findings if finding.level == "error"]
    if len(errors) == 1:
        raise InputError(errors[0].subject, errors[0].problem, errors[0].remedy)
    if errors:
        listed = "".join(f"\n- {one}" for one in errors)
        raise InputError(f"shift {shift.name!r}", f"has {len(errors)} problems", f"Mend each:{listed}")
    return findings


def _findings(shift: Shift) -> Iterator[Finding]:
    yield from _check_counts(shift)
    if shift.kind == "table":
        yield from check_table(shift)
    elif shift.kind == "text":
        yield from _check_texts(shift.inputs)
    elif shift.kind in ("array", "graph"):
        yield from _check_arrays(shift.inputs)
    rows = np.arange(len(shift))
    if isinstance(shift.inputs, Images):
        rows = np.unique(np.linspace(0, len(shift) - 1, min(len(shift), LOOKED_AT)).astype(int))
        bad = shift.inputs.find_bad(rows.tolist())
        yield from _check_images(shift.inputs, bad)
        rows = np.array([row for row in rows if row not in bad], dtype=int)
    yield from _check_copies(shift, rows)


def _check_counts(shift: Shift) -> Iterator[Finding]:
    counts = shift.counts()
    if len(shift.domains) == 1 and shift.time is None:
        yield error(
            "domains",
            f"there is only one, {shift.domains[0]!r}",
            "Name a column that tells places, people or devices apart, or a time column.",
        )
    if len(shift.classes) == 1:
        yield error("labels", f"there is only one class, {shift.classes[0]!r}", "Name another.")
        return
    if len(shift) < 2 * len(shift.classes):
        yield error(
            "labels",
            f"there are {len(shift.classes)} classes in only {len(shift)} rows",
            "Every class needs at least two rows. Is the label column an identifier or a measured quantity?",
        )
        return
    if len(shift.domains) > max(1, len(shift) / 2):
        yield error(
            "domains",
            f"there are {len(shift.domains)} in only {len(shift)} rows",
            "Name a column with fewer values: a domain needs several rows.",
        )
        return
    for name in counts.columns[(counts == 0).all(axis=0)]:
        yield error(f"class {name!r}", "has no example", "Leave its name out of the classes.")
    absent = counts.loc[:, (counts > 0).any(axis=0)] == 0
    lacking = counts.index[absent.any(axis=1)]
    if len(lacking) > WARNED_ONE_BY_ONE:
        yield warning("domains", f"{len(lacking)} lack one or more classes: {some(list(lacking))}")
    else:
        for domain in lacking:
            yield warning(
                f"domain {domain!r}",
                f"has no example of class {some(list(absent.columns[absent.loc[domain]]))}",
                "What is learned about these classes comes from other domains only.",
            )
    if len(shift.domains) > 1:
        alone = absent.columns[(~absent).sum(axis=0) == 1]
        for name in alone[:WARNED_ONE_BY_ONE]:
            home = counts.index[~absent[name]][0]
            yield warning(
                f"class {name!r}",
                f"occurs in domain {home!r} only",
                "It cannot be learned when that domain is held out, and tells the domain where it is not.",
            )


def _check_texts(texts: Sequence[str]) -> Iterator[Finding]:
    empty = np.array([not text.strip() for text in texts])
    if empty.all():
        yield error("texts", "are all empty", "Name another text column.")
    elif empty.any():
        yield warning("texts", f"{empty.sum()} of {len(empty)} are empty ({first_rows(empty)})")


def _check_arrays(inputs: Any, name: str = "x") -> Iterator[Finding]:
    if isinstance(inputs, dict):
        for key, value in inputs.items():
            yield from _check_arrays(value, key)
        return
    values = torch.as_tensor(inputs)
    finite = torch.isfinite(values)
    if not finite.all():
        places = (~finite).nonzero()
        rows = len(places[:, 0].unique())
        yield error(
            f"array {name!r}",
            f"has {len(places)} NaN or infinite value(s) in {rows} row(s), first at {places[0].tolist()}",
            "Impute or remove them.",
        )
    elif name == "x" and values.ndim == 2 and values.shape[1] > 1:
        constant = (values == values[:1]).all(0).nonzero().squeeze(1).tolist()
        if constant:
            yield warning(f"array {name!r}", f"has {len(constant)} constant column(s): {some(constant)}")


def _check_images(images: Images, bad: dict[int, str]) -> Iterator[Finding]:
    for row, why in list(bad.items())[:SHOWN]:
        yield error(
            f"image {images.name(row)!r}",
            why,
            "Replace or remove it, or open the data with skip_bad=True (--skip-bad) to leave such images out.",
        )
    if len(bad) > SHOWN:
        yield error("images", f"{len(bad) - SHOWN} more cannot be decoded", "")


def _check_copies(shift: Shift, rows: np.ndarray) -> Iterator[Finding]:
    """Equal inputs in different domains: what was trained on is met again in the unseen domain."""
    domain = shift.domain.numpy()[rows]
    seen = pd.DataFrame({"content": pd.factorize(_contents(shift, rows))[0], "domain": domain})
    if seen.duplicated().sum() >= len(seen) / 2:
        return  # equal rows are usual within a domain too, as with a handful of categories: no copies
    across = seen.groupby("content")["domain"].transform("nunique").to_numpy() > 1
    if across.any():
        first = int(across.argmax())
        twin = int(((seen["content"] == seen["content"][first]) & (domain != domain[first])).argmax())
        named = [rows[place] if shift.ids is None else shift.ids[rows[place]] for place in (first, twin)]
        yield warning(
            "examples",
            f"{across.sum()} of {len(rows)} have an exact copy in another domain, such as {some(named)}",
            "Copies leak what is unseen into training and make results look better: keep each in one domain.",
        )


def _contents(shift: Shift, rows: np.ndarray) -> np.ndarray:
    """One hashable value for each row's content."""
    inputs = shift.inputs
    if isinstance(inputs, pd.DataFrame):
        plain = inputs.apply(lambda column: column.map(repr) if column.dtype == object else column)
        return pd.util.hash_pandas_object(plain, index=False).to_numpy()
    if isinstance(inputs, Images):
        return np.array(inputs.content_hashes(rows.tolist()), dtype=object)
    if isinstance(inputs, dict):
        parts = [np.asarray(inputs[key]).reshape(len(rows), -1) for key in sorted(inputs)]
    elif isinstance(inputs, (torch.Tensor, np.ndarray)):
        parts = [np.asarray(inputs).reshape(len(rows), -1)]
    else:
        return np.array(inputs, dtype=object)
    hashes = [hashlib.blake2b(digest_size=16) for _ in rows]
    for part in parts:
        for digest, row in zip(hashes, np.ascontiguousarray(part), strict=True):
            digest.update(row)
    return np.array([digest.digest() for digest in hashes], dtype=object)
