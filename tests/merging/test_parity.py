"""Parity with mergekit and peft, called where they are installed (extra `peers`); never a part of this project."""

import pytest
import torch

from unseen.merging import merge_to_disk, open_checkpoint, read_recipe
from unseen.merging.base import Method
from unseen.merging.recipe import RENAMED, WITHOUT_EFFECT
from unseen.merging.sparsify import DEFAULTS

GTA = {"weight": [0.5, 0.3, 0.2], "density": [0.4, 0.7, 0.55]}

# method, options here, mergekit's parameters of all models, mergekit's parameters of each model, uses a base
CASES = {
    "linear": ("linear", {"weight": [0.5, 0.3, 0.4]}, {"normalize": True}, {"weight": [0.5, 0.3, 0.4]}, False),
    "linear, not normalized": (
        "linear", {"weight": [0.5, 0.3, 0.4], "normalize": False}, {"normalize": False},
        {"weight": [0.5, 0.3, 0.4]}, False,
    ),
    "slerp": ("slerp", {"t": 0.3}, {"t": 0.3}, {}, True),
    "nuslerp": ("nuslerp", {"weight": [0.6, 0.4]}, {"nuslerp_flatten": True, "nuslerp_row_wise": False},
                {"weight": [0.6, 0.4]}, False),
    "nuslerp of task vectors": (
        "nuslerp", {"weight": [0.6, 0.4]}, {"nuslerp_flatten": True, "nuslerp_row_wise": False},
        {"weight": [0.6, 0.4]}, True,
    ),
    "nuslerp by vectors": (
        "nuslerp", {"weight": [0.6, 0.4], "flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": False}, {"weight": [0.6, 0.4]}, False,
    ),
    "nuslerp by rows": (
        "nuslerp", {"weight": [0.6, 0.4], "flatten": False, "row_wise": True},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True}, {"weight": [0.6, 0.4]}, False,
    ),
    "multislerp": ("multislerp", {"weight": [0.5, 0.3, 0.4]}, {"normalize_weights": True, "eps": 1e-8},
                   {"weight": [0.5, 0.3, 0.4]}, False),
    "multislerp of task vectors": (
        "multislerp", {"weight": [0.5, 0.3, 0.4]}, {"normalize_weights": True, "eps": 1e-8},
        {"weight": [0.5, 0.3, 0.4]}, True,
    ),
    "karcher": ("karcher", {"max_iter": 10}, {"max_iter": 10, "tol": 1e-5}, {}, False),
    "nearswap": ("nearswap", {"t": 0.01}, {"t": 0.01}, {}, True),
    "model_stock": ("model_stock", {}, {"filter_wise": False}, {}, True),
    "model_stock by rows": ("model_stock", {"filter_wise": True}, {"filter_wise": True}, {}, True),
    "sce": ("sce", {}, {"int8_mask": False, "select_topk": 1.0}, {}, True),
    "sce of a part": ("sce", {"select_topk": 0.6}, {"int8_mask": False, "select_topk": 0.6}, {}, True),
    "arcee_fusion": ("arcee_fusion", {}, {}, {}, True),
    "ram": ("ram", {"epsilon": 0.03}, {"epsilon": 0.03}, {}, True),
    "ramplus_tl": ("ramplus_tl", {"epsilon": 0.03}, {"epsilon": 0.03, "r": 0.1, "alpha": 0.2}, {}, True),
    "passthrough": ("passthrough", {"scale": 0.5}, {}, {"scale": [0.5]}, False),
    **{
        f"{name}{', normalized' if normalize else ''}": (
            name, {**options, "normalize": normalize, "scaling": 0.7},
            {"int8_mask": False, "normalize": normalize, "rescale": False, "lambda": 0.7}, options, True,
        )
        for name, options in {
            "task_arithmetic": {"weight": [0.5, 0.3, 0.2]},
            "ties": GTA,
            "breadcrumbs": {**GTA, "gamma": [0.02, 0.1, 0.5]},
            "breadcrumbs_ties": {**GTA, "gamma": [0.02, 0.1, 0.5]},
        }.items()
        for normalize in (True, False)
    },
}  # fmt: skip
DRAWN = {
    f"{name}{', rescaled' if rescale else ''}{', normalized' if normalize else ''}": (
        name, {**options, "normalize": normalize, "rescale": "l1" if rescale else "none", "scaling": 0.7},
        {"int8_mask": False, "normalize": normalize, "rescale": rescale, "lambda": 0.7}, options, True,
    )
    for name, options in {
        "dare_linear": GTA,
        "dare_ties": GTA,
        "della": {**GTA, "epsilon": [0.1, 0.2, 0.05]},
        "della_linear": {**GTA, "epsilon": [0.1, 0.2, 0.05]},
    }.items()
    for rescale in (True, False)
    for normalize in (True, False)
}  # fmt: skip
PAIRS = {"slerp": 1, "nearswap": 1, "arcee_fusion": 1, "nuslerp": 2, "passthrough": 1}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(11, 7, generator=generator)
    return base, [base + 0.2 * torch.randn(11, 7, generator=generator) for _ in range(3)]


@pytest.fixture
def methods():
    return pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra `peers`)")


def test_every_method_of_mergekit_is_compared(methods):
    registry = pytest.importorskip("mergekit.merge_methods.registry")
    compared = {name for name, *_ in (*CASES.values(), *DRAWN.values())}
    assert {method.spec.name for method in registry.registered_methods()} == compared


def test_defaults_are_mergekits(methods):
    registry = pytest.importorskip("mergekit.merge_methods.registry")
    compared = 0
    for method in registry.registered_methods():
        ours = Method.of(method.spec.name).entry.options()
        for parameter in method.spec.parameters:
            if parameter.required or parameter.name in WITHOUT_EFFECT:
                continue
            expected, found = parameter.default, ours[RENAMED.get(parameter.name, parameter.name)]
            if parameter.name == "rescale":
                expected = "l1" if expected else "none"
            elif parameter.name == "scale":
                expected = 1.0 if expected is None else expected
            elif found is None:
                found = DEFAULTS[parameter.name]
            assert found == expected, f"{method.spec.name}: {parameter.name}"
            compared += 1
    assert compared > 40


def both(methods, case, tensors, **draws):
    """What mergekit and what we make of the same tensors."""
    name, options, shared, own, with_base = case
    base, models = tensors
    models = models[: PAIRS.get(name, 3)]
    inputs = dict(enumerate(models)) | ({"base": base} if with_base else {})
    each = {key: dict(enumerate(column)) for key, column in own.items()}
    expected = methods.merge_tensors(
        [tensor.clone() for tensor in inputs.values()],
        name,
        parameters={**shared, **each},
        ids=list(inputs),
        base_index=len(models) if with_base else None,
    )
    ours = Method.of(name, **options)(models, **({"base": base} if with_base else {}), **draws)
    return expected, ours


@pytest.mark.parametrize("case", CASES)
def test_methods_equal_mergekit_to_rounding(case, methods, tensors):
    expected, ours = both(methods, CASES[case], tensors)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", DRAWN)
def test_methods_that_draw_equal_mergekit_where_the_same_is_drawn(case, methods, tensors, monkeypatch):
    theirs = torch.Generator().manual_seed(5)

    def draw(probability):
        return (torch.rand(probability.shape, generator=theirs) < probability).to(probability.dtype)

    monkeypatch.setattr(torch, "bernoulli", draw)
    expected, ours = both(methods, DRAWN[case], tensors, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    base, _ = tensors
    assert not torch.allclose(ours, base)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_the_papers_ties_equals_peft(weights, density, tensors):
    theirs = pytest.importorskip("peft.utils.merge_utils", reason="peft is not installed (extra `peers`)")
    base, models = tensors
    expected = base + theirs.ties([m - base for m in models], torch.tensor(weights), density)
    ours = Method.of("ties_paper", weight=weights, density=density)(models, base=base)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_magnitude_pruning_without_consensus_equals_peft(tensors):
    theirs = pytest.importorskip("peft.utils.merge_utils", reason="peft is not installed (extra `peers`)")
    base, models = tensors
    weights = (0.5, 0.3, 0.2)
    expected = base + theirs.magnitude_prune([m - base for m in models], torch.tensor(weights), 0.4)
    method = Method.of("task_arithmetic", sparsifier="magnitude", weight=weights, density=0.4)
    torch.testing.assert_close(method(models, base=base), expected, rtol=1e-5, atol=1e-6)


RECIPES = {
    "gradients and filters of slerp over slices": """
slices:
  - sources:
      - {{model: {a}, layer_range: [0, 4]}}
      - {{model: {b}, layer_range: [0, 4]}}
merge_method: slerp
base_model: {a}
parameters:
  t:
    - {{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}
    - {{filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}}
    - value: 0.5
dtype: float32
""",
    "gradients and filters of ties": """
models:
  - model: {a}
    parameters: {{density: [1, 0.7, 0.1], weight: [{{filter: mlp, value: 0.5}}, {{value: 0.2}}]}}
  - model: {b}
    parameters: {{density: 0.5, weight: [0.1, 0.3, 0.7, 1]}}
merge_method: ties
base_model: {c}
parameters: {{normalize: false, int8_mask: true, lambda: 0.8}}
dtype: float32
""",
    "stacked layers": """
slices:
  - sources:
      - {{model: {a}, layer_range: [0, 3]}}
  - sources:
      - {{model: {b}, layer_range: [1, 4]}}
merge_method: passthrough
dtype: float16
""",
}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Three small language models as transformers writes them."""
    pytest.importorskip("mergekit.merge", reason="mergekit is not installed (extra `peers`)")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2
    )
    folder, paths = tmp_path_factory.mktemp("llamas"), {}
    with torch.random.fork_rng():
        for seed, name in enumerate("abc"):
            torch.manual_seed(seed)
            transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
            paths[name] = folder / name
    return paths


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_give_what_mergekit_gives(name, llamas, tmp_path):
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    text = RECIPES[name].format(**llamas)
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"), options=options
    )
    (tmp_path / "recipe.yaml").write_text(text)
    ours = open_checkpoint(merge_to_disk(read_recipe(tmp_path / "recipe.yaml"), tmp_path / "ours"))
    theirs = open_checkpoint(tmp_path / "theirs")
    assert ours.tensors == theirs.tensors
    for tensor in ours.tensors:
        torch.testing.assert_close(ours.read(tensor), theirs.read(tensor), rtol=1e-5, atol=1e-6)
