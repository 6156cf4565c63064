import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from unseen.errors import InputError
from unseen.papers import modular_experts, moe_pathways
from unseen.papers.modular_experts import Protocol, addition, grow
from unseen.papers.moe_pathways import GROKKING, NO_DECAY, STEPS, checkpoint_rows, monitor_rows
from unseen.papers.reproduce import record, reproduce

TINY = Protocol(p=5, width=16, layers=2, experts=3, hidden=8, steps=80, every=20, learning_rate=1e-2)


def checkpoints(distance, accuracy, seed=0):
    """A made-up table of checkpoints: everything but these two is noise that rises or falls a little."""
    generator = np.random.default_rng(seed)
    steps = np.array(STEPS)
    names = ("normalized_distance", "same_answer", "smoothness", "inconsistency", "router_entropy", "loss")
    noise = {name: generator.normal(size=len(steps)) for name in (*names, "weight_norm")}
    return pd.DataFrame({
        "step": steps, "distance": distance, "test_accuracy": accuracy, "train_accuracy": 1.0,
        "memorized": 1.0, "samples": 100, **noise,
    })  # fmt: skip


def wave(seed):
    """An accuracy that rises from 0.05 to 0.95 with ups and downs, so that it is not time alone."""
    rising = np.linspace(0, 1, len(STEPS)) + 0.3 * np.random.default_rng(seed + 100).normal(size=len(STEPS))
    return 0.05 + 0.9 * np.argsort(np.argsort(rising)) / (len(STEPS) - 1)


def judged(monkeypatch, folder, grokking, control):
    """Verdicts of claims, had the runs been like this."""

    def grown(seed, weight_decay, protocol):
        return grokking(seed) if weight_decay else control(seed)

    monkeypatch.setattr(modular_experts, "grow", grown)
    outcome = reproduce("moe-pathways", folder=folder)
    return outcome, {judgement.claim.name: judgement for judgement in outcome.judgements}


def test_a_distance_that_mirrors_accuracy_passes_every_claim_but_smoothness(monkeypatch, tmp_path):
    outcome, found = judged(
        monkeypatch,
        tmp_path / "runs",
        lambda seed: checkpoints(12 - 4 * wave(seed), wave(seed), seed),
        lambda seed: checkpoints(10.0, 0.0, seed),
    )
    refuted = {name for name, judgement in found.items() if judgement.verdict == "refuted"}
    assert refuted == {"smoothness rises"}
    assert found["distance falls as accuracy rises"].mean == pytest.approx(-1)
    written = json.loads(record(outcome, tmp_path / "docs").read_text())
    assert written["verdict"].startswith("holds in part")
    assert (tmp_path / "docs" / "43-moe-pathways.svg").stat().st_size > 1000


def test_drift_alone_is_found_out(monkeypatch, tmp_path):
    drift = 12 - np.linspace(0, 4, len(STEPS)) + 0.01 * np.random.default_rng(0).normal(size=len(STEPS))
    _, found = judged(
        monkeypatch,
        tmp_path,
        lambda seed: checkpoints(drift, wave(seed), seed),
        lambda seed: checkpoints(drift, 0.0, seed),
    )
    assert found["distance falls as accuracy rises"].verdict == "holds"  # as nearly anything would
    assert found["more than time"].verdict == "refuted"
    assert found["no such fall in the control"].mean == pytest.approx(0)
    assert found["no such fall in the control"].verdict == "refuted"


def test_a_distance_that_rises_is_not_strong_by_its_wrong_sign(monkeypatch, tmp_path):
    _, found = judged(
        monkeypatch,
        tmp_path,
        lambda seed: checkpoints(8 + 4 * wave(seed), wave(seed), seed),
        lambda seed: checkpoints(10.0, 0.0, seed),
    )
    for name in ("distance falls as accuracy rises", "better than the training loss", "better than the step"):
        assert found[name].verdict == "refuted"


def test_only_checkpoints_after_memorization_count():
    table = checkpoints(np.random.default_rng(1).normal(size=len(STEPS)), wave(0))
    table["memorized"] = np.minimum(np.arange(len(STEPS)) / 10, 0.5)  # 0.45 of at most 0.5 from the fifth on
    table["test_accuracy"] = table.test_accuracy.where(table.step >= STEPS[12], 0.0)
    rows = {(row.condition, row.metric): row.value for row in monitor_rows(table)}
    expected = spearmanr(table.distance[5:], table.test_accuracy[5:]).statistic
    assert rows["pathway distance", "rho"] == pytest.approx(expected)
    late = spearmanr(table.distance[12:], table.test_accuracy[12:]).statistic
    assert rows["pathway distance", "rho late"] == pytest.approx(late)
    table["test_accuracy"] = 0.0
    assert {row.value for row in monitor_rows(table)} == {0.0}  # nothing to follow


def test_both_orders_of_a_pair_are_on_the_same_side():
    data = addition(7, 0.7, seed=0)
    train, test = (
        {tuple(row) for row in tokens[:, :2].tolist()} for tokens in (data.tokens, data.test_tokens)
    )
    assert len(train) == len(data.tokens) and len(train) + len(test) == 49 and not train & test
    assert train == {(b, a) for a, b in train}
    assert torch.equal(data.answers, data.tokens[:, :2].sum(1) % 7)
    assert (data.tokens[:, 2] == 7).all()
    assert not torch.equal(data.tokens, addition(7, 0.7, seed=1).tokens)


def test_a_run_memorizes_and_is_the_same_twice():
    one = grow(0, 0.0, TINY)
    torch.manual_seed(123)
    pd.testing.assert_frame_equal(one, grow(0, 0.0, TINY))
    assert one.train_accuracy.iloc[-1] == 1 and one.memorized.iloc[-1] == 1
    assert one.loss.iloc[-1] < 0.5 and one.step.iloc[-1] == 80
    assert one.distance.between(0, 7).all() and one.same_answer.between(0, 7).all()


def test_weight_decay_is_what_the_units_differ_in(monkeypatch):
    seen = []
    monkeypatch.setattr(modular_experts, "grow", lambda *given: seen.append(given) or checkpoints(1.0, 0.5))
    for unit in moe_pathways.MoEPathways().units("laptop"):
        moe_pathways.MoEPathways().measure(unit, 3, "laptop")
    assert [(seed, decay) for seed, decay, _ in seen] == [(3, 1.0), (3, 0.0)]
    assert moe_pathways.MoEPathways().units("laptop") == [GROKKING, NO_DECAY]


def test_full_scale_reads_saved_checkpoints(tmp_path, monkeypatch):
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz .\n"
    vocabulary = {"<s>": 0, "<unk>": 1} | {letter: i for i, letter in enumerate(letters, 2)}
    spelling = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=spelling, bos_token="<s>", unk_token="<unk>"
    )
    config = transformers.OlmoeConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    accuracy = {"step100": 0.2, "step200": 0.3, "step300": 0.5}
    for number, revision in enumerate(accuracy):
        torch.manual_seed(number)  # transformers draws its initial weights from the global generator
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / revision)
        tokenizer.save_pretrained(tmp_path / revision)
    (tmp_path / "text.txt").write_text("".join(random.Random(0).choices(letters, k=2000)))
    monkeypatch.setenv("UNSEEN_LM", str(tmp_path))
    monkeypatch.setenv("UNSEEN_TEXT", str(tmp_path / "text.txt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("UNSEEN_ACCURACY", raising=False)
    with pytest.raises(InputError, match="UNSEEN_ACCURACY"):
        checkpoint_rows(0)
    monkeypatch.setenv("UNSEEN_ACCURACY", str(tmp_path / "accuracy.json"))
    (tmp_path / "accuracy.json").write_text(json.dumps({"step100": 0.2}))
    with pytest.raises(InputError, match="names 1 checkpoints"):
        checkpoint_rows(0)
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    rows = checkpoint_rows(0, samples=6, length=20)
    assert [row.metric for row in rows] == ["rho of distance", "rho of smoothness", "rho of loss"]
    assert all(-1 <= row.value <= 1 for row in rows)
