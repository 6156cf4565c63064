"""What a task measures: each metric with its direction, retrieval scores, accuracy under a mask of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unseen.errors import InputError, nearest

_HIGHER_IS_BETTER = {
    "accuracy": True, "mAP": True, "MRR": True, "R2": True, "AP": True, "AP50": True, "error": False, "nll": False
}  # fmt: skip
QUERIES_AT_ONCE = 256
"""Queries ranked at a time: a block of similarities, not the whole square, is in memory."""


def declare_metric(name: str, higher_is_better: bool) -> None:
    """Say which way a metric of your own task points; "recall@k" is known for every k.

    Raises InputError for a name that was declared the other way round.
    """
    if _HIGHER_IS_BETTER.setdefault(name, higher_is_better) != higher_is_better:
        raise InputError(f"metric {name!r}", "was declared with the other direction", "Choose another name.")


def higher_is_better(metric: str) -> bool:
    """Direction of a metric. Raises InputError when nobody has declared it: no ranking can guess it."""
    if metric.startswith("recall@"):
        return True
    if metric not in _HIGHER_IS_BETTER:
        remedy = (
            f"Call declare_metric({metric!r}, higher_is_better=...). {nearest(metric, _HIGHER_IS_BETTER)}"
        )
        raise InputError(f"metric {metric!r}", "has no declared direction", remedy)
    return _HIGHER_IS_BETTER[metric]


def masked_accuracy(logits: Tensor, labels: Tensor, valid: Sequence[int] | None = None) -> float:
    """Share of rows whose greatest logit among the valid classes is the label's.

    logits  (N, K);  labels (N,) in [0, K)
    valid   numbers of the classes that occur in the test set, as ImageNet-A's 200 of ImageNet's 1,000; without
            the mask a model is also blamed for naming classes that the test set cannot hold
    Raises InputError for a mask without a class, or a label outside it.
    """
    if valid is not None:
        allowed = torch.as_tensor(sorted(set(valid)), dtype=torch.int64)
        if not len(allowed):
            raise InputError("label mask", "has no valid class", "Name at least one class of the test set.")
        if not bool(torch.isin(labels, allowed).all()):
            raise InputError("label mask", "leaves out a class that the labels hold", "Add it to the mask.")
        barred = torch.ones(logits.shape[1], dtype=torch.bool)
        barred[allowed] = False
        logits = logits.masked_fill(barred, -torch.inf)
    return float((logits.argmax(1) == labels).double().mean())


def retrieval_scores(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    recall_at: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """mAP, MRR and recall@k by cosine similarity; an item is relevant when it has the query's label.

    queries, gallery  features (Q, D) and (G, D); no gallery: every query searches all other queries
    recall@k          share of queries with a relevant item among the first k
    Queries without any relevant item say nothing and are left out. Raises InputError when all are.
    """
    alone = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = queries, query_labels
    queries, gallery = (torch.nn.functional.normalize(f.float(), dim=-1) for f in (queries, gallery))
    precision, reciprocal, first = [], [], []
    for rows in torch.arange(len(queries)).split(QUERIES_AT_ONCE):
        similarity = queries[rows] @ gallery.T
        if alone:
            similarity[torch.arange(len(rows)), rows] = -torch.inf  # itself comes last
        order = similarity.argsort(dim=1, descending=True, stable=True)
        relevant = gallery_labels[order] == query_labels[rows, None]
        if alone:
            relevant = relevant[:, :-1]
        relevant = relevant[relevant.any(1)]
        rank = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64)
        hits = relevant.double().cumsum(1)
        precision.append((hits / rank * relevant).sum(1) / hits[:, -1])
        first.append(relevant.int().argmax(1) + 1)
        reciprocal.append(1 / first[-1].double())
    if not sum(map(len, first)):
        raise InputError("queries", "have no relevant item in the gallery", "Give at least two of a class.")
    best = torch.cat(first)
    return {
        "mAP": float(torch.cat(precision).mean()),
        "MRR": float(torch.cat(reciprocal).mean()),
        **{f"recall@{k}": float((best <= k).double().mean()) for k in recall_at},
    }
