"""Each selector against the definition, spelled out slowly."""

import math

import pytest
import torch
from curation_toys import language_model, make_model, make_pool, token_pool
from torch.nn.functional import cross_entropy

from unseen.curation import Pool
from unseen.errors import InputError
from unseen.measures.kernel_spectrum import vendi_score
from unseen.networks import Network
from unseen.networks.example_gradients import token_cross_entropy
from unseen.registry import selectors


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def pool():
    return make_pool()


def gradients(model, pool):
    model.eval()
    rows = []
    for row in range(len(pool)):
        loss = cross_entropy(model(pool.x[row : row + 1]), pool.y[row : row + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    model.train()
    return torch.stack(rows)


def logits(model, pool):
    with torch.no_grad():
        found = model.eval()(pool.x)
    model.train()
    return found


def fit(name, model, pool, **options):
    return selectors.build(name, **options).fit(model, pool)


def test_scores_by_what_the_model_says(model, pool):
    found = logits(model, pool)
    losses = cross_entropy(found, pool.y, reduction="none").double()
    torch.testing.assert_close(fit("small_loss", model, pool), -losses)
    errors = (found.softmax(-1) - torch.eye(3)[pool.y]).norm(dim=1).double()
    torch.testing.assert_close(fit("el2n", model, pool), errors)
    torch.testing.assert_close(fit("el2n", model, pool, prefer="easy"), -errors)
    margins = [
        row[label] - max(row[k] for k in range(3) if k != label)
        for row, label in zip(found, pool.y, strict=True)
    ]
    torch.testing.assert_close(fit("margin", model, pool), -torch.stack(margins).double())


def test_grand_is_the_norm_of_the_gradient(model, pool):
    torch.testing.assert_close(
        fit("grand", model, pool), gradients(model, pool).norm(dim=1).double(), rtol=1e-5, atol=1e-6
    )


def test_gradient_similarity_is_the_cosine_with_the_target(model, pool):
    target = pool.take(pool.y == 1)
    exact = gradients(model, pool)
    mean = gradients(model, target).mean(0)
    cosines = torch.nn.functional.cosine_similarity(exact, mean[None]).double()
    scores = fit("gradient_similarity", model, pool, target=target, dimension=20000)
    torch.testing.assert_close(scores, cosines, atol=0.05, rtol=0)
    assert scores[pool.y == 1].mean() > scores[pool.y != 1].mean() + 0.5


def test_perplexity_looks_at_the_answers_tokens_only():
    model, pool = language_model(), token_pool()
    expected = []
    for tokens, targets in zip(pool.x, pool.y, strict=True):
        logs = model(tokens[None])[0].log_softmax(-1)
        losses = [-logs[t - 1, targets[t]] for t in range(1, 6) if targets[t] != -100]
        expected.append(-sum(losses) / len(losses))
    torch.testing.assert_close(
        fit("perplexity", model, pool), torch.stack(expected).double().detach(), rtol=1e-5, atol=1e-6
    )


def test_an_example_that_contradicts_its_copies_is_never_learned():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, generator=generator).repeat(20, 1)
    y = torch.tensor([0, 1]).repeat(20)
    y[6] = 2
    for name in ("forgetting", "learning_order"):
        scores = fit(name, make_model(), Pool(x, y), epochs=20, learning_rate=0.1, batch_size=8)
        assert scores.argmax() == 6
        assert fit(name, make_model(), Pool(x, y), epochs=2, prefer="easy")[6] < 0
    with pytest.raises(InputError, match="epochs"):
        selectors.build("forgetting", epochs=1)
    with pytest.raises(InputError, match="statistic"):
        selectors.build("forgetting(statistic='last')")


def chosen_first(scores):
    return scores.argsort(descending=True).tolist()


def test_k_centre_goes_to_the_farthest(pool):
    order = chosen_first(fit("k_centre", None, pool, space="inputs"))
    for count in range(1, len(pool)):
        distances = torch.cdist(pool.x, pool.x[order[:count]]).amin(1)
        assert distances[order[count]] == pytest.approx(float(distances.max()), rel=1e-4)
    assert sorted(order) == list(range(len(pool)))


def test_k_means_plus_plus_takes_one_of_each_heap():
    heaps = torch.eye(5).repeat(8, 1) * 100 + torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    pool = Pool(heaps, torch.zeros(40, dtype=torch.int64))
    for seed in range(4):
        order = chosen_first(fit("kmeans_plus_plus", None, pool, space="inputs", seed=seed))
        assert len({row % 5 for row in order[:5]}) == 5
    copies = Pool(torch.ones(4, 2), torch.zeros(4))
    assert sorted(chosen_first(fit("kmeans_plus_plus", None, copies, space="inputs"))) == [0, 1, 2, 3]


def test_vendi_greedy_adds_most_to_the_score_of_order_two(pool):
    order = chosen_first(fit("vendi_greedy", None, pool, space="inputs"))
    for count in range(1, 12):
        scores = [
            vendi_score(pool.x[[*order[:count], row]], q=2) if row not in order[:count] else -1
            for row in range(len(pool))
        ]
        assert scores[order[count]] == pytest.approx(max(scores), rel=1e-4)


def test_a_part_in_order_chooses_the_same_as_the_whole(pool):
    for name in ("k_centre", "vendi_greedy", "kmeans_plus_plus"):
        whole = chosen_first(fit(name, None, pool, space="inputs"))
        part = chosen_first(fit(name, None, pool, space="inputs", depth=0.3))
        assert part[:12] == whole[:12]
        assert sorted(part) == list(range(len(pool)))
    with pytest.raises(InputError, match="depth"):
        selectors.build("k_centre", depth=0)


@pytest.mark.parametrize("space", ["features", "gradients"])
def test_spaces_need_what_they_are_made_of(space, model, pool):
    scores = fit("vendi_greedy", model, pool, space=space)
    assert len(scores.unique()) == len(pool)
    with pytest.raises(InputError, match="space"):
        fit("k_centre", model, pool, space="sounds")
    with pytest.raises(InputError, match="featurizer"):
        fit("k_centre", torch.nn.Linear(6, 3), pool)
    with pytest.raises(InputError, match="one tensor"):
        fit("k_centre", model, Pool({"a": pool.x}, pool.y), space="inputs")


def test_examples_at_zero_are_named(pool):
    pool.x[[3, 5]] = 0
    with pytest.raises(InputError, match="inputs of example 3, 5"):
        fit("vendi_greedy", None, pool, space="inputs")
    sure = Network(torch.nn.Identity(), 1, 2).double()  # so sure that the gradient is zero in float64
    torch.nn.init.constant_(sure.head.bias, 0)
    sure.head.weight.data = torch.tensor([[1e4], [-1e4]], dtype=torch.float64)
    certain = Pool(torch.tensor([[1.0], [-1], [1]], dtype=torch.float64), torch.tensor([0, 0, 0]))
    for name in ("vendi_greedy", "k_centre"):
        with pytest.raises(InputError, match=r"zero for 2 of 3 examples \(0, 2\)"):
            fit(name, sure, certain, space="gradients")


def test_chance_follows_its_seed(pool):
    assert not torch.equal(fit("random", None, pool), fit("random", None, pool, seed=1))


@pytest.mark.parametrize("name", ["small_loss", "el2n", "grand", "margin", "forgetting"])
def test_a_misspelt_preference_is_refused(name, model, pool):
    with pytest.raises(InputError, match="prefer 'best'"):
        fit(name, model, pool, prefer="best")


def test_losses_that_are_infinite_are_named():
    model = Network(torch.nn.Identity(), 1, 2)
    model.head.weight.data = torch.tensor([[3e38], [-3e38]])
    pool = Pool(torch.tensor([[0.1], [9.0], [0.1]]), torch.tensor([0, 1, 0]))
    with pytest.raises(InputError, match="loss of example 1"):
        fit("small_loss", model, pool)
    assert math.isfinite(float(fit("small_loss", model, pool.take(torch.tensor([0, 2]))).sum()))


def test_a_loss_has_a_name_or_is_a_function():
    model, pool = language_model(), token_pool()
    by_name = fit("small_loss", model, pool, loss="tokens")
    torch.testing.assert_close(by_name, fit("perplexity", model, pool))
    torch.testing.assert_close(by_name, fit("small_loss", model, pool, loss=token_cross_entropy))
    assert len(fit("donod", model, pool, loss="tokens")) == 9
    with pytest.raises(InputError, match="loss 'words'"):
        selectors.build("grand(loss='words')")
    with pytest.raises(InputError, match=r"y: has shape \(9, 6\)"):
        fit("el2n", model, pool)
