import math

import pytest
import torch
from curation_toys import language_model, make_model, make_pool, token_pool

from unseen.curation import Pool, select
from unseen.curation.base import Selector, per_example
from unseen.errors import InputError
from unseen.registry import selectors

NEEDS_TOKENS = ("perplexity",)


def case(name):
    """A selector with what it scores, small."""
    if name in NEEDS_TOKENS:
        return selectors.build(name), language_model(), token_pool()
    options = {"epochs": 3} if name in ("forgetting", "learning_order") else {}
    return selectors.build(name, **options), make_model(), make_pool()


@pytest.mark.parametrize("name", selectors.names())
def test_scores_are_finite_repeatable_and_choose_the_budget(name):
    selector, model, pool = case(name)
    scores = selector.fit(model, pool)
    assert scores.shape == (len(pool),) and scores.dtype == torch.float64
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(case(name)[0].fit(model, pool), scores)
    rows = selector.select(scores, 0.3)
    assert len(rows) == math.ceil(0.3 * len(pool))
    left = torch.ones(len(pool), dtype=torch.bool)
    left[rows] = False
    assert scores[rows].min() >= scores[left].max()


@pytest.mark.parametrize("name", selectors.names())
def test_model_and_random_state_stay_as_they_were(name):
    selector, model, pool = case(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = list(map(id, model.parameters()))
    modes = [each.training for each in model.modules()]
    random = torch.random.get_rng_state()
    selector.fit(model, pool)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(map(id, model.parameters())) == parameters
    assert [each.training for each in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("name", sorted(set(selectors.names()) - {"random"}))
def test_two_examples_and_a_model_are_needed(name):
    selector, model, pool = case(name)
    with pytest.raises(InputError, match=r"hold 1 example"):
        selector.fit(model, pool.take(torch.tensor([0])))
    with pytest.raises(InputError, match="model: is None"):
        selector.fit(None, pool)


@pytest.mark.parametrize("name", sorted(set(selectors.names()) - {"random", *NEEDS_TOKENS}))
def test_examples_that_are_not_finite_are_named(name):
    selector, model, pool = case(name)
    pool.x[[4, 7]] = math.nan
    with pytest.raises(InputError, match=r"(4|4, 7)\b.*finite"):
        selector.fit(model, pool)


@pytest.mark.parametrize("name", sorted(set(selectors.names()) - {"random", *NEEDS_TOKENS}))
def test_one_class_alone_can_be_chosen_from(name):
    selector, model, pool = case(name)
    pool = Pool(pool.x, torch.zeros_like(pool.y))
    assert len(selector.select(selector.fit(model, pool), 0.5, by="class")) == len(pool) // 2


def test_each_domain_or_class_keeps_its_share():
    scores = torch.tensor([9.0, 8, 7, 6, 5, 1, 2, 3])
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    assert select(scores, 0.4).tolist() == [0, 1, 2, 3]
    assert select(scores, 0.4, groups).tolist() == [0, 1, 6, 7]
    assert select(scores, 1.0, groups).tolist() == list(range(8))
    assert select(torch.zeros(10), 0.3).tolist() == [
        0,
        1,
        2,
    ]  # ties by row; 0.3 * 10 is a little over 3 in floats


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, math.nan])
def test_a_budget_outside_the_unit_interval_is_refused(budget):
    with pytest.raises(InputError, match="budget"):
        select(torch.zeros(4), budget)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="score of example 1, 3"):
        select(torch.tensor([0, math.inf, 0, math.nan]), 0.5)
    with pytest.raises(InputError, match="scores"):
        select(torch.zeros(0), 0.5)
    with pytest.raises(InputError, match="groups"):
        select(torch.zeros(4), 0.5, torch.zeros(3))
    with pytest.raises(InputError, match="y: has 3 rows, x has 4"):
        Pool(torch.zeros(4, 2), torch.zeros(3))
    random = selectors.build("random")
    with pytest.raises(InputError, match="Call fit first"):
        random.select(torch.zeros(4), 0.5, by="domain")
    scores = random.fit(None, (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(InputError, match="needs a domain"):
        random.select(scores, 0.5, by="domain")
    with pytest.raises(InputError, match="by 'colour'"):
        random.select(scores, 0.5, by="colour")


def test_pools_are_taken_from_and_joined():
    pool = make_pool()
    parts = pool.take(torch.arange(10)), pool.take(torch.arange(10, 40))
    joined = parts[0].joined(parts[1])
    assert torch.equal(joined.x, pool.x) and torch.equal(joined.y, pool.y)
    assert torch.equal(joined.domain, pool.domain)
    nested = Pool({"a": pool.x, "b": pool.x}, pool.y)
    assert nested.take(pool.y == 0).joined(nested).x["a"].shape == (54, 6)
    with pytest.raises(InputError, match="with and without domains"):
        pool.joined(Pool(pool.x, pool.y))


def test_what_is_told_of_examples_does_not_depend_on_the_size_of_parts():
    model, pool = make_model(), make_pool()
    torch.testing.assert_close(per_example(model, pool, size=7), per_example(model, pool))


def test_a_selector_of_ones_own_needs_scores_alone():
    class First(Selector):
        def scores(self, model, pool):
            return -torch.arange(len(pool))

    selector = First()
    assert selector.select(selector.fit(None, make_pool()), 0.25).tolist() == list(range(10))
