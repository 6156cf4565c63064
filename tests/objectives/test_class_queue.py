from collections import deque

import pytest
import torch

from unseen.errors import InputError
from unseen.objectives.class_queue import ClassQueue


def test_it_holds_what_a_deque_of_each_class_holds():
    queue, slow = ClassQueue(3, 5, 2), [deque(maxlen=5) for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels = torch.randint(3, (4,), generator=generator)
        features = torch.randn(4, 2, generator=generator)
        queue.push(features, labels)
        for feature, label in zip(features, labels.tolist(), strict=True):
            slow[label].append(tuple(feature.tolist()))
        assert queue.held.tolist() == [len(own) for own in slow]
        for c in range(3):
            held = {tuple(value.tolist()) for value in queue.values[c][queue.filled[c].bool()]}
            assert held == set(slow[c])


def test_a_batch_that_it_cannot_hold_is_refused():
    with pytest.raises(InputError, match="queue: holds 3"):
        ClassQueue(2, 3, 2).push(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
