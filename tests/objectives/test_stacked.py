"""Objectives of several runs in one stack, under `vmap`, have the gradients that each has alone."""

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.arrays import from_arrays
from unseen.testing.toy import DOMAINS, LATE, prepared, toy_batch, toy_system
from unseen.training import Learner
from unseen.training.batched import can_batch
from unseen.training.data import TrainingData
from unseen.training.stacked import StackedBatch
from unseen.training.stages import has_stages

REMEMBERING = {"mesa", "pretrained-kl", "r3f", "trpo"}
"""Objectives that look at the number of the step to know whether an update begins."""

STAGED = {name for name in objectives.names() if has_stages(objectives.build(name))}
OUTLIERS = {name for name in objectives.names() if objectives.build(name).needs_outliers}
NOT_VECTORISED = {"npos", "palm", "compact-dispersed"}
"""They decide by the data: what is queued, whether features are of length one."""

ALONE = sorted(REMEMBERING | STAGED | OUTLIERS | NOT_VECTORISED)


@pytest.mark.parametrize("name", ALONE)
def test_why_runs_are_trained_one_by_one_is_told(name):
    generator = torch.Generator().manual_seed(0)
    y, domain = torch.arange(72) % 3, torch.arange(72) // 3 % 4
    shift = from_arrays(torch.randn(72, 4, generator=generator), y, domain)
    shift = shift.with_outliers(torch.randn(20, 4, generator=generator))
    data = TrainingData(shift.split(shift.domains[-1], unlabelled=0.5))
    why = can_batch(Learner(objective=name, network="mlp(width=4)", batch_size=4), data)
    assert why is not None
    reason = "before or after the training" if name in STAGED else "cannot be vectorised"
    assert ("reads outliers" if name in OUTLIERS else reason) in why


@pytest.mark.parametrize(
    "name", [name for name in objectives.names() if name not in ALONE or name in OUTLIERS]
)
def test_gradients_of_a_stack_equal_those_one_by_one(name):
    systems = [toy_system(lambda: objectives.build(name), seed, "cpu", DOMAINS).double() for seed in range(2)]
    double = toy_batch("cpu", step=LATE).map(lambda t: t.double() if t.is_floating_point() else t)
    double.auxiliary = double.auxiliary.double()
    batches = [prepared(system, double, seed) for seed, system in enumerate(systems)]
    alone = copy.deepcopy(systems)
    for system, batch in zip(alone, batches, strict=True):
        system(batch).total.backward()
    parameters, buffers = stack_module_state(systems)
    skeleton = copy.deepcopy(systems[0]).to("meta")

    def total(parameters, buffers, x, y, auxiliary):
        given = {"group": double.group, "ids": double.ids, "auxiliary": auxiliary}
        batch = Batch(x=x, y=y, domain=double.domain, domains=DOMAINS, step=LATE, **given)
        return functional_call(skeleton, (parameters, buffers), (batch,)).total

    x, y = torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches])
    auxiliary = StackedBatch.of(batches).auxiliary
    losses = vmap(total)(parameters, buffers, x, y, auxiliary)
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    for key, found in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(found, torch.stack([s.get_parameter(key).grad for s in alone]))
