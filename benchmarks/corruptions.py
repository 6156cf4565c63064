"""Milliseconds per image of each corruption, one CPU thread, beside `imagecorruptions` 1.1.2.

The peer is timed in the same run where it can be imported (it needs opencv-python and setuptools < 81). Where
it cannot, its times are those recorded below, on another machine and day: read their ratios as rough.
Three kinds have no reference: with NumPy 2 and current scikit-image they fail in the peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from unseen.shifts.corruptions import CORRUPTIONS, corrupt

SEVERITY = 3

RECORDED = {  # ms per image at 32 and 224 pixels; Linux x86-64, numpy 2.4, scikit-image 0.26, opencv 5.0
    "gaussian_noise": (0.058, 1.95),
    "shot_noise": (0.166, 6.68),
    "impulse_noise": (0.064, 1.09),
    "defocus_blur": (0.111, 1.13),
    "motion_blur": (0.438, 3.02),
    "zoom_blur": (1.15, 38.2),
    "snow": (0.424, 4.01),
    "frost": (1.96, 2.37),
    "brightness": (0.266, 9.92),
    "contrast": (0.043, 1.05),
    "elastic_transform": (0.260, 8.19),
    "pixelate": (0.025, 0.21),
    "jpeg_compression": (0.086, 0.33),
    "speckle_noise": (0.058, 1.90),
    "spatter": (0.155, 3.19),
    "saturate": (0.273, 9.94),
}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of `python -m benchmarks`; `reference` is the peer's value."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sizes = ((32, 2),) if quick else ((32, 128), (224, 8))
        return [_row(kind, side, count, 1 if quick else 5) for side, count in sizes for kind in CORRUPTIONS]
    finally:
        torch.set_num_threads(threads)


def _row(kind: str, side: int, count: int, times: int) -> dict[str, Any]:
    images = torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    value = _milliseconds(lambda: corrupt(images, kind, SEVERITY), times) / count
    reference = _peer(kind, images, times)
    return {
        "what": f"corruption {kind}, {side} x {side} x 3, batch of {count}",
        "value": value,
        "unit": "ms/image",
        "reference": reference,
        "ratio": None if reference is None else reference / value,
        "target": None,
    }


def _milliseconds(work: Callable[[], Any], times: int) -> float:
    """The best of several runs: what others do on the machine only adds."""
    work()
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best * 1000


def _peer(kind: str, images: torch.Tensor, times: int) -> float | None:
    try:
        import cv2
        from imagecorruptions import corrupt as peer_corrupt
    except ImportError:
        recorded = RECORDED.get(kind)
        return recorded and recorded[images.shape[-1] == 224]
    cv2.setNumThreads(1)
    image = images[0].permute(1, 2, 0).contiguous().numpy()
    try:
        return _milliseconds(lambda: peer_corrupt(image, corruption_name=kind, severity=SEVERITY), times)
    except (AttributeError, TypeError):  # names that NumPy 2 or scikit-image removed
        return None
