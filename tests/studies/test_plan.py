import pytest
import torch

from unseen.errors import InputError
from unseen.shifts import Shift
from unseen.studies.plan import Plan, draw_learner
from unseen.training import Learner


def test_each_domain_is_held_out_in_turn(toy):
    plan = Plan.make(toy, ["erm", "groupdro"], seeds=2)
    assert len(plan.cells) == 2 * 4 * 2 and len({cell.key for cell in plan.cells}) == 16
    assert {cell.unseen for cell in plan.cells} == {("a",), ("b",), ("c",), ("d",)}


def test_named_domains_are_held_out_together(toy):
    plan = Plan.make(toy, ["erm"], unseen=["a", "b"], seeds=1)
    assert [cell.unseen for cell in plan.cells] == [("a", "b")]


def test_leave_one_domain_out_adds_runs_with_one_domain_less(toy):
    plan = Plan.make(toy, ["erm"], unseen="a", seeds=1, rule="leave-one-domain-out")
    assert {cell.unseen for cell in plan.cells} == {("a",), ("a", "b"), ("a", "c"), ("a", "d")}
    every = Plan.make(toy, ["erm"], seeds=1, rule="leave-one-domain-out")
    assert len(every.cells) == 4 + 6  # pairs are shared between the two domains that they hold out


def test_draws_depend_on_their_number_and_name_alone():
    learner = Learner(objective="groupdro", update="sam")
    assert draw_learner(learner, 0) == learner
    first, second = draw_learner(learner, 1), draw_learner(learner, 2)
    assert first == draw_learner(learner, 1) and first != second
    assert first.learning_rate == draw_learner(Learner(), 1).learning_rate  # another method, the same stream
    assert 1e-4 <= first.learning_rate <= 1e-2
    assert 1e-3 <= first.objective.options["step_size"] <= 1e-1
    assert len({draw_learner(learner, n).learning_rate for n in range(1, 21)}) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learners": []}, "learners: are none"),
        ({"learners": ["erm", "erm"]}, "same one twice"),
        ({"rule": "best"}, "selection rule 'best'"),
        ({"seeds": 0}, "seeds, search"),
        ({"unseen": "aa"}, "'aa': is not a domain"),
        ({"detectors": ["knnn"]}, "Did you mean 'knn'"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(toy, options, message):
    with pytest.raises(InputError, match=message):
        Plan.make(toy, options.pop("learners", ["erm"]), **options)


def test_one_domain_is_not_enough():
    shift = Shift("s", "array", torch.zeros(4, 1), [0, 1, 0, 1], [0, 0, 0, 0], "xy", ("only",))
    with pytest.raises(InputError, match="one domain only \\('only'\\)"):
        Plan.make(shift, ["erm"])


def test_a_share_of_the_unseen_rows_may_be_without_labels(toy):
    plan = Plan.make(toy, ["erm", "d-bat"], unseen="d", seeds=2, unlabelled=0.25)
    assert {cell.unlabelled for cell in plan.cells} == {0.25} and plan.to_json()["unlabelled"] == 0.25
    plain = Plan.make(toy, ["erm"], unseen="d", seeds=2)
    assert not {cell.key for cell in plan.cells} & {cell.key for cell in plain.cells}
    with pytest.raises(InputError, match="without labels, but the split has none"):
        Plan.make(toy, ["d-bat"], unseen="d")
    with pytest.raises(InputError, match="fraction between 0 and 1"):
        Plan.make(toy, ["erm"], unseen="d", unlabelled=1.5)
