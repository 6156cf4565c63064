"""How parameters move: one file a rule."""

from unseen.updates.base import LossFunction, UpdateRule

__all__ = ["LossFunction", "UpdateRule"]
