"""Prompts of vision-language models: learnt contexts, names of what is unknown, zero-shot detection."""

from unseen.prompts.base_to_new import BaseToNew, Judgement, harmonic_mean
from unseen.prompts.contrastive_tuning import ContrastiveTuner
from unseen.prompts.encoders import promptable
from unseen.prompts.features import image_features
from unseen.prompts.generator import ClassConditionalGenerator
from unseen.prompts.label_images import collect_features
from unseen.prompts.lapt import LAPT
from unseen.prompts.learnt import DistributionAwarePrompts, LearntPrompts
from unseen.prompts.negative_labels import encode_names, mine_negative_labels
from unseen.prompts.regularizers import PromptRegularizer, PromptStart, PromptStep, ZeroShotPenalty
from unseen.prompts.text import PromptableEncoder, PromptableText, Tokens
from unseen.prompts.tuner import Epoch, PromptTuner
from unseen.prompts.unknown_classes import ClassStatistics, UnknownClassRegularizer, class_statistics
from unseen.prompts.wordnet import wordnet_candidates
from unseen.prompts.zero_shot_ood import ZeroShotOOD

__all__ = [
    "LAPT",
    "BaseToNew",
    "ClassConditionalGenerator",
    "ClassStatistics",
    "ContrastiveTuner",
    "DistributionAwarePrompts",
    "Epoch",
    "Judgement",
    "LearntPrompts",
    "PromptRegularizer",
    "PromptStart",
    "PromptStep",
    "PromptTuner",
    "PromptableEncoder",
    "PromptableText",
    "Tokens",
    "UnknownClassRegularizer",
    "ZeroShotOOD",
    "ZeroShotPenalty",
    "class_statistics",
    "collect_features",
    "encode_names",
    "harmonic_mean",
    "image_features",
    "mine_negative_labels",
    "promptable",
    "wordnet_candidates",
]
