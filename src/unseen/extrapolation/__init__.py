"""Domains that nobody has collected: proposed, generated, and mixed with real ones.

proposer = LLMProposer(ChatEndpoint("http://localhost:8000/v1", "my-model"), exclude=("sketch",))
generator = DiffusersGenerator("path/to/model", licence="...")
synthetic = extrapolate("photographs of animals", real.classes, proposer, generator, folder="synthetic")
novelty_report(synthetic, real, unseen="sketch")
shift = mix(real, synthetic, share=0.5, budget=2000, unseen="sketch")
split = shift.split(unseen="sketch")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when first used: the command line imports this package for its command and must not wait for torch.
_PUBLIC = {
    "extrapolate": "unseen.extrapolation.synthesis",
    "mix": "unseen.extrapolation.mixing",
    "scaling_curve": "unseen.extrapolation.mixing",
    "novelty_report": "unseen.extrapolation.novelty",
    "filter_by_score": "unseen.extrapolation.filtering",
    "ImageTextScorer": "unseen.extrapolation.filtering",
    "read_manifest": "unseen.extrapolation.storage",
    "rejections": "unseen.extrapolation.storage",
    "DomainSpec": "unseen.extrapolation.proposals",
    "DomainProposer": "unseen.extrapolation.proposals",
    "ListProposer": "unseen.extrapolation.proposers",
    "GridProposer": "unseen.extrapolation.proposers",
    "RandomProposer": "unseen.extrapolation.proposers",
    "LLMProposer": "unseen.extrapolation.language_model",
    "ChatEndpoint": "unseen.extrapolation.endpoint",
    "Generator": "unseen.extrapolation.generators",
    "ProceduralGenerator": "unseen.extrapolation.generators",
    "TemplateTextGenerator": "unseen.extrapolation.generators",
    "DiffusersGenerator": "unseen.extrapolation.generators",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unseen.extrapolation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
