import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unseen.adaptation.meta_ood import MetaOOD, energy_margin_loss, uniform_loss
from unseen.adaptation.meta_tasks import MetaTask, transform_tasks
from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.networks import Network
from unseen.registry import detectors
from unseen.shifts.task_streams import Labelled


def network(seed=0, features=4, classes=3, layer=nn.Tanh):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(nn.Sequential(nn.Linear(features, 6), layer()), 6, classes)


def task(seed=0, count=12, features=4):
    generator = torch.Generator().manual_seed(seed)

    def part():
        return Labelled(torch.randn(count, features, generator=generator), torch.arange(count) % 3)

    return MetaTask(part(), part(), torch.randn(count, features, generator=generator))


def fine_tuned(module, support, rate, steps):
    """Plain gradient descent on a copy, by a torch optimizer."""
    tuned = copy.deepcopy(module)
    optimizer = torch.optim.SGD(tuned.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(tuned(support.x), support.y).backward()
        optimizer.step()
    return tuned


def outer_gradient(method, one):
    method._accumulate(one, 1.0)
    return {name: p.grad.clone() for name, p in method.learned.items()}


def outer_loss(module, one, weight=0.5):
    """The outer loss after two inner steps at rate 0.2, in float64, for finite differences."""
    tuned = fine_tuned(module, one.support, 0.2, 2)
    outliers = tuned(one.outliers)
    oe = -outliers.log_softmax(1).mean(1).mean()
    return (cross_entropy(tuned(one.query.x), one.query.y) + weight * oe).item()


def doubled(one):
    return MetaTask(
        Labelled(one.support.x.double(), one.support.y),
        Labelled(one.query.x.double(), one.query.y),
        one.outliers.double(),
    )


def test_second_order_gradient_is_that_of_finite_differences():
    model, one = network().double(), doubled(task())
    method = MetaOOD(model, inner_lr=0.2, inner_steps=2)
    gradient = outer_gradient(method, one)
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        for index in (0, len(flat) - 1):
            kept, step = float(flat[index]), 1e-5
            flat[index] = kept + step
            above = outer_loss(model, one)
            flat[index] = kept - step
            below = outer_loss(model, one)
            flat[index] = kept
            slope = (above - below) / (2 * step)
            assert gradient[name].view(-1)[index] == pytest.approx(slope, abs=1e-7), name


def test_first_order_gradient_is_the_outer_gradient_at_the_adapted_weights():
    model, one = network().double(), doubled(task())
    gradient = outer_gradient(MetaOOD(model, inner_lr=0.2, inner_steps=2, order=1), one)
    tuned = fine_tuned(model, one.support, 0.2, 2)
    tuned.zero_grad()
    oe = -tuned(one.outliers).log_softmax(1).mean(1).mean()
    (cross_entropy(tuned(one.query.x), one.query.y) + 0.5 * oe).backward()
    for name, parameter in tuned.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)
    second = outer_gradient(MetaOOD(model, inner_lr=0.2, inner_steps=2), one)
    assert any((second[name] - gradient[name]).abs().max() > 1e-3 for name in gradient)


def test_reptile_moves_towards_where_the_inner_steps_end():
    model, one = network().double(), doubled(task())
    method = MetaOOD(model, inner_lr=0.2, inner_steps=2, order="reptile", ood_weight=0.0)
    gradient = outer_gradient(method, one)
    tuned = dict(fine_tuned(model, one.support, 0.2, 2).named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], (parameter - tuned[name]).detach() / 0.4)


def test_learned_rates_have_the_gradient_of_finite_differences():
    model, one = network().double(), doubled(task())
    method = MetaOOD(model, inner_lr=0.2, inner_steps=1, learn_rates=True)
    method._accumulate(one, 1.0)
    found = sum(float(rate.grad) for rate in method.rates.values())
    losses = [MetaOOD(model, inner_lr=0.2 + d, inner_steps=1)._accumulate(one, 1.0) for d in (1e-5, -1e-5)]
    assert found == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-6)
    tasks = iter([task(seed) for seed in range(5)])
    learned = MetaOOD(network(), learn_rates=True, outer_lr=0.05).meta_fit(tasks, steps=5).rates
    assert len({round(rate.item(), 4) for rate in learned.values()}) > 1


def test_losses_on_outliers_are_their_formulas(generator):
    logits, others = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator)
    oe = sum(float(-sum(row.log_softmax(0)[c] / 3 for c in range(3))) for row in others) / 4
    assert float(uniform_loss(others)) == pytest.approx(oe, rel=1e-6)
    energies = [-row.exp().sum().log() for row in (*logits, *others)]
    inside = sum(max(0, float(e) + 2) ** 2 for e in energies[:5]) / 5
    outside = sum(max(0, -1 - float(e)) ** 2 for e in energies[5:]) / 4
    assert float(energy_margin_loss(logits, others, (-2, -1))) == pytest.approx(inside + outside, rel=1e-5)


def test_adapting_is_gradient_descent_and_leaves_the_model_as_it_was():
    model, one = network(), task()
    before = copy.deepcopy(model.state_dict())
    method = MetaOOD(model, inner_lr=0.3, inner_steps=4)
    view = method.adapt(one.support)
    tuned = fine_tuned(model, one.support, 0.3, 4)
    bank = view.bank(one.query.x)
    torch.testing.assert_close(bank.logits, tuned(one.query.x))
    torch.testing.assert_close(bank.features, tuned.featurizer(one.query.x))
    assert torch.equal(method.predict(one.query.x), tuned(one.query.x).argmax(1))
    torch.testing.assert_close(method.score(one.query.x), tuned(one.query.x).softmax(1).amax(1))
    for state in (model.state_dict(), method.model.state_dict()):
        assert all(torch.equal(state[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in view.parameters.values())


def test_continual_goes_on_and_reset_forgets():
    model, first, second = network(), task(1), task(2)
    method = MetaOOD(model, inner_steps=2)
    method.adapt(first.support)
    continual = method.adapt(second.support).bank(first.query.x).logits
    fresh = method.adapt(second.support, reset=True).bank(first.query.x).logits
    by_hand = fine_tuned(fine_tuned(model, first.support, 0.1, 2), second.support, 0.1, 2)
    torch.testing.assert_close(continual, by_hand(first.query.x))
    torch.testing.assert_close(fresh, fine_tuned(model, second.support, 0.1, 2)(first.query.x))
    method.inner_steps = 0
    torch.testing.assert_close(method.adapt(second.support, reset=True).bank(first.query.x).logits,
                               model(first.query.x))  # fmt: skip


def test_a_detector_of_features_learns_from_the_support():
    model, one = network(), task()
    method = MetaOOD(model, detector="knn(k=1)")
    method.adapt(one.support)
    assert torch.allclose(method.score(one.support.x), torch.zeros(12), atol=1e-3)
    tuned = fine_tuned(model, one.support, 0.1, 3)
    from unseen.networks import Bank

    def bank(x):
        return Bank(tuned.featurizer(x).detach(), tuned(x).detach())

    expected = detectors.build("knn(k=1)").fit(bank(one.support.x)).score(bank(one.query.x))
    torch.testing.assert_close(method.score(one.query.x), expected, atol=1e-4, rtol=1e-4)


def test_any_module_that_gives_logits_will_do():
    model, one = nn.Linear(4, 3), task()
    bank = MetaOOD(model).adapt(one.support).bank(one.query.x)
    assert torch.equal(bank.features, bank.logits)


@pytest.mark.parametrize("order", [1, 2, "reptile"])
def test_meta_learning_finds_weights_that_learn_a_task_in_few_steps(order):
    """Two tasks with opposite labels: no fixed weights serve both, a few labels tell which it is."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.randn(400, 10, generator=generator) * 0.6
    x[:, 0] += 2.0 * y - 1
    outliers = 0.6 * torch.randn(200, 10, generator=generator)
    outliers[:, 1] += 3
    turns = [lambda v: v, lambda v: torch.cat([-v[:, :1], v[:, 1:]], 1)]
    model = network(features=10, classes=2)
    tasks = transform_tasks(x, y, turns, outliers=outliers, shots=2, queries=32)
    method = MetaOOD(model, inner_lr=0.3, inner_steps=3, order=order, outer_lr=0.01, ood_weight=0.2)
    method.meta_fit(tasks, steps=150)

    def accuracy(tried):
        found = []
        for one in (next(tasks) for _ in range(10)):
            tried.adapt(one.support, reset=True)
            found.append(float((tried.predict(one.query.x) == one.query.y).double().mean()))
        return sum(found) / len(found)

    method.inner_steps = 0
    unadapted = accuracy(method)
    method.inner_steps = 3
    adapted, plain = accuracy(method), accuracy(MetaOOD(model, inner_lr=0.3, inner_steps=3))
    assert adapted > 0.8 and adapted > unadapted + 0.2 and adapted > plain + 0.05
    one = next(tasks)
    method.adapt(one.support, reset=True)
    assert order == "reptile" or method.score(one.query.x).mean() > method.score(one.outliers).mean()


def test_the_seed_decides_all_and_global_random_numbers_are_untouched():
    model = Network(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5)), 6, 3).train()
    state = torch.get_rng_state()
    runs = [
        MetaOOD(model, seed=seed).meta_fit(iter([task(s) for s in range(3)]), steps=3) for seed in (0, 0, 1)
    ]
    logits = [run.adapt(task().support).bank(task().query.x).logits for run in runs]
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_energy_loss_and_several_tasks_a_step():
    tasks = [task(seed) for seed in range(4)]
    method = MetaOOD(network(), ood_loss="energy", margins=(-3.0, -1.0), clip=None)
    method.meta_fit(iter(tasks), steps=2, meta_batch=2)
    assert len(method.outer_losses) == 2
    alone = [MetaOOD(network(), ood_loss="energy", margins=(-3.0, -1.0))._accumulate(t, 1.0) for t in tasks]
    assert method.outer_losses[0] == pytest.approx(sum(alone[:2]) / 2, rel=1e-5)


def test_frozen_parameters_stay():
    model = network()
    model.head.requires_grad_(False)
    method = MetaOOD(model).meta_fit(iter([task()]), steps=1)
    assert torch.equal(method.model.head.weight, model.head.weight)
    assert torch.equal(method.adapt(task().support).parameters["head.weight"], model.head.weight)
    with pytest.raises(InputError, match="requires gradients"):
        MetaOOD(model.requires_grad_(False))


def batch_norm(training):
    return network(layer=lambda: nn.BatchNorm1d(6)).train(training)


def test_batch_normalisation_in_training_mode():
    one = task()
    lonely = Labelled(one.support.x[:1], one.support.y[:1])
    with pytest.raises(InputError, match="one example, but the model's batch normalisation"):
        MetaOOD(batch_norm(True), order=1).adapt(lonely)
    with pytest.raises(InputError, match=r"changes its buffer 'featurizer.1.running_mean'"):
        MetaOOD(batch_norm(True)).meta_fit(iter([one]), steps=1)
    method = MetaOOD(batch_norm(True), order=1).meta_fit(iter([one]), steps=1)
    running = method.model.featurizer[1].running_mean
    assert torch.equal(running, torch.zeros(6))  # statistics of a task stay with the task
    view = method.adapt(one.support)
    assert not torch.equal(view.buffers["featurizer.1.running_mean"], running)
    with pytest.warns(UnseenWarning):
        MetaOOD(batch_norm(False)).meta_fit(iter([one]), steps=1).adapt(lonely)


def test_what_cannot_be_adapted_to_is_said():
    one = task()
    with pytest.warns(UnseenWarning, match=r"lacks class number\(s\) \[1, 2\]"):
        MetaOOD(network()).adapt(Labelled(one.support.x[::3], one.support.y[::3]))
    with pytest.raises(InputError, match="support.*0 inputs"):
        MetaOOD(network()).adapt(Labelled(one.support.x[:0], one.support.y[:0]))
    for changed, message in (
        (MetaTask(one.support, one.query, one.outliers[:0]), "outliers of an outer task"),
        (
            MetaTask(one.support, Labelled(one.query.x[:0], one.query.y[:0]), one.outliers),
            "query of an outer",
        ),
    ):
        with pytest.raises(InputError, match=message):
            MetaOOD(network()).meta_fit(iter([changed]), steps=1)
    with pytest.raises(InputError, match="tasks.*ran out"):
        MetaOOD(network()).meta_fit(iter([one]), steps=2)
    with pytest.raises(InputError, match="steps or meta_batch"):
        MetaOOD(network()).meta_fit(iter([one]), steps=0)
    nan = Labelled(one.support.x * float("inf"), one.support.y)
    with pytest.raises(TrainingDiverged, match="inner loss is nan in step 0"):
        MetaOOD(network()).meta_fit(iter([MetaTask(nan, one.query, one.outliers)]), steps=1)
    with pytest.raises(TrainingDiverged, match="outer loss is nan in step 0"):
        MetaOOD(network()).meta_fit(iter([MetaTask(one.support, one.query, one.outliers / 0)]), steps=1)


@pytest.mark.parametrize("change", [lambda y: y + 1, lambda y: y - 1, lambda y: y.float()])
def test_labels_of_a_support_are_classes_of_the_model(change):
    method, one = MetaOOD(network()), task().support
    before = method.score(one.x)
    with pytest.raises(InputError, match="labels of the support.*from 0 to 2"):
        method.adapt(Labelled(one.x, change(one.y)))
    assert torch.equal(method.score(one.x), before)


def test_an_inner_loss_that_overflows_names_its_step():
    huge = Labelled(1e18 * task().support.x, task().support.y)
    with pytest.raises(TrainingDiverged, match=r"in step [1-4] \(from 0\)"):
        MetaOOD(nn.Linear(4, 3), inner_lr=1e15, inner_steps=5).adapt(huge)


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"inner_steps": -1}, "inner_steps"),
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"outer_lr": -1.0}, "outer_lr"),
        ({"order": 3}, "order"),
        ({"ood_loss": "hinge"}, "ood_loss"),
        ({"ood_weight": -0.1}, "ood_weight"),
        ({"clip": 0.0}, "clip"),
        ({"margins": (-5.0, -23.0)}, "margins"),
        ({"order": "reptile", "learn_rates": True}, "learn_rates"),
    ],
)
def test_settings_out_of_range(options, subject):
    with pytest.raises(InputError, match=subject):
        MetaOOD(network(), **options)
