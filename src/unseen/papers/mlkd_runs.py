"""Language models of documentation, pre-trained with and without a leak, tuned, taught and judged by perplexity."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unseen.detection import Detector
from unseen.distillation import MultiLevelDistillation, logit_kl
from unseen.distillation.named_outputs import logits_of
from unseen.errors import InputError, MissingExtra
from unseen.networks import Bank
from unseen.networks.backbones import backbone
from unseen.papers.docstring_sentences import FAMILIAR, LEAKED, Sentences, draw_sentences
from unseen.papers.pretrained_language import pretrained_decoder
from unseen.registry import detectors
from unseen.sequences.language_model import DecoderLM
from unseen.sequences.ngrams import CharacterNgrams
from unseen.sequences.perplexity import LanguageModelOOD, TextLoss, next_token_losses

START = 0
Scores = dict[str, NDArray[np.float64]]
"""Domain -> scores of its test sentences: higher is less familiar."""


@dataclass(frozen=True)
class Scale:
    """How large everything is. Epochs are over the familiar sentences, those of pre-training over its corpus."""

    train: int = 2000
    test: int = 300
    vocabulary: int = 512
    width: int = 64
    pretraining: int = 2
    tuning: int = 2
    student: int = 6
    batch: int = 32
    length: int = 64
    rate: float = 2e-3
    tuning_rate: float = 5e-4


@dataclass
class Runs:
    """`scores` of every condition by domain, and `held_out` log-perplexity of the language models."""

    scores: dict[str, Scores]
    held_out: dict[str, float]


def measure_texts(seed: int, scale: Scale = Scale()) -> Runs:
    """All conditions on one draw of sentences; each language model has the same size."""
    data = draw_sentences(seed, scale.train, scale.test)
    tokenizer = learn_tokens([s for texts in data.corpus.values() for s in texts], scale.vocabulary)
    runs = Runs(simple_scores(data), {})

    def model(number: int) -> LanguageModelOOD:
        decoder = DecoderLM(scale.vocabulary, width=scale.width, window=scale.length, seed=3 * seed + number)
        return LanguageModelOOD(decoder, tokenizer, length=scale.length, start=START)

    def keep(name: str, detector: LanguageModelOOD) -> None:
        runs.scores[name] = judged(data, detector.score)
        runs.held_out[name] = float(detector.score(data.held_out).mean())

    def learn(
        detector: LanguageModelOOD,
        texts: Sequence[str],
        epochs: int,
        rate: float,
        loss: TextLoss | None = None,
    ) -> LanguageModelOOD:
        return detector.fit(
            texts, loss=loss, epochs=epochs, learning_rate=rate, batch_size=scale.batch, seed=seed
        )

    for name, left_out in (("without the leak", LEAKED), ("fine-tuned", None)):
        corpus = [s for domain, texts in data.corpus.items() if domain != left_out for s in texts]
        teacher = learn(model(0), corpus, scale.pretraining, scale.rate)
        if left_out is None:
            keep("pre-trained", teacher)
        keep(name, learn(teacher, data.train, scale.tuning, scale.tuning_rate))

    for name, loss in student_losses(teacher.model, (2, 3), seed).items():
        student = model(1)
        keep(name, learn(student, data.train, scale.student, scale.rate, loss(student.model)))
    return runs


def student_losses(
    teacher: Any, layers: str | Sequence[int], seed: int
) -> dict[str, Callable[[Any], TextLoss | None]]:
    """What a student with random weights is trained by, by condition: functions of the student."""

    def smoothed(student: Any) -> TextLoss:
        return lambda ids, mask: next_token_losses(
            logits_of(student(ids)), ids, mask, label_smoothing=0.1
        ).mean()

    def outputs_only(student: Any) -> TextLoss:
        def loss(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                taught = logits_of(teacher(ids))
            return logit_kl(logits_of(student(ids)), taught, mask=mask)

        return loss

    return {
        "from scratch": lambda student: None,
        "label smoothing": smoothed,
        "outputs only": outputs_only,
        "MLKD": lambda student: MultiLevelDistillation(teacher, student, student_layers=layers, seed=seed),
    }


def measure_given(seed: int, epochs: int = 5) -> Runs:
    """A user's decoder and texts (see `MLKDText.card`), with the paper's settings; domains "ID" and "OOD".

    Raises `InputError` for a file that isn't named or has no text.
    """
    train, familiar, unfamiliar = (
        given_texts(f"UNSEEN_{name}") for name in ("ID_TRAIN", "ID_TEST", "OOD_TEST")
    )
    model, tokenizer = pretrained_decoder("gpt2")
    teacher = LanguageModelOOD(model.float(), tokenizer, start=tokenizer.bos_token_id)
    runs = Runs({}, {})

    def keep(name: str, detector: LanguageModelOOD) -> None:
        runs.scores[name] = {"ID": detector.score(familiar), "OOD": detector.score(unfamiliar)}

    keep("pre-trained", teacher)
    keep("fine-tuned", teacher.fit(train, epochs=epochs, seed=seed))
    for name, loss in student_losses(teacher.model, "middle", seed).items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student = type(model)(model.config).to(next(model.parameters()).device)
        detector = LanguageModelOOD(student, tokenizer, start=tokenizer.bos_token_id)
        keep(name, detector.fit(train, loss=loss(student), epochs=epochs, seed=seed))
    return runs


def given_texts(variable: str) -> list[str]:
    """Lines of the text file that an environment variable names, without empty ones."""
    path = Path(os.environ.get(variable, ""))
    if not path.is_file():
        raise InputError(variable, "names no file", "Name a text file with one text a line.")
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise InputError(f"file {path}", "has no text", "Give one text a line.")
    return texts


def embedding_scores(seed: int, train: int = 1000, scale: Scale = Scale()) -> dict[str, Scores]:
    """Detectors over a pretrained sentence encoder's features, fitted on a part of the familiar sentences."""
    data = draw_sentences(seed, scale.train, scale.test)
    encoder = backbone("minilm")

    def bank(texts: list[str]) -> Bank:
        with torch.no_grad():
            parts = [encoder(texts[at : at + 100]) for at in range(0, len(texts), 100)]
        features = torch.cat(parts)
        one_class = torch.zeros(len(features), dtype=torch.int64)
        return Bank(features, torch.zeros(len(features), 1), one_class)

    fitted = bank(data.train[:train])
    judging = {FAMILIAR: bank(data.test)} | {name: bank(texts) for name, texts in data.unfamiliar.items()}
    found: dict[str, Scores] = {}
    for name, spec in (("MiniLM, kNN", "knn"), ("MiniLM, Mahalanobis", "mahalanobis(shrinkage=0.01)")):
        detector: Detector = detectors.build(spec).fit(fitted)
        found[name] = {domain: -detector.score(each).double().numpy() for domain, each in judging.items()}
    return found


def judged(data: Sentences, score: Callable[[list[str]], NDArray[np.float64]]) -> Scores:
    """Scores of the test sentences of all domains."""
    return {FAMILIAR: score(data.test)} | {domain: score(texts) for domain, texts in data.unfamiliar.items()}


def simple_scores(data: Sentences) -> dict[str, Scores]:
    """Detectors of texts that train no network."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import OneClassSVM

    words = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2), OneClassSVM(nu=0.1, gamma="scale"))
    words.fit(data.train)
    return {
        "n-grams": judged(data, CharacterNgrams().fit(data.train).score),
        "TF-IDF, one class": judged(data, lambda texts: -words.score_samples(texts)),
        "length": judged(data, lambda texts: np.array([float(len(text)) for text in texts])),
    }


def learn_tokens(texts: Sequence[str], vocabulary: int) -> Any:
    """A tokenizer of byte pairs merged on the texts; id 0 stands before a text."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise MissingExtra("a tokenizer", "language") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
