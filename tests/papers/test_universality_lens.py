import math

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.papers import universality_lens as paper
from unseen.registry import papers


def measured(rows):
    return {(row.condition, row.metric): row.value for row in rows}


def claim(name):
    return next(each for each in paper.UniversalityLens.claims if each.name == name)


def test_hypotheses_are_the_networks_that_they_say():
    space = paper.Hypotheses(5)
    assert len(space.prior_std) == 6 * 5 + 5 + 25 + 5 + 5 + 1 and len(paper.Hypotheses(64).prior_std) == 4673
    theta = torch.randn(2, len(space.prior_std), generator=torch.Generator().manual_seed(0)) * space.prior_std
    found = space.probabilities(theta)
    flat = theta[1].numpy()
    w1, b1, w2, b2, w3, b3 = np.split(flat, np.cumsum([30, 5, 25, 5, 5]))
    x = 2 * paper.inputs() - 1
    hidden = np.maximum(np.maximum(x @ w1.reshape(6, 5) + b1, 0) @ w2.reshape(5, 5) + b2, 0)
    one = 1 / (1 + np.exp(-4 * (hidden @ w3 + b3)))
    assert found[1, :, 1] == pytest.approx(one, rel=1e-4) and found.sum(-1) == pytest.approx(np.ones((2, 64)))


def test_regret_of_a_class_that_is_the_truth_is_nothing_and_of_a_padded_one_ln_2():
    truth = paper._noisy(paper._truths(0)["AND"])
    counts = paper.sequences(truth, 64, np.random.default_rng(0))
    assert counts.sum((1, 2)) == pytest.approx(np.full(paper.DRAWS, 64))
    assert paper.regrets(truth, truth[None], counts) == pytest.approx(np.zeros(paper.DRAWS), abs=1e-9)
    padded = np.concatenate([truth[None], paper._flipped(truth[None], truth)])
    assert paper.regrets(truth, padded, counts) == pytest.approx(np.full(paper.DRAWS, math.log(2)))


def test_truths_in_miniature():
    found = measured(paper.truth_rows(3, 1000, states=80, max_levels=25, moves=4))
    assert set(paper._truths(0)) == set(paper.NAMES)
    assert claim("bound").value(found) <= 0
    assert found["padded", "added"] <= math.log(2) + 1e-9
    assert found["constant", "-ln W"] < found["one bit", "-ln W"] < found["full parity", "-ln W"]
    assert found["constant", "regret at 64, width 8"] < found["full parity", "regret at 64, width 8"]


def test_digits_in_miniature():
    found = measured(
        paper.digit_rows(*paper.digits(3), 3, (8, 16, 24), burn_in=150, thin=5, steps=60, learning_rate=2e-4)
    )
    for width in (8, 16, 24):
        assert found[f"SGLD, width {width}", "log loss"] < math.log(10)
        assert found[f"deep ensemble, width {width}", "log loss"] < math.log(10)
        assert found[f"tempered network, width {width}", "log loss"] < math.log(10)
    assert found["distilled", "distance"] >= 0 and found["SGLD, width 16", "R-hat"] > 0.9


def test_the_arithmetic_of_the_claims():
    rows = [(name, f"regret at 64, width {w}", (i + 1) * (1.2 if w == 64 else 1)) for i, name in enumerate(paper.NAMES)
            for w in (8, 64)]  # fmt: skip
    rows += [(name, "-ln W", 10.0 * i) for i, name in enumerate(paper.NAMES)]
    rows += [(f"SGLD, width {w}", "log loss", 0.5) for w in paper.WIDTHS]
    rows += [
        (f"MAP, width {w}", "log loss", loss) for w, loss in zip(paper.WIDTHS, (1.0, 0.625, 2.0), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["condition", "metric", "value"])
    values = {(r.condition, r.metric): r.value for r in table.itertuples()}
    assert claim("weight predicts regret").pooled(table) == pytest.approx(1)
    assert claim("more weights do not matter").value(values) == pytest.approx(0.2)
    assert claim("better than the MAP").value(values) == pytest.approx(0.2)
    assert claim("wider is no worse").value(values) == 0


@pytest.mark.filterwarnings("ignore:no finite best temperature")
def test_full_scale_reads_your_data(tmp_path, monkeypatch):
    monkeypatch.delenv("UNSEEN_UNIVERSALITY", raising=False)
    with pytest.raises(InputError, match=r"cifar-10\.npz"):
        papers["universality-lens"].target().measure("your data", 0, "full")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "cifar-10.npz", x=random.uniform(size=(400, 3, 4, 4)), y=random.integers(0, 10, 400))
    monkeypatch.setenv("UNSEEN_UNIVERSALITY", str(tmp_path))
    found = measured(paper.own_data(0, widths=(4, 8, 16), burn_in=10, thin=1, steps=5))
    assert math.isfinite(found["SGLD, width 16", "log loss"])
