"""VL2V-ADiP: which weights move in which stage, what the teacher sees, and what a result is."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset

from unseen.distillation.cutmix import CutMix
from unseen.distillation.embedding_losses import CosineAlignment
from unseen.distillation.environments import Environments
from unseen.distillation.teachers import Teacher, unit
from unseen.distillation.vision_language import VLDistiller
from unseen.errors import InputError
from unseen.networks import Network
from unseen.shifts import Batch, Shift

NAMES = ("cat", "dog", "owl")
FAST = {"steps": 20, "learning_rate": 0.01, "batch_size": 8, "evaluations": 2}


class Encoder:
    """Images (N, 6) by a fixed rotation to directions whose nearest axis is the class; texts are the axes."""

    logit_scale = 30.0

    def __init__(self):
        self.matrix = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5)))[0][:, :4]
        self.asked = []

    def encode_image(self, images):
        self.asked.append(images.detach().clone())
        return images.flatten(1) @ self.matrix

    def encode_text(self, texts):
        known = {**{name: i for i, name in enumerate(NAMES)}, "bee": 3}
        return torch.eye(4)[[known[text] for text in texts]]


def examples(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    z = 2 * torch.nn.functional.one_hot(y, 4) + 0.3 * torch.randn(count, 4, generator=generator)
    rest = torch.randn(count, 6, generator=generator) * 0.1 + shift
    return TensorDataset(z @ Encoder().matrix.T + rest, y)


@pytest.fixture
def student():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU())


def distiller(student, teacher=None, names=NAMES, **options):
    teacher = Encoder() if teacher is None else teacher
    return VLDistiller(student, teacher, names, templates=("{}",), **{**FAST, **options})


def accuracy(network, data):
    x, y = data.tensors
    with torch.no_grad():
        return float((network(x).argmax(1) == y).float().mean())


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_learns_and_gives_a_plain_network_of_class_logits(student):
    train = [examples(60, 0), examples(40, 1, 0.2)]
    way = distiller(student, steps=80, learning_rate=0.02)
    network = way.fit(train, val=[examples(30, 2), examples(30, 3, 0.2)])
    assert isinstance(network, Network) and not network.training
    assert accuracy(network, examples(200, 4, 0.1)) > 0.9
    assert {(r["stage"], r["domain"]) for r in way.history_ if r["role"] == "validation"} == {
        (stage, domain) for stage in ("align", "distill") for domain in ("0", "1")
    }


def test_logits_are_the_scale_times_cosines_with_texts(student):
    network = distiller(student).fit(examples(40, 0))
    x = examples(9, 1).tensors[0]
    embedder = network.featurizer
    features = embedder.projection(embedder.student(x))
    expected = 30 * unit(features) @ torch.eye(4)[:3].T
    assert torch.allclose(network(x), expected, atol=1e-4)
    assert not network.head.weight.requires_grad and embedder.projection.weight.requires_grad


def test_align_moves_the_projection_alone_and_distill_the_student_alone(student):
    before = copy.deepcopy(student.state_dict())
    projection = nn.Linear(10, 4)
    aligned = distiller(student, stages=("align",), projection=projection).fit(examples(40, 0))
    assert same(aligned.featurizer.student.state_dict(), before)
    assert not torch.equal(aligned.featurizer.projection.weight, projection.weight)
    whole = distiller(student, projection=projection).fit(examples(40, 0))
    assert same(whole.featurizer.projection.state_dict(), aligned.featurizer.projection.state_dict())
    assert not torch.equal(whole.featurizer.student[0].weight, student[0].weight)
    assert same(student.state_dict(), before), "the user's student is never changed"
    together = distiller(student, stages=("joint",), projection=projection).fit(examples(40, 0))
    assert not torch.equal(together.featurizer.projection.weight, projection.weight)
    assert not torch.equal(together.featurizer.student[0].weight, student[0].weight)


def test_batch_statistics_stay_and_dropout_acts_in_distill_alone(student):
    seen = []
    student[2].register_forward_hook(lambda layer, *_: seen.append(layer.training))
    network = distiller(student, steps=3, evaluations=1).fit(examples(40, 0))
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(network.featurizer.student[1], name), getattr(student[1], name))
    assert seen == [False] * 4 + [True] * 3  # one look at the sizes, three steps of Align, three of Distill
    assert network.featurizer.student[1].training is False


def test_projection_can_be_given_and_distilled_under_at_once(student):
    projection = nn.Linear(10, 4)
    network = distiller(student, stages=("distill",), projection=projection).fit(examples(40, 0))
    assert torch.equal(network.featurizer.projection.weight, projection.weight)


def test_white_box_student_needs_no_projection():
    torch.manual_seed(0)
    network = distiller(nn.Linear(6, 4), stages=("distill",)).fit(examples(40, 0))
    assert network.featurizer.projection is None
    with_one = distiller(nn.Linear(6, 4)).fit(examples(40, 0))
    assert with_one.featurizer.projection.weight.shape == (4, 4)


def test_one_step_equals_the_formula_by_hand(student):
    data = examples(12, 0)
    projection = nn.Linear(10, 4)
    way = distiller(
        student, stages=("align",), projection=projection, steps=1, batch_size=12, evaluations=1,
        optimizer="sgd", learning_rate=0.1, weight=0.3,
    )  # fmt: skip
    found = way.fit(data).featurizer.projection.weight
    weight, bias = (p.detach().clone().requires_grad_() for p in projection.parameters())
    x, y = data.tensors
    z = student.eval()(x).detach() @ weight.T + bias
    v, t = Encoder().encode_image(x), torch.eye(4)[y]
    loss = -0.3 * torch.cosine_similarity(z, v).mean() - 0.7 * torch.cosine_similarity(z, t).mean()
    loss.backward()
    assert torch.allclose(found, weight - 0.1 * weight.grad, atol=1e-6)


def test_a_caching_teacher_is_asked_once_for_each_clean_example(student):
    way = distiller(student, augment=lambda x, generator: x + torch.randn(x.shape, generator=generator))
    data = examples(50, 0)
    way.fit(data)
    assert way.teacher_queries == 50
    assert torch.equal(torch.cat(way.teacher._encoder.asked), data.tensors[0])
    way.fit(data)
    assert way.teacher_queries == 50


def test_other_teachers_see_the_very_views_of_the_student(student):
    encoder, views = Encoder(), []

    def augment(x, generator):
        views.append(x + torch.randn(x.shape, generator=generator))
        return views[-1]

    way = distiller(student, Teacher(encoder, cache=False), augment=augment)
    way.fit(examples(50, 0))
    assert way.teacher_queries == 2 * 20 * 8
    assert all(torch.equal(a, b) for a, b in zip(views, encoder.asked, strict=True))


class PixelEncoder(Encoder):
    """Images (N, 6, H, W) by the mean of their pixels."""

    def encode_image(self, images):
        found = super().encode_image(images.mean((2, 3)))
        self.asked[-1] = images.clone()
        return found


def test_cutmix_is_seen_by_the_teacher_and_weighs_the_texts():
    encoder = PixelEncoder()
    colours = torch.arange(16).view(-1, 1, 1, 1) + torch.ones(16, 6, 8, 8)
    y = torch.arange(16) % 3
    student = nn.Sequential(nn.Flatten(), nn.Linear(384, 5))
    way = distiller(student, Teacher(encoder, cache=False), mix=CutMix(1.0), steps=4, batch_size=16)
    way.fit(TensorDataset(colours, y))
    assert any(len(image.unique()) == 2 for asked in encoder.asked for image in asked)
    batch = Batch(x=colours, y=y, domain=torch.zeros(16).long(), domains=1)
    mixed = CutMix(1.0).prepare(batch, 3, torch.Generator().manual_seed(1))
    assert mixed.y.shape == (16, 3) and torch.allclose(mixed.y.sum(1), torch.ones(16))
    kept = (mixed.x == colours).float().mean((1, 2, 3))
    own = mixed.y[torch.arange(16), y]
    assert bool(((own - kept).abs() < 1e-6).logical_or(own > kept).all())
    assert CutMix(0.0).prepare(batch, 3, torch.Generator()) is batch
    with pytest.raises(InputError, match="probability"):
        CutMix(1.1)


def test_precomputed_embeddings_need_no_encoder(student):
    data = examples(50, 0)
    v = Encoder().encode_image(data.tensors[0])
    alive = distiller(student).fit(data)
    kept = VLDistiller(student, Teacher.from_embeddings(v, torch.eye(4)[:3], logit_scale=30), **FAST).fit(
        data
    )
    assert same(alive.state_dict(), kept.state_dict())


def test_the_same_seed_gives_the_same_student_and_leaves_the_global_one_alone(student):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two = (distiller(student, seed=4).fit(examples(40, 0)) for _ in range(2))
    assert same(one.state_dict(), two.state_dict())
    assert not same(one.state_dict(), distiller(student, seed=5).fit(examples(40, 0)).state_dict())
    assert torch.equal(torch.get_rng_state(), state)


def test_new_class_names_after_training(student):
    way = distiller(student, steps=60)
    with pytest.raises(InputError, match="is not fitted. Call fit first"):
        way.classifier(["bee", "owl"])
    way.fit(examples(60, 0))
    network = way.classifier(["bee", "owl"])
    x, y = examples(50, 1).tensors
    assert network.classes == 2 and network(x[y == 2]).argmax(1).float().mean() > 0.9
    assert torch.equal(network(x), way.classifier(texts=torch.eye(4)[[3, 2]])(x))


def test_accuracies_of_environments_that_were_not_seen(student):
    way = distiller(student)
    way.fit(
        {"a": examples(40, 0)}, {"a": examples(20, 1)}, unseen={"b": examples(30, 2), "c": examples(10, 3)}
    )
    table = way.accuracy_
    assert list(zip(table.role, table.domain, table.n, strict=True)) == [
        ("validation", "a", 20), ("unseen", "b", 30), ("unseen", "c", 10)
    ]  # fmt: skip
    assert table.accuracy[1] == pytest.approx(accuracy(way.model_, examples(30, 2)))


def test_swad_averages_the_last_stage_and_holds_no_teacher(student):
    way = distiller(student, averaging="swad", evaluations=10)
    network = way.fit(examples(60, 0), examples(30, 1))
    plain = distiller(student, evaluations=10).fit(examples(60, 0), examples(30, 1))
    assert torch.equal(network.featurizer.projection.weight, plain.featurizer.projection.weight)
    assert not torch.equal(network.featurizer.student[0].weight, plain.featurizer.student[0].weight)
    assert {name.split(".")[0] for name in network.state_dict()} == {"featurizer", "head"}


def test_an_update_rule_that_evaluates_twice_asks_the_teacher_once(student):
    teacher = Teacher(Encoder(), cache=False)
    distiller(student, teacher, update="sam", stages=("align",)).fit(examples(40, 0))
    assert teacher.image_queries == 20 * 8


def test_loaders_and_batches_are_read_alike(student):
    data = [examples(30, 0), examples(20, 1)]
    tensors = distiller(student).fit(data)
    loaders = distiller(student).fit([DataLoader(ConcatDataset([part]), batch_size=4) for part in data])
    domain = torch.arange(2).repeat_interleave(torch.tensor([30, 20]))
    x, y = (torch.cat([part.tensors[i] for part in data]) for i in range(2))
    batch = distiller(student).fit(Batch(x=x, y=y, domain=domain, domains=2))
    assert same(tensors.state_dict(), loaders.state_dict())
    assert same(tensors.state_dict(), batch.state_dict())


def test_batches_hold_as_many_examples_of_every_environment():
    environments = Environments.of({"a": examples(30, 0), "b": examples(5, 1)})
    batch = environments.batch(environments.sampler(4, 0).rows(0))
    assert batch.domain.bincount().tolist() == [4, 4] and batch.domains == 2
    assert torch.equal(environments.batch(batch.ids).x, batch.x)
    assert environments.names == ("a", "b")


def test_a_split_brings_its_validation_rows(student):
    x, y = (torch.cat([examples(40, i).tensors[j] for i in range(3)]) for j in range(2))
    domain = torch.arange(3).repeat_interleave(40)
    shift = Shift("made", "array", x, y, domain, NAMES, ("a", "b", "c"))
    split = shift.split(unseen="c")
    v = 0.1 + torch.eye(4)[y[split.train]]
    way = VLDistiller(student, Teacher.from_embeddings(v, torch.eye(4)[:3]), **FAST)
    way.fit(split)
    rows = [r for r in way.history_ if r["role"] == "validation" and r["metric"] == "accuracy"]
    assert {r["domain"] for r in rows} == {"a", "b"} and rows[0]["n"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "weight"),
        ({"names": ("cat", "cat")}, "name 'cat' twice"),
        ({"names": None}, "class_names: are missing"),
        ({"text_embeddings": torch.eye(4)}, "come with class_names, too"),
        ({"stages": ()}, "stages: are none"),
        ({"stages": ("alin",)}, "Did you mean 'align'"),
        ({"project": False}, "a projection is given or trained"),
        ({"per_stage": {"joint": {}}}, "no stage of this run"),
        ({"mix": CutMix()}, "cached embeddings"),
        ({"averaging": "swat"}, "Did you mean"),
    ],
)
def test_settings_that_make_no_sense(student, options, message):
    with pytest.raises(InputError, match=message):
        distiller(student, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("distill",)}, "projection that nothing has aligned"),
        ({"stages": ("distill",), "project": False}, "has 10 features and the teacher 4"),
        ({"projection": nn.Linear(10, 3)}, "maps 10 to 3"),
        ({"averaging": "swad"}, "follows the validation loss"),
    ],
)
def test_what_the_student_and_the_data_show(student, options, message):
    with pytest.raises(InputError, match=message):
        distiller(student, **options).fit(examples(30, 0))


def test_data_that_do_not_fit(student):
    x, y = examples(30, 0).tensors
    with pytest.raises(InputError, match="there are 3 texts"):
        distiller(student).fit(TensorDataset(x, y + 1))
    with pytest.raises(InputError, match="are 30, but the data have 20"):
        teacher = Teacher.from_embeddings(torch.ones(30, 4), torch.eye(4)[:3])
        VLDistiller(student, teacher, **FAST).fit(examples(20, 0))
    with pytest.raises(InputError, match="return|returns features"):
        distiller(nn.Unflatten(1, (2, 3))).fit(examples(30, 0))
    with pytest.raises(InputError, match="no environment"):
        distiller(student).fit([])
    with pytest.raises(InputError, match="stable order"):
        distiller(student).fit(type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(())})())
    short = VLDistiller(student, Encoder(), text_embeddings=torch.eye(3), **FAST)
    with pytest.raises(InputError, match="have 4 dimensions, not 3"):
        short.fit(examples(30, 0))
    with pytest.raises(InputError, match="dimensions"):
        VLDistiller(student, Teacher.from_embeddings(torch.ones(30, 4)), text_embeddings=torch.eye(3))


def test_image_and_text_terms_alone(student):
    way = distiller(student, weight=1.0)
    assert isinstance(way.loss, CosineAlignment) and way.loss.weight == 1
    images, texts = (distiller(student, weight=w, steps=60).fit(examples(60, 0)) for w in (1.0, 0.0))
    x = examples(50, 1).tensors[0]
    v = unit(Encoder().encode_image(x))
    with torch.no_grad():
        nearness = [float((n.featurizer(x) * v).sum(1).mean()) for n in (images, texts)]
    assert nearness[0] > nearness[1]
