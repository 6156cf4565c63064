import copy
import math

import pytest
import torch
from curation_toys import language_model, make_model, make_pool, token_pool
from torch import nn
from torch.nn.functional import cross_entropy

from unseen.curation import DONOD, Pool, weight_dynamics_scores
from unseen.curation.weight_dynamics import output_layer
from unseen.errors import InputError, UnseenWarning
from unseen.networks.example_gradients import token_cross_entropy

RATE = 0.05


def by_steps(model, pool, names, learning_rate=RATE):
    """Each example's own SGD step, on a copy in float64."""
    rows = []
    for row in range(len(pool)):
        learner = copy.deepcopy(model).double().eval()
        optimizer = torch.optim.SGD(learner.parameters(), lr=learning_rate)
        loss = cross_entropy(learner(pool.x[row : row + 1].double()), pool.y[row : row + 1])
        before = {n: p.detach().clone() for n, p in learner.named_parameters()}
        loss.backward()
        optimizer.step()
        after = dict(learner.named_parameters())
        don = sum(float(before[n].norm() - after[n].detach().norm()) for n in names)
        nod = sum(float((before[n] - after[n].detach()).norm()) for n in names)
        rows.append((don, nod, float(loss.detach())))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    "layers, names",
    [
        ("output", ["head.weight"]),
        ("head.*", ["head.weight", "head.bias"]),
        (["featurizer.0.weight", "head.weight"], ["featurizer.0.weight", "head.weight"]),
        ("all", [name for name, _ in make_model().named_parameters()]),
    ],
)
def test_static_scores_are_those_of_a_step_each(layers, names):
    model, pool = make_model(), make_pool(12)
    found = weight_dynamics_scores(model, pool, layers=layers, learning_rate=RATE)
    expected = by_steps(model, pool, names)
    for column, values in zip(("don", "nod", "loss"), expected.T, strict=True):
        torch.testing.assert_close(torch.tensor(found[column]), values, rtol=1e-4, atol=1e-6)
    if len(names) == 1:
        torch.testing.assert_close(torch.tensor(found.nod), torch.tensor(RATE * found.grad_norm))
    assert found["index"].tolist() == list(range(12))


def test_norm_falls_where_the_label_is_below_the_expected_logit():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[2.0, 0], [0, 1]])
    pool = Pool(torch.tensor([[1.0, 0], [1.0, 0]]), torch.tensor([0, 1]))  # fitted well, and badly
    found = weight_dynamics_scores(model, pool, learning_rate=1e-4)
    p = torch.tensor([2.0, 0]).softmax(0)
    for row, label in enumerate((0, 1)):
        first_order = 1e-4 * float(p @ torch.tensor([2.0, 0]) - (2.0, 0.0)[label]) / math.sqrt(5)
        assert found.don[row] == pytest.approx(first_order, rel=1e-3)
    assert found.don[0] < 0 < found.don[1]


def test_tiny_steps_are_not_lost_to_rounding():
    model, pool = make_model(), make_pool(12)
    small, large = (weight_dynamics_scores(model, pool, learning_rate=r) for r in (1e-10, 1e-4))
    torch.testing.assert_close(torch.tensor(small.don) * 1e6, torch.tensor(large.don), rtol=1e-2, atol=1e-8)


def test_tied_embeddings_are_scored_as_the_output_alone():
    model, pool = language_model(), token_pool()
    untied = copy.deepcopy(model)
    untied.head.weight = nn.Parameter(model.head.weight.detach().clone())
    tied, free = (weight_dynamics_scores(each, pool, token_cross_entropy) for each in (model, untied))
    torch.testing.assert_close(torch.tensor(tied.values), torch.tensor(free.values))
    assert model.head.weight is model.embedding.weight
    together = weight_dynamics_scores(model, pool, token_cross_entropy, layers="embedding.weight")
    assert (together.nod - tied.nod).abs().min() > 1e-6


def test_the_output_of_a_language_model_is_what_it_says():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.last = nn.Linear(3, 5), nn.Linear(3, 3)

        def get_output_embeddings(self):
            return self.out

    assert output_layer(Wrapped())[0] == "out"
    assert output_layer(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Identity()))[0] == "2"
    with pytest.raises(InputError, match="no linear layer"):
        output_layer(nn.Identity())


def test_online_scores_are_those_of_the_running_model():
    model, pool = make_model(), make_pool(8)
    found = weight_dynamics_scores(model, pool, mode="online", learning_rate=RATE, seed=3)
    again = weight_dynamics_scores(model, pool, mode="online", learning_rate=RATE, seed=3)
    assert found.equals(again)
    first = by_steps(model, pool, ["head.weight"])
    same = (torch.tensor(found.nod) - first[:, 1]).abs() < 1e-7
    assert 1 <= int(same.sum()) < 8  # the first in its order starts where the static ones do
    tiny = weight_dynamics_scores(model, pool, mode="online", learning_rate=1e-6)
    static = weight_dynamics_scores(model, pool, learning_rate=1e-6)
    torch.testing.assert_close(
        torch.tensor(tiny.grad_norm), torch.tensor(static.grad_norm), rtol=1e-3, atol=1e-5
    )


def test_the_first_step_of_adamw_is_as_long_for_all():
    model, pool = make_model(), make_pool(8)
    with pytest.raises(InputError, match="adamw"):
        weight_dynamics_scores(model, pool, optimizer="adamw")
    online = weight_dynamics_scores(model, pool, mode="online", optimizer="adamw", learning_rate=1e-3)
    assert (online.nod > 0).all()


def test_a_mean_over_tokens_does_not_grow_with_their_number():
    model = language_model()
    tokens = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 1, 0, 0, 0]])
    targets = torch.tensor([[-100, 2, 1, 2, 1, 2], [-100, 2, 1, -100, -100, -100]])
    found = weight_dynamics_scores(model, (tokens, targets), token_cross_entropy)
    assert found.nod[0] == pytest.approx(found.nod[1], rel=0.2)


@pytest.mark.parametrize("mode", ["static", "online"])
def test_the_model_is_left_as_it_was(mode):
    model, pool = make_model(), make_pool(8)
    model.head.weight.requires_grad_(False)
    before = {name: (p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    weight_dynamics_scores(model, pool, mode=mode)
    for name, parameter in model.named_parameters():
        same, values, required = before[name]
        assert parameter is same and torch.equal(parameter, values) and parameter.grad is None
        assert parameter.requires_grad == required
    assert model.training and torch.equal(torch.random.get_rng_state(), state)


def test_directions_and_weights():
    model, pool = make_model(), make_pool(20)
    found = {d: DONOD(don_direction=d, learning_rate=RATE) for d in ("max", "min", "abs")}
    scores = {d: each.fit(model, pool) for d, each in found.items()}
    details = found["max"].details
    assert scores["max"].argsort().tolist() != scores["min"].argsort().tolist()
    assert (details.closeness == scores["max"].numpy()).all()
    don_only = DONOD(weights=(1, 0)).fit(model, pool)
    assert don_only.argmax() == int(details.don.argmax())
    nod_only = DONOD(weights=(0, 1)).fit(model, pool)
    assert nod_only.argsort(descending=True).tolist() == details.nod.argsort().tolist()
    assert DONOD("abs", (1, 0)).fit(model, pool).argmax() == int(details.don.abs().argmin())
    ranked = DONOD(normalize="rank").fit(model, pool)
    assert float(ranked.min()) >= 0 and float(ranked.max()) <= 1


def test_examples_all_alike_cannot_be_ranked():
    pool = Pool(torch.ones(3, 6), torch.zeros(3, dtype=torch.int64))
    with pytest.warns(UnseenWarning), pytest.raises(InputError, match="no criterion"):
        DONOD().fit(make_model(), pool)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": "tail.*"}, "parameters 'tail.*'"),
        ({"mode": "offline"}, "mode 'offline'"),
        ({"optimizer": "lion"}, "optimizer 'lion'"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        weight_dynamics_scores(make_model(), make_pool(8), **options)


def test_diverged_training_and_unknown_directions_are_told():
    with pytest.raises(InputError, match="lower learning_rate|not finite"):
        weight_dynamics_scores(make_model(), make_pool(8), mode="online", learning_rate=1e30)
    with pytest.raises(InputError, match="don_direction"):
        DONOD(don_direction="up")
    with pytest.raises(InputError, match="1 example"):
        weight_dynamics_scores(make_model(), make_pool(8).take(torch.tensor([0])))
