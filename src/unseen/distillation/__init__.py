"""Distillation: a student learns what a teacher says and how it gets there, over outputs that have names."""

from unseen.distillation.logits import logit_kl

__all__ = ["logit_kl"]
