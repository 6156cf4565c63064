import pytest
import torch
from safetensors.torch import save_file

from unseen.errors import InputError
from unseen.merging import greedy_soup, learned_soup


def states(*values):
    return [{"w": torch.tensor([float(v)]), "n": torch.tensor(i)} for i, v in enumerate(values)]


def near(target):
    calls = []

    def evaluate(state):
        calls.append(float(state["w"]))
        return -abs(calls[-1] - target)

    return evaluate, calls


def test_greedy_soup_by_hand():
    # nearest to 0 first: 1 (score -1); with -2 the mean is -0.5 (better: stays); with 5 it is 4 / 3 (worse)
    evaluate, calls = near(0.0)
    soup = greedy_soup(states(5, 1, -2), evaluate)
    assert soup.members == (1, 2) and soup.score == -0.5 and float(soup.state["w"]) == -0.5
    assert soup.scores == (-5, -1, -2) and len(calls) == 2 * 3 - 1
    assert [(index, kept) for index, _, kept in soup.path] == [(2, True), (0, False)]


def test_it_is_never_worse_than_the_best_and_an_equal_one_is_added():
    evaluate, _ = near(1.0)
    soup = greedy_soup(states(1, 1, 3), evaluate)
    assert soup.members == (0, 1) and soup.score == max(soup.scores) == 0


def test_known_scores_spare_evaluations_and_models_stay_as_they_are(tmp_path):
    evaluate, calls = near(0.0)
    given = states(5, 1, -2)
    for index, state in enumerate(given):
        save_file(state, tmp_path / f"{index}.safetensors")
    soup = greedy_soup([tmp_path / f"{i}.safetensors" for i in range(3)], evaluate, scores=[-5, -1, -2])
    assert soup.members == (1, 2) and len(calls) == 2
    greedy_soup(given, evaluate)
    assert [float(s["w"]) for s in given] == [5, 1, -2]


def test_learned_shares_find_the_best_mixture():
    def score(state):
        return -(state["w"] - 0.5).square().sum()

    soup = learned_soup(states(0, 2), score, steps=200)
    assert float(soup.state["w"]) == pytest.approx(0.5, abs=0.01)
    assert sum(soup.shares["all"]) == pytest.approx(1) and soup.shares["all"][1] == pytest.approx(
        0.25, abs=0.01
    )
    assert max(soup.scores) > soup.scores[0]


def test_shares_by_group():
    a = {"x.w": torch.tensor([0.0]), "y.w": torch.tensor([0.0])}
    b = {"x.w": torch.tensor([1.0]), "y.w": torch.tensor([1.0])}

    def score(state):
        return -(state["x.w"] - 0.2).square().sum() - (state["y.w"] - 0.9).square().sum()

    soup = learned_soup([a, b], score, steps=200, groups=lambda name: name[0])
    assert float(soup.state["x.w"]) == pytest.approx(0.2, abs=0.02)
    assert float(soup.state["y.w"]) == pytest.approx(0.9, abs=0.02)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="without gradient"):
        learned_soup(states(0, 1), lambda state: 1.0)
    with pytest.raises(InputError, match="steps"):
        learned_soup(states(0, 1), lambda state: state["w"].sum(), steps=0)
    with pytest.raises(InputError, match="are none"):
        greedy_soup([], lambda state: 0.0)
    with pytest.raises(InputError, match="1 for 2 models"):
        greedy_soup(states(0, 1), lambda state: 0.0, scores=[1.0])


def test_a_model_whose_score_is_nan_is_named():
    states = [{"w": torch.tensor([value])} for value in (1.0, 2.0)]
    with pytest.raises(InputError, match="score of model 1: is NaN"):
        greedy_soup(states, lambda state: float("nan") if state["w"] == 2 else 0.0)
    with pytest.raises(InputError, match="score of model 0: is NaN"):
        greedy_soup(states, lambda state: 0.0, scores=[float("nan"), 0.0])
