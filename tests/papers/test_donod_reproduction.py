import json
import math

import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.papers import donod
from unseen.papers.answer_tuning import answer_pool, last_word_accuracy, tuned_accuracies
from unseen.papers.donod import METHOD, REGIMES, DONODReproduction, fine_tuning_rows
from unseen.papers.noisy_fine_tuning import TurnedDigits, base_network
from unseen.registry import Spec, papers, selectors


@pytest.fixture(scope="module")
def rows():
    return [row for regime in REGIMES for row in fine_tuning_rows(regime, 0, size=60, epochs=2)]


def test_every_condition_has_every_metric_and_every_claim_a_number(rows):
    tidy = [(seed, *row) for seed in (0, 1) for row in rows]
    table = pd.DataFrame(tidy, columns=["seed", "condition", "metric", "value"])
    assert set(table.condition) == {c.name for c in DONODReproduction.conditions}
    laptop = set(DONODReproduction.metrics) - {"target", "upright"}
    for _, part in table.groupby("condition"):
        assert set(part.metric) == laptop
    assert all(math.isfinite(claim.judge(table).mean) for claim in DONODReproduction.claims)
    assert len(papers.build("donod").plot(table).axes) == 3


def test_a_seed_decides_everything(rows):
    torch.manual_seed(7)
    again = fine_tuning_rows("pair", 0, size=60, epochs=2)
    found = {row[:2]: row.value for row in rows}
    assert all(found[row[:2]] == row.value for row in again)


def test_the_parts_do_not_share_images_and_noise_is_as_told():
    data = TurnedDigits.draw(0, "pair", 0.45, degrees=0, size=700)
    wrong = data.target.y != data.truth
    assert float(wrong.double().mean()) == pytest.approx(0.45)
    assert torch.equal(data.target.y[wrong], (data.truth[wrong] + 1) % 10)
    clean = TurnedDigits.draw(0, None, 0.0, degrees=0, size=700)
    assert torch.equal(clean.target.y, clean.truth) and len(clean.labels) == 397
    torch.testing.assert_close(clean.turned, clean.upright)
    images = torch.cat([clean.general.x, clean.target.x, clean.upright])
    assert len(images.unique(dim=0)) == 1797


def test_max_keeps_what_is_fitted_badly_and_min_what_is_fitted_well():
    data = TurnedDigits.draw(1, "pair", 0.45, degrees=15, size=300)
    base = base_network(data.general, 1, epochs=20)
    wrong = (data.target.y != data.truth).double()
    kept = {}
    for direction in ("max", "min"):
        selector = selectors.build(Spec.make("donod", don_direction=direction))
        kept[direction] = float(wrong[selector.select(selector.fit(base, data.target), 0.3)].mean())
    assert kept["max"] > 0.45 > kept["min"]


def measured(**changes):
    names = [c.name for c in DONODReproduction.conditions]
    values = {(n, m): 0.5 for n in names for m in DONODReproduction.metrics}
    return {**values, **{tuple(key.split("|")): value for key, value in changes.items()}}


def test_the_arithmetic_of_the_claims():
    claims = {claim.name: claim for claim in DONODReproduction.claims}
    m = measured(**{f"{METHOD}|target, pair": 0.7, "full|target, pair": 0.55, "donod, min|target, pair": 0.9})
    assert claims["better at home"].value(m) == pytest.approx(0.15)
    assert claims["what the other direction does"].value(m) == pytest.approx(0.35)
    m = measured(**{f"{METHOD}|wrong, pair": 0.1, f"{METHOD}|wrong, symmetric": 0.6})
    assert claims["finds wrong labels"].value(m) == pytest.approx(-0.1)
    judged = [claim for claim in claims.values() if claim.at_least is not None and not claim.control]
    assert all("other direction" not in claim.name and "alone does" not in claim.name for claim in judged)


@pytest.fixture
def tiny_decoder(tmp_path, monkeypatch):
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<end>", "<unknown>", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>"
    )
    fast.save_pretrained(tmp_path / "lm")
    config = transformers.GPT2Config(vocab_size=10, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "lm")
    monkeypatch.setenv("UNSEEN_LM", str(tmp_path / "lm"))
    for name in ("TRAIN", "TARGET", "CROSS"):
        path = tmp_path / f"{name}.jsonl"
        pairs = [{"prompt": f"a {p}", "answer": f"{q} h"} for p, q in zip("bcdefg", "cdefgb", strict=True)]
        path.write_text("\n".join(map(json.dumps, pairs)))
        monkeypatch.setenv(f"UNSEEN_SFT_{name}", str(path))
    return fast


def test_the_full_scale_on_a_tiny_decoder(tiny_decoder, monkeypatch):
    reproduction = papers.build("donod")
    assert set(reproduction.units("full")) <= {c.name for c in DONODReproduction.conditions}
    for unit in reproduction.units("full"):
        rows = reproduction.measure(unit, 0, "full")
        assert {row.metric for row in rows} == {"target", "upright"} and all(
            0 <= row.value <= 1 for row in rows
        )
    assert set(tuned_accuracies(Spec("sparse_regions"), 0.5, 0)) == {"target", "upright"}
    pool = answer_pool(tiny_decoder, [("a b", "c"), ("a", "d e")], 8)
    assert pool.y.tolist() == [[-100, -100, 4], [-100, 5, 6]]
    with pytest.raises(InputError, match="pair 1"):
        answer_pool(tiny_decoder, [("a", "b"), ("a b c", "d")], 3)
    monkeypatch.delenv("UNSEEN_SFT_CROSS")
    with pytest.raises(InputError, match="UNSEEN_SFT_CROSS"):
        tuned_accuracies(None, 0.3, 0)


def test_the_last_word_counts(tiny_decoder):
    class Parrot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def generate(self, start, max_new_tokens, **_):
            return torch.cat([start, torch.tensor([[5, 9][-max_new_tokens:]])], 1)

    assert last_word_accuracy(
        Parrot(), tiny_decoder, [("a", "b h"), ("a", "h"), ("a", "h b")]
    ) == pytest.approx(2 / 3)


def test_lines_without_an_answer_are_named(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    monkeypatch.setenv("UNSEEN_SFT_TRAIN", str(path))
    with pytest.raises(InputError, match="line 2"):
        donod.papers.build("donod").measure("full", 0, "full")
