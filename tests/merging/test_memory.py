import pytest
import torch

from unseen.averaging import snapshot
from unseen.errors import InputError, UnseenWarning
from unseen.merging import merge


def test_a_state_is_merged_tensor_by_tensor(make_state):
    a, b = make_state(1), make_state(2)
    merged = merge([a, b], "linear", weight=[0.25, 0.75])
    assert list(merged) == list(a)
    torch.testing.assert_close(
        merged["lm_head.weight"], 0.25 * a["lm_head.weight"] + 0.75 * b["lm_head.weight"]
    )


def test_counters_are_the_bases_or_the_first_models(make_state):
    assert merge([make_state(1), make_state(2)], "uniform_soup")["steps"] == 1
    assert merge([make_state(1), make_state(2)], "ties", base=make_state(3))["steps"] == 3


def test_of_two_models_without_a_named_base_the_first_is_it(make_state):
    a, b = make_state(1), make_state(2)
    assert torch.equal(merge([a, b], "slerp", t=0.0)["lm_head.weight"], a["lm_head.weight"])
    with pytest.raises(InputError, match="needs a base"):
        merge([a, b, a], "ties")
    with pytest.raises(InputError, match="not used by method 'linear'"):
        merge([a, b], "linear", base=a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_arithmetic_is_precise_and_the_type_is_kept(dtype, make_state):
    states = [make_state(seed, dtype) for seed in range(5)]
    merged = merge(states, "uniform_soup")["lm_head.weight"]
    exact = torch.stack([s["lm_head.weight"].double() for s in states]).mean(0)
    assert merged.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 0
    expected = exact.float().to(dtype) if dtype != torch.float64 else exact
    torch.testing.assert_close(
        merged, expected, rtol=tolerance, atol=1e-12 if tolerance else torch.finfo(dtype).eps
    )
    assert merge(states, "uniform_soup", dtype=torch.float32)["lm_head.weight"].dtype == torch.float32


def test_draws_depend_on_the_seed_and_the_name_alone(make_state):
    a, b, base = make_state(1), make_state(2), make_state(3)
    first = merge([a, b], "dare_ties", base=base, density=0.5, seed=4)
    again = merge([dict(reversed(a.items())), b], "dare_ties", base=base, density=0.5, seed=4)
    other = merge([a, b], "dare_ties", base=base, density=0.5, seed=5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tied_tensors_stay_tied(make_state):
    states = [make_state(seed) for seed in (1, 2)]
    for state in states:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    merged = merge(states, "linear")
    assert merged["lm_head.weight"].data_ptr() == merged["model.embed_tokens.weight"].data_ptr()
    with pytest.raises(InputError, match="are one tensor in model 0, but two in model 1"):
        merge([states[0], make_state(2)], "linear")


def test_other_names_are_named_with_the_nearest(make_state):
    a, b = make_state(1), make_state(2)
    b["lm_heads.weight"] = b.pop("lm_head.weight")
    with pytest.raises(
        InputError, match="'lm_head.weight'.*in model 0, but not in model 1.*'lm_heads.weight'"
    ):
        merge([a, b], "linear")


def test_other_shapes_and_kinds_are_named(make_state):
    a, b = make_state(1), make_state(2)
    b["lm_head.weight"] = torch.zeros(3, 4)
    with pytest.raises(InputError, match=r"'lm_head.weight': has shape \(10, 4\).*but \(3, 4\)"):
        merge([a, b], "linear")
    b["lm_head.weight"] = torch.zeros(10, 4, dtype=torch.int64)
    with pytest.raises(InputError, match="torch.int64"):
        merge([a, b], "linear")


@pytest.mark.parametrize("method", ["linear", "slerp", "arcee_fusion"])
def test_nan_is_named_with_its_model(method, make_state):
    a, b = make_state(1), make_state(2)
    b["model.norm.weight"][2] = float("nan")
    with pytest.raises(InputError, match="'model.norm.weight' of model 1: has NaN"):
        merge([a, b], method)


def test_infinite_weights_that_cancel_are_refused(make_state):
    a, b = make_state(1), make_state(2)
    a["model.norm.weight"][0], b["model.norm.weight"][0] = float("inf"), -float("inf")
    with pytest.raises(InputError, match="became NaN"):
        merge([a, b], "linear")


def test_huge_weights_are_not_taken_for_nan(make_state):
    a = make_state(1)
    a["lm_head.weight"].fill_(3e38)
    merged = merge([a, a], "ties", base=a)["lm_head.weight"]  # whose sum overflows
    assert torch.equal(merged, a["lm_head.weight"])


def test_fisher_needs_a_diagonal_of_each_model(make_state):
    a, b = make_state(1), make_state(2)
    ones = {name: torch.ones_like(v) for name, v in a.items()}
    merged = merge([a, b], "fisher", fisher=[ones, {n: 3 * v for n, v in ones.items()}])
    torch.testing.assert_close(
        merged["lm_head.weight"], 0.25 * a["lm_head.weight"] + 0.75 * b["lm_head.weight"]
    )
    with pytest.raises(InputError, match="1 Fisher diagonals for 2 models"):
        merge([a, b], "fisher", fisher=[ones])
    with pytest.raises(InputError, match="'lm_head.weight'.*not in Fisher information 1"):
        merge([a, b], "fisher", fisher=[ones, {n: v for n, v in ones.items() if n != "lm_head.weight"}])
    with pytest.raises(InputError, match="Only method 'fisher'"):
        merge([a, b], "linear", fisher=[ones, ones])


def test_nothing_to_merge():
    with pytest.raises(InputError, match="models: are none"):
        merge([], "linear")


def test_what_is_not_a_tensor_is_refused():
    with pytest.raises(InputError, match="entry 'x' of model 0.*is a list"):
        merge([{"x": [1.0]}, {"x": [1.0]}], "linear")


def test_empty_tensors_are_kept():
    empty = {"x": torch.zeros(0, 3)}
    assert merge([empty, empty], "slerp")["x"].shape == (0, 3)


def network_with_statistics(seed):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    network(torch.randn(20, 2) + seed)
    return network


def test_batch_statistics_that_differ_are_averaged_with_a_warning(recwarn):
    a, b = (snapshot(network_with_statistics(seed)) for seed in (0, 1))
    merge([a, {**b, "1.running_mean": a["1.running_mean"]}], "linear")
    assert not recwarn.list
    with pytest.warns(UnseenWarning, match="batch statistics differ.*estimate them anew"):
        merged = merge([a, b], "linear")
    torch.testing.assert_close(merged["1.running_mean"], (a["1.running_mean"] + b["1.running_mean"]) / 2)
    assert merged["1.num_batches_tracked"] == 1 and merged["1.num_batches_tracked"].dtype == torch.int64


def test_numbers_too_large_for_the_type_are_refused(make_state):
    big = {"w": torch.tensor([70000.0, 1.0])}
    with pytest.raises(InputError, match="tensor 'w': has numbers too large for torch.float16"):
        merge([big, big], "linear", dtype=torch.float16)
    assert merge([big, big], "linear", dtype=torch.bfloat16)["w"].isfinite().all()
