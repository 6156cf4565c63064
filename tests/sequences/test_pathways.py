import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.sequences.pathways import pair_edits, pathway_distance, pathway_text, pathways, sample_pairs


def random_routing(samples=30, layers=3, experts=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(samples, layers, experts, generator=generator)).softmax(-1)


def slow_levenshtein(a, b):
    """The recursive definition, with memory."""
    table = {}

    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        if (i, j) not in table:
            change = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
            table[i, j] = min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, change)
        return table[i, j]

    return distance(len(a), len(b))


def test_known_pathways():
    routing = torch.tensor([[[0.1, 0.6, 0.0, 0.3], [0.8, 0.1, 0.1, 0.0]], [[0.25] * 4, [0.0, 0.0, 0.5, 0.5]]])
    assert pathways(routing) == [[[1, 3], [0]], [[0, 1, 2], [2, 3]]]
    assert pathway_text(pathways(routing)[0]) == "1,3-0"
    assert pathways(routing, threshold=0.95)[0] == [[1, 3, 0], [0, 1, 2]]


def test_the_sum_must_exceed_the_threshold_whatever_the_rounding():
    routing = torch.tensor([[[0.4, 0.3, 0.2, 0.1], [0.7, 0.3, 0.0, 0.0]]])  # 0.4 + 0.3 equals 0.7
    assert pathways(routing, threshold=0.7) == [[[0, 1, 2], [0, 1]]]
    assert pathways(random_routing(), threshold=1.0) == [
        layers.argsort(dim=-1, descending=True, stable=True).tolist() for layers in random_routing()
    ]


def test_pathways_equal_the_obvious_loop():
    routing = random_routing()
    for layers, found in zip(routing, pathways(routing, 0.6), strict=True):
        for weights, kept in zip(layers.tolist(), found, strict=True):
            order = sorted(range(len(weights)), key=lambda k: -weights[k])
            total, expected = 0.0, []
            for expert in order:
                expected.append(expert)
                total += weights[expert]
                if total > 0.6:
                    break
            assert kept == expected


@pytest.mark.parametrize("level", ["token", "char"])
def test_distances_equal_the_recursive_definition(level):
    paths = pathways(random_routing())
    pairs = sample_pairs(len(paths), 60)
    edits = pair_edits(paths, pairs, level)
    words = [pathway_text(path) for path in paths]
    if level == "token":
        words = [word.replace("-", ",-,").split(",") for word in words]
    assert edits.distance.tolist() == [slow_levenshtein(words[i], words[j]) for i, j in pairs.tolist()]
    assert edits.longer.tolist() == [max(len(words[i]), len(words[j])) for i, j in pairs.tolist()]


def test_characters_count_digits_and_commas_where_tokens_do_not():
    paths = [[[1], [10]], [[1], [2]]]  # "1-10" and "1-2"
    assert pathway_distance(paths) == 1
    assert pathway_distance(paths, level="char") == 2
    one, more = [[1], [2]], [[1], [2, 3]]
    assert pathway_distance([one, more]) == 1
    assert pathway_distance([one, more], level="char") == 2  # the comma, too


def test_the_end_of_a_layer_counts():
    assert pathway_distance([[[1, 2], [3]], [[1], [2, 3]]]) == 2


def test_distance_over_all_pairs_and_normalized():
    paths = [[[0], [0]], [[0], [1]], [[1], [1, 2]]]
    assert pathway_distance(paths, pairs="all") == pytest.approx((1 + 3 + 2) / 3)
    assert pathway_distance(paths, pairs="all", normalize=True) == pytest.approx((1 / 3 + 3 / 4 + 2 / 4) / 3)
    assert pathway_distance(paths, pairs=torch.tensor([[0, 2]])) == 3
    assert pathway_distance([paths[0]] * 2) == 0


def test_renaming_experts_in_all_samples_changes_no_distance():
    routing = random_routing()
    renamed = routing[:, :, torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    assert pathway_distance(pathways(routing)) == pytest.approx(pathway_distance(pathways(renamed)))


def test_pairs_are_fixed_different_and_within_groups():
    pairs = sample_pairs(200, 500, seed=3)
    assert torch.equal(pairs, sample_pairs(200, 500, seed=3))
    assert not torch.equal(pairs, sample_pairs(200, 500, seed=4))
    assert len({frozenset(pair) for pair in pairs.tolist()}) == 500
    groups = ["abc"[i % 3] for i in range(30)]
    grouped = sample_pairs(30, 10_000, groups=groups)
    expected = {frozenset((i, j)) for i in range(30) for j in range(i) if groups[i] == groups[j]}
    assert {frozenset(pair) for pair in grouped.tolist()} == expected
    assert {frozenset(pair) for pair in sample_pairs(5, 10_000).tolist()} == {
        frozenset((i, j)) for i in range(5) for j in range(i)
    }


def test_pairs_of_many_samples_are_drawn_without_listing_them():
    pairs = sample_pairs(2_000_000, 100)
    assert pairs.shape == (100, 2) and int(pairs.max()) < 2_000_000
    assert bool((pairs[:, 0] != pairs[:, 1]).all())
    assert np.unique(pairs.numpy(), axis=0).shape == (100, 2)


def test_bad_input():
    routing = random_routing(3)
    for threshold in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            pathways(routing, threshold)
    for wrong in (routing * 2, routing - 0.5, routing[0], routing[:, :1], routing * float("nan")):
        with pytest.raises(InputError, match="routing"):
            pathways(wrong)
    paths = pathways(routing)
    with pytest.raises(InputError, match="two at least"):
        pathway_distance(paths[:1])
    with pytest.raises(InputError, match="two at least"):
        pathway_distance(paths[:1], pairs=torch.tensor([[0, 0]]))
    with pytest.raises(InputError, match="pairs"):
        pathway_distance(paths, pairs="some")
    with pytest.raises(InputError, match="level"):
        pathway_distance(paths, level="word")
    with pytest.raises(InputError, match="no two samples"):
        sample_pairs(3, groups=["a", "b", "c"])
    with pytest.raises(InputError, match="one for each"):
        sample_pairs(3, groups=["a", "a"])
