import math

import pytest
import torch
from curation_toys import make_pool, token_pool

from unseen.curation import overlap, selection_report
from unseen.errors import InputError


def test_overlap_is_the_jaccard_index():
    table = overlap({"a": torch.tensor([0, 1, 2]), "b": torch.tensor([2, 3]), "c": torch.tensor([2, 1, 0])})
    assert table.loc["a", "b"] == pytest.approx(1 / 4)
    assert table.loc["a", "c"] == table.loc["b", "b"] == 1
    with pytest.raises(InputError, match="selection 'b'"):
        overlap({"a": torch.tensor([0]), "b": torch.tensor([], dtype=torch.int64)})


def test_shares_and_wrong_labels_of_every_part():
    pool, scores = make_pool(12, 2), torch.arange(12.0)
    wrong = torch.zeros(12, dtype=torch.bool)
    wrong[[0, 11]] = True
    table = selection_report(pool, torch.arange(6, 12), scores, wrong=wrong, domains=("old", "new"))
    table = table.set_index(["part", "name"])
    assert table.kept.to_dict() == {
        ("all", "all"): 6,
        ("domain", "old"): 0,
        ("domain", "new"): 6,
        ("class", "0"): 3,
        ("class", "1"): 3,
    }
    assert table.share["domain", "new"] == 1 and table.share["all", "all"] == 0.5
    assert table.wrong["all", "all"] == pytest.approx(1 / 6) == table.wrong_kept["all", "all"]
    assert table.wrong["class", "1"] == pytest.approx(1 / 6)
    assert table.wrong_kept["class", "1"] == pytest.approx(1 / 3)
    assert table.score["all", "all"] == pytest.approx(6 / scores.double().std(correction=0))
    assert math.isnan(table.score["domain", "old"])
    with pytest.raises(InputError, match="12 examples"):
        selection_report(pool, torch.arange(3), scores[:5])


def test_scores_that_go_by_length_are_told():
    pool = token_pool()
    lengths = (pool.y != -100).sum(1).double()
    report = selection_report(pool, torch.arange(3), -lengths)
    assert report.attrs["length_correlation"] == pytest.approx(-1)
    assert report.part.tolist() == ["all"]
    assert selection_report(pool, torch.arange(3), torch.zeros(9)).attrs["length_correlation"] == 0
