"""DICL against a slow loop, its candidates and exemplars, who is asked what, reports, and every error."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.relabelling.labeler import DenoisingInContextLabeler, RelabelResult, Support
from unseen.relabelling.transition import estimate_transition

CLASSES = 5
GENERATOR = torch.Generator().manual_seed(0)
CENTRES = 2 * torch.eye(CLASSES, 6)


def model():
    """Logits that mix class 0 with 1, and 2 with 3."""
    confuse = torch.eye(CLASSES)
    confuse[1, 0], confuse[0, 1], confuse[3, 2] = 0.9, 0.6, 1.1
    network = Network(nn.Identity(), 6, CLASSES)
    with torch.no_grad():
        network.head.weight.copy_(confuse @ CENTRES)
        network.head.bias.zero_()
    return network


def draw(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return CENTRES[labels] + 0.8 * torch.randn(count, 6, generator=generator), labels


def support(each=4):
    return Support(*draw(each * CLASSES, 1), [f"name {c}" for c in range(CLASSES)])


def judge(questions):
    """Sees which class an image is nearest to, save for some noise; it knows no names."""
    query, positive = questions.images[questions.query], questions.support[questions.positive]
    return torch.sigmoid(3 - (query - positive).norm(dim=1))


def labeler(verifier=judge, given=None, **options):
    given = given or support()
    matrix = options.pop("transition", None)
    if matrix is None:
        matrix = estimate_transition(model()(support().images).softmax(1), support().labels).detach()
    return DenoisingInContextLabeler(model(), verifier, given, matrix, **{"top_n": 3, **options})


def by_hand(images, given, transition, top_n, k, accept):
    """The algorithm as the paper describes it, an image and a question at a time."""
    network = model()
    theirs = network(given.images).softmax(1)
    labels, queries = [], []
    for x in images:
        p = network(x[None]).softmax(1)[0]
        top = int(p.argmax())
        kept = sorted(range(CLASSES), key=lambda c: (c != top, -transition[c, top].item()))[:top_n]
        kept = sorted(kept, key=lambda c: -p[c].item())

        def q(c, top=top, p=p, x=x):
            own = [i for i in range(len(given.labels)) if given.labels[i] == c]
            own = sorted(own, key=lambda i: abs(theirs[i, top] - p[top]).item())[:k]
            return sum(torch.sigmoid(3 - (x - given.images[i]).norm()).item() for i in own) / k

        if accept is not None and (q(top) + p[top].item()) / 2 >= accept:
            labels.append(top)
            queries.append(k)
        else:
            labels.append(max(kept, key=q))
            queries.append(k * top_n)
    return torch.tensor(labels), torch.tensor(queries)


@pytest.mark.parametrize("accept", [0.6, 0.75, None])
def test_it_equals_the_slow_loop(accept):
    images, _ = draw(60, 2)
    made = labeler(accept=accept, n_exemplars=2)
    found = made.relabel(images)
    label, queries = by_hand(images, support(), made.transition, 3, 2, accept)
    assert torch.equal(found.label, label) and torch.equal(found.n_queries, queries)
    assert accept is None or 0 < found.accepted.sum() < 60
    assert torch.equal(found.predicted, model()(images).argmax(1))


def test_a_good_judge_corrects_more_than_it_destroys():
    images, labels = draw(200, 3)
    report = labeler().relabel(images).report(labels)
    assert report["after"] > report["before"] + 0.04
    assert report["corrected"] > 1.5 * report["destroyed"]
    assert report["after"] - report["before"] == pytest.approx(
        (report["corrected"] - report["destroyed"]) / 200
    )


def test_candidates_come_from_the_column_and_are_then_ordered_by_the_model():
    transition = torch.full((CLASSES, CLASSES), 0.0)
    transition[:, 0] = torch.tensor([0.5, 0.1, 0.4, 0.0, 0.3])  # column: true 2, 4 and 1 are taken for 0
    transition[0] = torch.tensor([0.5, 0.0, 0.0, 0.5, 0.0])  # the row would name class 3
    transition[:, 1] += 1 - transition.sum(1)
    images = CENTRES[:1] + torch.tensor([[0, 0, 0.1, 0, 0.5, 0]])
    found = labeler(transition=transition, accept=None).relabel(images)
    assert found.predicted.item() == 0 and set(found.candidates[0].tolist()) == {0, 2, 4}
    probs = model()(images)[0]
    assert torch.equal(probs[found.candidates[0]], probs[found.candidates[0]].sort(descending=True).values)


def test_the_softmax_ablation_ignores_the_matrix():
    images, _ = draw(20, 4)
    other = torch.roll(torch.eye(CLASSES), 1, 0)
    for matrix in (other, torch.eye(CLASSES)):
        found = labeler(candidates="softmax", transition=matrix, accept=None).relabel(images)
        assert torch.equal(found.candidates, model()(images).topk(3, 1).indices)
    changed = [
        labeler(transition=m, accept=None).relabel(images).candidates for m in (other, torch.eye(CLASSES))
    ]
    assert not torch.equal(*changed)


def test_the_predicted_class_is_always_a_candidate():
    images, _ = draw(40, 5)
    for kind in ("transition", "softmax", "random"):
        found = labeler(candidates=kind, top_n=2, transition=torch.roll(torch.eye(CLASSES), 1, 0)).relabel(
            images
        )
        assert (found.candidates == found.predicted[:, None]).any(1).all()


def test_questions_show_the_class_and_its_rival():
    asked = []

    def spy(questions):
        asked.append(questions)
        return torch.zeros(len(questions))

    images, _ = draw(6, 6)
    made = labeler(spy, n_exemplars=2)
    found = made.relabel(images)
    assert not found.accepted.any() and len(asked) == 2
    given = support()
    for number, questions in enumerate(asked):
        assert [given.names[c] for c in given.labels[questions.positive]] == list(questions.name)
        assert (given.labels[questions.negative] != given.labels[questions.positive]).all()
        tops = [given.names[c] for c in found.predicted[questions.query]]
        assert tops == list(questions.rival)
        same = torch.tensor([a == b for a, b in zip(questions.name, tops, strict=True)])
        assert same.all() if number == 0 else not same.any(), "first about the model's label, then the others"
        if number:
            assert [given.names[c] for c in given.labels[questions.negative]] == tops
    assert (found.n_queries == 6).all()


def test_exemplars_are_nearest_in_probability_in_features_or_drawn():
    images, _ = draw(8, 7)
    given, network = support(), model()
    seen = {}

    def spy(kind):
        def verify(questions):
            seen.setdefault(kind, questions)
            return torch.ones(len(questions))

        return verify

    for kind in ("probability", "feature", "random"):
        labeler(spy(kind), n_exemplars=1, retrieval=kind).relabel(images)
    probs, theirs = network(images).softmax(1), network(given.images).softmax(1)
    top = probs.argmax(1)
    for q, (p, f) in enumerate(zip(seen["probability"].positive, seen["feature"].positive, strict=True)):
        own = (given.labels == top[q]).nonzero().flatten()
        assert p == own[(theirs[own, top[q]] - probs[q, top[q]]).abs().argmin()]
        assert f == own[torch.cosine_similarity(images[q][None], given.images[own]).argmax()]
    again = {}
    labeler(
        lambda q: again.setdefault("x", q) and torch.ones(len(q)), n_exemplars=1, retrieval="random"
    ).relabel(images)
    assert torch.equal(again["x"].positive, seen["random"].positive)


def test_few_exemplars_are_shown_again():
    images, _ = draw(10, 8)
    found = labeler(given=support(1), n_exemplars=3, accept=None).relabel(images)
    one = labeler(given=support(1), n_exemplars=1, accept=None).relabel(images)
    assert torch.equal(found.label, one.label) and torch.allclose(found.score, one.score, atol=1e-6)


def test_acceptance_at_its_ends():
    images, _ = draw(20, 9)
    assert labeler(accept=0.0).relabel(images).accepted.all()
    off = labeler(accept=None).relabel(images)
    assert not off.accepted.any() and (off.n_queries == 9).all()


def test_equal_names_are_different_classes():
    given = support()
    twins = replace(given, names=["same"] * CLASSES)
    images, _ = draw(30, 10)
    assert torch.equal(labeler(given=twins).relabel(images).label, labeler().relabel(images).label)


def test_classes_without_support():
    given = support()
    kept = given.labels != 1
    partial = Support(given.images[kept], given.labels[kept], given.names)
    with pytest.raises(InputError, match="'name 1': is a candidate without a support image"):
        labeler(given=partial)
    found = labeler(given=partial, missing="drop").relabel(draw(50, 11)[0])
    assert not (found.candidates == 1).any() and not found.accepted[found.predicted == 1].any()
    assert (found.predicted == 1).any() and not (found.label == 1).any()


def test_support_that_leaks_into_the_target():
    images, _ = draw(5, 12)
    images[3] = support().images[2]
    with pytest.raises(InputError, match="image 3: is in the support"):
        labeler().relabel(images)


@pytest.mark.parametrize("answer", [float("nan"), 1.2, -0.1])
def test_a_verifier_outside_its_range(answer):
    with pytest.raises(InputError, match="NaN or outside"):
        labeler(lambda questions: torch.full((len(questions),), answer)).relabel(draw(4, 13)[0])


def test_a_verifier_that_answers_too_little():
    with pytest.raises(InputError, match="must answer"):
        labeler(lambda questions: torch.ones(1)).relabel(draw(4, 13)[0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"transition": torch.ones(3, 4)}, "square"),
        ({"transition": torch.eye(4)}, "4 classes"),
        ({"transition": 2 * torch.eye(CLASSES)}, "no probabilities"),
        ({"top_n": 1}, "top_n"),
        ({"n_exemplars": 0}, "n_exemplars"),
        ({"accept": 1.5}, "accept"),
        ({"accept": -0.1}, "accept"),
        ({"retrieval": "x"}, "retrieval"),
        ({"candidates": "x"}, "candidates"),
        ({"missing": "x"}, "missing"),
    ],
)
def test_options_that_cannot_be_used(options, problem):
    with pytest.raises(InputError, match=problem):
        labeler(**options)


def test_features_and_supports_that_cannot_be_used():
    with pytest.raises(InputError, match="no features"):
        DenoisingInContextLabeler(
            lambda x: model()(x), judge, support(), torch.eye(CLASSES), retrieval="feature"
        )
    with pytest.raises(InputError, match="support"):
        Support(torch.zeros(3, 6), torch.zeros(2).long(), ["a"])
    with pytest.raises(InputError, match="without a name"):
        Support(torch.zeros(2, 6), torch.tensor([0, 1]), ["a"])
    with pytest.raises(InputError, match="one class alone"):
        labeler(given=Support(torch.zeros(2, 6), torch.zeros(2).long(), support().names), missing="drop")


def test_the_report_counts():
    result = RelabelResult(
        label=torch.tensor([0, 1, 1, 2]), score=torch.ones(4), accepted=torch.tensor([True, False, False, False]),
        candidates=torch.zeros(4, 2).long(), n_queries=torch.tensor([3, 6, 6, 6]), predicted=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    report = result.report(torch.tensor([0, 1, 1, 1]))
    assert report == {
        "before": 0.75, "after": 0.75, "corrected": 1, "destroyed": 1, "accepted": 0.25, "queries per image": 5.25,
    }  # fmt: skip
    assert result.changed.tolist() == [False, True, False, True]


def test_models_supports_and_labels_that_do_not_fit():
    images, labels = draw(10, 3)
    matrix = torch.eye(CLASSES)
    for broken, message in (
        (lambda x: model()(x)[:, :3], r"logits of shape \(10, 3\) for 5 names"),
        (lambda x: model()(x) * float("nan"), "logits that are NaN"),
    ):
        with pytest.raises(InputError, match=message):
            DenoisingInContextLabeler(broken, judge, support(), matrix).relabel(images)

    def barred(x):
        return model()(x).index_fill(1, torch.tensor([4]), -torch.inf)  # a mask is no mistake

    result = DenoisingInContextLabeler(barred, judge, support(), matrix).relabel(images)
    with pytest.raises(InputError, match=r"labels: have shape \(9,\) for 10 images"):
        result.report(labels[:9])
    with pytest.raises(InputError, match="support labels: are torch.float32"):
        replace(support(), labels=support().labels.float())
