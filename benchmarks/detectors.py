"""Fit and score of the detectors that learn, 50,000 training outputs of 512 features and 100 classes, 2,000 queries.

Run `python benchmarks/detectors.py [threads]`. Each is timed beside the obvious way of computing the same in
the same run: Mahalanobis distances and Gaussians class by class, OpenMax's row by row, neighbours by a blocked
matrix product alone: the least that a search through all rows can cost, so that a ratio of 1 is the best there is.
Seconds are CPU time of this process, which a busy machine disturbs least.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unseen.detection.class_gaussians import ClassGaussians
from unseen.detection.openmax import TRANSLATION, OpenMax
from unseen.networks import Bank
from unseen.registry import detectors

SAMPLES, QUERIES, FEATURES, CLASSES = 50_000, 2_000, 512, 100


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of `python -m benchmarks`, in microseconds a sample."""
    samples, count = (1_000, 20) if quick else (SAMPLES, QUERIES)
    train, queries = _outputs(samples, 0), _outputs(count, 1)
    plain, relative = detectors.build("mahalanobis"), detectors.build("relative-mahalanobis")
    gaussians, open_max = detectors.build("gmm").fit(train), detectors.build("openmax").fit(train)
    neighbours, every = detectors.build("knn"), detectors.build("knn", largest=samples)
    fit_loop = _seconds(lambda: _fit_loop(train)) / samples
    means, precision = _fit_loop(train)
    score_loop = _seconds(lambda: _score_loop(queries.features, means, precision)) / count
    gaussians_loop = _seconds(lambda: _gaussians_loop(queries.features, gaussians)) / count
    open_max_loop = _seconds(lambda: _open_max_loop(queries.take(torch.arange(min(count, 200))), open_max))
    rows = [
        _row("fit mahalanobis", _seconds(lambda: plain.fit(train)) / samples, fit_loop),
        _row("score mahalanobis", _seconds(lambda: plain.score(queries), 5) / count, score_loop, "<= 12"),
        _row("fit relative-mahalanobis", _seconds(lambda: relative.fit(train)) / samples, fit_loop),
        _row(
            "score relative-mahalanobis",
            _seconds(lambda: relative.score(queries), 5) / count,
            score_loop,
            "<= 25",
        ),
        _row("score gmm", _seconds(lambda: gaussians.score(queries), 5) / count, gaussians_loop, "<= 60"),
        _row(
            "score openmax",
            _seconds(lambda: open_max.score(queries), 5) / count,
            open_max_loop / min(count, 200),
            "<= 5",
        ),
        _row("fit knn", _seconds(lambda: neighbours.fit(train)) / samples),
    ]
    for what, detector in (("knn, 10,000 rows", neighbours), ("knn, all rows", every.fit(train))):
        product = _seconds(lambda bank=detector.bank: _product(queries.features, bank), 3) / count
        value = _seconds(lambda detector=detector: detector.score(queries), 3) / count
        rows.append(_row(f"score {what}", value, product, 0.8))
    return rows


def _outputs(count: int, seed: int) -> Bank:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    means = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(9))
    features = means[labels] + torch.randn(count, FEATURES, generator=generator)
    logits = features @ means.T / FEATURES  # about 1 for the own class, 0 for the others
    return Bank(features, logits, labels)


def _fit_loop(bank: Bank) -> tuple[list[Tensor], Tensor]:
    means, scatter = [], torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    for index in range(CLASSES):
        rows = bank.features[bank.labels == index].double()
        means.append(rows.mean(0))
        scatter += (rows - means[-1]).T @ (rows - means[-1])
    return means, torch.linalg.inv(scatter / len(bank) + 1e-4 * torch.eye(FEATURES, dtype=torch.float64))


def _score_loop(features: Tensor, means: list[Tensor], precision: Tensor) -> Tensor:
    distances = []
    for mean in means:
        offset = features.double() - mean
        distances.append(((offset @ precision) * offset).sum(1))
    return -torch.stack(distances).amin(0)


def _gaussians_loop(features: Tensor, fitted: ClassGaussians) -> Tensor:
    """The log-density of every class."""
    densities = []
    for mean, whitening, offset in zip(fitted.means, fitted.whitening, fitted.offset, strict=True):
        densities.append(offset - ((features - fitted.centre - mean) @ whitening.T).square().sum(1) / 2)
    return torch.stack(densities, 1).logsumexp(1)


def _open_max_loop(bank: Bank, fitted: OpenMax) -> list[Tensor]:
    """One example after the other, its largest logits one by one, as the authors' code does."""
    scores = []
    for logits in bank.logits.double():
        revised, unknown = logits.clone(), torch.zeros(())
        for rank, number in enumerate(logits.topk(fitted.alpha).indices.tolist()):
            distance = (logits - fitted.means[number]).norm() - fitted.smallest[number]
            log = torch.log1p(distance.clamp(min=1 - TRANSLATION) / TRANSLATION) - fitted.log_scale[number]
            far = 1 - torch.exp(-torch.exp(fitted.shape[number] * log))
            moved = logits[number] * far * (fitted.alpha - rank) / fitted.alpha
            revised[number] -= moved
            unknown = unknown + moved
        scores.append(revised.logsumexp(0) - unknown)
    return scores


def _product(queries: Tensor, bank: Tensor) -> None:
    queries = torch.nn.functional.normalize(queries, dim=1)
    for rows in bank.split(16_384):
        queries @ rows.T


def _seconds(work: Callable[[], Any], times: int = 1) -> float:
    """The best of several runs: what others do on the machine only adds."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def _row(
    what: str, value: float, reference: float | None = None, target: float | str | None = None
) -> dict[str, Any]:
    return {
        "what": f"{what}, {SAMPLES:,} x {FEATURES}, {CLASSES} classes",
        "value": round(value * 1e6, 2),
        "unit": "us/sample",
        "reference": reference and round(reference * 1e6, 2),
        "ratio": reference and round(reference / value, 2),
        "target": target,
    }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for row in run():
        print(row, flush=True)
