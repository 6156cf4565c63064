"""How new are synthetic domains, and what of the unseen ones has leaked into them?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

Features = Callable[[Shift], Any]
"""Shift -> (N, d) numbers, comparable between shifts."""

COPY = 0.5
"""An example is a near copy when it is closer than this share of the distance to the next real example."""
LEAK = 0.01
"""Share of near copies above that among the unseen examples themselves, from which there is a warning."""
SIDE, DIMENSIONS = 16, 32


def novelty_report(
    synthetic: Shift,
    real: Shift,
    *,
    unseen: str | Iterable[str] = (),
    features: Features | None = None,
    examples: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each synthetic domain: how it stands to the training and to the unseen domains of `real`.

    For `training` and, where there are some, `unseen`:
    nearest ...   the real domain at the least distance
    distance ...  energy distance to it (Szekely & Rizzo 2013): 0 for one distribution; features have variance 1
                  along their first component
    auc ...       of a linear classifier of the domain against these real ones, cross-validated: 0.5 cannot be
                  told apart, 1 is new (NaN below four examples)
    copies ...    share of near copies: examples closer to a real one than COPY times that one's distance to its
                  nearest real neighbour. Few features make copies by chance; unseen examples that are copied more
                  often than they copy each other are a leak, and warned of

    features  None: pixels at 16 x 16, or words weighted by TF-IDF, or standardised numbers, in 32 principal
              components of all examples. A generator imitates what its training data showed: features of a
              pretrained network see that better
    examples  at most, of each domain, for distance and AUC; copies are sought among all real examples
    """
    held_out = (unseen,) if isinstance(unseen, str) else tuple(unseen)
    for name in held_out:
        if name not in real.domains:
            raise InputError(f"unseen domain {name!r}", "is not a real domain", nearest(name, real.domains))
    if features is None:
        made, found = plain_features(synthetic, real)
    else:
        made, found = (np.asarray(features(shift), dtype=np.float64) for shift in (synthetic, real))
    if (
        made.ndim != 2
        or made.shape[1:] != found.shape[1:]
        or len(made) != len(synthetic)
        or len(found) != len(real)
    ):
        raise InputError(
            "features", f"have shapes {made.shape} and {found.shape}", "Give (N, d) for each shift."
        )
    groups = {
        "training": [name for name in real.domains if name not in held_out],
        "unseen": list(held_out),
    }
    real_domain = real.domain.numpy()
    members = {name: np.flatnonzero(real_domain == d) for d, name in enumerate(real.domains)}
    rows = []
    for d, name in enumerate(synthetic.domains):
        own = made[(synthetic.domain == d).numpy()]
        if not len(own):
            continue
        own_few = _few(own, examples, derive_seed(seed, d))
        row: dict[str, Any] = {"domain": name, "examples": len(own)}
        for group, names in groups.items():
            names = [n for n in names if len(members[n])]
            if not names:
                continue
            parts = {
                n: _few(found[members[n]], examples, derive_seed(seed, d, i)) for i, n in enumerate(names)
            }
            distances = {n: energy_distance(own_few, part) for n, part in parts.items()}
            row[f"nearest {group}"] = min(distances, key=lambda n: distances[n])
            row[f"distance {group}"] = min(distances.values())
            together = _few(np.concatenate(list(parts.values())), examples, derive_seed(seed, d))
            row[f"auc {group}"] = domain_auc(own_few, together)
            row[f"copies {group}"] = near_copies(own, found[np.concatenate([members[n] for n in names])])
        rows.append(row)
    table = pd.DataFrame(rows).set_index("domain")
    if "copies unseen" in table:
        expected = chance_copies(found[np.isin(real_domain, [real.domains.index(n) for n in held_out])])
        leaks = table.index[table["copies unseen"] > expected + LEAK]
        if len(leaks):
            warnings.warn(
                f"{len(leaks)} synthetic domain(s) hold near copies of unseen examples, such as {leaks[0]!r}: the "
                "generator may have seen them.",
                UnseenWarning,
                stacklevel=2,
            )
    return table


def energy_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """sqrt(2 E|a - b| - E|a - a'| - E|b - b'|) of two samples (n, d), (m, d); pairs of different examples."""
    within = [cdist(x, x).sum() / max(1, len(x) * (len(x) - 1)) for x in (a, b)]
    return float(np.sqrt(max(0.0, 2 * cdist(a, b).mean() - sum(within))))


def domain_auc(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """AUC of a cross-validated logistic regression between two samples; NaN when one has fewer than four."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if min(len(a), len(b)) < 4:
        return float("nan")
    x, y = np.concatenate([a, b]), np.repeat([1, 0], [len(a), len(b)])
    folds = StratifiedKFold(min(5, len(a), len(b)), shuffle=True, random_state=0)
    model = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced")
    scores = cross_val_predict(model, x, y, cv=folds, method="decision_function")
    return float(roc_auc_score(y, scores))


def near_copies(made: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """Share of `made` (n, d) that are near copies of a row of `real` (m, d), as `novelty_report` defines them."""
    from sklearn.neighbors import NearestNeighbors

    if len(real) < 2:
        return float("nan")
    neighbours = NearestNeighbors(n_neighbors=2).fit(real)
    apart = neighbours.kneighbors(real)[0][:, 1]
    distance, index = neighbours.kneighbors(made, n_neighbors=1)
    return float(np.mean(distance[:, 0] <= COPY * apart[index[:, 0]]))


def chance_copies(real: NDArray[np.float64]) -> float:
    """Share of the rows (m, d) that would be near copies of the other rows: what chance makes; NaN below three."""
    from sklearn.neighbors import NearestNeighbors

    if len(real) < 3:
        return float("nan")
    distances, indices = NearestNeighbors(n_neighbors=3).fit(real).kneighbors(real)
    nearest, distance = indices[:, 1], distances[:, 1]
    itself = indices[nearest, 1] == np.arange(len(real))
    apart = np.where(itself, distances[nearest, 2], distances[nearest, 1])
    return float(np.mean(distance <= COPY * apart))


def plain_features(a: Shift, b: Shift) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features of two shifts without a network: at most 32 principal components of both together."""
    from sklearn.decomposition import PCA, TruncatedSVD

    if a.kind != b.kind or a.kind not in ("array", "image", "text"):
        raise InputError(
            f"data of kinds {a.kind!r} and {b.kind!r}",
            "have no plain features",
            "Give arrays, images or texts of one kind, or features=... that reads yours.",
        )
    if a.kind == "text":
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform([*a.inputs, *b.inputs])
        count = max(1, min(DIMENSIONS, words.shape[1] - 1))
        x = (
            TruncatedSVD(count, random_state=0).fit_transform(words)
            if words.shape[1] > 1
            else words.toarray()
        )
    else:
        read = _pixels if a.kind == "image" else _numbers
        parts = [read(shift) for shift in (a, b)]
        if parts[0].shape[1] != parts[1].shape[1]:
            raise InputError(
                "real and synthetic rows",
                f"have {parts[1].shape[1]} and {parts[0].shape[1]} numbers",
                "Generate rows of the real shape.",
            )
        x = np.concatenate(parts)
        if a.kind == "array":
            x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
        x = PCA(min(DIMENSIONS, *x.shape), random_state=0).fit_transform(x)
    x = x / max(float(x[:, 0].std()), 1e-12)
    return x[: len(a)], x[len(a) :]


def _numbers(shift: Shift) -> NDArray[np.float64]:
    return np.asarray(shift.inputs, dtype=np.float64).reshape(len(shift), -1)


def _pixels(shift: Shift) -> NDArray[np.float64]:
    """Grey levels at 16 x 16, so that sets of images of any size can be compared."""
    from torch.nn.functional import interpolate

    parts = []
    for rows in torch.arange(len(shift)).split(256):
        images = torch.as_tensor(shift.take(rows)).double().mean(1, keepdim=True) / 255
        parts.append(interpolate(images, (SIDE, SIDE), mode="area").flatten(1))
    return torch.cat(parts).numpy()


def _few(x: NDArray[np.float64], most: int, seed: int) -> NDArray[np.float64]:
    if len(x) <= most:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most].numpy()]
