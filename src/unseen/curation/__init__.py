"""Which data to train on: scores of examples, what to keep by them, how different a set's examples are."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when first used: `unseen --help` imports this package for its command and must not wait for torch.
_PUBLIC = {
    "Pool": "unseen.curation.base",
    "Selector": "unseen.curation.base",
    "select": "unseen.curation.base",
    "topsis": "unseen.curation.multi_criteria",
    "weight_dynamics_scores": "unseen.curation.weight_dynamics",
    "DONOD": "unseen.curation.donod",
    "overlap": "unseen.curation.report",
    "selection_report": "unseen.curation.report",
    "g_vendi": "unseen.curation.gradient_diversity",
    "marginal_gain": "unseen.curation.gradient_diversity",
    "diversity_report": "unseen.curation.diversity",
    "metric_validity_study": "unseen.curation.diversity",
    "select_diverse": "unseen.curation.sparse_regions",
    "PrismaticSynthesizer": "unseen.curation.synthesis",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unseen.curation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
