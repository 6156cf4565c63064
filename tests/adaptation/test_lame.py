"""LAME against a search over a grid of all assignments, and against a general optimiser."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from unseen.adaptation.lame import LAME, affinities, laplacian_assignment, laplacian_objective
from unseen.errors import InputError


def slow_objective(z, log_q, w):
    total = 0.0
    for i in range(len(z)):
        total += sum(p * (math.log(p) if p > 0 else 0) - p * q for p, q in zip(z[i], log_q[i], strict=True))
        total -= 0.5 * sum(w[i][j] * float(np.dot(z[i], z[j])) for j in range(len(z)))
    return total


def test_the_objective_is_its_definition(generator):
    z = torch.randn(5, 3, generator=generator).softmax(1)
    log_q = torch.randn(5, 3, generator=generator).log_softmax(1)
    w = torch.rand(5, 5, generator=generator)
    expected = slow_objective(z.tolist(), log_q.tolist(), w.tolist())
    assert math.isclose(float(laplacian_objective(z, log_q, w)), expected, rel_tol=1e-4)


def test_two_classes_against_a_grid(generator):
    log_q = torch.randn(3, 2, generator=generator, dtype=torch.float64).log_softmax(1)
    features = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    w = 0.5 * affinities(features, "rbf", 2)  # so weak that there is one minimum
    found = laplacian_objective(laplacian_assignment(log_q, w).exp(), log_q, w)
    grid = torch.linspace(0, 1, 26, dtype=torch.float64)
    best = min(
        float(laplacian_objective(torch.tensor([[a, 1 - a] for a in point], dtype=torch.float64), log_q, w))
        for point in itertools.product(grid.tolist(), repeat=3)
    )
    assert float(found) <= best + 1e-9  # no point of the grid is better
    assert float(found) > best - 0.02  # and the grid's best is near


def test_many_classes_against_a_general_optimiser(generator):
    log_q = 2 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    log_q = log_q.log_softmax(1)
    w = 0.1 * affinities(torch.randn(6, 3, generator=generator, dtype=torch.float64), "rbf", 3)  # convex

    def value(flat):
        u = torch.tensor(flat, dtype=torch.float64).view(6, 4).requires_grad_()
        objective = laplacian_objective(u.softmax(1), log_q, w)
        objective.backward()
        return float(objective.detach()), u.grad.flatten().numpy()

    best = minimize(value, np.zeros(24), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
    found = laplacian_assignment(log_q, w).exp()
    expected = torch.tensor(best.x).view(6, 4).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_every_step_decreases_the_objective(generator):
    log_q = torch.randn(30, 5, generator=generator, dtype=torch.float64).log_softmax(1)
    for kind in ("rbf", "linear"):
        w = affinities(torch.randn(30, 8, generator=generator, dtype=torch.float64), kind, 5)
        values = [
            float(laplacian_objective(laplacian_assignment(log_q, w, most_steps=steps).exp(), log_q, w))
            for steps in range(12)
        ]
        assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(values))
        assert values[-1] < values[0] - 1e-3


def test_affinities_are_their_definitions(generator):
    features = torch.randn(7, 3, generator=generator)
    unit = features / features.norm(dim=1, keepdim=True)
    distance = (unit[:, None] - unit[None]).norm(dim=2)
    knn = affinities(features, "knn", 2)
    for row in range(7):
        order = [i for i in distance[row].argsort().tolist() if i != row]
        assert knn[row].nonzero().squeeze(1).tolist() == sorted(order[:2])
    width = distance.sort(1).values[:, 1].mean()
    torch.testing.assert_close(affinities(features, "rbf", 2), (-(distance**2) / (2 * width**2)).exp())
    torch.testing.assert_close(affinities(features, "linear", 2), unit @ unit.T)


@pytest.mark.parametrize("kind", ["knn", "rbf", "linear"])
def test_twins_and_single_examples_are_no_trouble(kind, world):
    x = world.inputs()[:1]
    for batch in (x, x.repeat(3, 1, 1, 1)):
        answers = LAME(world.network, kind).adapt(batch)
        assert torch.isfinite(answers).all() and int(answers.argmax(1)[0]) == int(world.network(x).argmax(1))


def test_a_lone_example_under_knn_keeps_its_probabilities(world):
    x = world.inputs()[:1]
    with torch.no_grad():
        torch.testing.assert_close(LAME(world.network).adapt(x), world.network(x).log_softmax(1))


def test_options_are_checked(world):
    with pytest.raises(InputError, match="affinity 'cosine'.*'linear'"):
        LAME(world.network, "cosine")
    with pytest.raises(InputError, match="neighbours: are 0"):
        LAME(world.network, neighbours=0)
    with pytest.raises(InputError, match="no featurizer and linear head, which LAME reads"):
        LAME(torch.nn.Sequential(torch.nn.Linear(2, 2)))
