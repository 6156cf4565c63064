"""New labels for examples of a shifted domain, by asking a judge about a model's likely mistakes."""

from unseen.relabelling.labeler import DenoisingInContextLabeler, RelabelResult, Support
from unseen.relabelling.questions import Questions, Verifier
from unseen.relabelling.therapy import therapy_finetune
from unseen.relabelling.transition import estimate_transition

__all__ = [
    "DenoisingInContextLabeler",
    "Questions",
    "RelabelResult",
    "Support",
    "Verifier",
    "estimate_transition",
    "therapy_finetune",
]
