"""Which entries are kept: exactly as many as asked for, whatever ties there are."""

import pytest
import torch

from unseen.merging.base import Method
from unseen.merging.sparsify import below_outliers, largest, sparsify


def values(shape=(9, 8), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 20, 71, 72])
def test_the_largest_magnitudes_are_those_of_a_sort(dtype, count):
    delta = values().to(dtype)
    chosen = largest(delta, count)
    order = delta.abs().flatten().sort(descending=True, stable=True).indices
    expected = torch.zeros(72, dtype=torch.bool)
    expected[order[:count]] = True
    assert torch.equal(chosen.flatten(), expected)


@pytest.mark.parametrize("count", range(7))
def test_among_equals_the_first_are_taken(count):
    delta = torch.tensor([1.0, -2.0, 2.0, 0.0, -1.0, 1.0])
    order = [1, 2, 0, 4, 5, 3]
    assert largest(delta, count).nonzero().flatten().tolist() == sorted(order[:count])
    assert int(largest(torch.zeros(6), count).sum()) == count


def test_tensors_that_are_not_contiguous_are_read_as_they_look():
    delta = values()
    assert torch.equal(largest(delta.T, 30), largest(delta, 30).T)
    assert torch.equal(delta, values())


def test_outliers_at_the_top_are_left_out():
    delta = torch.arange(1.0, 11.0)
    assert below_outliers(delta, 0.5, 0.2).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert below_outliers(delta, 0.9, 0.5).nonzero().flatten().tolist() == list(range(9))  # density holds


@pytest.mark.parametrize("norm, order", [("l1", 1), ("l2", 2), ("linf", float("inf"))])
def test_rescaling_restores_the_norm(norm, order):
    delta = values()
    kept = sparsify(delta, "outliers", density=0.4, gamma=0.1, rescale=norm)
    assert int((kept != 0).sum()) == int(0.4 * 72)
    assert float(kept.norm(order)) == pytest.approx(float(delta.norm(order)), rel=1e-5)


@pytest.mark.parametrize("consensus", ["sum", "count", "unweighted"])
@pytest.mark.parametrize("normalize", [True, False])
def test_signs_are_elected_in_stretches_as_in_the_whole(consensus, normalize, monkeypatch):
    base, models = values(), [values(seed=seed) for seed in (1, 2, 3)]
    options = {"sparsifier": "magnitude", "density": 0.6, "weight": [0.5, 0.3, 0.4], "scaling": 0.7}
    method = Method.of("task_arithmetic", consensus=consensus, normalize=normalize, **options)
    whole = method(models, base=base)
    monkeypatch.setattr("unseen.merging.task_vectors.STRETCH", 7)
    assert torch.equal(method(models, base=base), whole)
    assert not torch.allclose(whole, base)


def test_the_precision_is_that_of_the_most_precise_model():
    base, models = values(), [values(seed=1), values(seed=2).double()]
    assert Method.of("ties")(models, base=base).dtype == torch.float64
