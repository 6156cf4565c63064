"""Distillation: a student learns what a teacher says and how it gets there, over outputs that have names."""

from unseen.distillation.layer_matching import nearest_layer
from unseen.distillation.logits import logit_kl
from unseen.distillation.multi_level import MultiLevelDistillation
from unseen.distillation.named_outputs import named_outputs
from unseen.distillation.terms import Term, distil

__all__ = ["MultiLevelDistillation", "Term", "distil", "logit_kl", "named_outputs", "nearest_layer"]
