"""ANDMask and SANDMask against slow loops over parameters and coordinates."""

import math
import statistics

import pytest
import torch

from unseen.errors import InputError
from unseen.testing import check_update


@pytest.mark.parametrize("spec", ["andmask", "sandmask", "andmask(threshold=0.3)"])
def test_the_contract_holds_alone_and_stacked(spec, stacked_agrees):
    assert check_update(spec).facts["stacked"] is True
    assert stacked_agrees(spec)


def and_mask(values, threshold):
    positive = sum(v > 0 for v in values) - sum(v < 0 for v in values)
    return float(abs(positive) / len(values) >= threshold)


def sand_mask(values, threshold, steepness):
    signs = sum(v > 0 for v in values) - sum(v < 0 for v in values)
    above = abs(signs) / len(values) - threshold
    return max(0.0, math.tanh(steepness / statistics.variance(values) * above))


def expected_direction(problem, mask):
    gradients = [
        problem.grad(problem.theta, problem.batch.of_domain(d)) for d in range(problem.batch.domains)
    ]
    pieces = []
    for own in zip(*(problem.split(g) for g in gradients), strict=True):
        columns = list(zip(*(g.flatten().tolist() for g in own), strict=True))
        masks = [mask(values) for values in columns]
        share = sum(masks) / len(masks) + 1e-10
        pieces += [sum(v) / len(v) * m / share for v, m in zip(columns, masks, strict=True)]
    return torch.tensor(pieces, dtype=torch.float64)


@pytest.mark.parametrize("domains", [2, 3])
@pytest.mark.parametrize("threshold", [1.0, 0.2])
def test_and_mask(make_problem, domains, threshold):
    problem = make_problem(domains)
    expected = expected_direction(problem, lambda values: and_mask(values, threshold))
    found = problem.direction(f"andmask(threshold={threshold})")
    torch.testing.assert_close(found, expected)
    if threshold == 1:
        assert 0 < (found == 0).sum() < len(found)


@pytest.mark.parametrize("steepness", [1e-3, 10.0])
def test_sand_mask(problem, steepness):
    expected = expected_direction(problem, lambda values: sand_mask(values, 0.5, steepness))
    found = problem.direction(f"sandmask(threshold=0.5, steepness={steepness})")
    torch.testing.assert_close(found, expected)


def test_domains_that_agree_are_followed_as_they_are(problem):
    batch = problem.batch
    batch.x, batch.y = batch.x[:6].repeat(3, 1), batch.y[:6].repeat(3)
    expected = problem.grad(problem.theta)
    for spec in ("andmask", "sandmask"):
        torch.testing.assert_close(problem.direction(spec), expected)
        expected = problem.grad(problem.theta)


@pytest.mark.parametrize("spec", ["andmask", "sandmask"])
def test_one_training_domain_is_refused(make_problem, spec):
    problem = make_problem(1)
    with pytest.raises(InputError, match=f"'{spec}': compares .* Train on at least two domains"):
        problem.rule(spec).step(problem.system, problem.batch)


@pytest.mark.parametrize("spec", ["andmask(threshold=1.5)", "sandmask(threshold=1.0)"])
def test_thresholds_that_train_nothing_are_refused(problem, spec):
    with pytest.raises(InputError, match="threshold"):
        problem.rule(spec)
