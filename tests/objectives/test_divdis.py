import pytest
import torch
from torch import nn
from two_cue_data import SMALL, accuracies, two_cues

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.hypotheses import with_heads
from unseen.objectives.divdis import DivDis
from unseen.objectives.diversity import mutual_information
from unseen.objectives.label_prior import LabelPrior
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.training import Learner, fit

C = 3


def batch(labels, unlabelled=None, **more):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(labels), 4, generator=generator)
    return Batch(
        x=x, y=torch.tensor(labels), domain=torch.zeros(len(labels), dtype=torch.int64), domains=1,
        unlabelled=torch.randn(30, 4, generator=generator) if unlabelled is None else unlabelled, **more,
    )  # fmt: skip


def network(heads=3):
    torch.manual_seed(0)
    return with_heads(Network(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), 5, C), heads)


def ready(**options):
    objective = DivDis(**options)
    objective.setup(features=5, classes=C, domains=1)
    return objective


def test_the_loss_is_what_loops_over_heads_and_pairs_give():
    model, one = network(), batch([0, 1, 2, 0, 0, 1])
    loss = ready(heads=3, penalty_weight=2.0, prior_weight=0.5)(model, one)
    features, hidden = model.featurizer(one.x), model.featurizer(one.unlabelled)
    heads = [(model.head.weights[k], model.head.biases[k]) for k in range(3)]
    risk = sum(nn.functional.cross_entropy(features @ w.T + b, one.y) for w, b in heads) / 3
    p = [torch.softmax(hidden @ w.T + b, -1) for w, b in heads]
    pairs = sum(mutual_information(p[i], p[j]) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    frequencies = torch.tensor([3, 2, 1]) / 6
    prior = sum((own.mean(0) * (own.mean(0) / frequencies).log()).sum() for own in p) / 3
    torch.testing.assert_close(loss.total, risk + 2.0 * pairs + 0.5 * prior)
    torch.testing.assert_close(loss.parts["penalty"], pairs)


def test_unlabelled_examples_reach_the_loss_and_labels_of_them_do_not_exist():
    model, objective = network(), ready(heads=3)
    first = objective(model, batch([0, 1, 2, 0]))
    second = objective(model, batch([0, 1, 2, 0], torch.zeros(30, 4)))
    assert first.parts["risk"] == second.parts["risk"] and first.total != second.total
    without = batch([0, 1, 2, 0])
    without.unlabelled = None
    with pytest.raises(InputError, match="without unlabelled examples"):
        objective(model, without)


def test_the_prior_counts_training_labels_once_or_is_given():
    prior = LabelPrior(None, C)
    one = batch([0, 0, 1, 2])
    torch.testing.assert_close(prior(one), torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(prior(one.again()), torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(prior(batch([2, 2, 2, 2])), torch.tensor([0.25, 0.125, 0.625]))
    soft = batch([0, 0, 1, 2])
    soft.y = nn.functional.one_hot(soft.y, C).float()
    torch.testing.assert_close(LabelPrior(None, C)(soft), torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(LabelPrior((0.2, 0.3, 0.5), C)(one), torch.tensor([0.2, 0.3, 0.5]))
    for bad in ((0.5, 0.5), (0.5, 0.6, 0.1), (1.5, -0.5, 0.0)):
        with pytest.raises(InputError, match="not a distribution over 3 classes"):
            ready(label_prior=bad)


def test_the_closest_head_may_count_alone():
    model, one = network(), batch([0, 1, 2, 0, 0, 1])
    p = torch.softmax(model.all_logits(one.unlabelled), -1)
    information = torch.stack([mutual_information(p[i], p[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    first, second, third = information
    worst = torch.stack(
        [torch.maximum(first, second), torch.maximum(first, third), torch.maximum(second, third)]
    )
    found = ready(heads=3, reduction="closest")(model, one).parts["penalty"]
    torch.testing.assert_close(found, worst.mean())


@pytest.mark.parametrize("objective", ["divdis", "d-bat"])
def test_a_single_class_is_refused(objective):
    with pytest.raises(InputError, match="classes: are 1"):
        objectives.build(objective).setup(features=4, classes=1, domains=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 1}, "at least two"),
        ({"penalty_weight": -1.0}, "weight: is -1.0"),
        ({"prior_weight": float("nan")}, "weight: is nan"),
        ({"diversity": "kl"}, "diversity 'kl'"),
        ({"reduction": "sum"}, "reduction 'sum'"),
        ({"choice": 2}, "choice 2"),
        ({"choice": "best"}, "choice 'best'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DivDis(**options)


def test_heads_take_a_cue_each_when_cues_are_independent_without_labels():
    shift, split = two_cues(0.5)
    found = accuracies(fit(Learner(objective="divdis", **SMALL), split), shift, split)
    plain = accuracies(
        fit(Learner(objective="divdis(penalty_weight=0.0,prior_weight=0.0)", **SMALL), split), shift, split
    )
    assert max(plain) < 0.7 and max(found) > 0.8  # a head for each cue instead of two for the easier one


@pytest.mark.parametrize("choice", ["mean", "last", 0, "validation"])
def test_the_choice_decides_what_the_network_answers(choice):
    _, split = two_cues(0.5)
    learner = Learner(objective=f"divdis(choice={choice!r})", **{**SMALL, "steps": 20})
    mixture = fit(learner, split).network.head.mixture.tolist()
    if choice == "validation":
        assert sorted(mixture) == [0.0, 1.0]
    else:
        assert mixture == {"mean": [0.5, 0.5], "last": [0.0, 1.0], 0: [1.0, 0.0]}[choice]
