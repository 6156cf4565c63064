import functools
import json
import math
import random

import pytest
import torch

from unseen.errors import InputError
from unseen.papers import lm_infinite
from unseen.papers.pretrained_language import pretrained_decoder, text_sequences
from unseen.papers.reproduce import record, reproduce
from unseen.registry import papers

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
PROSE = "".join(random.Random(0).choices(LETTERS, k=8000))


@pytest.fixture
def small(monkeypatch):
    """Windows of 16 bytes and hardly any training: the path is whole, the numbers mean nothing."""
    trial = functools.partial(lm_infinite.laptop_trial, window=16, steps=3, sequences=2)
    monkeypatch.setattr(lm_infinite, "laptop_trial", trial)


def test_every_condition_has_every_metric_and_every_claim_a_number(small, tmp_path):
    outcome = reproduce("lm-infinite", folder=tmp_path / "runs")
    expected = {(c.name, bucket) for c in lm_infinite.LMInfinite.conditions for bucket in lm_infinite.BUCKETS}
    expected |= {("lm-infinite", name) for name in ("block error", "memory slope", "time slope")}
    assert set(zip(outcome.table.condition, outcome.table.metric, strict=True)) == expected
    assert {metric for _, metric in expected} == set(lm_infinite.LMInfinite.metrics)
    assert len(outcome.table) == 3 * len(expected)
    found = {judgement.claim.name: judgement for judgement in outcome.judgements}
    assert all(math.isfinite(judgement.mean) for judgement in found.values())
    # these two are about tensors, not about training: they hold even here
    assert found["exact"].verdict == found["linear memory"].verdict == "holds"
    assert found["vanilla degrades"].verdict == "refuted"  # an untrained model has nothing to lose
    assert found["sink effect"].verdict == "reported"
    written = json.loads(record(outcome, tmp_path / "docs").read_text())
    assert written["verdict"] == "in doubt: a control failed"


def test_a_seed_measures_the_same_numbers_twice(small, monkeypatch):
    monkeypatch.setattr(lm_infinite, "_block_form", lambda seed: [])  # times are never the same twice

    def measured(seed):
        rows = papers.build("lm-infinite").measure("all", seed, "laptop")
        return {row[:2]: row.value for row in rows}

    first = measured(1)
    torch.manual_seed(1234)
    assert measured(1) == pytest.approx(first, rel=1e-6)
    assert measured(2)["lm-infinite", "NLL 4-8"] != first["lm-infinite", "NLL 4-8"]


@pytest.fixture
def tiny_llama(tmp_path, monkeypatch):
    """A random Llama with a window of 24 letters, saved as a folder, and a text beside it."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<s>": 0, "<unk>": 1} | {letter: i for i, letter in enumerate(LETTERS, 2)}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "model"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)  # transformers draws its initial weights from the global generator
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        bos_token_id=0,
        eos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (tmp_path / "text.txt").write_text(PROSE)
    monkeypatch.setenv("UNSEEN_LM", str(folder))
    monkeypatch.setenv("UNSEEN_TEXT", str(tmp_path / "text.txt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


def test_full_scale_runs_a_pretrained_decoder_on_a_text(tiny_llama, tmp_path):
    outcome = reproduce("lm-infinite", folder=tmp_path / "runs", scale="full")
    nll = outcome.table[outcome.table.metric == "NLL 0.5-1"]
    assert set(nll.condition) == {c.name for c in lm_infinite.LMInfinite.conditions}
    inside = nll[~nll.condition.isin(["interpolation", "ntk", "recompute"])].groupby("seed").value
    assert ((inside.max() - inside.min()) < 1e-4).all()  # within the window these change nothing
    assert outcome.table[outcome.table.metric == "NLL 4-8"].value.between(2.5, 5).all()  # about log(31)


def test_sequences_of_a_text_start_like_training_and_do_not_overlap(tiny_llama):
    model, tokenizer = pretrained_decoder("never asked for")
    assert not model.training and model.config.max_position_embeddings == 24
    tokens = text_sequences(tokenizer, 5, 40, seed=0)
    assert tokens.shape == (5, 40) and (tokens[:, 0] == 0).all()
    starts = [PROSE.index("".join(LETTERS[i - 2] for i in row[1:].tolist())) for row in tokens]
    assert len(set(starts)) == 5 and all(start % 39 == 0 and start < 4 * 5 * 39 for start in starts)
    assert torch.equal(tokens, text_sequences(tokenizer, 5, 40, seed=0))
    assert not torch.equal(tokens, text_sequences(tokenizer, 5, 40, seed=1))


def test_the_text_may_be_a_data_set(tiny_llama, tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="datasets (extra 'language') is not installed")
    _, tokenizer = pretrained_decoder("never asked for")
    expected = text_sequences(tokenizer, 5, 40, seed=0)
    for column in ("text", "body"):
        folder = tmp_path / column
        folder.mkdir()
        lines = [json.dumps({column: PROSE[start : start + 100]}) for start in range(0, len(PROSE), 100)]
        (folder / "test.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("UNSEEN_TEXT", str(tmp_path / "text"))
    assert torch.equal(text_sequences(tokenizer, 5, 40, seed=0), expected)
    monkeypatch.setenv("UNSEEN_TEXT", str(tmp_path / "body"))
    with pytest.raises(InputError, match="has columns body"):
        text_sequences(tokenizer, 5, 40, seed=0)


def test_a_text_that_is_missing_or_too_short_is_named(tiny_llama, tmp_path, monkeypatch):
    _, tokenizer = pretrained_decoder("never asked for")
    (tmp_path / "text.txt").write_text(PROSE[:100])
    with pytest.raises(InputError, match=r"text\.txt.*has only 100 tokens.*Give 195 or more"):
        text_sequences(tokenizer, 5, 40, seed=0)
    monkeypatch.delenv("UNSEEN_TEXT")
    with pytest.raises(InputError, match="UNSEEN_TEXT: is not set"):
        text_sequences(tokenizer, 5, 40, seed=0)


@pytest.mark.slow
def test_the_laptop_scale_reproduction_holds(tmp_path):
    outcome = reproduce("lm-infinite", folder=tmp_path)
    assert {j.claim.name: j.verdict for j in outcome.judgements if j.verdict == "refuted"} == {}
