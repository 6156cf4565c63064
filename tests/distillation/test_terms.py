"""Losses put together from terms over named outputs."""

import pytest
import torch
from torch import nn

from unseen.distillation import Term, distil, logit_kl, named_outputs
from unseen.errors import InputError
from unseen.sequences.language_model import DecoderLM


@pytest.fixture
def outputs(generator):
    def drawn(width):
        return {
            "logits": torch.randn(2, 4, 9, generator=generator),
            **{f"layer {i}": torch.randn(2, 4, width, generator=generator) for i in range(3)},
            "attention": torch.randn(2, 3, 4, 4, generator=generator).log_softmax(-1),
            "representation": torch.randn(2, width, generator=generator),
        }

    return drawn(6), drawn(6)


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def test_terms_are_weighted_means_over_real_tokens(outputs):
    student, teacher = outputs
    terms = [
        Term("logits", distance="kl", temperature=2.0),
        Term("attention", distance="kl", weight=0.5),
        Term("representation", distance="cosine", weight=3.0),
        Term(("layer 0", "layer 2"), ("layer 1", "layer 2"), weight=0.1),
    ]
    total, parts = distil(terms, student, teacher, MASK)
    real = MASK.bool()
    expected = {
        "kl logits": logit_kl(student["logits"], teacher["logits"], 2.0, MASK),
        "kl attention": torch.stack(
            [
                logit_kl(student["attention"][:, head], teacher["attention"][:, head], mask=MASK)
                for head in range(3)
            ]
        ).mean(),
        "cosine representation": (
            1 - nn.functional.cosine_similarity(student["representation"], teacher["representation"])
        ).mean(),
        "mse layer 0, layer 2": sum(
            (student[ours][real] - teacher[theirs][real]).square().mean()
            for ours, theirs in (("layer 0", "layer 1"), ("layer 2", "layer 2"))
        ),
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
    torch.testing.assert_close(total, sum(term.weight * expected[term.name] for term in terms))


def test_nearest_layers_in_place_of_pairs(outputs):
    student, teacher = outputs
    names = tuple(f"layer {i}" for i in range(3))
    _, parts = distil([Term("layer 0", names, top_k=2)], student, teacher, MASK)
    every = torch.stack([(student["layer 0"] - teacher[name]).square().mean(-1) for name in names], -1)
    torch.testing.assert_close(
        parts["mse layer 0"], every.sort(-1).values[..., :2].sum(-1)[MASK.bool()].mean()
    )


def test_a_projection_bridges_widths_and_only_the_student_learns(outputs, generator):
    student, teacher = outputs
    teacher = {"layer 0": torch.randn(2, 4, 5, generator=generator).requires_grad_()}
    own = {"layer 0": student["layer 0"].requires_grad_()}
    with pytest.raises(InputError, match="Project the teacher's"):
        distil([Term("layer 0")], own, teacher)
    project = nn.Linear(5, 6)
    distil([Term("layer 0", project=project)], own, teacher)[0].backward()
    assert teacher["layer 0"].grad is None
    assert own["layer 0"].grad is not None and project.weight.grad is not None


def test_a_student_learns_a_teachers_layer():
    """Hidden states alone, without a label or a logit: the student ends where the teacher is."""
    teacher, student = (DecoderLM(16, width=8, layers=2, heads=2, seed=seed) for seed in (1, 2))
    ids = torch.randint(16, (8, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), named_outputs(teacher, "blocks.*") as taught:
        teacher(ids)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        with named_outputs(student, "blocks.*") as hidden:
            student(ids)
        loss, _ = distil([Term(("blocks.0", "blocks.1"))], hidden, taught)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_errors(outputs):
    student, teacher = outputs
    with pytest.raises(InputError, match="Give one Term"):
        distil([], student, teacher)
    with pytest.raises(InputError, match="is not among the teacher's"):
        distil([Term("layer 0", "layer 7")], student, teacher)
    with pytest.raises(InputError, match="Name as many, or give top_k"):
        Term("layer 0", ("layer 0", "layer 1"))
    with pytest.raises(InputError, match="temperature"):
        Term("layer 0", temperature=0)
    with pytest.raises(InputError, match='Only "kl" softens'):
        Term("layer 0", temperature=2)
    with pytest.raises(InputError, match="weight"):
        Term("layer 0", weight=-1)
    with pytest.raises(InputError, match="Did you mean 'mse'"):
        Term("layer 0", distance="mes")
    with pytest.raises(InputError, match="a value for each token"):
        distil([Term("layer 0")], student, teacher, MASK[:, :3])
    with pytest.raises(InputError, match="every token is masked"):
        distil([Term("layer 0")], student, teacher, torch.zeros(2, 4))
