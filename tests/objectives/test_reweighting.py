from dataclasses import replace

import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.objectives.dfr import STRENGTHS, averaged_heads, balanced_head, best_strength
from unseen.objectives.example_weights import balancing_weights
from unseen.registry import objectives
from unseen.shifts import Shift
from unseen.training import Learner, fit, train
from unseen.training.data import TrainingData


def spurious(count=600, agree=0.9, seed=0):
    """A weak true feature and a strong one that agrees with the label in a share of the cases: the group."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=generator)
    a = torch.where(torch.rand(count, generator=generator) < agree, y, 1 - y)
    noise = torch.randn(count, 6, generator=generator)
    noise[:, 0] += 1.2 * (2 * y - 1)
    noise[:, 1] = 0.3 * noise[:, 1] + 2 * (2 * a - 1)
    return Shift("s", "array", noise, y, torch.zeros(count), ("0", "1"), ("d",), group=a, groups=("0", "1"))


@pytest.fixture(scope="module")
def data():
    return TrainingData(spurious(1000).split(validation=0.3))


@pytest.fixture(scope="module")
def test_shift():
    return spurious(1500, agree=0.5, seed=1)


SETTINGS = {"network": "mlp(width=16, depth=1)", "steps": 120, "batch_size": 64, "learning_rate": 0.01}


def worst_group(predictor, shift):
    bank = predictor.outputs(shift)
    correct = (bank.logits.argmax(1) == shift.labels).float()
    groups = 2 * shift.labels + shift.group
    return min(float(correct[groups == g].mean()) for g in range(4))


@pytest.mark.parametrize("objective", ["jtt(first=0.2, upweight=8)", "dfr", "dfr(rows='train')", "balanced"])
def test_the_worst_group_gains(data, test_shift, objective):
    erm, method = (
        worst_group(fit(Learner(objective=name, **SETTINGS, keep="last"), data.split, data=data), test_shift)
        for name in ("erm", objective)
    )
    assert method > erm + 0.1


# ---- JTT ----


def test_jtt_counts_what_the_first_model_got_wrong(data):
    result = train(Learner(objective="jtt(upweight=6)", **SETTINGS), data)
    rows, table = data.split.train, result.objective["weights.values"]
    levels = table[rows].unique()
    assert len(levels) == 2 and levels[1] / levels[0] == pytest.approx(6)
    assert table[rows].mean() == pytest.approx(1, abs=1e-5)
    minority = data.split.shift.group[rows] != data.split.shift.labels[rows]
    heavy = table[rows] > 1
    assert heavy[minority].float().mean() > 3 * heavy[~minority].float().mean()


def test_jtt_with_factor_one_is_erm(data):
    settings = {**SETTINGS, "steps": 20}
    jtt, erm = (train(Learner(objective=name, **settings), data).state for name in ("jtt(upweight=1)", "erm"))
    assert all(torch.allclose(value, jtt[name], atol=1e-6) for name, value in erm.items())


def test_jtt_says_when_nothing_is_wrong():
    easy = TrainingData(spurious(200, agree=1.0).split())
    with pytest.warns(UnseenWarning, match="misclassifies no training example"):
        train(Learner(objective="jtt(first=1.0)", **SETTINGS), easy)


@pytest.mark.parametrize(
    "wrong", ["jtt(first=0.0)", "jtt(upweight=0.5)", "dfr(rows='test')", "dfr(refits=0)", "dfr(strength=0)",
              "balanced(by='colour')"],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        objectives.build(wrong)


def test_balanced_by_class_reads_labels_alone(data):
    result = train(Learner(objective="balanced(by='class')", **{**SETTINGS, "steps": 2}), data)
    rows = data.split.train
    expected = balancing_weights(data.split.shift.labels[rows])
    assert torch.equal(result.objective["weights.values"][rows], expected)


# ---- DFR ----


def test_dfr_changes_the_head_alone(data):
    learner = Learner(**SETTINGS)
    erm, dfr = (train(learner.replace(objective=name), data).state for name in ("erm", "dfr(strength=0.1)"))
    assert all(torch.equal(value, dfr[name]) for name, value in erm.items() if "head" not in name)
    assert not torch.allclose(erm["head.weight"], dfr["head.weight"])


def examples(count, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = torch.randn(count, 5, generator=generator)
    features[:, 0] += 1.5 * labels
    return features, labels, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_minimises_the_l1_penalised_loss(classes):
    """Against (sub)gradients: where a weight is not zero its slope is -sign / C, elsewhere it is below 1 / C."""
    features, labels, groups = examples(400, classes)
    generator, strength = torch.Generator().manual_seed(3), 0.2
    state = generator.get_state()
    weight, bias = balanced_head((features, labels, groups), classes, strength, generator)
    from unseen.objectives.example_weights import balanced_rows

    generator.set_state(state)
    rows = balanced_rows(groups, generator)
    weight, bias = weight.double().requires_grad_(), bias.double()
    logits = features[rows].double() @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, labels[rows], reduction="sum")
    slope = torch.autograd.grad(loss, weight)[0] * strength
    if classes == 2:  # sklearn's one logit is the difference of two, each with half the weight
        slope, weight = (slope[1] - slope[0]) / 2, weight[1] - weight[0]
    nonzero = weight.abs() > 1e-4
    assert nonzero.any()
    assert torch.allclose(slope[nonzero], -weight[nonzero].sign(), atol=0.06)
    assert (slope.abs() < 1.06).all()


def test_heads_are_averaged_and_decided_by_the_generator():
    data = examples(200, 2)
    weight, bias = averaged_heads(data, 2, 0.3, 4, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    heads = [balanced_head(data, 2, 0.3, generator) for _ in range(4)]
    assert torch.allclose(weight, sum(w for w, _ in heads) / 4, atol=1e-6)
    assert torch.allclose(bias, sum(b for _, b in heads) / 4, atol=1e-6)


def test_the_strength_is_chosen_by_the_worst_group():
    chosen = best_strength(examples(60, 2), examples(200, 2, seed=1), 2, torch.Generator().manual_seed(0))
    assert chosen in STRENGTHS


def test_dfr_needs_every_class_among_the_rows_it_refits_on():
    labels = torch.cat([torch.zeros(40), torch.ones(40), torch.full((2,), 2.0)])
    shift = Shift("s", "array", torch.randn(82, 3), labels, torch.zeros(82), ("a", "b", "c"), ("d",))
    rows = torch.arange(82)
    split = replace(shift.split(), train=rows, validation=rows[20:60])
    with pytest.raises(InputError, match="validation rows: lack a class.*rows='train'"):
        train(Learner(objective="dfr", **SETTINGS), TrainingData(split))
