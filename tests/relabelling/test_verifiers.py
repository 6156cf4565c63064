"""Judges: nearest neighbours by formula, a person's answers, pictures."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from unseen.errors import InputError
from unseen.relabelling.questions import Questions
from unseen.relabelling.verifiers import HumanVerifier, NearestNeighbourVerifier, side_by_side

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, SUPPORT = (torch.rand(n, 3, 4, 4, generator=GENERATOR) for n in (2, 3))
QUESTIONS = Questions(
    IMAGES, SUPPORT, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), ["cat"] * 3, ["dog"] * 3
)  # fmt: skip


def test_nearest_neighbours():
    found = NearestNeighbourVerifier(lambda x: x.flatten(1), temperature=0.2, batch_size=2)(QUESTIONS)
    for value, q, p, n in zip(found, QUESTIONS.query, QUESTIONS.positive, QUESTIONS.negative, strict=True):
        a, b = (cosine_similarity(IMAGES[q].flatten(), SUPPORT[i].flatten(), 0) for i in (p, n))
        assert value.item() == pytest.approx(torch.sigmoid((a - b) / 0.2).item(), abs=1e-5)
    with pytest.raises(InputError, match="temperature"):
        NearestNeighbourVerifier(lambda x: x, temperature=0)


def test_a_person(tmp_path):
    from PIL import Image

    said, answers = [], iter(["y", "maybe", "No", "?"])

    def ask(question):
        said.append(question)
        return next(answers)

    found = HumanVerifier(tmp_path / "question.png", ask)(QUESTIONS)
    assert found.tolist() == [1.0, 0.0, 0.5] and len(said) == 4 and "'cat'" in said[0]
    shown = torch.from_numpy(np.array(Image.open(tmp_path / "question.png")))
    expected = (torch.cat([SUPPORT[2], torch.ones(3, 4, 2), IMAGES[1]], 2) * 255).round().permute(1, 2, 0)
    assert torch.equal(shown.float(), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["question.png"]


@pytest.mark.parametrize("image", [torch.zeros(2, 4, 4), torch.full((3, 4, 4), 2.0), torch.zeros(4, 4)])
def test_what_cannot_be_shown(image):
    with pytest.raises(InputError, match="cannot be shown"):
        side_by_side(image)
