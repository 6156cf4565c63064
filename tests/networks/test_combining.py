import itertools

import pytest
import torch

from unseen.errors import InputError
from unseen.networks import combining
from unseen.networks.combining import (
    choose_by_oracle,
    choose_by_validation,
    disagreement,
    disagreement_matrix,
    disambiguate,
    entropy_scores,
    inverse_power_weights,
    mean_probabilities,
    mixed_probabilities,
    picked,
)


@pytest.fixture
def logits():
    return 3 * torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))


def test_mixtures_are_distributions_and_equal_weights_are_the_mean(logits):
    equal = torch.full((4,), 0.25)
    torch.testing.assert_close(mixed_probabilities(logits, equal), mean_probabilities(logits))
    torch.testing.assert_close(
        mixed_probabilities(logits, equal[:, None].expand(4, 9)), mean_probabilities(logits)
    )
    scores = entropy_scores(logits, "example")
    for gamma in (0.0, 1.0, 50.0):
        weights = inverse_power_weights(scores, gamma)
        torch.testing.assert_close(mixed_probabilities(logits, weights).sum(-1), torch.ones(9))
    torch.testing.assert_close(inverse_power_weights(scores, 0.0), torch.full((4, 9), 0.25))
    assert torch.equal(inverse_power_weights(scores, 500.0).argmax(0), scores.argmin(0))
    certain = torch.tensor([[0.0], [0.5]])  # an entropy of zero must not give NaN
    assert torch.isfinite(inverse_power_weights(certain, 2.0)).all()


def test_entropy_by_unit_is_a_mean_over_the_unit(logits):
    alone = torch.stack([torch.distributions.Categorical(logits=one).entropy() for one in logits])
    torch.testing.assert_close(entropy_scores(logits, "example"), alone)
    torch.testing.assert_close(entropy_scores(logits, "batch"), alone.mean(1, keepdim=True).expand(4, 9))
    group = torch.tensor([0, 2, 0, 2, 2, 0, 4, 2, 0])  # groups 1 and 3 are empty
    found = entropy_scores(logits, "group", group)
    for value in (0, 2, 4):
        inside = group == value
        torch.testing.assert_close(
            found[:, inside], alone[:, inside].mean(1, keepdim=True).expand(4, int(inside.sum()))
        )
    one = torch.zeros(9, dtype=torch.int64)
    torch.testing.assert_close(entropy_scores(logits, "group", one), entropy_scores(logits, "batch"))
    torch.testing.assert_close(
        entropy_scores(logits, "group", torch.arange(9)), entropy_scores(logits, "example")
    )
    with pytest.raises(InputError, match="group: is not given"):
        entropy_scores(logits, "group")
    with pytest.raises(InputError, match="unit 'domain'"):
        entropy_scores(logits, "domain")


def test_picked_takes_one_hypothesis_or_one_an_example(logits):
    index = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 2])
    expected = torch.stack([logits[k, b] for b, k in enumerate(index.tolist())])
    assert torch.equal(picked(logits, index), expected) and torch.equal(picked(logits, 2), logits[2])


def test_disagreement_sums_over_all_pairs(logits):
    p = torch.softmax(logits, -1)
    expected = sum((p[i] - p[j]).abs().sum(-1) for i, j in itertools.combinations(range(4), 2))
    torch.testing.assert_close(disagreement(logits), expected)
    matrix = disagreement_matrix(logits)
    assert torch.equal(matrix, matrix.T) and torch.equal(matrix.diagonal(), torch.zeros(4))
    assert matrix[0, 1] == (logits[0].argmax(-1) != logits[1].argmax(-1)).float().mean()


def test_queries_go_where_hypotheses_differ_and_find_the_right_one():
    labels = torch.arange(60) % 2
    right = torch.nn.functional.one_hot(labels, 2).float() * 6
    wrong = right.clone()
    wrong[:5] = wrong[:5].flip(-1)  # the two differ on five examples only
    asked = []

    def oracle(rows):
        asked.extend(rows.tolist())
        return labels[rows]

    choice = disambiguate(torch.stack([wrong, right]), oracle, budget=5, seed=3)
    assert choice.index == 1 and sorted(asked) == [0, 1, 2, 3, 4] == sorted(choice.queried)
    assert choice.accuracy == (0.0, 1.0) and choice.by == "queries" and not choice.peeks
    found = [
        disambiguate(torch.stack([wrong, right]), oracle, 5, "random", seed=seed).index for seed in range(8)
    ]
    assert 0 in found  # five random labels mostly miss the five that tell
    one = disambiguate(torch.stack([wrong, right]), oracle, 5, "random", seed=1).queried
    assert one == disambiguate(torch.stack([wrong, right]), oracle, 5, "random", seed=1).queried
    for budget in (0, 61):
        with pytest.raises(InputError, match="from 1 to 60"):
            disambiguate(torch.stack([wrong, right]), oracle, budget)
    with pytest.raises(InputError, match="strategy 'best'"):
        disambiguate(torch.stack([wrong, right]), oracle, 3, "best")


def test_the_oracles_choice_says_that_it_peeks(logits):
    labels = logits[2].argmax(-1)
    oracle, validation = choose_by_oracle(logits, labels), choose_by_validation(logits, labels)
    assert oracle.index == validation.index == 2 and oracle.accuracy[2] == 1.0
    assert oracle.peeks and not validation.peeks
    with pytest.raises(InputError, match="labels: are none"):
        combining.choose_by_validation(logits[:, :0], labels[:0])
