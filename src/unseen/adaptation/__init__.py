"""Test-time adaptation: a network keeps learning from the unlabelled inputs that it answers.

    adaptation = unseen.registry.adaptation.build("tent(learning_rate=1e-3)", network=predictor.network)
    logits = adaptation.adapt(x)  # answers a batch and learns from it
    adaptation.reset()            # as on the first day

The network that is handed over is copied and never changed. `unseen.adaptation.evaluate` measures the error along
a stream (`unseen.shifts.streams`), `unseen.testing.check_adaptation` checks a method of your own.
"""

from unseen.adaptation.base import Adaptation, GradientAdaptation

__all__ = ["Adaptation", "GradientAdaptation"]
