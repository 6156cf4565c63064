from itertools import pairwise

import pytest
import torch

from unseen.errors import InputError, TrainingDiverged
from unseen.sequences.byte_corpus import standard_library_corpus
from unseen.sequences.train_bytes import cosine_schedule, train_byte_model


@pytest.fixture(scope="module")
def corpus():
    return standard_library_corpus()


def test_training_is_seeded_and_learns(corpus):
    losses = [], []
    models = [
        train_byte_model(
            3,
            30,
            16,
            batch=8,
            width=16,
            layers=1,
            corpus=corpus.train,
            progress=lambda step, loss, k=k: losses[k].append(loss),
        )
        for k in (0, 1)
    ]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0] - 0.3
    assert torch.equal(models[0].head.weight, models[1].head.weight) and not models[0].training
    with pytest.raises(InputError, match="corpus"):
        train_byte_model(0, 1, 16, corpus=corpus.train[:10])
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        train_byte_model(
            0, 50, 16, batch=2, width=16, layers=1, learning_rate=1e30, warmup=1, corpus=corpus.train
        )


def test_schedule_warms_up_and_ends_at_zero():
    factors = [cosine_schedule(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0)
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
