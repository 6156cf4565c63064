"""Prompts of vision-language models: learnt contexts, names of what is unknown, zero-shot detection."""

from unseen.prompts.encoders import promptable
from unseen.prompts.features import image_features
from unseen.prompts.label_images import collect_features
from unseen.prompts.lapt import LAPT
from unseen.prompts.learnt import DistributionAwarePrompts, LearntPrompts
from unseen.prompts.negative_labels import encode_names, mine_negative_labels
from unseen.prompts.text import PromptableEncoder, PromptableText, Tokens
from unseen.prompts.zero_shot_ood import ZeroShotOOD

__all__ = [
    "LAPT",
    "DistributionAwarePrompts",
    "LearntPrompts",
    "PromptableEncoder",
    "PromptableText",
    "Tokens",
    "ZeroShotOOD",
    "collect_features",
    "encode_names",
    "image_features",
    "mine_negative_labels",
    "promptable",
]
