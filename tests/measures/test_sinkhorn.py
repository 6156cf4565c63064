import pytest
import torch

from unseen.errors import InputError
from unseen.measures.sinkhorn import sinkhorn


@pytest.fixture
def scores(generator):
    return 2 * torch.rand(12, 5, generator=generator, dtype=torch.float64) - 1


def published(scores, eps, iters):
    """The steps of PALM's method section, with prototypes as rows."""
    q = torch.exp(scores / eps).T
    q = q / q.sum()
    for _ in range(iters):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def test_equals_the_published_steps_and_the_multiplicative_form(scores):
    expected = published(scores, 0.05, 3)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), expected)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3, log_domain=False), expected)


def test_both_constraints_hold_after_many_rounds_and_rows_always(scores):
    few, many = sinkhorn(scores, 0.05, 1), sinkhorn(scores, 0.05, 2000)
    for shares in (few, many):
        torch.testing.assert_close(shares.sum(1), torch.ones(12).double())
    torch.testing.assert_close(many.sum(0), torch.full((5,), 12 / 5).double())
    assert not torch.allclose(few.sum(0), torch.full((5,), 12 / 5).double(), atol=0.05)


def test_little_regularisation_finds_the_best_assignment(generator):
    from scipy.optimize import linear_sum_assignment

    scores = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    shares = sinkhorn(scores, 1e-3, 5000)
    _, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    assert shares.argmax(1).tolist() == columns.tolist()


def test_batches_are_apart_from_each_other(generator):
    scores = torch.randn(3, 2, 7, 4, generator=generator)
    together = sinkhorn(scores)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(together[i, j], sinkhorn(scores[i, j]))


def test_neither_a_constant_nor_the_order_matters(scores, generator):
    order = torch.randperm(12, generator=generator)
    torch.testing.assert_close(sinkhorn(scores + 3), sinkhorn(scores))
    torch.testing.assert_close(sinkhorn(scores[order]), sinkhorn(scores)[order])


def test_logarithms_bear_what_exponentials_do_not(scores):
    assert torch.isfinite(sinkhorn(1000 * scores.float(), 0.05)).all()
    with pytest.raises(InputError, match="transport: has NaN or infinite shares"):
        sinkhorn(1000 * scores.float(), 0.05, log_domain=False)
    half = sinkhorn(scores.half())
    assert half.dtype == torch.float32 and torch.isfinite(half).all()


def test_no_gradient(scores):
    assert not sinkhorn(scores.requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.0}, "eps: is 0.0"),
        ({"iters": 0}, "iters: is 0"),
        ({"scores": torch.zeros(3)}, r"scores: have shape \(3,\)"),
        ({"scores": torch.zeros(0, 3)}, r"scores: have shape \(0, 3\)"),
        ({"scores": torch.tensor([[1.0, float("nan")]])}, "scores: have NaN"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        sinkhorn(**{"scores": torch.zeros(2, 2), **changes})
