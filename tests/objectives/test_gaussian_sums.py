import pytest
import torch
from torch.func import grad, vmap

from unseen.objectives import gaussian_sums
from unseen.objectives.gaussian_sums import gaussian_sum

GAMMAS = (0.001, 0.1, 1.0, 1000.0)


def slow(distances):
    return sum(torch.exp(-gamma * distances) for gamma in GAMMAS)


@pytest.fixture
def distances(generator):
    return torch.rand(3, 5, 7, generator=generator, dtype=torch.float64) * 4


def test_values_and_gradients_are_those_of_the_sum_written_out(distances, monkeypatch):
    monkeypatch.setattr(gaussian_sums, "BLOCK", 8)  # many blocks, and the last one smaller
    distances.requires_grad_()
    ours, theirs = gaussian_sum(distances, GAMMAS), slow(distances)
    torch.testing.assert_close(ours, theirs)
    weight = torch.arange(ours.numel(), dtype=ours.dtype).view(ours.shape)
    found, expected = (torch.autograd.grad((weight * x).sum(), distances) for x in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_gradients_of_gradients_are_right(distances):
    some = distances[0, 0].requires_grad_()
    assert torch.autograd.gradcheck(lambda d: gaussian_sum(d, GAMMAS), some)
    assert torch.autograd.gradgradcheck(lambda d: gaussian_sum(d, GAMMAS), some)


def test_stacked_twice_and_inside_functional_gradients(distances):
    expected = vmap(vmap(grad(lambda d: slow(d).square().sum())))(distances)
    found = vmap(vmap(grad(lambda d: gaussian_sum(d, GAMMAS).square().sum())))(distances)
    torch.testing.assert_close(found, expected)
    moved = vmap(lambda d: gaussian_sum(d, GAMMAS), in_dims=2, out_dims=2)(distances)
    torch.testing.assert_close(moved, slow(distances))


def test_far_apart_nothing_is_left_and_nan_stays():
    far = torch.tensor([1e6, float("inf")], requires_grad=True)
    value = gaussian_sum(far, (1.0, 1000.0))
    assert (value < 1e-30).all()
    assert (torch.autograd.grad(value.sum(), far)[0].abs() < 1e-30).all()
    assert gaussian_sum(torch.tensor([float("nan")]), (1.0,)).isnan().all()
