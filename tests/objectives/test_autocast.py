"""Under mixed precision every objective computes its loss, beyond the network, in single precision."""

import pytest
import torch

from unseen.registry import objectives
from unseen.testing.toy import LATE, prepared, toy_batch, toy_system


@pytest.mark.parametrize("name", objectives.names())
def test_parts_stay_in_single_precision_and_close_to_the_exact_ones(name):
    batch = toy_batch("cpu", step=LATE)
    exact, mixed = (toy_system(lambda: objectives.build(name), 0, "cpu", 3) for _ in range(2))
    expected = exact(prepared(exact, batch))
    with torch.autocast("cpu", torch.bfloat16):
        found = mixed(prepared(mixed, batch))
    for part in ("total", *expected.parts):
        value, like = ((loss.parts | {"total": loss.total})[part] for loss in (found, expected))
        if part in ("total", "penalty"):
            assert value.dtype == torch.float32, part
        torch.testing.assert_close(value.float(), like, rtol=0.05, atol=1e-3)
    found.total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in mixed.parameters())
