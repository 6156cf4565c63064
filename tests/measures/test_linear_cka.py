import math

import pytest
import torch

from unseen.errors import InputError
from unseen.measures.linear_cka import linear_cka


@pytest.mark.parametrize("count", [10, 60])  # fewer and more examples than features
def test_linear_cka(count, generator):
    x, y = torch.randn(2, count, 20, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    centre = torch.eye(count, dtype=torch.float64) - 1 / count

    def hsic(a, b):
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre)

    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert linear_cka(x, y) == pytest.approx(float(expected)) and linear_cka(x, y) < 0.99
    assert math.isnan(linear_cka(x, torch.ones(count, 3)))


def test_other_examples_are_refused():
    with pytest.raises(InputError, match="second features"):
        linear_cka(torch.zeros(4, 2), torch.zeros(5, 2))
