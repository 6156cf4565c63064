import math

import pytest
import torch
from curation_toys import language_model, make_model, make_pool, token_pool

from unseen.curation import Pool, diversity_report, g_vendi, marginal_gain, metric_validity_study
from unseen.curation.diversity import Metric, distinct, label_entropy, mean_cosine, perplexity, vendi
from unseen.errors import InputError
from unseen.measures.kernel_spectrum import vendi_score
from unseen.networks.example_gradients import ExampleGradients, token_cross_entropy


def test_g_vendi_is_the_vendi_score_of_gradients():
    model, pool = make_model(), make_pool()
    exact = vendi_score(ExampleGradients(model).flat(pool.examples))
    assert g_vendi(model, pool, dimension=8192) == pytest.approx(exact, rel=0.05)
    rows = ExampleGradients(model).projected(pool.examples, 64, 3)
    assert g_vendi(model, pool, dimension=64, seed=3) == pytest.approx(vendi_score(rows), rel=1e-4)
    assert g_vendi(model, pool, q=math.inf) < g_vendi(model, pool, q=2) < g_vendi(model, pool)


def test_copies_add_nothing_and_one_example_is_no_set():
    model, pool = make_model(), make_pool(10)
    twice = pool.joined(pool)
    assert g_vendi(model, twice) == pytest.approx(g_vendi(model, pool), rel=1e-4)
    with pytest.raises(InputError, match="two rows"):
        g_vendi(model, pool.take(torch.tensor([0])))


def test_scale_of_the_loss_does_not_matter():
    model, pool = make_model(), make_pool()

    def larger(model, x, y):
        return 100 * torch.nn.functional.cross_entropy(model(x), y, reduction="none")

    assert g_vendi(model, pool, loss=larger) == pytest.approx(g_vendi(model, pool), rel=1e-4)


def test_answers_without_a_token_are_named_and_prompts_do_not_count():
    model, pool = language_model(), token_pool()
    score = g_vendi(model, pool, loss=token_cross_entropy)
    pool.y[[2, 5]] = -100
    with pytest.raises(InputError, match=r"2 of 9 examples \(2, 5\)"):
        g_vendi(model, pool, loss=token_cross_entropy)
    assert 1 <= score <= 9


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (6, 6), (5, 6)])
@pytest.mark.parametrize("q", [0.5, 1, 2, math.inf])
def test_marginal_gain_is_the_difference_of_scores(shape, q):
    generator = torch.Generator().manual_seed(0)
    base, new = torch.randn(shape, generator=generator), torch.randn(4, shape[1], generator=generator)
    expected = [vendi_score(torch.cat([base, row[None]]), q=q) - vendi_score(base, q=q) for row in new]
    torch.testing.assert_close(
        marginal_gain(base, new, q=q), torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-4
    )


def test_what_is_new_gains_and_what_is_known_loses():
    base = torch.eye(4)[:3]
    known, new = marginal_gain(base, torch.eye(4)[[0, 3]]).tolist()
    assert known < 0 and new == pytest.approx(1, abs=1e-6)
    with pytest.raises(InputError, match=r"zeros \(1\)"):
        marginal_gain(base, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(InputError, match="base and new"):
        marginal_gain(base, torch.eye(3))


def test_metrics_by_hand():
    pool = Pool(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, 2]]), torch.tensor([0, 0, 1, 1]))
    assert label_entropy()(pool) == pytest.approx(math.log(2))
    pairs = [0, -1, 0, 0, 1, 0]
    assert mean_cosine("inputs")(pool) == pytest.approx(sum(pairs) / 6)
    assert vendi("inputs")(pool) == pytest.approx(2)
    tokens = Pool(torch.zeros(2, 4), torch.tensor([[-100, 1, 2, 1], [1, 2, 1, 3]]))
    assert distinct(2)(tokens) == pytest.approx(3 / 5)  # 12, 21 | 12, 21, 13
    assert distinct(2, vocabulary=4)(tokens) == pytest.approx(3 / (16 * (1 - (15 / 16) ** 5)))
    with pytest.raises(InputError, match="no 4 in a row"):
        distinct(4)(Pool(torch.zeros(2, 4), torch.full((2, 4), -100)))


def test_perplexity_of_an_even_guess_is_the_number_of_classes():
    model, pool = make_model(), make_pool()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert perplexity(model)(pool) == pytest.approx(3)


def test_sets_are_compared_at_one_size():
    model = make_model()
    sets = {"large": make_pool(40), "small": make_pool(20)}
    metrics = {"g-vendi": vendi("gradients", model, dimension=64), "labels": label_entropy()}
    with pytest.raises(InputError, match="large 40, small 20"):
        diversity_report(sets, metrics)
    found = diversity_report(sets, metrics, size=10, draws=20).set_index(["set", "metric"])
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    assert abs(found.value["large", "g-vendi"] - found.value["small", "g-vendi"]) < 1.5
    again = diversity_report(sets, metrics, size=10, draws=20).set_index(["set", "metric"])
    assert again.equals(found)
    whole = diversity_report({"large": sets["large"]}, metrics).set_index("metric")
    assert whole.value["g-vendi"] == pytest.approx(g_vendi(model, sets["large"], dimension=64), rel=1e-5)
    assert whole.low.isna().all()
    for size in (1, 21):
        with pytest.raises(InputError, match="size"):
            diversity_report(sets, metrics, size=size)
    with pytest.raises(InputError, match="none"):
        diversity_report({}, metrics)


def test_a_metric_that_foretells_is_told_from_one_that_does_not():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(120) % 12
    pool = Pool(torch.eye(12)[kinds], torch.randint(2, (120,), generator=generator), kinds)

    def sampler(pool, generator):
        count = int(torch.randint(1, 13, (), generator=generator))
        allowed = (pool.domain < count).nonzero()[:, 0]
        return allowed[torch.randint(len(allowed), (30,), generator=generator)]

    found = metric_validity_study(
        pool,
        sampler,
        trainer=lambda part: set(part.domain.tolist()),
        evaluator=lambda seen: len(seen) / 12,
        metrics={
            "vendi": vendi("inputs"),
            "labels": label_entropy(),
            "nothing": Metric(lambda pool: pool.y, lambda labels: 1.0),
        },
        sets=20,
    )
    by_name = found.correlations.set_index("metric")
    assert by_name.spearman["vendi"] > 0.9 and by_name.low["vendi"] > 0.7
    assert abs(by_name.spearman["labels"]) < 0.6
    assert math.isnan(by_name.spearman["nothing"])
    assert len(found.sets) == 20
    with pytest.raises(InputError, match="sampler"):
        metric_validity_study(
            pool, lambda p, g: torch.arange(2 + int(torch.randint(9, (), generator=g))), set, len, {}, sets=9
        )
    with pytest.raises(InputError, match="sets"):
        metric_validity_study(pool, sampler, set, len, {}, sets=3)
