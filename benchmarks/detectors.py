"""Fit and score of the detectors that learn, 50,000 training outputs of 512 features and 100 classes, 2,000 queries.

Run `python benchmarks/detectors.py [threads]`. Each is timed beside the obvious way of computing the same in
the same run: Mahalanobis distances and Gaussians class by class, OpenMax's row by row, neighbours by a blocked
matrix product alone: the least that a search through all rows can cost, so that a ratio of 1 is the best there is.
Where pytorch-ood is installed, fit and score of every detector of features or logits that it has, too, stand beside
its own in the same run. Seconds are CPU time of this process, which a busy machine disturbs least.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import pytorch_ood
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
    return rows + _beside_pytorch_ood(train, queries)


def _beside_pytorch_ood(train: Bank, queries: Bank) -> list[dict[str, Any]]:
    """Rows of fit and score with its own as the reference; none where it is not installed."""
    peer = pytorch_ood()
    if peer is None:
        return []
    head, kept = train.head, FEATURES // 2
    weights = (head.weight.detach(), head.bias.detach())
    neighbours = min(50, len(train))
    of_logits = {
        "msp": peer.MaxSoftmax(None),
        "max-logit": peer.MaxLogit(None),
        "energy": peer.EnergyBased(None),
        "entropy": peer.Entropy(None),
        f"gen(top={CLASSES})": peer.GEN(None),
        "temperature-scaling": peer.TemperatureScaling(None),
        "kl-matching": peer.KLMatching(None),
        "openmax(tail=20, alpha=10)": peer.OpenMax(None, tailsize=20, alpha=10),
    }
    of_features = {
        "mahalanobis": peer.Mahalanobis(None),
        "relative-mahalanobis": peer.RMD(None),
        "gmm": peer.GMM(None, reg=1e-4),
        f"vim(dimensions={kept})": peer.ViM(None, kept, *weights),
        "she": peer.SHE(None, head),
        "fdbd": peer.fDBD(None, head),
        "nci(alpha=0)": peer.NCI(None, head),
        "pnml": peer.PNML(None, head),
        "dice(sparsity=0.9)": peer.DICE(None, *weights, p=0.9),
        "nnguide(k=10)": peer.NNGuide(None, head, k=10),
        f"knn(k={neighbours}, largest={len(train)})": peer.KNN(None, k=neighbours),
    }
    rows = []
    for spec, theirs in {**of_logits, **of_features}.items():
        read = "logits" if spec in of_logits else "features"
        data, points = getattr(train, read), getattr(queries, read)
        ours, fit = detectors.build(spec), getattr(theirs, f"fit_{read}")
        if type(theirs).requires_fit:
            fitted = [
                _seconds(lambda o=ours: o.fit(train), 2),
                _seconds(lambda f=fit, d=data: f(d, train.labels), 2),
            ]
            rows.append(
                _row(f"fit {spec}, beside pytorch-ood", *(seconds / len(train) for seconds in fitted))
            )
        predict = getattr(theirs, f"predict_{read}")
        scored = [
            _seconds(lambda o=ours: o.score(queries), 5),
            _seconds(lambda p=predict, x=points: p(x), 5),
        ]
        rows.append(
            _row(f"score {spec}, beside pytorch-ood", *(seconds / len(queries) for seconds in scored))
        )
    return rows


def _outputs(count: int, seed: int) -> Bank:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    means = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(9))
    features = means[labels] + torch.randn(count, FEATURES, generator=generator)
    head = nn.utils.skip_init(nn.Linear, FEATURES, CLASSES)
    with torch.no_grad():
        head.weight.copy_(means / FEATURES)  # logits of about 1 for the own class, 0 for the others
        head.bias.zero_()
        return Bank(features, head(features), labels, head=head)


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
