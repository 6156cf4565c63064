import pickle

import pytest

from unseen.errors import InputError
from unseen.registry import Spec
from unseen.training import Learner


def test_a_learner_is_a_value():
    a = Learner(objective="groupdro(step_size=0.1)", update="sam", steps=50)
    b = Learner.from_json(a.to_json())
    assert a == b and hash(a) == hash(b) and a.key == b.key
    assert pickle.loads(pickle.dumps(a)) == a
    assert a.replace(steps=51).key != a.key
    assert str(a) == "groupdro(step_size=0.1)+sam"


def test_parsing_finds_the_kind_of_each_name():
    learner = Learner.parse("swad+mixup(alpha=0.5)+sam(rho=0.1)", learning_rate=0.01)
    assert learner.objective == Spec.make("mixup", alpha=0.5)
    assert (learner.update.name, learner.averaging.name, learner.learning_rate) == ("sam", "swad", 0.01)
    assert Learner.parse(learner.name, learning_rate=0.01) == learner


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ermm", "Did you mean 'erm'"),
        ("erm+groupdro", "two of the kind 'objective'"),
        ("erm+sam(roh=1)", "option 'roh'.*Did you mean 'rho'"),
    ],
)
def test_bad_learners_are_refused_before_training(text, message):
    with pytest.raises(InputError, match=message):
        Learner.parse(text)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"optimizer": "adamm"},
        {"warmup": 1.0},
        {"keep": "first"},
    ],
)
def test_bad_settings_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Learner(**settings)


def test_the_learning_rate_rises_and_falls():
    learner = Learner(steps=100, warmup=0.1, schedule="cosine", learning_rate=1.0)
    rates = [learner.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.01
    assert {Learner().learning_rate_at(step) for step in (0, 150, 299)} == {1e-3}
    falling = Learner(steps=100, schedule="linear", learning_rate=1.0)
    assert [falling.learning_rate_at(step) for step in (0, 25, 99)] == pytest.approx([1.0, 0.75, 0.01])


def test_the_last_step_is_always_evaluated():
    for steps in (1, 7, 10, 299):
        marks = Learner(steps=steps, evaluations=10).evaluation_steps()
        assert marks[-1] == steps - 1 and len(marks) == min(10, steps) and marks == sorted(set(marks))


def test_a_network_named_as_a_learner_is_told_where_it_goes():
    with pytest.raises(InputError, match="is a network.*--network"):
        Learner.parse("arm+sam")
