import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from unseen.merging import merge


@pytest.fixture
def models(make_state, write_model, tmp_path):
    states = [make_state(seed) for seed in range(3)]
    return states, [write_model(tmp_path / f"m{seed}", state) for seed, state in enumerate(states)]


def test_two_models_and_a_method(models, command, tmp_path):
    (a, b, _), paths = models
    said = command("merge", *paths[:2], "--method", "slerp", "-t", 0.4, "-o", tmp_path / "out")
    assert said.code == 0 and "merged" in said.out
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = merge([a, b], "slerp", t=0.4)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_base_weights_and_options(models, command, tmp_path):
    (base, a, b), paths = models
    out = tmp_path / "out.safetensors"
    said = command(
        "merge", *paths[1:], "--method", "ties", "--base", paths[0], "--weights", "0.7,0.3", "--option",
        "density=0.5", "--option", "normalize=false", "--dtype", "bfloat16", "-o", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    expected = merge(
        [a, b], "ties", base=base, weight=[0.7, 0.3], density=0.5, normalize=False, dtype=torch.bfloat16
    )
    assert all(torch.equal(value, expected[name]) for name, value in load_file(out).items())


def test_a_recipe_and_the_same_command_again(models, command, tmp_path):
    _, paths = models
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"merge_method: linear\nmodels:\n- model: {paths[0]}\n- model: {paths[1]}\n")
    for _ in range(2):
        assert command("merge", recipe, "--shard-size", "1kB", "-o", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    said = command("merge", recipe, "--method", "ties", "-o", tmp_path / "out")
    assert said.code == 2 and "--method: can't be given with a recipe" in said.err
    said = command("merge", recipe, "-t", 0, "-o", tmp_path / "out")
    assert said.code == 2 and said.err.startswith("error: -t: can't be given with a recipe")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "slerp", "-t", 1.5], "outside [0, 1]"),
        (["-t", 0.5], "is not an option of method 'linear'"),
        (["--method", "ties", "--option", "densty=1"], "Did you mean 'density'"),
        (["--option", "normalize"], "has no value"),
        (["--weights", "a,b"], "are not numbers"),
        (["--weights", "1"], "has 1 values for 2 models"),
        (["--shard-size", "many"], "cannot be read"),
        (["--dtype", "int4"], "is not known"),
        (["--extrapolate"], "'extrapolate'"),
        (["--method", "slepr"], "Did you mean 'slerp'"),
    ],
)
def test_what_does_not_fit_is_told_plainly(arguments, message, models, command, tmp_path):
    _, paths = models
    said = command("merge", *paths[:2], *arguments, "-o", tmp_path / "out")
    assert said.code == 2 and message in said.err
    assert not (tmp_path / "out").exists()


def test_extrapolation_by_flag(models, command, tmp_path):
    (a, b, _), paths = models
    out = tmp_path / "out.safetensors"
    said = command("merge", *paths[:2], "--method", "wise_ft", "-t", 1.5, "--extrapolate", "-o", out)
    assert said.code == 0
    torch.testing.assert_close(
        load_file(out)["lm_head.weight"],
        a["lm_head.weight"] + 1.5 * (b["lm_head.weight"] - a["lm_head.weight"]),
    )


def test_the_command_line_does_not_wait_for_torch():
    code = "import sys, unseen.cli, unseen.merging; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_tuned_model_as_a_lora_of_its_base(models, command, tmp_path):
    (base, tuned, _), paths = models
    said = command("merge", paths[1], "--base", paths[0], "--lora", 2, "-o", tmp_path / "adapter")
    assert said.code == 0, said.err
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "matrices of rank 2 keep" in said.out
    names = [key.removesuffix(".lora_A.weight") for key in adapter if key.endswith(".lora_A.weight")]
    assert names
    for name in names:
        weight = name.removeprefix("base_model.model.") + ".weight"
        delta = tuned[weight].float() - base[weight].float()
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        nearest = u[:, :2] * s[:2] @ v[:2]
        torch.testing.assert_close(
            adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"], nearest, atol=1e-5, rtol=1e-4
        )


def test_loras_that_cannot_be(models, command, tmp_path):
    _, paths = models
    out = tmp_path / "adapter"
    for arguments, message in (
        ([paths[1]], "--lora: has no --base"),
        ([paths[1], paths[2], "--base", paths[0]], "--lora: was given 2 models"),
        ([paths[1], "--base", paths[0], "--method", "ties"], "--method: can't be given with --lora"),
        ([paths[0], "--base", paths[0]], "differs from the base in no matrix"),
    ):
        said = command("merge", *arguments, "--lora", 2, "-o", out)
        assert said.code == 2 and message in " ".join(said.err.split()) and not out.exists()
    said = command("merge", paths[1], "--base", paths[0], "--lora", 0, "-o", out)
    assert said.code == 2 and "rank: is 0" in said.err
