"""Distances of representations against their formulas, and of all pairs against one by one."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from unseen.distillation.distances import DISTANCES, distance
from unseen.errors import InputError


def written_out(name, student, teacher):
    if name == "mse":
        return sum((s - t) ** 2 for s, t in zip(student, teacher, strict=True)) / len(student)
    if name == "kl":
        return kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    return 1 - student @ teacher / (student.norm() * teacher.norm())


@pytest.mark.parametrize("name", DISTANCES)
def test_each_position_and_all_pairs(name, generator):
    student, teacher = torch.randn(4, 3, 6, generator=generator), torch.randn(4, 5, 6, generator=generator)
    expected = torch.stack(
        [
            torch.stack([torch.stack([written_out(name, s, t) for t in teacher[n]]) for s in student[n]])
            for n in range(4)
        ]
    )
    torch.testing.assert_close(distance(name).pairs(student, teacher), expected, atol=1e-5, rtol=1e-5)
    found = distance(name).of(student[:, :, None], teacher[:, None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
def test_equals_are_at_no_distance_and_others_at_some(name, generator):
    x = torch.randn(7, 6, generator=generator)
    torch.testing.assert_close(distance(name).of(x, x), torch.zeros(7), atol=1e-6, rtol=0)
    assert (distance(name).of(x, x.flip(1)) > 0).all()


def test_what_each_does_not_see(generator):
    student, teacher = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    close = torch.testing.assert_close
    close(distance("kl").of(student + 2, teacher), distance("kl").of(student, teacher))
    close(distance("cosine").of(3 * student, teacher), distance("cosine").of(student, teacher))
    assert (distance("mse").of(3 * student, teacher) != distance("mse").of(student, teacher)).all()


def test_attention_with_masked_keys_has_a_finite_divergence_and_gradient():
    """The logarithm of no attention is -inf on both sides."""
    student = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    teacher = torch.tensor([[0.25, 0.75, 0.0]]).log()
    found = distance("kl").of(student, teacher)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(student.grad).all()


def test_an_unknown_distance():
    with pytest.raises(InputError, match="Did you mean 'cosine'"):
        distance("cosinus")
