from collections.abc import Callable

import pytest
import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives import Objective
from unseen.registry import objectives
from unseen.shifts import Batch

INPUTS, FEATURES, CLASSES, DOMAINS, LATE = 6, 8, 3, 3, 10_000


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh()), FEATURES, CLASSES).double()


@pytest.fixture
def batch(generator) -> Batch:
    """Domains of 10, 7 and 5 examples, past every warm-up."""
    domain = torch.tensor([0] * 10 + [1] * 7 + [2] * 5)[torch.randperm(22, generator=generator)]
    return Batch(
        x=torch.randn(22, INPUTS, generator=generator).double() + 0.5 * domain.unsqueeze(1),
        y=torch.randint(CLASSES, (22,), generator=generator),
        domain=domain,
        domains=DOMAINS,
        step=LATE,
    )


@pytest.fixture
def built() -> Callable[..., Objective]:
    """A registered objective, set up for `model` and `batch`."""

    def build(spec: str, **options: object) -> Objective:
        torch.manual_seed(1)
        objective = objectives.build(spec, **options)
        objective.setup(features=FEATURES, classes=CLASSES, domains=DOMAINS)
        return objective.double()

    return build


@pytest.fixture
def same_with_gradients(model) -> Callable[..., None]:
    """Two losses agree, and so do their gradients in every parameter of `model` (and of `more`)."""

    def check(found: torch.Tensor, expected: torch.Tensor, more: nn.Module | None = None) -> None:
        torch.testing.assert_close(found, expected)
        parameters = [*model.parameters(), *(more.parameters() if more is not None else [])]
        pairs = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected)]
        torch.testing.assert_close(*pairs)
        assert pairs[0][0].any()

    return check
