import warnings

import pytest

from unseen.errors import InputError, UnseenWarning
from unseen.extrapolation import DomainSpec, GridProposer, ListProposer, RandomProposer
from unseen.extrapolation.proposals import check_proposals, named, near_duplicates

CLASSES = ("dog", "guitar")


def test_a_list_with_a_template():
    first, second = ListProposer(["fog", "snow"], "a {cls} in {domain}").propose("photos", CLASSES, 2)
    assert first.prompts == {"dog": ("a dog in fog",), "guitar": ("a guitar in fog",)}
    assert second.name == "snow"
    with pytest.raises(InputError, match="has 2, but 3 are wanted"):
        ListProposer(["fog", "snow"]).propose("photos", CLASSES, 3)


@pytest.mark.parametrize(
    ("template", "problem"),
    [("a photo", "no place for the class"), ("a {cls} at {hour}", "cannot be filled"), ("{cls", "no place")],
)
def test_templates_that_cannot_be_filled(template, problem):
    with pytest.raises(InputError, match=problem):
        ListProposer(["fog"], template).propose("photos", CLASSES, 1)


def test_a_grid_is_spread_evenly():
    grid = GridProposer({"blur": [0.0, 1.0], "hour": [6, 12, 18]}, "a {cls} at {hour}")
    assert grid.propose("photos", CLASSES, 6)[0].parameters == {"blur": 0.0, "hour": 6}
    two = grid.propose("photos", CLASSES, 2)
    assert [spec.parameters["blur"] for spec in two] == [0.0, 1.0] and two[0].name == "blur=0 hour=12"
    assert two[0].prompts["dog"] == ("a dog at 12",)
    with pytest.raises(InputError, match="6 combinations"):
        grid.propose("photos", CLASSES, 7)


def test_random_draws_are_in_range_and_the_first_ones_stay():
    proposer = RandomProposer({"turn": (-5.0, 5.0), "pen": (0, 2), "font": ["a", "b"]}, seed=3)
    specs = proposer.propose("digits", CLASSES, 40)
    assert all(-5 <= s.parameters["turn"] <= 5 for s in specs)
    assert {s.parameters["pen"] for s in specs} == {0, 1, 2} and {s.parameters["font"] for s in specs} == {
        "a",
        "b",
    }
    assert proposer.propose("digits", CLASSES, 7) == specs[:7]
    other = RandomProposer(proposer.ranges, seed=4).propose("digits", CLASSES, 7)
    assert other != specs[:7] and len({s.name for s in specs}) == 40
    with pytest.raises(InputError, match="only 2 different domains"):
        RandomProposer({"font": ["a", "b"]}).propose("digits", CLASSES, 3)
    with pytest.raises(InputError, match="range of 'turn'"):
        RandomProposer({"turn": (5.0, 1.0)})


def spec(name, *texts):
    return DomainSpec(name, prompts={"dog": texts, "guitar": texts} if texts else {})


@pytest.mark.parametrize(
    ("specs", "problem"),
    [
        ([spec("fog")], "gave 1 domains of 2"),
        ([spec("fog", "x"), spec("Fog", "y")], "'Fog': is proposed twice|'fog': is proposed twice"),
        ([spec("fog"), DomainSpec("snow", prompts={"dog": ["x"]})], "no prompt for class 'guitar'"),
        ([spec("fog", "x"), spec("ink", "a quick pencil-sketch")], "names the unseen domain 'sketch'"),
        ([spec("fog", "x"), spec("art paintings", "y")], "names the unseen domain 'art_painting'"),
    ],
)
def test_proposals_that_cannot_be_used(specs, problem):
    with pytest.raises(InputError, match=problem):
        check_proposals(specs, CLASSES, 2, unseen=("sketch", "art_painting"))


def test_domains_that_say_the_same_are_warned_of():
    same = [
        spec("fog", "grey air over a wet road"),
        spec("mist", "grey air over a wet road"),
        spec("sun", "blue sky"),
    ]
    assert near_duplicates(same) == [("fog", "mist")]
    with pytest.warns(UnseenWarning, match="1 of 3 proposed domains say nearly the same"):
        check_proposals(same, CLASSES, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_proposals(
            [spec("fog"), spec("mist"), spec("sun")], CLASSES, 3
        )  # nothing said, nothing repeated


def test_names_are_found_as_words():
    assert named("A Sketch!", ["sketch"]) == "sketch" and named("sketches of it", ["sketch"]) == "sketch"
    assert named("a photograph", ["photo"]) is None and named("anything", [""]) is None
    assert named("an art-painting", ["x", "art_painting"]) == "art_painting"


@pytest.mark.parametrize("name", ["", " fog", "a/b", ".hidden", "a\nb", "what?"])
def test_a_domain_must_fit_a_folder(name):
    with pytest.raises(InputError, match="name of a folder"):
        DomainSpec(name)


def test_prompts_are_lists():
    with pytest.raises(InputError, match="are a string"):
        DomainSpec("fog", prompts={"dog": "a dog"})
