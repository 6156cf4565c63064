"""LEVI's network: taps of any module, what each tap answers, who contributes, frozen parts, and every error."""

import copy

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.layerwise_ensemble import LayerwiseEnsemble, find_taps, pooled_output
from unseen.networks.layerwise_fit import cached_taps, fit_cached
from unseen.shifts.arrays import from_arrays
from unseen.training.data import TrainingData
from unseen.training.fit import fit
from unseen.training.learner import Learner
from unseen.training.model_folder import load
from unseen.training.system import seeded

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


def backbone():
    with seeded(1):
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 7)
        )


def small():
    with seeded(2):
        return nn.Sequential(nn.Linear(6, 4), nn.Tanh())


def made(body=None, task_model="small", taps=("0", "3", "5"), **options):
    with seeded(3):
        return LayerwiseEnsemble(
            body or backbone(),
            small() if task_model == "small" else task_model,
            taps,
            **{"example": X, "out_dim": 3, **options},
        )


# ---- what it computes ----


def test_outputs_equal_the_formula_written_out():
    model, body, g = made().eval(), backbone().eval(), small()
    z = nn.functional.layer_norm(g(X), (4,))
    inner = [body[0](X), body[:4](X), body(X)]
    expected = [
        nn.functional.linear(
            torch.cat([nn.functional.layer_norm(h, h.shape[1:]), z], 1), head.weight, head.bias
        )
        for h, head in zip(inner, model.head.heads, strict=True)
    ]
    own = model.per_tap_outputs(X)
    assert list(own) == ["0", "3", "5"]
    for value, wanted in zip(own.values(), expected, strict=True):
        assert torch.allclose(value, wanted, atol=1e-6)
    assert torch.allclose(model(X), torch.stack(expected).mean(0), atol=1e-6)
    model.head.choose(2)
    assert torch.allclose(model(X), expected[2], atol=1e-6)


def test_mean_of_logits_is_the_mean_of_log_probabilities():
    model = made().eval()
    joined = model.all_logits(X).log_softmax(-1).mean(0)
    assert torch.allclose(model(X).softmax(-1), joined.softmax(-1), atol=1e-6)


def test_the_loss_does_not_grow_with_the_number_of_taps():
    model = made().eval()
    y = torch.arange(12) % 3
    outputs = model.all_logits(X)
    each = torch.stack([nn.functional.cross_entropy(o, y) for o in outputs])
    assert torch.allclose(model.loss(outputs, y), each.mean())
    assert torch.allclose(model.loss(outputs, y, torch.tensor([1.0, 0, 0])), each[0])
    assert torch.allclose(model.loss(outputs[:1].expand(3, -1, -1), y), each[0])
    number = made(task="regression", out_dim=1).eval()
    out = number.all_logits(X)
    assert torch.allclose(number.loss(out, X[:, 0]), (out.squeeze(2) - X[:, 0]).square().mean())


@pytest.mark.parametrize("hidden", [0, 6])
def test_contributions_are_the_norms_of_the_halves(hidden):
    model = made(hidden=hidden).eval()
    shares = model.contributions(X)
    h = nn.functional.layer_norm(backbone()[0](X), (8,))
    z = nn.functional.layer_norm(small()(X), (4,))
    weight = (model.featurizer.mix if hidden else model.head.heads)[0].weight
    a, b = ((part @ w.T).norm(dim=1).mean() for part, w in ((h, weight[:, :8]), (z, weight[:, 8:])))
    assert shares["0"].backbone == pytest.approx((a / (a + b)).item(), abs=1e-5)
    assert all(s.backbone + s.task_model == pytest.approx(1) for s in shares.values())
    alone = made(task_model=None).contributions(X)
    assert all(share == (1.0, 0.0) for share in alone.values())


def test_a_task_model_of_large_norm_does_not_drown_the_backbone():
    loud = small()
    loud.append(nn.Softplus()).append(_Times(1000.0))
    shares = (
        made(task_model=loud).contributions(X)["5"],
        made(task_model=loud, normalise=False).contributions(X)["5"],
    )
    assert shares[0].backbone > 0.3 and shares[1].backbone < 0.05


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_pooling():
    tokens, maps = torch.randn(2, 5, 3), torch.randn(2, 3, 4, 4)
    assert torch.equal(pooled_output(tokens, "cls"), tokens[:, 0])
    assert torch.equal(pooled_output(tokens, "mean"), tokens.mean(1))
    assert torch.equal(pooled_output(maps, "cls"), maps.mean((2, 3)))
    assert torch.equal(pooled_output(tokens, lambda t: t.amax(1)), tokens.amax(1))


# ---- taps ----


@pytest.mark.parametrize("name", ["cnn", "resnet(depth=8)", "transformer(patch=4)", "mlp"])
def test_any_network_has_taps(name):
    network = build_network(name, (3, 8, 8), 4)
    x = torch.rand(5, 3, 8, 8)
    model = LayerwiseEnsemble(network, taps=2, example=x, out_dim=4)
    assert model(x).shape == (5, 4) and len(model.taps) == 2
    assert torch.allclose(
        model.featurizer.tap_outputs(x)[model.taps[-1]], network.featurizer.eval()(x), atol=1e-5
    ) or (name in ("cnn", "resnet(depth=8)"))


def test_taps_by_number_are_spread_evenly_and_end_with_the_last():
    body = nn.Sequential(*(nn.Linear(6, 6) for _ in range(6)))
    assert list(find_taps(body, 3)) == ["1", "3", "5"]
    assert list(find_taps(body, [-1, 0])) == ["5", "0"]
    assert list(find_taps(nn.Linear(6, 3), 1)) == ["featurizer"]


def test_modules_that_give_tuples():
    class Pair(nn.Module):
        def forward(self, x):
            return x, None

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Pair()

        def forward(self, x):
            return self.block(x)[0]

    assert torch.equal(made(Body(), taps=["block"]).featurizer.tap_outputs(X)["block"], X)


@pytest.mark.parametrize(
    ("taps", "problem"),
    [
        (["7"], "is no module"), ([9], "none of the backbone"), ([], "are \\[\\]"),
        (0, "are 0"), (9, "are 9"), ("0", "are '0'"),
    ],
)  # fmt: skip
def test_unknown_and_empty_taps(taps, problem):
    with pytest.raises(InputError, match=problem):
        made(taps=taps)


def test_a_tap_that_never_fires():
    body = backbone()
    body.spare = nn.Linear(2, 2)
    body.forward = lambda x: body[0](x)
    with pytest.raises(InputError, match="did not fire"):
        made(body, taps=["spare"])


def test_a_tap_of_varying_rank():
    class Turns(nn.Module):
        def forward(self, x):
            return x if len(x) > 5 else x[:, None]

    body = nn.Sequential(Turns(), nn.Flatten())
    model = made(body, taps=["0"])
    with pytest.raises(InputError, match="rank 2 and of rank 3"):
        model(X[:2])


def test_a_tap_of_a_strange_shape_or_value():
    with pytest.raises(InputError, match="rank 5"):
        made(nn.Sequential(nn.Unflatten(1, (1, 1, 1, 6)), nn.Flatten()), taps=["0"])
    with pytest.raises(InputError, match="not finite"):
        made()(torch.full((2, 6), float("nan")))
    with pytest.raises(InputError, match="pool"):
        made(pool=lambda output: output.sum(1))


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"pool": "max"}, "pool"), ({"task": "ranking"}, "task"), ({"tune": "half"}, "tune"),
     ({"tune": "full", "lora": {}}, "tune")],
)  # fmt: skip
def test_unknown_options(options, problem):
    with pytest.raises(InputError, match=problem):
        made(**options)


def test_a_task_model_that_gives_logits_or_no_features():
    with pytest.raises(InputError, match="logits, not features"):
        made(task_model=nn.Linear(6, 3))
    with pytest.raises(InputError, match="no features"):
        made(task_model=nn.Unflatten(1, (2, 3)))
    network = build_network("mlp(width=5)", (6,), 3)
    assert made(task_model=network).featurizer.task_model is network.featurizer


# ---- what is trained ----


def test_a_frozen_backbone_stays_in_evaluation_mode_and_the_rest_trains():
    model = made().train()
    before = copy.deepcopy(model.state_dict())
    first, second = model(X), model(X)
    assert torch.equal(first, second), "dropout of the frozen part is off"
    first.sum().backward()
    assert all(p.grad is None for p in model.featurizer.backbone.parameters())
    assert all(p.grad is not None for n, p in model.named_parameters() if "backbone" not in n)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "batch statistics stay"


def test_low_rank_updates_and_full_tuning():
    lora = made(lora={"rank": 2, "targets": ["0", "2"]})
    trained = [n for n, p in lora.named_parameters() if p.requires_grad and "backbone" in n]
    assert trained and all("parametrizations" in name for name in trained)
    for one, other in zip(cached_taps(lora, X), cached_taps(made(), X), strict=True):
        assert torch.allclose(one, other, atol=1e-6), "updates begin at zero"
    lora(X).sum().backward()
    assert all(p.requires_grad for p in made(tune="full").parameters())


def data(count=240, seed=0):
    """Labels that lie in the backbone's last layer for half of it, and in an input that it ignores."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, ((x[:, 0] > 0).long() + (x[:, 1] > 0).long())


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_fit_cached_learns(task):
    x, y = data()
    target = y if task == "classification" else y.float()
    out = 3 if task == "classification" else 1
    model = made(task=task, out_dim=out)
    frozen = copy.deepcopy(model.featurizer.backbone.state_dict())
    fit_cached(model, x, target, validation=data(80, 1), steps=300, learning_rate=1e-2, seed=0)
    answers = model(data(200, 2)[0]).detach()
    found = answers.argmax(1) if task == "classification" else answers.squeeze(1).round().clamp(0, 2).long()
    assert (found == data(200, 2)[1]).float().mean() > 0.85
    assert all(torch.equal(v, frozen[k]) for k, v in model.featurizer.backbone.state_dict().items())


def test_cached_training_equals_training_through_the_backbone():
    x, y = data(48)
    cached = fit_cached(made(), x, y, steps=20, batch_size=16, seed=5)
    slow = made().train()
    optimizer = torch.optim.AdamW(
        [p for p in slow.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-2
    )
    generator, order = torch.Generator().manual_seed(5), []
    for _ in range(20):
        if len(order) < 16:
            order += torch.randperm(48, generator=generator).tolist()
        rows, order = order[:16], order[16:]
        optimizer.zero_grad()
        slow.loss(slow.all_logits(x[rows]), y[rows]).backward()
        optimizer.step()
    slow.eval()
    assert torch.allclose(cached(x), slow(x), atol=1e-5)


def test_validation_keeps_the_best_weights_and_patience_stops():
    x, y = data(60)
    held = (x, (y + 1) % 3)  # the better it fits, the worse the validation loss
    kept = fit_cached(made(), x, y, validation=held, steps=60, evaluate_every=10, learning_rate=1e-2)
    first = fit_cached(made(), x, y, steps=10, learning_rate=1e-2)
    stopped = fit_cached(
        made(), x, y, validation=held, steps=60, evaluate_every=10, patience=1, learning_rate=1e-2
    )
    assert torch.allclose(kept(x), first(x), atol=1e-5)
    assert torch.equal(kept(x), stopped(x))


def test_what_cannot_be_cached():
    x, y = data(40)
    for options in ({"lora": {"rank": 1, "targets": ["0"]}}, {"tune": "full"}):
        with pytest.raises(InputError, match="is tuned, too"):
            fit_cached(made(**options), x, y)

    class Augmented(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(InputError, match="another output for the same input"):
        fit_cached(made(nn.Sequential(Augmented(), nn.Linear(6, 8)), taps=["1"]), x, y)


def test_targets_and_weights_that_do_not_fit():
    x, y = data(40)
    for arguments, options, message in (
        ((x, y[:39]), {}, "targets: are 39 for 40 inputs"),
        ((x, y + 9), {}, "targets: go from 9 to"),
        ((x, y - 1), {}, "targets: go from -1 to"),
        ((x, y), {"validation": (x, y[:3])}, "targets: are 3 for 40 inputs"),
        ((x, y), {"tap_weights": torch.ones(7)}, r"tap_weights: have shape \(7,\)"),
    ):
        with pytest.raises(InputError, match=message):
            fit_cached(made(), *arguments, steps=2, **options)


def test_cached_taps_do_not_depend_on_the_batch():
    model = made()
    whole = cached_taps(model, X)
    for one, other in zip(whole, cached_taps(model, X, batch_size=5), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_weights_of_taps_by_validation():
    model = made().eval()
    y = model.all_logits(X)[1].argmax(-1)
    with torch.no_grad():
        for head in model.head.heads[::2]:
            head.weight.zero_()
        model.head.heads[1].weight.mul_(5)
    before = model._loss(model(X), y)
    shares = model.weigh_taps(X, y)
    assert float(shares.sum()) == pytest.approx(1) and int(shares.argmax()) == 1
    assert model._loss(model(X), y) < before


def test_dictionaries_of_inputs():
    class First(nn.Module):
        def __init__(self, name, size):
            super().__init__()
            self.name, self.layer = name, nn.Linear(6, size)

        def forward(self, x):
            return self.layer(x[self.name])

    example = {"a": X, "b": X + 1}
    model = LayerwiseEnsemble(First("a", 5), First("b", 4), ["layer"], example=example, out_dim=3)
    y = torch.arange(12) % 3
    assert fit_cached(model, example, y, steps=5)(example).shape == (12, 3)


# ---- as a registered network ----


def test_it_trains_by_fit_and_is_saved(tmp_path):
    x, y = data(200)
    split = from_arrays(x.numpy(), y.numpy(), torch.arange(200).numpy() % 3).split("2")
    learner = Learner(
        objective="each-hypothesis", network="layerwise-ensemble(of='mlp(width=16)', task_model='mlp(width=8)')",
        steps=200, learning_rate=1e-2,
    )  # fmt: skip
    predictor = fit(learner, split, seed=0)
    bank = TrainingData(split).bank(predictor.network, "unseen")
    assert bank.correct.float().mean() > 0.75
    predictor.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    inputs = torch.randn(4, 6)
    assert torch.equal(loaded.network.eval()(inputs), predictor.network.eval()(inputs))


def test_blocks_inside_a_network_can_be_counted():
    network = build_network("transformer(depth=4, width=16)", (3, 8, 8), 4)
    assert list(find_taps(network.featurizer, 2)) == ["1.layers.1", "1.layers.3"]


def test_the_registered_network_takes_low_rank_updates():
    network = build_network("layerwise-ensemble(of='transformer(width=16)', rank=2, taps=1)", (3, 8, 8), 4)
    assert any("parametrizations" in n for n, p in network.named_parameters() if p.requires_grad)
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 4)
