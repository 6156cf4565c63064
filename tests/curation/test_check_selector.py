import pytest
import torch

from unseen.curation.base import Selector
from unseen.testing import CHECKS, ContractError, check_selector


class Honest(Selector):
    def scores(self, model, pool):
        return pool.y.double()


class Changes(Honest):
    def scores(self, model, pool):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return super().scores(model, pool)


class LeavesEvaluationMode(Honest):
    def scores(self, model, pool):
        model.eval()
        return super().scores(model, pool)


class Draws(Honest):
    def scores(self, model, pool):
        return torch.rand(len(pool))


class Forgets(Honest):
    def select(self, scores, budget, by=None):
        return super().select(scores, budget)


class Reverses(Honest):
    def select(self, scores, budget, by=None):
        return super().select(scores, budget, by).flip(0)


def test_an_honest_selector_passes():
    assert CHECKS["selectors"] is check_selector
    report = check_selector(Honest)
    assert len(report.passed) == 3 and report.facts["examples"] == "labels"
    assert check_selector("perplexity").facts["examples"] == "tokens"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Changes, "changes the model"),
        (LeavesEvaluationMode, "in another mode"),
        (Draws, "global generator"),
        (Forgets, "of two domains of equal size"),
        (Reverses, "ascending"),
    ],
)
def test_a_broken_one_is_told_what_it_broke(broken, message):
    with pytest.raises(ContractError, match=message):
        check_selector(broken)
