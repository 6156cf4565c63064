import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.prompts import mine_negative_labels
from unseen.prompts.negative_labels import check_negatives, lemma

ANGLES = {
    "cat": 0, "dog": 20, "puppy": 21, "wolf": 35, "car": 100, "road": 120, "sky": 150, "red": 60, "wet": 170,
}  # fmt: skip


class Compass:
    """Texts are directions in the plane."""

    logit_scale = 1.0

    def encode_image(self, images):
        return images

    def encode_text(self, texts):
        degrees = torch.tensor([ANGLES[lemma(t.removeprefix("a photo of a "))] for t in texts])
        radians = degrees.float().deg2rad()
        return 3 * torch.stack([radians.cos(), radians.sin()], 1)  # their length is free


def test_the_farthest_come_first_and_equal_a_loop():
    words = ["puppy", "wolf", "car", "road", "sky"]
    found = mine_negative_labels(Compass(), ["cat", "dog"], words, 4)
    near = {
        w: np.quantile([np.cos(np.deg2rad(ANGLES[w] - ANGLES[n])) for n in ("cat", "dog")], 0.95)
        for w in words
    }
    assert found == sorted(words, key=near.get)[:4] == ["sky", "road", "car", "wolf"]


def test_the_percentile_forgives_one_near_name():
    """At the maximum, wolf (15 degrees from dog) is nearest; at the minimum, cat at 35 decides."""
    words = ["wolf", "red"]
    assert mine_negative_labels(Compass(), ["cat", "dog"], words, 1, percentile=1.0) == ["red"]
    assert mine_negative_labels(Compass(), ["car", "dog"], words, 1, percentile=0.0) == ["wolf"]


def test_names_in_another_case_or_number_and_synonyms_are_left_out():
    words = ["Cats", "puppy", "car", "car"]
    assert mine_negative_labels(Compass(), ["cat", "dog"], words, 2) == ["car", "puppy"]
    assert mine_negative_labels(Compass(), ["cat", "dog"], words, 1, margin=0.01) == ["car"]
    with pytest.raises(InputError, match="2 for 1 candidates"):
        mine_negative_labels(Compass(), ["cat", "dog"], words, 2, margin=0.01)


def test_pools_contribute_in_proportion_to_their_sizes():
    pools = {"nouns": ["car", "road", "sky", "wolf"], "adjectives": ["red", "wet"], "none": []}
    found = mine_negative_labels(Compass(), ["cat", "dog"], pools, 3)
    assert found == ["wet", "sky", "road"]
    assert sorted(mine_negative_labels(Compass(), ["cat"], pools, 6)) == sorted(
        [*pools["nouns"], *pools["adjectives"]]
    )


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"n": 0}, "n"),
        ({"n": 3}, "n"),
        ({"percentile": 1.1}, "percentile"),
        ({"margin": -0.1}, "margin"),
        ({"id_names": []}, "ID names"),
        ({"id_names": "cat"}, "ID names"),
    ],
)
def test_what_cannot_be_used_is_named(options, subject):
    options = {"id_names": ["cat"], "candidates": ["car", "sky"], "n": 1, **options}
    with pytest.raises(InputError) as error:
        mine_negative_labels(Compass(), **options)
    assert error.value.subject == subject


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("Fire_Trucks", "fire truck"), ("puppies", "puppy"), ("glasses", "glass"), ("boxes", "box"),
        ("benches", "bench"), ("bus", "bus"), ("glass", "glass"), ("tennis", "tennis"), ("  Cat ", "cat"),
    ],
)  # fmt: skip
def test_lemma(name, base):
    assert lemma(name) == base


def test_negatives_that_are_classes_are_named():
    assert check_negatives(["cat"], ["dog"]) == ("dog",)
    with pytest.raises(InputError, match="'CATS', which is the ID name 'cat'"):
        check_negatives(["cat"], ["dog", "CATS"])
    with pytest.raises(InputError, match="negative names"):
        check_negatives(["cat"], [])
