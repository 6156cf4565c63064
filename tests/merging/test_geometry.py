import math

import pytest
import torch

from unseen.errors import InputError
from unseen.merging import compare


def test_distances_and_angles_by_hand():
    base = {"x": torch.tensor([1.0, 1.0]), "y": torch.tensor([1.0])}
    right = {"x": torch.tensor([4.0, 1.0]), "y": torch.tensor([1.0])}
    up = {"x": torch.tensor([1.0, 5.0]), "y": torch.tensor([1.0])}
    found = compare([right, up], base=base)
    torch.testing.assert_close(found.norm, torch.tensor([3.0, 4.0]).double())
    torch.testing.assert_close(found.distance, torch.tensor([[0.0, 5.0], [5.0, 0.0]]).double())
    torch.testing.assert_close(found.angle, torch.tensor([[0.0, 90.0], [90.0, 0.0]]).double())
    from_zero = compare([right, up])
    assert float(from_zero.cosine[0, 1]) == pytest.approx((4 + 5 + 1) / math.sqrt(18 * 27))
    assert float(compare([right, up], include=lambda name: name == "y").distance[0, 1]) == 0


def test_files_give_what_states_give(make_state, write_model, tmp_path):
    states = [make_state(seed, torch.bfloat16) for seed in range(3)]
    paths = [write_model(tmp_path / str(i), state, shards=2) for i, state in enumerate(states)]
    a, b = compare(states[1:], base=states[0]), compare(paths[1:], base=paths[0])
    assert torch.equal(a.distance, b.distance) and torch.equal(a.cosine, b.cosine)
    flat = [torch.cat([v.double().flatten() for n, v in s.items() if n != "steps"]) for s in states]
    torch.testing.assert_close(a.distance[0, 1], (flat[1] - flat[2]).norm())
    with pytest.raises(InputError, match="are none"):
        compare([])
