import json

import pytest

from unseen.errors import InputError
from unseen.extrapolation import LLMProposer
from unseen.extrapolation.language_model import STYLES, read_answer

CLASSES = ("dog", "guitar")


def answered(*names, classes=CLASSES, prompts=1):
    domains = [
        {
            "domain": name,
            "description": f"things in a {name}",
            "prompts": {cls: [f"a {cls} in a {name}, view {i}" for i in range(prompts)] for cls in classes},
        }
        for name in names
    ]
    return "Here they are:\n```json\n" + json.dumps(domains) + "\n```\nGood luck!"


class Recorded:
    """A language model that gives recorded answers and remembers the questions."""

    name = "recorded"

    def __init__(self, *answers):
        self.answers, self.questions = list(answers), []

    def __call__(self, question):
        self.questions.append(question)
        return self.answers.pop(0)


def test_one_question_for_all_classes():
    model = Recorded(answered("tunnel", "harbour", prompts=2))
    tunnel, harbour = LLMProposer(model, per_class=False, prompts=2).propose("animals and things", CLASSES, 2)
    assert (tunnel.name, harbour.name) == ("tunnel", "harbour")
    assert tunnel.prompts["guitar"] == ("a guitar in a tunnel, view 0", "a guitar in a tunnel, view 1")
    (question,) = model.questions
    assert "animals and things" in question and "'dog', 'guitar'" in question and "Name 2 such" in question


def test_a_question_a_class_gives_domains_that_have_every_class():
    model = Recorded(
        answered("kennel", "beach", classes=("dog",)), answered("stage", "attic", classes=("guitar",))
    )
    first, second = LLMProposer(model).propose("photographs", CLASSES, 2)
    assert first.prompts == {
        "dog": ("a dog in a kennel, view 0",),
        "guitar": ("a guitar in a stage, view 0",),
    }
    assert second.description == "dog: beach; guitar: attic"
    assert len(model.questions) == 2 and "guitar" not in model.questions[0]


def test_styles_ask_differently():
    asked = {}
    for style in STYLES:
        model = Recorded(answered("tunnel"))
        LLMProposer(model, style=style, per_class=False).propose("photographs", CLASSES, 1)
        asked[style] = model.questions[0]
    assert asked["role"].startswith("You are an expert in photographs.")
    assert "step by step" in asked["cot"] and "step by step" not in asked["direct"]
    with pytest.raises(InputError, match="Did you mean 'direct'"):
        LLMProposer(str, style="dirct")


def test_a_malformed_answer_is_asked_for_again_with_the_reason():
    model = Recorded("I'd rather not.", answered("tunnel"))
    (spec,) = LLMProposer(model, per_class=False).propose("photographs", CLASSES, 1)
    assert spec.name == "tunnel" and "holds no JSON list of objects" in model.questions[1]


def test_only_malformed_answers_are_an_error(tmp_path):
    model = Recorded("no", "still no")
    with pytest.raises(
        InputError, match=r"'recorded': holds no JSON list of objects, after 2 attempt\(s\)"
    ) as error:
        LLMProposer(model, attempts=2, answers=tmp_path).propose("photographs", CLASSES, 1)
    assert str(tmp_path) in str(error.value)
    kept = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert {record["answer"] for record in kept} == {"no", "still no"} and all(r["rejected"] for r in kept)


def test_repeated_domains_count_once_and_the_rest_is_asked_for():
    model = Recorded(answered("tunnel", "Tunnel", "harbour"), answered("harbour", "attic"))
    found = LLMProposer(model, per_class=False).propose("photographs", CLASSES, 3)
    assert [spec.name for spec in found] == ["tunnel", "harbour", "attic"]
    assert "Name 1 such" in model.questions[1] and "not to be repeated: tunnel; harbour" in model.questions[1]


def test_domains_that_name_an_excluded_word_are_left_out_untold():
    model = Recorded(answered("pencil sketches", "tunnel"), answered("harbour"))
    found = LLMProposer(model, per_class=False, exclude=("sketch",)).propose("photographs", CLASSES, 2)
    assert [spec.name for spec in found] == ["tunnel", "harbour"]
    assert not any("sketch" in question for question in model.questions)
    with pytest.raises(InputError, match="tells the language model of 'sketch'"):
        LLMProposer(model, exclude=("sketch",)).propose("photos and sketches", CLASSES, 2)


def test_the_same_question_is_asked_once(tmp_path):
    def proposer(model):
        return LLMProposer(model, per_class=False, answers=tmp_path / "answers")

    first = proposer(Recorded(answered("tunnel"))).propose("photographs", CLASSES, 1)
    silent = Recorded()
    assert proposer(silent).propose("photographs", CLASSES, 1) == first and not silent.questions
    (kept,) = (tmp_path / "answers").iterdir()
    assert json.loads(kept.read_text())["answer"] == answered("tunnel")


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"prompts": {"dog": ["x"], "guitar": ["x"]}}, "without a name"),
        ({"domain": "..", "prompts": {"dog": ["x"], "guitar": ["x"]}}, "without a name"),
        ({"domain": "attic"}, "no prompts by class"),
        ({"domain": "attic", "prompts": {"dog": ["x"]}}, "no prompt for class 'guitar'"),
        ({"domain": "attic", "prompts": {"dog": ["x"], "guitar": [" "]}}, "no prompt for class 'guitar'"),
        ({"domain": "attic", "prompts": {"dog": ["x", "x"], "guitar": ["x", "y"]}}, r"1 prompt\(s\) of 2"),
    ],
)  # fmt: skip
def test_what_an_answer_must_have(item, problem):
    with pytest.raises(ValueError, match=problem):
        read_answer(json.dumps([item]), CLASSES, prompts=2 if "y" in str(item) else 1)


def test_the_last_list_counts_and_names_become_folders():
    thinking = 'First [1, 2], or [{"domain": "draft"}]? Better: '
    (spec,) = read_answer(thinking + '{"domains": ' + json.dumps([
        {"domain": "snow/ice: a lake", "prompts": {"dog": "a dog", "guitar": ["a guitar"]}}
    ]) + "}", CLASSES)  # fmt: skip
    assert spec.name == "snow-ice- a lake" and spec.prompts["dog"] == ("a dog",)
    with pytest.raises(ValueError, match="no JSON list"):
        read_answer("[[[[" * 50, CLASSES)
