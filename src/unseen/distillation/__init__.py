"""Distillation: a student learns what a teacher says and how it gets there, over outputs that have names."""

from unseen.distillation.embedding_losses import (
    CaptionContrast,
    ClassTextCE,
    CosineAlignment,
    CrossModelInfoNCE,
    EmbeddingMSE,
    TopKTextKL,
)
from unseen.distillation.label_enrichment import enrich_labels
from unseen.distillation.layer_matching import nearest_layer
from unseen.distillation.logits import logit_kl
from unseen.distillation.multi_level import MultiLevelDistillation
from unseen.distillation.named_outputs import named_outputs
from unseen.distillation.open_vocabulary import (
    OpenVocabDistiller,
    Support,
    few_shot_retrieval,
    space_consistency,
    support_of,
    zero_shot,
)
from unseen.distillation.teachers import Teacher
from unseen.distillation.terms import Term, distil
from unseen.distillation.vision_language import VLDistiller

__all__ = [
    "CaptionContrast",
    "ClassTextCE",
    "CosineAlignment",
    "CrossModelInfoNCE",
    "EmbeddingMSE",
    "MultiLevelDistillation",
    "OpenVocabDistiller",
    "Support",
    "Teacher",
    "Term",
    "TopKTextKL",
    "VLDistiller",
    "distil",
    "enrich_labels",
    "few_shot_retrieval",
    "logit_kl",
    "named_outputs",
    "nearest_layer",
    "space_consistency",
    "support_of",
    "zero_shot",
]
