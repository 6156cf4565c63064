"""Students in a teacher's space: classes that were never seen, few shots, and how alike the spaces are."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from unseen.distillation.embedding_losses import (
    CaptionContrast,
    ClassTextCE,
    CrossModelInfoNCE,
    EmbeddingMSE,
    TopKTextKL,
)
from unseen.distillation.open_vocabulary import (
    OpenVocabDistiller,
    Support,
    few_shot_retrieval,
    space_consistency,
    support_of,
    zero_shot,
)
from unseen.distillation.teachers import Teacher, unit
from unseen.errors import InputError

FAST = {"optimizer": "adam", "learning_rate": 0.01, "steps": 30, "batch_size": 16, "evaluations": 1}
D, SEEN, NEW = 8, 5, 3


@pytest.fixture
def world():
    """Directions of eight classes; inputs are a rotation of them, which the teacher turns back."""
    generator = torch.Generator().manual_seed(0)
    texts = unit(torch.randn(SEEN + NEW, D, generator=generator))
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]

    def draw(count, classes, noise=0.15):
        y = torch.randint(*classes, (count,), generator=generator)
        v = texts[y] + noise * torch.randn(count, D, generator=generator)
        return v @ turn, y, v

    return texts, draw


@pytest.fixture
def student():
    torch.manual_seed(0)
    return nn.Linear(D, D)


def test_imitation_names_classes_that_were_never_seen(world, student):
    texts, draw = world
    x, y, v = draw(300, (0, SEEN), noise=0.5)
    way = OpenVocabDistiller(student, v, texts[:SEEN], **{**FAST, "steps": 150, "learning_rate": 0.02})
    way.fit(TensorDataset(x, y))
    new_x, new_y, _ = draw(200, (SEEN, SEEN + NEW))
    found = way.zero_shot(texts[SEEN:])(new_x).argmax(1)
    assert (found == new_y - SEEN).float().mean() > 0.9
    everything = way.zero_shot(texts)(new_x)
    assert everything.shape == (200, 8) and (everything.argmax(1) == new_y).float().mean() > 0.8


def test_the_loss_is_the_weighted_sum_of_the_four(world, student):
    texts, draw = world
    x, y, v = draw(16, (0, SEEN))
    factors = {"cls": 1.0, "mse": 2.0, "contrast": 0.5, "vlalign": 3.0}
    way = OpenVocabDistiller(student, v, texts[:SEEN], factors, k=3, temperature=0.2, **{**FAST, "steps": 1})
    way.fit(TensorDataset(x, y))
    logged = next(r["value"] for r in way.history_ if r["metric"] == "loss/total")
    losses = (ClassTextCE(0.2), EmbeddingMSE(), CrossModelInfoNCE(0.2), TopKTextKL(3, 0.2))
    values = [float(loss(student(x), v, texts[:SEEN], y)[0].detach()) for loss in losses]
    assert math.isclose(logged, values[0] + 2 * values[1] + 0.5 * values[2] + 3 * values[3], rel_tol=1e-4)


def test_captions_are_a_further_term_and_stay_paired_with_their_examples(world, student):
    texts, draw = world
    x, y, v = draw(16, (0, SEEN))
    captions = unit(v + 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(2)))
    way = OpenVocabDistiller(
        student, v, texts[:SEEN], {"cls": 1, "caption": 2}, captions=captions, temperature=0.2,
        **{**FAST, "steps": 1},
    )  # fmt: skip
    way.fit(TensorDataset(x, y))
    logged = {r["metric"]: r["value"] for r in way.history_ if r["role"] == "train"}
    cls = float(ClassTextCE(0.2)(student(x), v, texts[:SEEN], y)[0].detach())
    caption = float(CaptionContrast(0.2)(student(x), captions, texts[:SEEN], y)[0].detach())
    assert math.isclose(logged["loss/caption"], caption, rel_tol=1e-4)
    assert math.isclose(logged["loss/total"], cls + 2 * caption, rel_tol=1e-4)


def test_captions_alone_teach_classes_that_were_never_seen(world, student):
    texts, draw = world
    x, y, v = draw(300, (0, SEEN), noise=0.5)
    way = OpenVocabDistiller(
        student, torch.ones_like(v), texts[:SEEN], {"caption": 1}, captions=v,
        **{**FAST, "steps": 150, "learning_rate": 0.02},
    )  # fmt: skip
    way.fit(TensorDataset(x, y))
    new_x, new_y, _ = draw(200, (SEEN, SEEN + NEW))
    assert (way.zero_shot(texts[SEEN:])(new_x).argmax(1) == new_y - SEEN).float().mean() > 0.9


def test_the_teacher_reads_captions_that_are_texts(world, student):
    texts, draw = world
    x, y, v = draw(300, (0, SEEN))
    read = []

    class Encoder:
        def encode_image(self, images):
            return images

        def encode_text(self, sentences):
            read.append(len(sentences))
            return v[[int(sentence.split()[-1]) for sentence in sentences]]

    captions = [f"caption {i}" for i in range(300)]
    given = {"losses": {"caption": 1}, **FAST}
    one = OpenVocabDistiller(student, Teacher(Encoder()), texts[:SEEN], captions=captions, **given)
    two = OpenVocabDistiller(student, Teacher(Encoder()), texts[:SEEN], captions=v, **given)
    assert sum(read) == one.teacher.text_queries == 300 and max(read) < 300
    made, expected = (way.fit(TensorDataset(x, y))(x) for way in (one, two))
    assert torch.allclose(made, expected, atol=1e-3)


def test_clean_features_and_augmented_views_stay_paired(world, student):
    texts, draw = world
    x, y, v = draw(64, (0, SEEN))
    pairs = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, D)

        def forward(self, x):
            pairs.append(x.detach())
            return self.layer(x)

    way = OpenVocabDistiller(
        Watching(), v, texts[:SEEN], {"mse": 1}, augment=lambda x, generator: x + 100, **FAST
    )
    asked = []
    images = way.teacher.images
    way.teacher.images = lambda x, ids=None: asked.append((x, ids)) or images(x, ids)
    way.fit(TensorDataset(x, y))
    assert len(asked) == 1 and torch.equal(asked[0][0], x) and torch.equal(asked[0][1], torch.arange(64))
    assert all(bool((seen > 50).all()) for seen in pairs[1:])


def test_a_live_teacher_equals_its_features(world, student):
    texts, draw = world
    x, y, v = draw(64, (0, SEEN))

    class Encoder:
        def encode_image(self, images):
            return v[[int((x == image).all(1).nonzero()) for image in images]]

        encode_text = None

    Encoder.encode_text = lambda self, names: texts
    one = OpenVocabDistiller(student, v, texts[:SEEN], **FAST).fit(TensorDataset(x, y))
    two = OpenVocabDistiller(student, Teacher(Encoder()), texts[:SEEN], **FAST).fit(TensorDataset(x, y))
    assert torch.equal(one(x), two(x))


def test_fit_goes_on_from_an_earlier_embedder(world, student):
    texts, draw = world
    x, y, v = draw(100, (0, SEEN))
    way = OpenVocabDistiller(student, v, texts[:SEEN], **{**FAST, "steps": 100})
    way.fit(TensorDataset(x, y))
    few_x, few_y, few_v = draw(15, (SEEN, SEEN + NEW))
    shots = OpenVocabDistiller(student, few_v, texts[SEEN:], **{**FAST, "steps": 2, "learning_rate": 1e-4})
    network = shots.fit(TensorDataset(few_x, few_y - SEEN), start=way.embedder)
    before, after = way.embedder.student.weight, network.featurizer.student.weight
    assert 0 < float((after - before).abs().max()) < 1e-3


def test_batch_normalisation_of_an_averaged_student_is_estimated_anew(world):
    texts, draw = world
    x, y, v = draw(100, (0, SEEN))
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D))
    network = OpenVocabDistiller(student, v, texts[:SEEN], averaging="ema", **FAST).fit(TensorDataset(x, y))
    layers = network.featurizer.student
    with torch.no_grad():
        assert torch.allclose(layers[1].running_mean, layers[0](x).mean(0), atol=0.1)


def test_zero_shot_logits_are_cosines_over_the_temperature(world, student):
    texts, draw = world
    x = draw(7, (0, SEEN))[0]
    assert torch.allclose(zero_shot(student, 3 * texts, 0.1)(x), unit(student(x)) @ texts.T / 0.1, atol=1e-4)


def test_retrieval_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    texts, support, queries = (unit(torch.randn(n, 4, generator=generator)) for n in (3, 6, 5))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    found = few_shot_retrieval(Support(support, labels), queries, texts, alpha=2, beta=5.5, temperature=0.5)
    for i in range(5):
        for c in range(3):
            value = float(queries[i] @ texts[c]) / 0.5
            for j in range(6):
                if labels[j] == c:
                    value += 2 * math.exp(-5.5 * (1 - float(queries[i] @ support[j])))
            assert math.isclose(float(found[i, c]), value, rel_tol=1e-4)
    plain = few_shot_retrieval(Support(support, labels), queries, texts, alpha=0)
    assert torch.allclose(plain, queries @ texts.T / 0.07, atol=1e-5)


def test_support_is_the_mean_of_augmented_views(student):
    x, y = torch.randn(4, D), torch.arange(4)
    seen = []

    def augment(x, generator):
        seen.append(x + torch.randn(x.shape, generator=generator))
        return seen[-1]

    support = support_of(student, x, y, augment=augment, views=3, generator=torch.Generator().manual_seed(0))
    mean = sum(unit(student(view)) for view in seen)
    assert len(seen) == 3 and torch.allclose(support.features, unit(mean), atol=1e-6)
    assert torch.allclose(support_of(student, x, y).features, unit(student(x)))
    with pytest.raises(InputError, match="generator"):
        support_of(student, x, y, augment=augment)


def test_consistency_of_a_space_with_itself_and_with_noise():
    generator = torch.Generator().manual_seed(0)
    teacher, noise = (torch.randn(200, 6, generator=generator) for _ in range(2))
    texts = torch.randn(12, 6, generator=generator)
    same = space_consistency(3 * teacher, teacher, texts, k=5)
    assert same == (1, pytest.approx(0, abs=1e-5), 1)
    other = space_consistency(noise, teacher, texts, k=5)
    assert abs(other.neighbours - 5 / 199) < 0.02 and other.divergence > 1 and other.agreement < 0.2


def test_consistency_of_a_few_points_by_hand():
    angles = torch.tensor([0.0, 10, 30, 90]) * math.pi / 180
    teacher = torch.stack([angles.cos(), angles.sin()], 1)
    swapped = teacher[[0, 1, 3, 2]]  # the last two change places
    found = space_consistency(swapped, teacher, torch.eye(2), k=2)
    # nearest two of each, teacher: {1,2} {0,2} {1,0} {2,1}; student: {1,3} {0,3} {3,1} {1,0}
    assert found.neighbours == pytest.approx((1 + 1 + 1 + 1) / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": {"cl": 1}}, "Did you mean 'cls'"),
        ({"losses": {}}, "have no term"),
        ({"losses": {"cls": 0}}, "have no term"),
        ({"losses": {"cls": -1}}, "factor of 'cls': is -1"),
        ({"losses": {"cls": float("nan")}}, "factor of 'cls': is nan"),
        ({"k": 1}, "k: is 1"),
        ({"temperature": 0}, "temperature"),
        ({"text_features": torch.ones(5, 3)}, "have 3 dimensions, not 8"),
        ({"text_features": torch.zeros(5, 8)}, "no direction"),
        ({"losses": {"caption": 1}}, "captions: are missing"),
        ({"captions": torch.ones(4, D)}, "no loss reads them"),
        ({"losses": {"caption": 1}, "captions": torch.ones(4, 3)}, "have 3 dimensions, not 8"),
        ({"losses": {"caption": 1}, "captions": torch.zeros(4, D)}, "no direction"),
        ({"losses": {"caption": 1}, "captions": "a cat"}, "list with a text"),
        ({"losses": {"caption": 1}, "captions": ["a cat"] * 4}, "cannot read new texts"),
    ],
)
def test_settings_that_make_no_sense(change, message, student):
    options = {"text_features": torch.eye(D)[:5], **change}
    with pytest.raises(InputError, match=message):
        OpenVocabDistiller(student, torch.ones(4, D), **options)


def test_data_that_do_not_fit(world, student):
    texts, draw = world
    x, y, v = draw(20, (0, SEEN))
    with pytest.raises(InputError, match="there are 5 texts"):
        OpenVocabDistiller(student, v, texts[:SEEN], **FAST).fit(TensorDataset(x, y + 5))
    with pytest.raises(InputError, match="has 6 dimensions, the teacher's space 8"):
        OpenVocabDistiller(nn.Linear(D, 6), v, texts[:SEEN], **FAST).fit(TensorDataset(x, y))
    with pytest.raises(InputError, match="are 20, but the data have 10"):
        OpenVocabDistiller(student, v, texts[:SEEN], **FAST).fit(TensorDataset(x[:10], y[:10]))
    with pytest.raises(InputError, match="captions: are 19, but the data have 20"):
        way = OpenVocabDistiller(student, v, texts[:SEEN], {"caption": 1}, captions=v[:19], **FAST)
        way.fit(TensorDataset(x, y))
    with pytest.raises(InputError, match="one example"):
        way = OpenVocabDistiller(student, v, texts[:SEEN], **{**FAST, "batch_size": 1})
        way.fit(TensorDataset(x, y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1}, "alpha"),
        ({"beta": -1}, "beta"),
        ({"temperature": 0}, "temperature"),
        ({"texts": torch.ones(3, 5)}, "5 dimensions, not 4"),
        ({"support": Support(torch.ones(2, 4), torch.tensor([0, 3]))}, "there are 3 texts"),
        ({"support": Support(torch.ones(2, 4), torch.tensor([0]))}, "2 features and 1 labels"),
    ],
)
def test_retrieval_refuses(change, message):
    options = {
        "support": Support(torch.ones(2, 4), torch.tensor([0, 1])),
        "features": torch.ones(2, 4),
        "texts": torch.ones(3, 4),
        **change,
    }
    with pytest.raises(InputError, match=message):
        few_shot_retrieval(**options)


def test_consistency_and_zero_shot_refuse(student):
    a = torch.randn(5, 4)
    with pytest.raises(InputError, match="k: is 5"):
        space_consistency(a, a, a, k=5)
    with pytest.raises(InputError, match="k: is 1"):
        space_consistency(a, a, a, k=1)
    with pytest.raises(InputError, match="are 5 and 4"):
        space_consistency(a, a[:4], a, k=2)
    with pytest.raises(InputError, match="temperature"):
        zero_shot(student, torch.eye(8), 0)
    with pytest.raises(InputError, match="is not fitted. Call fit first"):
        OpenVocabDistiller(student, torch.ones(4, D), torch.eye(D)).zero_shot(torch.eye(D))
