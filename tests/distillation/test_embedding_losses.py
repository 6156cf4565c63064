"""Losses of embeddings against slow, obvious ones, and what they refuse."""

import math

import pytest
import torch

from unseen.distillation.embedding_losses import (
    CaptionContrast,
    ClassTextCE,
    CosineAlignment,
    CrossModelInfoNCE,
    EmbeddingMSE,
    TopKTextKL,
)
from unseen.errors import InputError

LOSSES = (
    CosineAlignment(0.3),
    ClassTextCE(),
    EmbeddingMSE(),
    EmbeddingMSE("kept"),
    CrossModelInfoNCE(),
    CrossModelInfoNCE(symmetric=False),
    TopKTextKL(3),
    TopKTextKL(3, filter_misaligned=False),
    CaptionContrast(),
)
N, C, D, T = 5, 6, 4, 0.07


@pytest.fixture
def four():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(N, D, generator=generator) for _ in range(2))
    texts = torch.randn(C, D, generator=generator)
    return student, teacher, texts, torch.randint(C, (N,), generator=generator)


def cosine(a, b):
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


def log_softmax(values):
    top = max(values)
    total = top + math.log(sum(math.exp(v - top) for v in values))
    return [v - total for v in values]


def test_cosine_alignment_is_the_papers_formula(four):
    s, v, t, y = four
    image = sum(cosine(s[i], v[i]) for i in range(N)) / N
    text = sum(cosine(s[i], t[y[i]]) for i in range(N)) / N
    total, parts = CosineAlignment(0.3)(*four)
    assert math.isclose(float(total), -0.3 * image - 0.7 * text, rel_tol=1e-5)
    assert math.isclose(float(parts["image cosine"]), image, rel_tol=1e-5)
    assert math.isclose(float(parts["text cosine"]), text, rel_tol=1e-5)


def test_cosine_alignment_weighs_texts_by_shares(four):
    s, v, t, y = four
    other = y.roll(1)
    shares = 0.7 * torch.nn.functional.one_hot(y, C) + 0.3 * torch.nn.functional.one_hot(other, C)
    mixed = CosineAlignment(0.4)(s, v, t, shares)[0]
    apart = 0.7 * CosineAlignment(0.4)(s, v, t, y)[0] + 0.3 * CosineAlignment(0.4)(s, v, t, other)[0]
    assert torch.allclose(mixed, apart)


def test_class_text_ce_is_the_mean_log_probability(four):
    s, _, t, y = four
    slow = -sum(log_softmax([cosine(s[i], t[c]) / T for c in range(C)])[y[i]] for i in range(N)) / N
    assert math.isclose(float(ClassTextCE(T)(*four)[0]), slow, rel_tol=1e-4)


def test_embedding_mse_is_two_minus_two_cosines(four):
    s, v, _, _ = four
    slow = sum(2 - 2 * cosine(s[i], v[i]) for i in range(N)) / N
    assert math.isclose(float(EmbeddingMSE()(*four)[0]), slow, rel_tol=1e-4)
    kept = sum(math.log(1 + float((s[i] - v[i]).square().sum()) / 10) for i in range(N)) / N
    assert math.isclose(float(EmbeddingMSE("kept")(*four)[0]), kept, rel_tol=1e-5)


def test_infonce_has_its_positives_on_the_diagonal(four):
    s, v, _, _ = four
    rows = -sum(log_softmax([cosine(s[i], v[j]) / T for j in range(N)])[i] for i in range(N)) / N
    columns = -sum(log_softmax([cosine(s[j], v[i]) / T for j in range(N)])[i] for i in range(N)) / N
    assert math.isclose(float(CrossModelInfoNCE(T)(*four)[0]), (rows + columns) / 2, rel_tol=1e-4)
    assert math.isclose(float(CrossModelInfoNCE(T, symmetric=False)(*four)[0]), rows, rel_tol=1e-4)


def test_captions_of_the_same_class_are_no_negatives(four):
    s, captions, t, _ = four
    y = torch.tensor([2, 0, 2, 5, 0])
    values = []
    for i in range(N):
        rivals = [j for j in range(N) if j == i or y[j] != y[i]]
        logs = log_softmax([cosine(s[i], captions[j]) / T for j in rivals])
        values.append(-logs[rivals.index(i)])
    total, parts = CaptionContrast(T)(s, captions, t, y)
    assert math.isclose(float(total), sum(values) / N, rel_tol=1e-4)
    nearest = [
        max((j for j in range(N) if j == i or y[j] != y[i]), key=lambda j: cosine(s[i], captions[j]))
        for i in range(N)
    ]
    assert float(parts["found"]) == pytest.approx(sum(j == i for i, j in enumerate(nearest)) / N)
    shares = torch.nn.functional.one_hot(y, C).float()
    assert torch.equal(CaptionContrast(T)(s, captions, t, shares)[0], total)


def test_captions_of_different_classes_are_contrasted_as_images_are(four):
    s, captions, t, _ = four
    y = torch.arange(N)
    one_way = CrossModelInfoNCE(T, symmetric=False)(s, captions, t, y)[0]
    assert torch.allclose(CaptionContrast(T)(s, captions, t, y)[0], one_way)


def test_a_batch_of_one_class_has_nothing_to_contrast_captions_with(four):
    s, captions, t, _ = four
    s = s.requires_grad_()
    total, _ = CaptionContrast()(s, captions, t, torch.zeros(N, dtype=torch.int64))
    total.backward()
    assert total.item() == 0 and torch.equal(s.grad, torch.zeros_like(s))


@pytest.mark.parametrize("filtered", [True, False])
def test_text_kl_runs_over_the_teachers_nearest_texts(four, filtered):
    s, v, t, y = four
    y = y.clone()
    y[0] = max(range(C), key=lambda c: cosine(v[0], t[c]))  # at least one is aligned
    values = []
    for i in range(N):
        order = sorted(range(C), key=lambda c: -cosine(v[i], t[c]))
        if filtered and order[0] != int(y[i]):
            continue
        p = log_softmax([cosine(v[i], t[c]) / T for c in order[:3]])
        q = log_softmax([cosine(s[i], t[c]) / T for c in order[:3]])
        values.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    total, parts = TopKTextKL(3, T, filtered)(s, v, t, y)
    assert math.isclose(float(total), sum(values) / len(values), rel_tol=1e-4)
    assert math.isclose(float(parts["kept"]), len(values) / N, rel_tol=1e-6)


def test_no_aligned_image_gives_zero_and_no_nan_in_gradients(four):
    s, v, t, _ = four
    wrong = ((v / v.norm(dim=1, keepdim=True)) @ (t / t.norm(dim=1, keepdim=True)).T).argmin(1)
    s = s.requires_grad_()
    total, parts = TopKTextKL(3)(s, v, t, wrong)
    total.backward()
    assert total.item() == 0 and float(parts["kept"]) == 0 and torch.equal(s.grad, torch.zeros_like(s))


def test_k_above_the_number_of_texts_takes_them_all(four):
    assert torch.equal(TopKTextKL(256)(*four)[0], TopKTextKL(C)(*four)[0])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_gradients_reach_the_student_alone_and_are_right(loss, four):
    s, v, t, y = four
    y = (v @ (t / t.norm(dim=1, keepdim=True)).T).argmax(1)
    s, v, t = (e.double().requires_grad_() for e in (s, v, t))
    loss(s, v, t, y)[0].backward()
    assert s.grad.abs().sum() > 0 and v.grad is None and t.grad is None
    assert torch.autograd.gradcheck(lambda e: loss(e, v, t, y)[0], (s.detach().requires_grad_(),))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if getattr(loss, "lengths", "") != "kept"])
def test_lengths_do_not_matter(loss, four):
    s, v, t, y = four
    assert torch.allclose(loss(s, v, t, y)[0], loss(3 * s, 0.1 * v, 7 * t, y)[0], atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_what_all_losses_refuse(loss, four):
    s, v, t, y = four
    zero = s.clone()
    zero[2] = 0
    for bad, message in (
        ((s, v[:, :3], t, y), "have 3 dimensions, not 4"),
        ((s, v, t[:, :3], y), "have 3 dimensions, not 4"),
        ((s, v[:4], t, y), "batch: has 5 embeddings"),
        ((zero, v, t, y), "no direction in row 2"),
        ((s, v, t, torch.full((N,), C)), "there are 6 texts"),
        ((s, v, t, torch.full((N,), -1)), "there are 6 texts"),
        ((s, v, t, torch.ones(N, C + 1)), "share 7 classes"),
        ((s, v, t, y.float()), "labels: have shape"),
        ((s[:, :, None], v, t, y), "one row an example"),
    ):
        with pytest.raises(InputError, match=message):
            loss(*bad)


@pytest.mark.parametrize("loss", [CrossModelInfoNCE(), CaptionContrast()])
def test_a_single_example_contrasts_with_nothing(loss, four):
    s, v, t, y = four
    with pytest.raises(InputError, match="one example"):
        loss(s[:1], v[:1], t, y[:1])


@pytest.mark.parametrize(
    "kind", [ClassTextCE, CrossModelInfoNCE, lambda t: TopKTextKL(3, t), CaptionContrast]
)
@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_temperature_must_be_positive(kind, temperature):
    with pytest.raises(InputError, match="temperature"):
        kind(temperature)


def test_other_settings_out_of_range():
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="weight"):
            CosineAlignment(weight)
    with pytest.raises(InputError, match="k: is 1"):
        TopKTextKL(1)
    with pytest.raises(InputError, match="lengths"):
        EmbeddingMSE("units")
