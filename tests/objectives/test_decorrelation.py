import warnings

import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.objectives.decorrelation import (
    DecorrelationReweighter,
    cluster_by_stability,
    correlations,
    fourier_features,
    mean_one,
    pair_dependence,
    weighted_hsic_rff,
)
from unseen.objectives.example_weights import effective_sample_size
from unseen.registry import objectives
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spurious(count=400, agree=0.9):
    """Two columns that agree in most rows, and a third that stands alone."""
    generator = seeded(1)
    a = torch.randint(0, 2, (count,), generator=generator).float()
    same = torch.rand(count, generator=generator) < agree
    b = torch.where(same, a, 1 - a)
    noise = 0.1 * torch.randn(count, 3, generator=generator)
    return torch.stack([a, b, torch.zeros(count)], 1) + noise, same


@pytest.mark.parametrize("form", ["covariance", "paper"])
def test_dependence_is_the_written_sum(form):
    u, w = torch.randn(7, 3, 2, generator=seeded()), mean_one(torch.randn(7, generator=seeded(1)))
    found = pair_dependence(u, w, form)
    for i in range(3):
        for j in range(3):
            total = torch.zeros(2, 2)
            for n in range(7):
                if form == "covariance":
                    left = u[n, i] - sum(w[m] * u[m, i] for m in range(7)) / 7
                    right = u[n, j] - sum(w[m] * u[m, j] for m in range(7)) / 7
                    total += w[n] * torch.outer(left, right) / 7
                else:
                    left = w[n] * u[n, i] - sum(w[m] * u[m, i] for m in range(7)) / 7
                    right = w[n] * u[n, j] - sum(w[m] * u[m, j] for m in range(7)) / 7
                    total += torch.outer(left, right) / 6
            assert found[i, j] == pytest.approx(float(total.square().sum()), rel=1e-4)


def test_random_features_see_what_correlation_does_not():
    generator = seeded()
    x = torch.randn(4000, generator=generator)
    squared = torch.stack([x, x.square()], 1)
    apart = torch.stack([x, torch.randn(4000, generator=generator)], 1)
    assert abs(float(correlations(squared)[0, 1])) < 0.1
    dependent, independent = (
        weighted_hsic_rff(z, features=20, generator=seeded(3)) for z in (squared, apart)
    )
    assert dependent > 10 * independent


def test_random_features_are_standardised_bounded_and_constant_for_constant_columns():
    z = torch.randn(50, 2, generator=seeded())
    z[:, 1] = 4.0
    one, other = fourier_features(z, 5, seeded(2)), fourier_features(3 * z + 1, 5, seeded(2))
    assert one.shape == (50, 2, 5) and one.abs().max() <= 2**0.5 + 1e-6
    assert torch.allclose(one[:, 0], other[:, 0], atol=1e-4)
    assert torch.equal(one[0, 1].expand(50, -1), one[:, 1])


def test_a_mask_leaves_pairs_out():
    z = torch.randn(30, 3, generator=seeded())
    none = torch.zeros(3, 3, dtype=torch.bool)
    assert weighted_hsic_rff(z, mask=none, generator=seeded()) == 0
    assert weighted_hsic_rff(z, generator=seeded()) > 0


def test_columns_with_stable_correlation_go_together():
    """Columns 0, 1 always agree, 2, 3 always agree, and between the pairs the correlation changes its sign."""
    generator = seeded()
    parts = []
    for part in range(20):
        a = torch.randn(200, generator=generator)
        b = a if part % 2 else -a
        parts.append(torch.stack([a, a, b, b], 1) + 0.1 * torch.randn(200, 4, generator=generator))
    labels = cluster_by_stability(parts, 2).tolist()
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_weights_part_what_agrees_by_weighting_the_minority_up():
    z, same = spurious()
    reweighter = DecorrelationReweighter(steps=60)
    weights = reweighter.weights(z, seeded())
    assert weights.mean() == pytest.approx(1, abs=1e-5) and (weights >= 0).all()
    assert weights[~same].mean() > 2 * weights[same].mean()
    before, after = (weighted_hsic_rff(z, w, generator=seeded(9), features=20) for w in (None, weights))
    assert after < 0.6 * before


def test_balance_keeps_weights_near_uniform():
    z, _ = spurious()
    sizes = [
        float(effective_sample_size(DecorrelationReweighter(balance=balance).weights(z, seeded())))
        for balance in (0.0, 1.0)
    ]
    assert sizes[0] < sizes[1] and sizes[1] > 0.9 * len(z)


def test_pairs_of_one_cluster_are_left_alone():
    z, same = spurious()
    together = DecorrelationReweighter(clusters=[0, 0, 1]).weights(z, seeded())
    apart = DecorrelationReweighter(clusters=[0, 1, 1]).weights(z, seeded())
    assert apart[~same].mean() > 1.3 * together[~same].mean()


def test_the_embedding_is_not_differentiated():
    z = spurious()[0].requires_grad_()
    weights = DecorrelationReweighter().weights(z, seeded())
    assert not weights.requires_grad and z.grad is None


def test_remembered_batches_are_a_queue_renewed_with_momentum():
    reweighter = DecorrelationReweighter(queue=2, decay=0.75, steps=1)
    batches = [torch.randn(8, 3, generator=seeded(i)) for i in range(3)]
    weights = [reweighter.weights(z) for z in batches]
    kept = reweighter.past.values
    assert torch.allclose(kept[0], 0.75 * batches[0] + 0.25 * batches[2])
    assert torch.equal(kept[1], batches[1])
    assert torch.allclose(reweighter.past_weights.values[1], weights[1])


def test_a_remembered_batch_changes_the_weights():
    z, _ = spurious()
    alone, reweighter = DecorrelationReweighter(queue=0), DecorrelationReweighter(queue=1)
    reweighter.weights(spurious(agree=0.2)[0], seeded(5))
    assert not torch.allclose(alone.weights(z, seeded()), reweighter.weights(z, seeded()), atol=1e-3)


def test_constant_columns_are_left_out_with_a_warning():
    z, _ = spurious()
    z[:, 2] = 1.0
    with pytest.warns(UnseenWarning, match=r"1 constant column"):
        found = DecorrelationReweighter(queue=0).weights(z, seeded())
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "shape", [(3, 4), (10, 1), (10,)],
)  # fmt: skip
def test_embeddings_that_cannot_be_decorrelated_are_refused(shape):
    with pytest.raises(InputError, match="embedding"):
        DecorrelationReweighter().weights(torch.randn(shape))


def test_other_misuse_is_refused():
    with pytest.raises(InputError, match="clusters: are 9 for 3 columns"):
        DecorrelationReweighter(clusters=9).weights(spurious()[0])
    with pytest.raises(InputError, match="no pair of clusters"):
        DecorrelationReweighter(clusters=[1, 1, 1]).weights(spurious()[0])
    with pytest.raises(InputError, match="at least 2"):
        DecorrelationReweighter(clusters=1)
    with pytest.raises(InputError, match="is not finite"):
        DecorrelationReweighter().weights(torch.full((8, 3), float("nan")))
    with pytest.raises(InputError, match="learning_rate: 1e.300 leads to weights that are not finite"):
        DecorrelationReweighter(learning_rate=1e300).weights(spurious()[0])
    reweighter = DecorrelationReweighter()
    reweighter.weights(torch.randn(8, 3))
    with pytest.raises(InputError, match="has 4 columns, but the remembered batches have 3"):
        reweighter.weights(torch.randn(8, 4))
    for wrong in ("l2r(warmup=1.0)", "l2r(recluster=1)", "stablenet(form='other')", "stablenet(decay=1.0)"):
        with pytest.raises(InputError):
            objectives.build(wrong)
    with pytest.raises(InputError, match="parts: are 1"):
        cluster_by_stability([torch.randn(5, 3)], 2)


@pytest.mark.parametrize("objective", ["l2r(clusters=2)", "stablenet"])
def test_updates_of_too_few_examples_are_refused(objective):
    """No weights can be learned from them, and training would be plain without a word."""
    x, y = torch.randn(60, 4), torch.arange(60) % 2
    split = from_arrays(x.numpy(), y.numpy(), (torch.arange(60) // 30).numpy()).split("1")
    learner = Learner(objective=objective, network="mlp(width=4, depth=1)", steps=2, batch_size=3)
    with pytest.raises(InputError, match="batch_size: is 3 over all domains"):
        fit(learner, split)
    fit(learner.replace(batch_size=4), split)


def test_weights_of_examples_stay_with_their_ids():
    """Under l2r a graph's weight starts where it was left; under stablenet from one."""
    from unseen.testing.toy import toy_batch, toy_system

    systems = {}
    for name in ("l2r(warmup=0.0, steps=2)", "stablenet(warmup=0.0, steps=2)"):
        system = systems[name] = toy_system(lambda name=name: objectives.build(name), 0, "cpu", 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(8):
                batch = toy_batch("cpu", step=step)
                before = system.objective.values.values.clone()
                system(batch)
                again = system(batch.again())
                assert torch.equal(system.objective.values.values, system.objective.values.of(batch))
                assert 0 < float(again.parts["effective"]) <= 1 + 1e-6
                assert not torch.equal(before, system.objective.values.values)
    spread = [float(system.objective.values.values.std()) for system in systems.values()]
    assert spread[0] > spread[1]


def test_a_warm_up_has_weights_of_one():
    from unseen.testing.toy import toy_batch, toy_system

    system = toy_system(lambda: objectives.build("l2r(warmup=0.5)"), 0, "cpu", 3)
    erm = toy_system(lambda: objectives.build("erm"), 0, "cpu", 3)
    batch = toy_batch("cpu", step=29)
    assert torch.allclose(system(batch).total, erm(batch).total)
    assert system(toy_batch("cpu", step=30)).parts["effective"] < 1
