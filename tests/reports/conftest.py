from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unseen.shifts import Shift
from unseen.studies import Results, Study


def clinics(domains=("north", "south", "east"), classes=("no", "yes"), examples=24, **fields) -> Shift:
    """Two features, the label by the sign of the first: easy everywhere, shifted a little by domain."""
    generator = torch.Generator().manual_seed(0)
    count = examples * len(domains)
    domain = torch.arange(len(domains)).repeat_interleave(examples)
    inputs = torch.randn(count, 2, generator=generator)
    labels = torch.arange(count) % len(classes)
    inputs[:, 0] += labels * 1.5 + domain * 0.3
    return Shift("clinics", "array", inputs, labels, domain, classes, domains, **fields)


@pytest.fixture(scope="session")
def make_shift() -> Callable[..., Shift]:
    return clinics


@pytest.fixture(scope="session")
def run_study(tmp_path_factory) -> Callable[..., tuple[Results, Shift]]:
    """Train a small study for real: run_study(shift, learners, ...) -> its results and its shift."""

    def run(shift: Shift, learners=("erm", "irm"), **options) -> tuple[Results, Shift]:
        folder: Path = tmp_path_factory.mktemp("study")
        settings = {"seeds": 2, "steps": 6, "batch_size": 8, "evaluations": 3, **options}
        return Study(shift, learners, **settings).run(folder, engine="serial"), shift

    return run


@pytest.fixture(scope="session")
def study(run_study) -> tuple[Results, Shift]:
    return run_study(clinics())
