"""Where examples are far from or near to each other: inputs, features, or gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from unseen.curation.base import Pool, per_example, require_finite, require_model
from unseen.errors import InputError
from unseen.networks.example_gradients import ExampleGradients, cross_entropy
from unseen.networks.gradient_methods import ExampleLoss

Space = Literal["features", "inputs", "gradients"]


def points(
    space: Space,
    model: nn.Module | None,
    pool: Pool,
    *,
    dimension: int = 1024,
    seed: int = 0,
    loss: ExampleLoss = cross_entropy,
) -> Tensor:
    """(N, D) a point for each example, float32.

    space  "inputs": the flattened inputs; "features": what enters the head of a `Network`; "gradients": of the
           loss in all parameters, projected to `dimension` numbers by `seed` and scaled to length 1

    Raises InputError for a model without the parts, inputs that are no tensor, and zero gradients, by number.
    """
    if space == "inputs":
        if not isinstance(pool.x, Tensor):
            raise InputError("space 'inputs'", "is for inputs in one tensor", "Give another space.")
        found = pool.x.flatten(1).float()
    elif space == "features":
        model = require_model(model, "the features")
        if not hasattr(model, "featurizer"):
            raise InputError(
                "model", "has no featurizer", "Give a Network, or space='inputs' or 'gradients'."
            )
        found = per_example(model, pool, _features, what="feature").float()
    elif space == "gradients":
        found = gradients_of(require_model(model, "the gradients"), loss).projected(
            pool.examples, dimension, seed, unit=True
        )
    else:
        raise InputError(f"space {space!r}", "is not known", "Give 'features', 'inputs' or 'gradients'.")
    require_finite(found.sum(1), "input")
    return found


def gradients_of(
    model: nn.Module, loss: ExampleLoss, parameters: str | Sequence[str] = "*"
) -> ExampleGradients:
    """Gradients of examples by the fastest method that works: vmap cannot trace the masks of transformers' models."""
    found = ExampleGradients(model, loss, parameters)
    if found.method == "vmap" and hasattr(model, "get_output_embeddings"):
        return ExampleGradients(model, loss, parameters, method="loop")
    return found


def _features(model: Any, x: Any, y: Tensor) -> Tensor:
    return model.featurizer(x).flatten(1)
