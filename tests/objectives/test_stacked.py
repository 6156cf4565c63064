"""Objectives of several runs in one stack, under `vmap`, have the gradients that each has alone."""

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.testing.toy import DOMAINS, LATE, prepared, toy_batch, toy_system


@pytest.mark.parametrize("name", objectives.names())
def test_gradients_of_a_stack_equal_those_one_by_one(name):
    systems = [toy_system(lambda: objectives.build(name), seed, "cpu", DOMAINS).double() for seed in range(2)]
    double = toy_batch("cpu", step=LATE).map(lambda t: t.double() if t.is_floating_point() else t)
    batches = [prepared(system, double, seed) for seed, system in enumerate(systems)]
    alone = copy.deepcopy(systems)
    for system, batch in zip(alone, batches, strict=True):
        system(batch).total.backward()
    parameters, buffers = stack_module_state(systems)
    skeleton = copy.deepcopy(systems[0]).to("meta")

    def total(parameters, buffers, x, y):
        batch = Batch(x=x, y=y, domain=double.domain, domains=DOMAINS, step=LATE)
        return functional_call(skeleton, (parameters, buffers), (batch,)).total

    x, y = torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches])
    losses = vmap(total)(parameters, buffers, x, y)
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    for key, found in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(found, torch.stack([s.get_parameter(key).grad for s in alone]))
