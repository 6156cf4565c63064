"""Detection of unfamiliar texts by perplexity."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from unseen.detection.metrics import ood_metrics
from unseen.distillation import MultiLevelDistillation
from unseen.errors import InputError, TrainingDiverged
from unseen.sequences.language_model import DecoderLM
from unseen.sequences.perplexity import LanguageModelOOD, next_token_losses


def as_bytes(text):
    return list(text.encode())


def decoder(seed=1, **options):
    return DecoderLM(128, width=16, layers=2, heads=2, seed=seed, **options)


TEXTS = ["a cat sat on the mat", "two", "dogs do not sit on mats, as far as anyone can tell", "hi there"]


@pytest.mark.parametrize("start", [None, 0])
def test_scores_are_mean_losses_of_each_text_by_itself(start):
    model = decoder()
    scores = LanguageModelOOD(model, as_bytes, start=start).score(TEXTS, batch_size=3)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = torch.tensor([([] if start is None else [start]) + as_bytes(text)])
        log_probabilities = model(ids).log_softmax(-1)
        losses = [-log_probabilities[0, t - 1, ids[0, t]].item() for t in range(1, ids.shape[1])]
        assert score == pytest.approx(np.mean(losses), rel=1e-5)
    assert scores.dtype == np.float64


def test_neither_neighbours_nor_the_order_nor_the_mode_count():
    model = decoder()
    detector = LanguageModelOOD(model, as_bytes)
    expected = detector.score(TEXTS)
    model.train()
    np.testing.assert_allclose(detector.score(TEXTS[::-1], batch_size=1)[::-1], expected, rtol=1e-5)
    assert model.training


def test_only_the_first_tokens_are_read():
    detector = LanguageModelOOD(decoder(), as_bytes, length=6)
    assert detector.score(["abcdefgh"]) == pytest.approx(detector.score(["abcdefxyz"]))
    assert detector.score(["abcdefgh"]) != pytest.approx(detector.score(["abcdxfgh"]))


def letters(alphabet, count, seed):
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=draw.randint(8, 20))) for _ in range(count)]


def test_it_learns_what_is_familiar():
    """Texts of half of the letters against texts of others, never seen: the AUROC goes from chance to one."""
    model = decoder()
    detector = LanguageModelOOD(model, as_bytes, start=0)
    familiar, unfamiliar = letters("abcdefgh", 100, 1), letters("ijklmnop", 100, 2)

    def auroc():
        return ood_metrics(-detector.score(familiar), -detector.score(unfamiliar)).auroc

    before = auroc()
    assert detector.fit(letters("abcdefgh", 200, 0), epochs=4, learning_rate=3e-3) is detector
    assert before < 0.9 and auroc() > 0.99
    # no better than the entropy of eight letters, and near it
    assert math.log(8) < detector.score(familiar).mean() + 0.1 < math.log(8) + 0.3


def test_a_student_is_trained_by_distillation():
    texts = letters("abcdefgh", 200, 0)
    teacher = LanguageModelOOD(decoder(1), as_bytes, start=0).fit(texts, epochs=4, learning_rate=3e-3)
    student = decoder(2)
    distillation = MultiLevelDistillation(teacher.model, student)
    before = copy.deepcopy(distillation.state_dict())
    detector = LanguageModelOOD(student, as_bytes, start=0)
    untrained = detector.score(texts).mean()
    detector.fit(texts, loss=distillation, epochs=4, learning_rate=3e-3)
    assert detector.score(texts).mean() < 0.6 * untrained
    assert not torch.equal(before["project_teacher.weight"], distillation.project_teacher.weight)


def test_the_seed_decides_and_the_callers_random_state_stays():
    untrained = nn.Sequential(nn.Embedding(128, 8), nn.Dropout(0.5), nn.Linear(8, 128))

    def fitted(seed):
        detector = LanguageModelOOD(copy.deepcopy(untrained), as_bytes)
        return detector.fit(TEXTS, epochs=2, learning_rate=1e-2, seed=seed).score(TEXTS)

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = fitted(0)
    assert torch.equal(torch.rand(2), expected)
    np.testing.assert_array_equal(fitted(0), first)
    assert (fitted(1) != first).any()


def test_held_out_texts_stop_training_and_the_best_weights_stay():
    """Training texts of random letters can only be learnt by heart: others grow worse."""
    detector = LanguageModelOOD(DecoderLM(128, width=32, layers=2, heads=2, seed=1), as_bytes, start=0)
    train, held_out = letters("abcdefgh", 8, 0), letters("abcdefgh", 40, 1)
    detector.fit(train, epochs=200, learning_rate=1e-2, held_out=held_out, patience=3)
    losses = detector.held_out_losses
    assert len(losses) < 200 and int(np.argmin(losses)) == len(losses) - 4
    assert detector.score(held_out).mean() == pytest.approx(min(losses))
    assert LanguageModelOOD(decoder(), as_bytes).fit(train, epochs=1).held_out_losses == []


def test_models_and_tokenizers_of_transformers():
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {chr(i): i for i in range(128)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=characters)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=128, n_positions=64, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    ids = [torch.tensor([as_bytes(text)]) for text in TEXTS]
    expected = [model.eval()(each, labels=each).loss.item() for each in ids]
    for tokenizer in (as_bytes, characters, wrapped):
        scores = LanguageModelOOD(model, tokenizer, length=64).score(TEXTS)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
    LanguageModelOOD(model, wrapped, length=64).fit(TEXTS, epochs=2)


def test_next_token_losses():
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 5, 7, generator=generator), torch.randint(7, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = [
        -logits[b, t - 1].log_softmax(-1)[ids[b, t]] for b, t in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]
    ]
    torch.testing.assert_close(next_token_losses(logits, ids, mask), torch.stack(expected))
    for problem, arguments in (
        ("no token to predict", (logits, ids, torch.zeros(2, 5))),
        ("no token to predict", (logits[:, :1], ids[:, :1])),
        ("the model knows 7 tokens", (logits, ids + 5)),
        ("whole numbers", (logits, ids.float())),
        ("whole numbers", (logits[:, :4], ids)),
    ):
        with pytest.raises(InputError, match=problem):
            next_token_losses(*arguments)


def test_a_model_that_sees_what_it_should_predict_is_refused():
    class Bidirectional(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(128, 128)

        def forward(self, ids):
            return self.table(ids) + self.table(ids).mean(1, keepdim=True)

    with pytest.raises(InputError, match="Give a causal language model"):
        LanguageModelOOD(Bidirectional(), as_bytes)


def test_errors():
    class Pooled(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids).mean(1)

    with pytest.raises(InputError, match=r"maps ids \(B, T\) to logits"):
        LanguageModelOOD(Pooled(128, 4), as_bytes)
    with pytest.raises(InputError, match="length"):
        LanguageModelOOD(decoder(), as_bytes, length=1)
    detector = LanguageModelOOD(decoder(), as_bytes)
    for texts, message in (
        ([], "texts: are none"),
        ("one text", "are one string"),
        (["fine", 3], "text 1: is a int"),
        (["fine", ""], "text 1: has no token to score"),
        (["x"], "give a start token"),
    ):
        for use in (detector.score, detector.fit):
            with pytest.raises(InputError, match=message):
                use(texts)
    assert np.isfinite(LanguageModelOOD(decoder(), as_bytes, start=0).score(["x"])).all()
    with pytest.raises(InputError, match="Give positive numbers"):
        detector.fit(TEXTS, epochs=0)
    with pytest.raises(InputError, match="Use the model's own tokenizer"):
        LanguageModelOOD(decoder(), lambda text: [0, 500]).score(["fine"])
    with pytest.raises(InputError, match="Use the model's own tokenizer"):
        LanguageModelOOD(decoder(), lambda text: [0, -1]).fit(["fine"])
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        detector.fit(TEXTS, loss=lambda ids, mask: torch.tensor(float("nan")))
