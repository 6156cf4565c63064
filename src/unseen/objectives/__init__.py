"""What is minimised: one file a method, each a pure function and the class that uses it."""

from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present
from unseen.objectives.stages import Stage

__all__ = ["Loss", "Objective", "Stage", "domain_means", "example_losses", "mean_over_present"]
