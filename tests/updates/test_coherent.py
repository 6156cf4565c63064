"""Robust means of gradients against sorting in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.erm import ERM
from unseen.registry import updates
from unseen.testing import check_update
from unseen.training.system import TrainingSystem
from unseen.updates.coherent import MedianOfMeans, SignAgreement, Trimmed, Winsorized, insert


@pytest.mark.parametrize(
    "spec", ["winsorized", "winsorized(level=2, groups=6)", "trimmed", "sign-agreement", "median-of-means"]
)
def test_the_contract_holds_alone_and_stacked(spec, stacked_agrees):
    assert check_update(spec).facts["stacked"] is True
    assert stacked_agrees(spec)


def winsorized_mean(values, level):
    """Column by column: clip to the (level + 1)-th smallest and largest value, then average."""
    ordered = np.sort(values, 0)
    return np.clip(values, ordered[level], ordered[len(values) - 1 - level]).mean(0)


def direction_and_groups(problem, spec):
    """What the rule followed, the groups it made and their gradients, by a loss function that takes notes."""
    theta, groups = problem.theta, []

    def noting(batch):
        groups.append(batch)
        return problem.system(batch)

    problem.rule(spec).step(noting, problem.batch)
    gradients = np.stack([problem.grad(theta, group).numpy() for group in groups])
    return ((theta - problem.theta) / problem.rate).numpy(), groups, gradients


@pytest.mark.parametrize("level", [0, 1, 3, 8])
def test_winsorized_gradients_of_single_examples(problem, level):
    found, groups, gradients = direction_and_groups(problem, f"winsorized(level={level})")
    assert [len(group) for group in groups] == [1] * 18
    np.testing.assert_allclose(found, winsorized_mean(gradients, level), atol=1e-12)


def test_level_zero_is_the_plain_gradient(problem):
    expected = problem.grad(problem.theta)
    torch.testing.assert_close(problem.direction("winsorized(level=0)"), expected)


@pytest.mark.parametrize(("count", "level"), [(4, 1), (6, 2), (7, 1)])
def test_winsorized_gradients_of_groups(problem, count, level):
    found, groups, gradients = direction_and_groups(problem, f"winsorized(level={level}, groups={count})")
    assert len(groups) == count
    np.testing.assert_allclose(found, winsorized_mean(gradients, level), atol=1e-12)


@pytest.mark.parametrize(("level", "groups"), [(0, None), (1, None), (3, None), (8, None), (2, 6)])
def test_trimmed_mean(problem, level, groups):
    found, _, gradients = direction_and_groups(problem, f"trimmed(level={level}, groups={groups})")
    ordered = np.sort(gradients, 0)
    np.testing.assert_allclose(found, ordered[level : len(ordered) - level].mean(0), atol=1e-12)


@pytest.mark.parametrize(("threshold", "groups"), [(0.0, None), (0.3, None), (0.6, 5), (1.0, 3)])
def test_sign_agreement(problem, threshold, groups):
    found, _, gradients = direction_and_groups(
        problem, f"sign-agreement(threshold={threshold}, groups={groups})"
    )
    agreed = np.abs(np.sign(gradients).mean(0)) >= threshold - 1e-9
    np.testing.assert_allclose(found, gradients.mean(0) * agreed, atol=1e-12)
    assert threshold == 0 or not agreed.all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_median_of_means(problem, count):
    found, groups, gradients = direction_and_groups(problem, f"median-of-means(groups={count})")
    assert len(groups) == count
    np.testing.assert_allclose(found, np.median(gradients, 0), atol=1e-12)


def test_groups_share_out_every_domain(problem):
    _, groups, _ = direction_and_groups(problem, "median-of-means(groups=4)")
    ids = torch.cat([group.ids for group in groups])
    assert sorted(ids.tolist()) == list(range(18))
    assert sorted(len(group) for group in groups) == [4, 4, 5, 5]
    assert all(set(group.domain.tolist()) == {0, 1, 2} for group in groups)
    assert all(group.domain.bincount().max() <= 2 for group in groups)


def test_groups_are_dealt_anew_at_each_step_and_repeat_for_a_seed(make_problem):
    def first_group(step, seed):
        problem = make_problem()
        problem.batch.step = step
        _, groups, _ = direction_and_groups(problem, f"median-of-means(seed={seed})")
        return groups[0].ids.tolist()

    assert first_group(3, 0) == first_group(3, 0)
    assert first_group(3, 0) != first_group(4, 0) and first_group(3, 0) != first_group(3, 1)


def test_the_loss_is_that_of_the_batch(problem):
    expected = problem.loss(problem.theta, problem.batch)
    found = problem.rule("median-of-means(groups=4)").step(problem.system, problem.batch)
    torch.testing.assert_close(found.total, expected)


def test_one_outlier_moves_the_robust_means_little_and_the_mean_much(make_problem):
    def moved(spec):
        clean, dirty = make_problem(), make_problem()
        dirty.batch.weight = torch.ones(18, dtype=torch.float64)
        dirty.batch.weight[4] = 1e4
        return (clean.direction(spec) - dirty.direction(spec)).norm()

    assert moved("winsorized") < moved("plain") / 20
    assert moved("trimmed") < moved("plain") / 20
    assert moved("median-of-means(groups=9)") < moved("plain") / 20


def test_small_batches_lower_the_level(problem):
    problem.batch = problem.batch.take(torch.arange(5))
    found, _, gradients = direction_and_groups(problem, "winsorized(level=4)")
    np.testing.assert_allclose(found, winsorized_mean(gradients, 1), atol=1e-12)


def test_insertion_sorts(generator):
    values = torch.randn(6, 50, generator=generator)
    ordered: list[torch.Tensor] = []
    fell = [insert(ordered, value.clone(), 4, larger=True) for value in values]
    expected = values.sort(0, descending=True).values
    assert torch.equal(torch.stack(ordered), expected[:4])
    assert fell[:4] == [None] * 4
    assert torch.equal(torch.stack(fell[4:]).sort(0, descending=True).values, expected[4:])


def test_parameters_without_a_gradient_stay_as_they_are(problem):
    problem.system.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    rule = problem.rule(
        "median-of-means", lambda parameters, lr: torch.optim.SGD(parameters, lr, weight_decay=1)
    )
    rule.step(problem.system, problem.batch)
    assert problem.system.extra.grad is None
    assert torch.equal(problem.system.extra.detach(), torch.ones(2, dtype=torch.float64))


def test_batch_normalisation_is_refused_for_single_examples_only(problem):
    body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    system = TrainingSystem(Network(body, 5, 3).double(), ERM())

    def bound(spec):
        return updates.build(spec).bind(system, torch.optim.SGD(system.parameters(), lr=0.1))

    with pytest.raises(InputError, match="batch normalisation: needs gradients of single examples"):
        bound("winsorized").step(system, problem.batch)
    assert torch.isfinite(bound("median-of-means").step(system, problem.batch).total)


@pytest.mark.parametrize(("build", "sentence"), [
    (lambda: Winsorized(level=2, groups=5), "at least 2 level"),
    (lambda: Winsorized(level=-1), "level of 0 or more"),
    (lambda: Trimmed(level=1, groups=3), "at least 2 level"),
    (lambda: SignAgreement(threshold=1.5), "not in"),
    (lambda: MedianOfMeans(groups=0), "is below one"),
])  # fmt: skip
def test_what_cannot_be_is_refused(build, sentence):
    with pytest.raises(InputError, match=sentence):
        build()
