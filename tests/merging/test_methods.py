"""Every registered method: invariances, closed forms, and what it refuses."""

import math

import pytest
import torch

from unseen.errors import InputError
from unseen.merging.base import Method
from unseen.registry import merging

NAMES = merging.names()
PAIR = ("slerp", "nearswap", "arcee_fusion", "wise_ft")


def draw(count=3, shape=(6, 5), seed=0, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + scale * torch.randn(shape, generator=generator) for _ in range(count)]


def call(name, base, models, **options):
    method = Method.of(name, **options)
    context = {}
    if method.base != "unused":
        context["base"] = base
    if method.draws:
        context["generator"] = torch.Generator().manual_seed(0)
    if method.weighs_by_fisher:
        context["fisher"] = [torch.ones_like(m) for m in models]
    return method(models, **context)


def count_for(name):
    return 1 if name in (*PAIR, "passthrough") else 2 if name == "nuslerp" else 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(6, 5), (7,), (), (3, 2, 3, 3)])
def test_inputs_stay_as_they_are_and_the_shape_is_kept(name, shape):
    base, models = draw(count_for(name), shape)
    before = [base.clone(), *(m.clone() for m in models)]
    merged = call(name, base, models)
    assert merged.shape == base.shape and bool(merged.isfinite().all())
    assert all(torch.equal(a, b) for a, b in zip(before, [base, *models], strict=True))
    assert all(merged.data_ptr() != m.data_ptr() for m in models)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("ram", "ramplus_tl", "task_arithmetic",
                                  "dare_linear", "dare_ties", "della_linear", "breadcrumbs")])  # fmt: skip
def test_equal_models_merge_to_themselves(name):
    base, models = draw(1)
    options = {"density": 1.0} if "density" in Method.of(name).option_names() else {}
    if "normalize" in Method.of(name).option_names():
        options["normalize"] = True
    if name in PAIR:
        base = models[0]
    merged = call(name, base, models * count_for(name), **options)
    torch.testing.assert_close(merged, models[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if count_for(n) == 3 and "dare" not in n and "della" not in n]
)
def test_the_order_of_models_does_not_matter(name):
    base, models = draw()
    options = {"density": 0.5} if name.startswith(("ties", "breadcrumbs")) else {}
    merged = call(name, base, models, **options)
    torch.testing.assert_close(call(name, base, models[::-1], **options), merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if Method.of(n).elementwise])
def test_elementwise_methods_merge_stretches_as_the_whole(name):
    base, models = draw(count_for(name), (40,))
    whole = call(name, base, models)
    parts = [call(name, base[s], [m[s] for m in models]) for s in (slice(0, 13), slice(13, 40))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_ends_of_lines_and_arcs():
    base, (other,) = draw(1, scale=1.0)
    for name, option in (("slerp", "t"), ("wise_ft", "alpha")):
        torch.testing.assert_close(call(name, base, [other], **{option: 0.0}), base)
        torch.testing.assert_close(call(name, base, [other], **{option: 1.0}), other)


def test_slerp_keeps_the_norm_and_halves_the_angle():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(call("slerp", a, [b]), torch.tensor([math.sqrt(2), math.sqrt(2)]))


def test_the_karcher_mean_of_two_is_the_middle_of_the_arc():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    middle = call("karcher", None, [a, b])
    torch.testing.assert_close(middle, torch.tensor([math.sqrt(2), math.sqrt(2)]))
    torch.testing.assert_close(call("multislerp", None, [a, b]), middle, rtol=1e-4, atol=1e-4)


def test_the_two_ties_by_hand():
    base = torch.zeros(4)
    models = [torch.tensor([3.0, 1.0, -1.0, 0.0]), torch.tensor([-1.0, 1.0, -3.0, 2.0])]
    # weights 0.2 and 0.8: the weighted vote of the first entry is 0.6 - 0.8 < 0, the unweighted one 2 > 0
    expected = torch.tensor([-1.0, 1.0, (-0.2 - 2.4) / 1.0, 2.0])
    torch.testing.assert_close(call("ties", base, models, weight=[0.2, 0.8]), expected)
    paper = torch.tensor([0.6, (0.2 + 0.8) / 2, (-0.2 - 2.4) / 2, 1.6])
    torch.testing.assert_close(call("ties_paper", base, models, weight=[0.2, 0.8]), paper)
    assert call("ties", base, models, weight=1.0).tolist() == call("ties_paper", base, models).tolist()


@pytest.mark.parametrize("weight", [[0.5, 0.3, 0.2], [0.7, -0.4, 1.0]])
def test_ties_against_loops(weight):
    base, models = draw(scale=1.0)
    expected = base.clone()
    deltas = [(m - base).flatten() for m in models]
    trimmed = []
    for delta in deltas:
        threshold = delta.abs().sort(descending=True).values[int(0.4 * delta.numel()) - 1]
        trimmed.append([float(v) if abs(v) >= threshold else 0.0 for v in delta])
    flat = expected.view(-1)
    for i in range(flat.numel()):
        values = [w * t[i] for w, t in zip(weight, trimmed, strict=True)]
        sign = 1 if sum(values) >= 0 else -1
        chosen = [(v, w) for v, w in zip(values, weight, strict=True) if v * sign > 0]
        divisor = sum(w for _, w in chosen)
        flat[i] += sum(v for v, _ in chosen) / (divisor if divisor else 1)
    torch.testing.assert_close(call("ties", base, models, weight=weight, density=0.4), expected)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_dropping_keeps_the_expectation(name):
    base, models = draw(1, (40, 50))
    sums = torch.zeros_like(base)
    method = Method.of(name, density=0.5, rescale="expectation")
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        sums += method(models, base=base, generator=generator)
    error = (sums / 200 - models[0]) / (models[0] - base).abs().mean()
    assert float(error.mean().abs()) < 0.01 and float(error.std()) < 0.2


def test_model_stock_of_orthogonal_and_of_equal_models():
    base = torch.zeros(2)
    e1, e2 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert call("model_stock", base, [e1, e2]).tolist() == [0, 0]
    torch.testing.assert_close(call("model_stock", base, [e1, e1]), e1)
    assert call("model_stock", base, [e1, -e1]).tolist() == [0, 0]


def test_nearswap_moves_by_at_most_t():
    base, models = draw(1)
    moved = (call("nearswap", base, models, t=0.05) - base).abs()
    torch.testing.assert_close(moved, (models[0] - base).abs().clamp(max=0.05), rtol=1e-3, atol=1e-6)


def test_ram_adds_what_one_changed_and_averages_what_several_changed():
    base = torch.zeros(3)
    models = [torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])]
    assert call("ram", base, models).tolist() == [1.0, 3.0, 0.0]
    plus = call("ramplus_tl", base, models, r=0.5, alpha=0.2)
    torch.testing.assert_close(plus, torch.tensor([1.1, 3.0, 0.0]))


def test_fisher_weights_entry_by_entry():
    models = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])]
    information = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])]
    merged = Method.of("fisher")(models, fisher=information)
    torch.testing.assert_close(merged, torch.tensor([2.5, 2.0]))
    with pytest.raises(InputError, match="negative"):
        Method.of("fisher")(models, fisher=[-information[0], information[1]])


@pytest.mark.parametrize(
    "name, options, count, message",
    [
        ("slerp", {"t": 1.2}, 1, "outside \\[0, 1\\]"),
        ("wise_ft", {"alpha": -0.1}, 1, "extrapolate"),
        ("slerp", {}, 2, "exactly one"),
        ("nuslerp", {}, 3, "takes two"),
        ("passthrough", {}, 2, "takes one"),
        ("model_stock", {}, 1, "2 or more"),
        ("linear", {"weight": [1.0]}, 2, "1 numbers for 2 models"),
        ("linear", {"weight": [1.0, -1.0]}, 2, "adds up to 0"),
        ("task_arithmetic", {"density": 0.5}, 2, "has no effect"),
        ("ties", {"density": 1.5}, 2, "share in"),
        ("della", {"density": 0.9, "epsilon": 0.2}, 2, "density - epsilon"),
        ("ties", {"consensus": "sums"}, 2, "Did you mean 'sum'"),
        ("sce", {"select_topk": 2.0}, 2, "share in"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, count, message):
    base, models = draw(count)
    with pytest.raises(InputError, match=message):
        call(name, base, models, **options)


def test_unknown_options_and_methods_are_named():
    with pytest.raises(InputError, match="Did you mean 'density'"):
        Method.of("ties", densty=0.5)
    with pytest.raises(InputError, match="Did you mean 'slerp'"):
        Method.of("slrp")


def test_extrapolation_is_allowed_when_asked_for():
    base, models = draw(1)
    far = call("wise_ft", base, models, alpha=1.5, extrapolate=True)
    torch.testing.assert_close(far, base + 1.5 * (models[0] - base))
