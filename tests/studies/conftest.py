import pytest
import torch
from torch import nn

from unseen.shifts import Shift


@pytest.fixture(scope="session")
def toy() -> Shift:
    """Three classes in four domains that differ by an offset; one feature misleads in domain d."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (480,), generator=generator)
    domain = torch.arange(480) % 4
    x = torch.randn(480, 6, generator=generator) + 2 * nn.functional.one_hot(y, 6) + domain[:, None] * 0.3
    x[domain == 3, 1] *= -1
    group = torch.arange(480) // 4 % 2
    return Shift(
        "toy", "array", x, y, domain, tuple("xyz"), tuple("abcd"), group=group, groups=("young", "old")
    )
