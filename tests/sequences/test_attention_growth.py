import pytest
import torch

from unseen.sequences.attention_growth import AllocatedBytes, Growth, measure_growth


def test_block_memory_grows_linearly_and_dense_quadratically():
    lengths = (256, 512, 1024)
    block, dense = (measure_growth(method, lengths, n_local=32, repeats=1) for method in ("block", "dense"))
    assert 0.9 < block.memory_slope < 1.1
    assert 1.7 < dense.memory_slope < 2.1
    assert len(block.seconds) == 3 and min(block.seconds) > 0 and block.time_slope == block.time_slope


def test_slopes_and_allocation_count():
    growth = Growth((10, 20, 40), (1.0, 4.0, 16.0), (5, 10, 20))
    assert growth.time_slope == pytest.approx(2) and growth.memory_slope == pytest.approx(1)
    x = torch.zeros(100)
    with AllocatedBytes() as counter:
        y = (x + 1).view(10, 10)[2:]
        y.mul_(2)
    assert counter.total == 400
