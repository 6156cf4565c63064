"""What is minimised: one file a method, each a pure function and the class that uses it."""

from unseen.objectives.base import Loss, Objective, domain_means, example_losses, mean_over_present

__all__ = ["Loss", "Objective", "domain_means", "example_losses", "mean_over_present"]
