import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.networks.hypotheses import Hypotheses
from unseen.shifts import Shift
from unseen.shifts.spurious_ratio import spurious_ratio
from unseen.studies.diversification import (
    COLUMNS,
    all_logits,
    diversification_audit,
    judged,
    split_at_ratio,
)
from unseen.training import Learner, fit
from unseen.training.data import TrainingData

ROLES = {"train": "train", "pool": "pool", "judge": "judge"}


@pytest.fixture(scope="module")
def shift():
    generator = torch.Generator().manual_seed(0)
    label, domain = torch.arange(1200) % 2, torch.arange(1200) // 400
    agrees = (domain == 0) | (torch.arange(1200) // 2 % 2 == 0)
    cue = torch.where(agrees, label, 1 - label)
    x = torch.stack([2.0 * cue - 1, 2.0 * label - 1], 1)
    x += torch.randn(1200, 2, generator=generator) * torch.tensor([0.1, 0.6])
    return Shift(
        "cues", "array", x, label, domain, ("n", "y"), ("train", "pool", "judge"), group=cue, groups=("n", "y")
    )  # fmt: skip


def learner(objective, **more):
    settings = {
        "steps": 40,
        "batch_size": 32,
        "learning_rate": 0.01,
        "keep": "last",
        "evaluations": 1,
        **more,
    }
    return Learner(objective=objective, network="mlp(width=8, depth=1)", **settings)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_a_split_at_a_ratio_keeps_roles_apart(shift, ratio):
    split = split_at_ratio(shift, **ROLES, ratio=ratio, count=200)
    assert len(split.unlabelled) == 200 and set(shift.domain[split.unlabelled].tolist()) == {1}
    assert spurious_ratio(shift.labels[split.unlabelled], shift.group[split.unlabelled]) == ratio
    assert set(shift.domain[split.unseen].tolist()) == {2} and len(split.unseen) == 400
    for rows in (
        split.train,
        split.validation,
    ):  # no minority example in either: early stopping would see the cue
        assert spurious_ratio(shift.labels[rows], shift.group[rows]) == 1.0


def test_unlabelled_data_like_the_training_data_are_warned_of(shift):
    with pytest.warns(UnseenWarning, match="cannot differ"):
        split_at_ratio(shift, **ROLES, ratio=1.0, count=100)


def test_the_audit_gives_a_row_a_learner_and_ratio(shift):
    learners = {"d-bat": learner("d-bat"), "three": learner("divdis(heads=3)")}
    table = diversification_audit(shift, learners, **ROLES, ratios=(0.0, 0.5), count=200)
    assert list(zip(table.method, table.ratio, table.hypotheses, strict=True)) == [
        ("d-bat", 0.0, 2), ("three", 0.0, 3), ("d-bat", 0.5, 2), ("three", 0.5, 3),
    ]  # fmt: skip
    assert list(table.columns) == ["method", "ratio", "hypotheses", *COLUMNS]
    values = table[list(COLUMNS)]
    assert ((values >= 0) & (values <= 1)).all(axis=None)
    assert (table.best >= table["mean"]).all()


def test_numbers_are_those_of_each_hypothesis(shift):
    split = split_at_ratio(shift, **ROLES, ratio=0.0, count=200)
    data = TrainingData(split)
    network = fit(learner("d-bat"), split, data=data).network
    assert isinstance(network, Hypotheses)
    logits, labels = all_logits(network, data, split.unseen), shift.labels[split.unseen]
    accuracies = []
    for index in range(2):
        network.head.choose(index)
        bank = data.bank(network, split.unseen)
        torch.testing.assert_close(bank.logits, logits[index])
        accuracies.append(float(bank.correct.float().mean()))
    network.head.choose(1)
    found = judged(network, data)
    assert found["best"] == pytest.approx(max(accuracies)) and found["mean"] == pytest.approx(
        sum(accuracies) / 2
    )
    assert found["answer"] == pytest.approx(accuracies[1])
    mean = logits.softmax(-1).mean(0).argmax(-1)
    assert found["ensemble"] == pytest.approx(float((mean == labels).float().mean()))
    unlabelled = all_logits(network, data, split.unlabelled).argmax(-1)
    assert found["agreement"] == pytest.approx(float((unlabelled[0] == unlabelled[1]).float().mean()))


def test_selection_on_one_half_pays_no_attention_to_the_other(shift):
    """Hypotheses of noise: the best of many looks good where it was chosen, and is at chance where it was not."""
    split = split_at_ratio(shift, **ROLES, ratio=0.0, count=100)
    data = TrainingData(split)
    generator = torch.Generator().manual_seed(0)

    class Noise(Hypotheses):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        count = 64
        features = classes = 2

        @property
        def featurizer(self):
            return lambda x: torch.zeros(len(x), 2)

        @property
        def head(self):
            class Head:
                in_features = out_features = 2

                def __call__(self, features):
                    return features

                def all_logits(self, features):
                    return torch.randn(64, len(features), 2, generator=generator)

            return Head()

    found = judged(Noise(), data)
    assert found["best"] > 0.54 and abs(found["selected"] - 0.5) < 0.06


def test_what_cannot_be_audited_is_refused(shift):
    with pytest.raises(InputError, match="gives one hypothesis"):
        diversification_audit(shift, {"erm": learner("erm", steps=2)}, **ROLES, ratios=(0.0,), count=100)
    plain = Shift("s", "array", shift.inputs, shift.labels, shift.domain, ("n", "y"), shift.domains)
    with pytest.raises(InputError, match="no group for each class"):
        diversification_audit(plain, {"d-bat": learner("d-bat")}, **ROLES)
