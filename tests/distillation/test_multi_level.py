"""Multi-level distillation against its formulas as loops, its traps, and other networks than decoders of text."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from unseen.distillation.multi_level import MultiLevelDistillation, Outputs
from unseen.distillation.named_outputs import named_outputs
from unseen.errors import InputError
from unseen.sequences.language_model import DecoderLM

IDS = torch.randint(16, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])


def decoder(seed=1, width=8, layers=4, vocabulary=16):
    return DecoderLM(vocabulary, width=width, layers=layers, heads=2, seed=seed)


def outputs(model, ids=IDS):
    with named_outputs(model, "blocks.*") as hidden:
        logits = model(ids)
    return Outputs(logits, tuple(hidden.values()))


def written_out(distillation, student, teacher, top_k, temperature):
    """The two levels token by token: (prediction, layers)."""
    weight, bias = distillation.project_teacher.weight, distillation.project_teacher.bias
    prediction, layers = [], []
    for b, t in MASK.nonzero().tolist():
        prediction.append(
            kl_divergence(
                Categorical(logits=teacher.logits[b, t] / temperature),
                Categorical(logits=student.logits[b, t] / temperature),
            )
        )
        distances = [
            sorted(
                (weight @ taught[b, t] + bias - student.hidden[layer - 1][b, t]).square().mean()
                for taught in teacher.hidden
            )[:top_k]
            for layer in distillation.layers
        ]
        layers.append(sum(map(sum, distances)))
    return torch.stack(prediction).mean(), torch.stack(layers).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equals_the_formulas_token_by_token(temperature):
    teacher, student = decoder(1, width=12), decoder(2)
    distillation = MultiLevelDistillation(teacher, student, temperature=temperature)
    assert distillation.layers == (1, 2, 3)
    total, parts = distillation(IDS, MASK)
    prediction, layers = written_out(distillation, outputs(student), outputs(teacher), 2, temperature)
    torch.testing.assert_close(parts["prediction"], prediction)
    torch.testing.assert_close(parts["layers"], layers)
    torch.testing.assert_close(total, prediction + layers)


def test_the_next_token_is_added_on_request():
    teacher, student = decoder(1), decoder(2)
    without, _ = MultiLevelDistillation(teacher, student)(IDS, MASK)
    total, parts = MultiLevelDistillation(teacher, student, lm_weight=0.5)(IDS, MASK)
    log_probabilities = student(IDS).log_softmax(-1)
    losses = [-log_probabilities[b, t - 1, IDS[b, t]] for b, t in MASK.nonzero().tolist() if t > 0]
    torch.testing.assert_close(parts["next token"], torch.stack(losses).mean())
    torch.testing.assert_close(total, without + 0.5 * parts["next token"])


@pytest.mark.parametrize("options", [{}, {"lm_weight": 1.0}, {"normalise": True}, {"distance": "cosine"}])
def test_padding_changes_nothing(options):
    """What stands at padded places, and how many there are."""
    distillation = MultiLevelDistillation(decoder(1), decoder(2), **options)
    expected, _ = distillation(IDS, MASK)
    other = torch.where(MASK.bool(), IDS, (IDS + 5) % 16)
    torch.testing.assert_close(distillation(other, MASK)[0], expected)
    longer = nn.functional.pad(IDS, (0, 4)), nn.functional.pad(MASK, (0, 4))
    torch.testing.assert_close(distillation(*longer)[0], expected)


def test_the_teacher_is_neither_trained_nor_kept():
    teacher, student = decoder(1), decoder(2)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    distillation = MultiLevelDistillation(teacher, student)
    distillation(IDS, MASK)[0].backward()
    assert teacher.training and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())  # its owner may train it again
    assert set(distillation.state_dict()) == {"project_teacher.weight", "project_teacher.bias"}
    assert all(p.grad is not None for p in distillation.parameters())
    untaught = {name for name, p in student.named_parameters() if p.grad is None}
    assert untaught == set()


def test_outputs_of_a_teacher_may_be_kept():
    teacher, student = decoder(1), decoder(2)
    distillation = MultiLevelDistillation(teacher, student)
    taught, expected = distillation.taught(IDS), distillation(IDS, MASK)[0]
    with torch.no_grad():
        teacher.head.weight.zero_()
    torch.testing.assert_close(distillation(IDS, MASK, taught=taught)[0], expected)


def test_a_student_learns_its_teacher():
    """The teacher's outputs are what the student says in the end, and its states lie near the teacher's."""
    teacher, student = decoder(1, width=12), decoder(2)
    with torch.no_grad():
        teacher.head.weight.mul_(20)
    distillation = MultiLevelDistillation(teacher, student)
    optimizer = torch.optim.Adam([*student.parameters(), *distillation.parameters()], lr=5e-3)
    losses = []
    for _ in range(150):
        total, parts = distillation(IDS, MASK)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in parts.items()})
    assert losses[-1]["prediction"] < 0.2 * losses[0]["prediction"]
    assert losses[-1]["layers"] < 0.2 * losses[0]["layers"]


def test_collapse_is_seen_and_standardised_states_cannot():
    """With a trained projection zero states on both sides have no distance: a trap of the loss. Parts tell."""
    teacher, student = outputs(decoder(1)), outputs(decoder(2))
    models = decoder(1), decoder(2)
    collapsed = Outputs(student.logits, tuple(0.01 * states for states in student.hidden))

    def layers(**options):
        distillation = MultiLevelDistillation(*models, **options)
        with torch.no_grad():
            for parameter in distillation.parameters():
                parameter.mul_(0.01)
        return [distillation.loss(states, teacher)[1] for states in (student, collapsed)]

    plain = layers()
    assert plain[1]["layers"] < 0.02 * plain[0]["layers"]
    assert plain[1]["student size"] < 0.02 * plain[0]["student size"] and "teacher size" in plain[1]
    standardised = layers(normalise=True)
    assert standardised[1]["layers"] > 0.1 * standardised[0]["layers"]


@pytest.mark.parametrize(
    "projection, trained",
    [
        ("teacher", {"project_teacher": (8, 12)}),
        ("student", {"project_student": (12, 8)}),
        ("both", {"project_teacher": (8, 12), "project_student": (8, 8)}),
    ],
)
def test_sides_of_the_projection(projection, trained):
    distillation = MultiLevelDistillation(decoder(1, width=12), decoder(2), projection=projection)
    found = {name: tuple(p.shape) for name, p in distillation.named_parameters() if name.endswith("weight")}
    assert found == {f"{name}.weight": shape for name, shape in trained.items()}
    assert torch.isfinite(distillation(IDS, MASK)[0])


def test_without_a_projection_a_copy_has_no_loss():
    teacher = decoder(1)
    distillation = MultiLevelDistillation(
        teacher, copy.deepcopy(teacher), projection="none", top_k=1, student_layers="all"
    )
    assert not list(distillation.parameters())
    assert float(distillation(IDS, MASK)[0].detach()) == pytest.approx(0, abs=1e-6)


def test_the_seed_decides_the_projection_alone():
    teacher, student = decoder(1), decoder(2)

    def weight(seed):
        return MultiLevelDistillation(teacher, student, seed=seed).project_teacher.weight

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = weight(0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weight(0), first) and not torch.equal(weight(1), first)


def test_networks_of_images():
    """Patches are positions; nothing is masked, and there is no next token."""

    class Patches(nn.Module):
        def __init__(self, width, layers):
            super().__init__()
            self.embed = nn.Linear(4, width)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 16, 0.0) for _ in range(layers))
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            x = self.embed(x.unfold(1, 2, 2).unfold(2, 2, 2).flatten(1, 2).flatten(2))
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    images = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    teacher, student = Patches(8, 4), Patches(6, 2)
    distillation = MultiLevelDistillation(teacher, student, example=images[:1])
    total, parts = distillation(images)
    total.backward()
    assert float(parts["layers"].detach()) > 0 and student.embed.weight.grad is not None


def test_transformers_models():
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    config = transformers.GPT2Config(vocab_size=16, n_positions=16, n_embd=8, n_layer=3, n_head=2)
    torch.manual_seed(0)
    teacher, student = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    distillation = MultiLevelDistillation(teacher, student)
    assert distillation.layers == (1, 2)
    student.eval()
    total, parts = distillation(IDS, MASK)
    teacher.eval()
    prediction = torch.stack(
        [
            kl_divergence(
                Categorical(logits=teacher(IDS).logits[b, t]), Categorical(logits=student(IDS).logits[b, t])
            )
            for b, t in MASK.nonzero().tolist()
        ]
    ).mean()
    torch.testing.assert_close(parts["prediction"], prediction)
    assert torch.isfinite(total)


def test_errors():
    teacher, student = decoder(1), decoder(2)
    for models, options, message in (
        ((decoder(1, vocabulary=17), student), {}, "one vocabulary"),
        ((nn.Sequential(nn.Embedding(16, 16)), student), {"teacher_names": "1"}, "is not in the network"),
        ((Flat(), student), {}, "no hidden states are returned"),
        ((teacher, student), {"top_k": 5}, "is 5 with 4 teacher layer"),
        ((teacher, student), {"top_k": 0}, "is 0 with 4 teacher layer"),
        ((teacher, student), {"student_layers": [5]}, "numbers from 1 to 4"),
        ((teacher, student), {"student_layers": "midle"}, "Did you mean 'middle'"),
        ((teacher, student), {"temperature": 0.0}, "temperature"),
        ((teacher, student), {"lm_weight": -1.0}, "lm_weight"),
        ((teacher, student), {"distance": "mes"}, "Did you mean 'mse'"),
        ((teacher, student), {"projection": "teachr"}, "Did you mean 'teacher'"),
        ((decoder(1, width=12), student), {"projection": "none"}, "Choose a projection"),
    ):
        with pytest.raises(InputError, match=message):
            MultiLevelDistillation(*models, **options)
    distillation = MultiLevelDistillation(teacher, student)
    with pytest.raises(InputError, match="every token is masked"):
        distillation(IDS, torch.zeros_like(MASK))
    with pytest.raises(InputError, match="Give the outputs of one layer"):
        distillation.loss(outputs(student), Outputs(outputs(teacher).logits, ()))


class Flat(nn.Module):
    """Logits without any layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 16)

    def forward(self, ids):
        return self.table(ids)
