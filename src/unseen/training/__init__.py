"""The loop, and what it takes and gives."""

from unseen.training.fit import fit, train
from unseen.training.hardware import Hardware
from unseen.training.learner import Learner
from unseen.training.predictor import Predictor

__all__ = ["Hardware", "Learner", "Predictor", "fit", "train"]
