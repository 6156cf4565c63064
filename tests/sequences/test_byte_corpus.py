import pytest
import torch

from unseen.errors import InputError
from unseen.sequences.byte_corpus import standard_library_corpus


@pytest.fixture(scope="module")
def corpus():
    return standard_library_corpus()


def test_corpus_is_the_same_every_time_and_split_by_file(corpus):
    again = standard_library_corpus()
    assert torch.equal(corpus.train, again.train) and torch.equal(corpus.held_out, again.held_out)
    assert len(corpus.train) > 2_000_000 and len(corpus.held_out) > 100_000
    train, held_out = (bytes(part.to(torch.uint8).numpy()) for part in (corpus.train, corpus.held_out))
    assert b"class TextWrapper" in train + held_out
    assert not any(held_out[at : at + 2000] in train for at in range(0, len(held_out), 20_000))
    sequences = corpus.sequences(10, 512, seed=0)
    assert sequences.shape == (10, 512) and torch.equal(sequences, corpus.sequences(10, 512, seed=0))
    assert len({tuple(row) for row in sequences.tolist()}) == 10
    assert not torch.equal(sequences, corpus.sequences(10, 512, seed=1))
    with pytest.raises(InputError, match="count"):
        corpus.sequences(10**6, 512, seed=0)
