"""Teachers are asked without gradient, in evaluation mode, and every query is counted."""

import pytest
import torch
from torch import nn

from unseen.distillation.teachers import Teacher, check_embeddings, unit
from unseen.errors import InputError


class Encoder(nn.Module):
    """Images (N, 3) by a linear layer with dropout, texts by their lengths and first letters."""

    def __init__(self, dimension=4):
        super().__init__()
        self.linear = nn.Linear(3, dimension)
        self.drop = nn.Dropout(0.5)
        self.calls = []
        self.dimension = dimension

    def encode_image(self, images):
        self.calls.append((len(images), self.training, torch.is_grad_enabled()))
        return self.drop(self.linear(images))

    def encode_text(self, texts):
        rows = [torch.linspace(1, len(text), self.dimension) * (1 + ord(text[0])) for text in texts]
        return torch.stack(rows)


@pytest.fixture
def x():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def test_asked_without_gradient_and_in_evaluation_mode_which_is_undone(x):
    encoder = Encoder().train()
    encoder.linear.eval()
    found = Teacher(encoder).images(x)
    assert encoder.calls == [(6, False, False)] and not found.requires_grad
    assert encoder.training and encoder.drop.training and not encoder.linear.training
    assert torch.equal(found, encoder.linear(x))
    assert all(p.requires_grad for p in encoder.parameters())


def test_known_examples_cost_no_query(x):
    teacher = Teacher(Encoder())
    first = teacher.images(x[:4], torch.arange(4))
    again = teacher.images(x[[3, 5, 1]], torch.tensor([3, 5, 1]))
    assert teacher.image_queries == 5
    assert torch.equal(again[[0, 2]], first[[3, 1]])


def test_without_cache_every_example_is_asked_again(x):
    teacher = Teacher(Encoder(), cache=False)
    for _ in range(3):
        teacher.images(x, torch.arange(6))
    assert teacher.image_queries == 18


def test_dicts_are_remembered_too(x):
    encoder = Encoder()
    teacher = Teacher(encoder, prepare=lambda inputs: inputs["pixels"])
    inputs = {"pixels": x, "age": torch.arange(6)}
    assert torch.equal(teacher.images(inputs, torch.arange(6)), teacher.images(inputs, torch.arange(6)))
    assert teacher.image_queries == 6
    with pytest.raises(InputError, match="not what the teacher remembers"):
        teacher.images({"pixels": x, "age": torch.ones(6)}, torch.arange(6))


def test_other_content_under_a_known_id_is_an_error(x):
    teacher = Teacher(Encoder())
    teacher.images(x, torch.arange(6))
    with pytest.raises(InputError, match="example 2.*cache=False"):
        teacher.images(x[[2]].flip(1), torch.tensor([2]))


def test_prepare_is_the_teachers_own_transform(x):
    encoder = Encoder()
    assert torch.equal(Teacher(encoder, prepare=lambda v: 2 * v).images(x), Teacher(encoder).images(2 * x))


def test_texts_are_averaged_over_templates_on_the_sphere():
    encoder = Encoder()
    teacher = Teacher(encoder)
    templates = ("{}", "a photo of a {}.")
    found = teacher.texts(["cat", "horse"], templates)
    each = [unit(encoder.encode_text([t.format(n) for n in ("cat", "horse")])) for t in templates]
    assert torch.allclose(found, unit(each[0] + each[1]), atol=1e-6)
    assert teacher.text_queries == 4


def test_precomputed_embeddings_are_found_by_row(x):
    embeddings = torch.randn(6, 4)
    teacher = Teacher.from_embeddings(embeddings, torch.eye(4), logit_scale=50)
    assert torch.equal(teacher.images(x[[4, 0]], torch.tensor([4, 0])), embeddings[[4, 0]])
    assert teacher.image_queries == 0 and teacher.logit_scale == 50 and teacher.precomputed
    teacher.check_count(6)
    with pytest.raises(InputError, match="are 6, but the data have 7"):
        teacher.check_count(7)
    with pytest.raises(InputError, match="cannot read new texts"):
        teacher.texts(["cat"])
    with pytest.raises(InputError, match="ids"):
        teacher.images(x, torch.tensor([6]))
    with pytest.raises(InputError, match="ids"):
        teacher.images(x)


def test_logit_scale_is_the_encoders_own_or_clips():
    encoder = Encoder()
    assert Teacher(encoder).logit_scale == 100
    encoder.logit_scale = 20.0
    assert Teacher(encoder).logit_scale == 20
    assert Teacher(encoder, logit_scale=5).logit_scale == 5
    with pytest.raises(InputError, match="logit_scale"):
        Teacher(encoder, logit_scale=0)


def test_bad_teachers_and_texts():
    with pytest.raises(InputError, match="encode_image"):
        Teacher(nn.Linear(2, 2))
    teacher = Teacher(Encoder())
    assert Teacher.of(teacher) is teacher
    for texts in ([], "cat"):
        with pytest.raises(InputError, match="texts"):
            teacher.texts(texts)
    for templates in ([], "a {}", ["no place"]):
        with pytest.raises(InputError, match="templates"):
            teacher.texts(["cat"], templates)


def test_embeddings_without_direction_are_refused():
    with pytest.raises(InputError, match="no direction in row 1"):
        Teacher.from_embeddings(torch.tensor([[1.0, 0], [0, 0]]))
    with pytest.raises(InputError, match="no direction in row 0"):
        check_embeddings("e", torch.tensor([[float("nan"), 1]]))
    with pytest.raises(InputError, match="have 3 dimensions, not 2"):
        Teacher.from_embeddings(torch.ones(4, 2), torch.ones(4, 3))
    with pytest.raises(InputError, match="one row an example"):
        check_embeddings("e", torch.ones(3))
    with pytest.raises(InputError, match="image embeddings"):
        Teacher(Encoder()).images(torch.full((2, 3), torch.nan))
