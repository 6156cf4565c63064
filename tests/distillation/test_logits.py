"""The divergence of softened logits, against the formula written out."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from unseen.distillation import logit_kl
from unseen.errors import InputError


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, generator=generator), torch.randn(3, 4, 5, generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_the_divergence_of_distributions(logits, temperature):
    student, teacher = logits
    expected = kl_divergence(
        Categorical(logits=teacher / temperature), Categorical(logits=student / temperature)
    )
    torch.testing.assert_close(logit_kl(student, teacher, temperature, reduction="none"), expected)
    torch.testing.assert_close(logit_kl(student, teacher, temperature), expected.mean())
    torch.testing.assert_close(logit_kl(student, teacher, temperature, reduction="sum"), expected.sum())


def test_the_teacher_comes_first():
    """KL(teacher || student) is log 2 for a sure teacher and a student that tosses a coin; the other way round it
    is without bound."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[100.0, -100.0]])
    assert float(logit_kl(student, teacher)) == pytest.approx(math.log(2))


def test_no_factor_of_squared_temperature(logits):
    student, teacher = logits
    assert float(logit_kl(student, teacher, 100.0)) < 1e-3


def test_a_constant_added_to_logits_changes_nothing_and_equals_have_none(logits):
    student, teacher = logits
    torch.testing.assert_close(logit_kl(student + 3, teacher - 7), logit_kl(student, teacher))
    assert float(logit_kl(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_masked_positions_have_no_value_and_no_gradient(logits):
    student, teacher = logits
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    student = student.clone()
    student[mask == 0] = float("nan")  # what attention gives for rows that are padding alone
    student.requires_grad_()
    loss = logit_kl(student, teacher, mask=mask)
    loops = [
        kl_divergence(Categorical(logits=teacher[b, t]), Categorical(logits=student[b, t].detach()))
        for b, t in mask.nonzero().tolist()
    ]
    torch.testing.assert_close(loss.detach(), torch.stack(loops).mean())
    loss.backward()
    assert student.grad[mask == 0].eq(0).all() and student.grad[mask == 1].ne(0).any()


def test_gradient_is_the_difference_of_distributions_and_the_teacher_has_none(logits):
    student, teacher = (values.clone().requires_grad_() for values in logits)
    logit_kl(student, teacher, 2.0, reduction="sum").backward()
    torch.testing.assert_close(
        student.grad, ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).detach() / 2
    )
    assert teacher.grad is None


def test_half_precision_is_summed_in_single():
    student = torch.zeros(1, 50000, dtype=torch.bfloat16)
    teacher = torch.zeros(1, 50000, dtype=torch.bfloat16)
    teacher[0, 0] = 20
    expected = logit_kl(student.double(), teacher.double())
    assert float(logit_kl(student, teacher)) == pytest.approx(float(expected), rel=1e-4)


def test_errors(logits):
    student, teacher = logits
    with pytest.raises(InputError, match="same positions and classes or tokens"):
        logit_kl(student, teacher[..., :4])
    for temperature in (0, -1, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            logit_kl(student, teacher, temperature)
    with pytest.raises(InputError, match="every token is masked"):
        logit_kl(student, teacher, mask=torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"Give \(3, 4\)"):
        logit_kl(student, teacher, mask=torch.ones(3))
    with pytest.raises(InputError, match="Did you mean 'mean'"):
        logit_kl(student, teacher, reduction="mean_")
