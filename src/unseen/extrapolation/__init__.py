"""Domains that nobody has collected: proposed, generated, and mixed with real ones."""

from unseen.extrapolation.endpoint import ChatEndpoint
from unseen.extrapolation.filtering import filter_by_score
from unseen.extrapolation.generators import (
    DiffusersGenerator,
    Generator,
    ProceduralGenerator,
    TemplateTextGenerator,
)
from unseen.extrapolation.language_model import LLMProposer
from unseen.extrapolation.mixing import mix, scaling_curve
from unseen.extrapolation.novelty import novelty_report
from unseen.extrapolation.proposals import DomainProposer, DomainSpec
from unseen.extrapolation.proposers import GridProposer, ListProposer, RandomProposer
from unseen.extrapolation.storage import read_manifest, rejections
from unseen.extrapolation.synthesis import extrapolate

__all__ = [
    "ChatEndpoint",
    "DiffusersGenerator",
    "DomainProposer",
    "DomainSpec",
    "Generator",
    "GridProposer",
    "LLMProposer",
    "ListProposer",
    "ProceduralGenerator",
    "RandomProposer",
    "TemplateTextGenerator",
    "extrapolate",
    "filter_by_score",
    "mix",
    "novelty_report",
    "read_manifest",
    "rejections",
    "scaling_curve",
]
