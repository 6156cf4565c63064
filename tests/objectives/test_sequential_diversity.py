import pytest
import torch
from torch import nn
from two_cue_data import SMALL, accuracies, two_cues

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.hypotheses import with_members
from unseen.objectives.diversity import disagreement_loss
from unseen.objectives.sequential_diversity import SequentialDiversity
from unseen.shifts import Batch
from unseen.training import Learner, fit


class Steps:
    """The part of a stage that sequential diversification reads."""

    def __init__(self, steps):
        self.steps = steps


def ready(steps=30, **options):
    objective = SequentialDiversity(**options)
    objective.setup(features=5, classes=3, domains=1)
    objective.begin(Steps(steps))
    return objective


def members(count=3, norm=False):
    torch.manual_seed(0)

    def one():
        return Network(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5) if norm else nn.Tanh()), 5, 3)

    return with_members([one() for _ in range(count)])


def batch(step):
    generator = torch.Generator().manual_seed(1)
    return Batch(
        x=torch.randn(6, 4, generator=generator), y=torch.arange(6) % 3,
        domain=torch.zeros(6, dtype=torch.int64), domains=1, step=step,
        unlabelled=torch.randn(20, 4, generator=generator),
    )  # fmt: skip


def test_members_take_turns_and_the_optimizer_forgets_between_them():
    objective = ready(steps=31, members=3)
    assert [objective.in_training(step) for step in (0, 9, 10, 19, 20, 30)] == [0, 0, 1, 1, 2, 2]
    assert [step for step in range(31) if objective.resets_optimizer_at(step)] == [10, 20]
    with pytest.raises(InputError, match="steps: are 2 for 3 members"):
        ready(steps=2, members=3)


@pytest.mark.parametrize("diversity", ["d-bat", "d-bat-trained"])
def test_each_turn_has_the_papers_loss_and_moves_its_member_alone(diversity):
    model, objective = members(), ready(members=3, penalty_weight=0.7, diversity=diversity)
    event = "trained" if diversity.endswith("trained") else "frozen"
    for turn, step in enumerate((0, 10, 25)):
        one = batch(step)
        model.zero_grad(set_to_none=True)
        loss = objective(model, one)
        p = torch.softmax(model.all_logits(one.unlabelled), -1)
        expected = nn.functional.cross_entropy(model.all_logits(one.x)[turn], one.y)
        if turn:  # averaged over the members before it, not summed
            pairs = [disagreement_loss(p[m].detach(), p[turn], event) for m in range(turn)]
            expected = expected + 0.7 * sum(pairs) / turn
        torch.testing.assert_close(loss.total, expected)
        loss.total.backward()
        for index in range(3):
            weights = [*model.featurizer.members[index].parameters(), *model.head.heads[index].parameters()]
            assert all((weight.grad is not None) == (index == turn) for weight in weights)


def test_frozen_members_keep_their_batch_statistics_on_unlabelled_batches():
    model, objective = members(2, norm=True), ready(members=2)
    model.train()
    objective(model, batch(3))
    before = {name: value.clone() for name, value in model.featurizer.members[0].state_dict().items()}
    for step in (15, 16, 29):
        model.train()  # as the training loop leaves it after every evaluation
        objective(model, batch(step))
    after = model.featurizer.members[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert int(model.featurizer.members[1][1].num_batches_tracked) == 6  # its labelled and unlabelled batches


def test_in_a_whole_run_the_first_member_is_the_erm_of_its_share_of_steps():
    _, split = two_cues(0.0)
    short = {**SMALL, "steps": 40, "weight_decay": 0.1}
    weak, strong = (
        fit(Learner(objective=f"d-bat(penalty_weight={weight})", **short), split).network.state_dict()
        for weight in (0.0, 5.0)
    )
    first = [name for name in weak if ".members.0." in name or ".heads.0." in name]
    second = [name for name in weak if ".members.1." in name or ".heads.1." in name]
    assert len(first) == len(second) == 4
    assert all(
        torch.equal(weak[name], strong[name]) for name in first
    )  # not even weight decay moves it later
    assert not any(torch.equal(weak[name], strong[name]) for name in second)


def test_d_bat_finds_the_other_cue_when_cues_are_opposed_without_labels():
    shift, split = two_cues(0.0)
    found, plain = (
        accuracies(fit(Learner(objective=objective, **{**SMALL, "steps": 400}), split), shift, split)
        for objective in ("d-bat", "d-bat(penalty_weight=0.0)")
    )
    assert found[1] > 0.8 and max(found[0], *plain) < 0.7


def test_the_choice_of_the_result():
    _, split = two_cues(0.0)
    for choice, expected in (("'last'", [0.0, 1.0]), ("'mean'", [0.5, 0.5]), ("0", [1.0, 0.0])):
        learner = Learner(objective=f"d-bat(choice={choice})", **{**SMALL, "steps": 6})
        assert fit(learner, split).network.head.mixture.tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"members": 1}, "at least two"), ({"penalty_weight": -1.0}, "is -1.0"), ({"choice": 5}, "choice 5")],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SequentialDiversity(**options)


def test_steps_are_restored_with_the_buffers():
    first, second = ready(steps=30), SequentialDiversity()
    second.setup(features=5, classes=3, domains=1)
    second.load_state_dict(first.state_dict())  # a resumed run does not begin again
    assert second.in_training(14) == 0 and second.in_training(15) == 1
