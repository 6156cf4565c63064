"""Weight arithmetic: several models become one, in memory or streaming over safetensors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when first used: `unseen --help` imports this package for its command and must not wait for torch.
_PUBLIC = {
    "merge": "unseen.merging.memory",
    "open_checkpoint": "unseen.merging.checkpoints",
    "read_recipe": "unseen.merging.recipe",
    "Recipe": "unseen.merging.recipe",
    "merge_to_disk": "unseen.merging.streaming",
    "greedy_soup": "unseen.merging.soups",
    "learned_soup": "unseen.merging.soups",
    "interpolate": "unseen.merging.curves",
    "interpolation_curve": "unseen.merging.curves",
    "layerwise_curves": "unseen.merging.curves",
    "straggler_layers": "unseen.merging.stragglers",
    "sparsify_update": "unseen.merging.stragglers",
    "repair_interpolation": "unseen.merging.stragglers",
    "SparseSoup": "unseen.merging.sparse_soups",
    "adaptive_rate": "unseen.merging.sparse_soups",
    "reprune": "unseen.merging.sparse_soups",
    "compare": "unseen.merging.geometry",
    "sequential_axes": "unseen.merging.alignment",
    "align": "unseen.merging.alignment",
    "diagonal_fisher": "unseen.merging.fisher",
    "low_rank": "unseen.merging.lora",
    "extract_lora": "unseen.merging.lora",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unseen.merging' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
