import pytest
import torch

from unseen.errors import InputError
from unseen.sequences.attention_policy import POLICIES
from unseen.sequences.byte_corpus import standard_library_corpus
from unseen.sequences.language_model import DecoderLM
from unseen.sequences.length_evaluation import evaluate_policies, nll_by_position, recompute_nll, token_nll
from unseen.sequences.train_bytes import train_byte_model


@pytest.fixture(scope="module")
def corpus():
    return standard_library_corpus()


@pytest.fixture(scope="module")
def trained(corpus):
    """Windows of 16 bytes for 300 steps: enough to read the last bytes, and to be lost beyond the window."""
    return train_byte_model(0, 300, 16, batch=32, width=32, layers=2, learning_rate=5e-3, corpus=corpus.train)


def test_vanilla_breaks_beyond_the_window_and_lm_infinite_does_not(trained, corpus):
    x, inside, beyond = corpus.sequences(40, 128, seed=0), (8, 16), (64, 128)
    results = evaluate_policies(trained, x, 16, 4, [inside, beyond])
    assert set(results) == set(POLICIES)
    reference = recompute_nll(trained, x, 16, [inside, beyond], stride=4)
    infinite, vanilla = results["lm-infinite"], results["vanilla"]
    assert vanilla[inside] == pytest.approx(infinite[inside], abs=1e-4)
    assert vanilla[beyond] > infinite[beyond] + 0.2
    assert infinite[beyond] < infinite[inside] + 0.2
    assert infinite[beyond] < reference[beyond] + 0.2
    assert results["mask-only"][beyond] > infinite[beyond]


@torch.no_grad()
def test_nll_by_position_is_the_mean_over_its_targets(generator):
    model, x = (
        DecoderLM(20, width=16, layers=1, heads=2, window=8),
        torch.randint(20, (5, 12), generator=generator),
    )
    table = model(x).log_softmax(-1)
    by_hand = [-table[row, t - 1, x[row, t]] for row in range(5) for t in range(3, 7)]
    found = nll_by_position(model, x, [(3, 7), (1, 12)], batch=2)
    assert found[3, 7] == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert found[1, 12] == pytest.approx(float(token_nll(model, x).mean()), rel=1e-5)
    for bucket in ((0, 3), (3, 3), (3, 13)):
        with pytest.raises(InputError, match="bucket"):
            nll_by_position(model, x, [bucket])


@torch.no_grad()
def test_recompute_reads_each_target_from_a_fresh_window(generator):
    model, x = (
        DecoderLM(20, width=16, layers=2, heads=2, window=4),
        torch.randint(20, (3, 12), generator=generator),
    )
    found = recompute_nll(model, x, 4, [(2, 12)], batch=2)
    by_hand = []
    for row in range(3):
        for t in range(2, 12):
            by_hand.append(-model(x[row : row + 1, max(0, t - 4) : t])[0, -1].log_softmax(-1)[x[row, t]])
    assert found[2, 12] == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    every_third = recompute_nll(model, x, 4, [(2, 12)], stride=3)
    assert every_third[2, 12] != found[2, 12]
    assert recompute_nll(model, x, 99, [(2, 12)])[2, 12] == pytest.approx(
        nll_by_position(model, x, [(2, 12)])[2, 12], rel=1e-5
    )
