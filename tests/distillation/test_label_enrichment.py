"""Enriched label texts, and what is refused."""

import pytest

from unseen.distillation.label_enrichment import enrich_labels
from unseen.errors import InputError


def test_one_text_a_name_in_their_order():
    described = {"owl": " Round eyes. ", "cat": "Whiskers."}
    assert enrich_labels(["owl", "cat"], described.__getitem__) == [
        "a photo of owl. Round eyes.",
        "a photo of cat. Whiskers.",
    ]
    assert enrich_labels(["owl"], str.upper, "{description}: {name}") == ["OWL: owl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], str), "names: are"),
        (("owl", str), "names: are"),
        ((["owl", "owl"], str), "hold 'owl' twice"),
        ((["owl"], str, "a photo of {name}"), "lacks a place"),
        ((["owl"], lambda name: " "), "description of 'owl'"),
        ((["owl"], lambda name: None), "description of 'owl'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        enrich_labels(*arguments)
