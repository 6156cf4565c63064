import pytest
import torch

from unseen.errors import InputError
from unseen.merging import Recipe, merge, open_checkpoint, read_recipe
from unseen.merging.plan import layer_pattern, plan
from unseen.merging.recipe import evaluate, parse_recipe
from unseen.registry import merging


@pytest.fixture
def models(make_state, write_model, tmp_path):
    states = {name: make_state(seed) for seed, name in enumerate("abc")}
    return states, {name: write_model(tmp_path / name, state) for name, state in states.items()}


def merged(recipe):
    return {
        job.name: torch.cat([s.reshape(-1) for s in job.run(0)]).reshape(job.info.shape)
        for job in plan(recipe).jobs
    }


@pytest.mark.parametrize("method", [n for n in merging.names() if n not in ("passthrough", "fisher")])
def test_a_recipe_is_the_merge_in_memory(method, models):
    states, paths = models
    names = "ab" if method in ("slerp", "nearswap", "arcee_fusion", "wise_ft", "nuslerp") else "abc"
    base = None
    if method not in ("slerp", "nearswap", "arcee_fusion", "wise_ft", "nuslerp", "linear", "uniform_soup",
                      "karcher", "multislerp"):  # fmt: skip
        names, base = "ab", "c"
    options = {"density": 0.5} if method.startswith(("dare", "della", "ties", "breadcrumbs")) else {}
    recipe = Recipe.of([paths[n] for n in names], method, base=paths.get(base), **options)
    expected = merge([states[n] for n in names], method, base=states.get(base), **options)
    found = merged(recipe)
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_mergekits_yaml_is_read_as_it_is(models, tmp_path):
    states, paths = models
    (tmp_path / "r.yaml").write_text(f"""
models:
  - model: {paths["a"]}
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model:
      model: {{path: {paths["b"]}}}
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0.25
merge_method: ties
base_model: {paths["c"]}
parameters:
  normalize: false
  int8_mask: true
  lambda: 0.7
dtype: float16
tokenizer_source: base
""")
    found = merged(read_recipe(tmp_path / "r.yaml"))
    for name, density, weight in (
        ("model.layers.0.mlp.weight", 1, 0.5),
        ("model.layers.1.self_attn.weight", 1 + (2 / 3) * (0.7 - 1), 0.25),
        ("model.layers.3.mlp.weight", 0.1, 0.5),
        ("lm_head.weight", 1, 0.25),
    ):
        expected = merge(
            [{name: states[n][name]} for n in "ab"], "ties", base={name: states["c"][name]}, dtype=torch.float16,
            density=[density, 0.33], weight=[1.0, weight], normalize=False, scaling=0.7,
        )  # fmt: skip
        assert torch.equal(found[name], expected[name]), name


def test_a_base_among_the_models_is_taken_out(models):
    states, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "slerp", base=paths["b"], t=0.25)
    expected = merge([states["b"], states["a"]], "slerp", t=0.25)
    assert torch.equal(merged(recipe)["lm_head.weight"], expected["lm_head.weight"])


def test_layers_are_stacked_and_numbered_anew(models):
    states, paths = models
    recipe = parse_recipe(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": str(paths["a"]), "layer_range": [0, 3]}]},
                {
                    "sources": [
                        {
                            "model": str(paths["b"]),
                            "layer_range": [1, 4],
                            "parameters": {"scale": [{"filter": "mlp", "value": 0.5}, {"value": 1.0}]},
                        }
                    ]
                },
            ],
        }
    )
    made = plan(recipe)
    found = merged(recipe)
    assert made.layers == 6 and len(found) == 2 * 6 + 4
    assert torch.equal(found["model.layers.2.mlp.weight"], states["a"]["model.layers.2.mlp.weight"])
    assert torch.equal(found["model.layers.3.mlp.weight"], 0.5 * states["b"]["model.layers.1.mlp.weight"])
    assert torch.equal(
        found["model.layers.5.self_attn.weight"], states["b"]["model.layers.3.self_attn.weight"]
    )
    assert torch.equal(found["model.embed_tokens.weight"], states["a"]["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], states["b"]["lm_head.weight"])


def test_slices_merge_layers_of_several_models(models):
    states, paths = models
    recipe = parse_recipe(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": str(paths["a"]), "layer_range": [0, 2], "parameters": {"weight": 1}},
                        {"model": str(paths["a"]), "layer_range": [2, 4], "parameters": {"weight": [0, 3]}},
                    ]
                }
            ],
        }
    )
    found = merged(recipe)
    layers = [states["a"][f"model.layers.{i}.mlp.weight"] for i in range(4)]
    torch.testing.assert_close(found["model.layers.0.mlp.weight"], layers[0])
    torch.testing.assert_close(found["model.layers.1.mlp.weight"], 0.25 * layers[1] + 0.75 * layers[3])


def test_settings_are_numbers_gradients_and_filters():
    assert evaluate(0.3, "x", 0.5) == 0.3
    assert [evaluate([0, 1, 4], "x", p) for p in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 2.5, 4]
    assert evaluate([0.7], "x", 1.0) == 0.7
    assert evaluate([True, False], "x", 1.0) is False
    filters = [{"filter": "mlp", "value": [0, 2]}, {"filter": "*", "value": 9}]
    assert evaluate(filters, "layers.0.mlp.w", 0.5) == 1 and evaluate(filters, "norm", 0.5) == 9
    assert evaluate(filters[:1], "norm", 0.5) is None


def test_the_stack_with_the_most_layers_counts():
    names = dict.fromkeys(["stem.0.w", "h.0.a.1.w", "h.1.a.1.w", "h.2.b.w", "norm.w"])
    pattern = layer_pattern(names)
    assert [bool(pattern.match(name)) for name in names] == [False, True, True, True, False]
    assert pattern.match("h.12.a.1.w").groups() == ("h.", "12", ".a.1.w")
    assert layer_pattern({"weight": None}) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"modules": {}}, "key 'modules' of recipe.*is not supported.*'models'"),
        ({"merge_metod": "x"}, "key 'merge_metod'.*'merge_method'"),
        ({"chat_template": "auto"}, "key 'chat_template'"),
        ({"merge_method": "tis"}, "Did you mean 'ties'"),
        ({"parameters": {"densty": 1}}, "Did you mean 'density'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"slices": []}, "either models or slices"),
        ({"models": []}, "list with entries"),
        ({"models": [{"parameters": {}}]}, "lacks model"),
        ({"models": [{"model": "a", "layer_range": [0, 1]}]}, "layer_range"),
        ({"models": [{"model": "a+lora"}]}, "LoRA"),
        ({"models": [{"model": "a", "weight": 1}]}, "key 'weight' of model"),
        ({"tokenizer_source": "union"}, "union"),
        ({"parameters": {"weight": [{"filter": "mlp"}]}}, "lacks value"),
        ({"merge_method": None}, "is not known"),
    ],
)
def test_what_a_recipe_may_not_hold_is_named(change, message):
    recipe = {"merge_method": "ties", "models": [{"model": "a"}, {"model": "b"}], "base_model": "c"}
    with pytest.raises(InputError, match=message):
        parse_recipe({**recipe, **change})


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("models: [")
    with pytest.raises(InputError, match="is not YAML"):
        read_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("just text")
    with pytest.raises(InputError, match="recipe: is 'just text'"):
        read_recipe(tmp_path / "r.yaml")


def test_plans_refuse_what_does_not_fit(models):
    _, paths = models
    stack = [{"sources": [{"model": str(paths["a"]), "layer_range": [2, 9]}]}]
    with pytest.raises(InputError, match="exceeds the 4 layers"):
        plan(parse_recipe({"merge_method": "passthrough", "slices": stack}))
    with pytest.raises(InputError, match="not used by method 'linear'"):
        plan(Recipe.of([paths["a"], paths["b"]], "linear", base=paths["c"]))
    with pytest.raises(InputError, match="'weight': is 'much'"):
        plan(Recipe.of([paths["a"], paths["b"]], "linear", weight=["much", 1]))
    with pytest.raises(InputError, match="2 values for 3 models"):
        Recipe.of([*paths.values()], "linear", weight=[1, 2])


def test_fisher_diagonals_are_named_in_the_recipe(models, tmp_path):
    states, paths = models
    ones = [{n: torch.full_like(v, 1.0 + 2 * i) for n, v in states["a"].items()} for i in range(2)]
    for index, each in enumerate(ones):
        from safetensors.torch import save_file

        save_file(each, tmp_path / f"f{index}.safetensors")
    files = [tmp_path / f"f{index}.safetensors" for index in range(2)]
    found = merged(Recipe.of([paths["a"], paths["b"]], "fisher", fisher=files))
    expected = merge([states["a"], states["b"]], "fisher", fisher=ones)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    with pytest.raises(InputError, match="0 Fisher diagonals"):
        plan(Recipe.of([paths["a"], paths["b"]], "fisher"))
    assert open_checkpoint(files[0]).tensors
