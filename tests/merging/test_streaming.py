import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unseen.errors import InputError, UnseenWarning
from unseen.merging import Recipe, merge, merge_to_disk, open_checkpoint
from unseen.merging.checkpoints import SafetensorsCheckpoint
from unseen.merging.recipe import parse_recipe

SHARD = 400  # bytes: several shards


@pytest.fixture
def models(make_state, write_model, tmp_path):
    states = {name: make_state(seed) for seed, name in enumerate("abc")}
    return states, {
        "a": write_model(tmp_path / "a", states["a"]),
        "b": write_model(tmp_path / "b", states["b"], shards=3),
        "c": write_model(tmp_path / "c", states["c"]),
    }


def read(place):
    found = open_checkpoint(place)
    return {name: found.read(name) for name in found.tensors}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_result_is_that_of_memory_in_shards_with_an_index(models, tmp_path):
    states, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "dare_ties", base=paths["c"], density=0.5)
    told = []
    out = merge_to_disk(
        recipe, tmp_path / "out", seed=3, shard_bytes=SHARD, progress=lambda *p: told.append(p)
    )
    expected = merge([states["a"], states["b"]], "dare_ties", base=states["c"], density=0.5, seed=3)
    assert same(read(out), expected)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".safetensors") == [
        "config.json", "merge.json", "model.safetensors.index.json"
    ]  # fmt: skip
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in expected.values()) == told[-1][0]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(out / file)[name], expected[name])
    assert json.loads((out / "merge.json").read_text())["recipe"]["method"] == "dare_ties"


def test_one_file_and_its_type(models, tmp_path):
    states, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "slerp", dtype="bfloat16", t=0.3)
    out = merge_to_disk(recipe, tmp_path / "deep" / "out.safetensors")
    assert same(load_file(out), merge([states["a"], states["b"]], "slerp", t=0.3, dtype=torch.bfloat16))
    assert os.listdir(out.parent) == ["out.safetensors"]


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_stretches_of_long_tensors_are_put_together(method, models, tmp_path, monkeypatch):
    monkeypatch.setattr("unseen.merging.plan.STRETCH", 7)
    states, paths = models
    out = merge_to_disk(Recipe.of([paths["a"], paths["b"]], method), tmp_path / "out")
    expected, found = merge([states["a"], states["b"]], method), read(out)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_nan_is_found_in_the_look_at_all_stretches(models, write_model, tmp_path, monkeypatch):
    monkeypatch.setattr("unseen.merging.plan.STRETCH", 7)
    states, paths = models
    name, value = next((n, v) for n, v in states["b"].items() if v.numel() > 14)
    value.view(-1)[-1] = torch.nan
    broken = write_model(tmp_path / "broken", states["b"])
    with pytest.raises(InputError, match=f"tensor '{name}' of .*has NaN"):
        merge_to_disk(Recipe.of([paths["a"], broken], "slerp"), tmp_path / "out")


class Killed(BaseException):
    pass


def test_a_merge_that_was_killed_goes_on(models, tmp_path, monkeypatch):
    _, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "dare_linear", base=paths["c"], density=0.5)
    whole = merge_to_disk(recipe, tmp_path / "whole", shard_bytes=SHARD)
    out = tmp_path / "out"

    def stop(done, total):
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        merge_to_disk(recipe, out, shard_bytes=SHARD, progress=stop)
    (out / ".model.safetensors.index.json.part").write_text("half")
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert finished and any(path.suffix == ".part" for path in out.iterdir())

    read_names = []
    original = SafetensorsCheckpoint.read_range
    monkeypatch.setattr(
        SafetensorsCheckpoint,
        "read_range",
        lambda self, name, *r: read_names.append(name) or original(self, name, *r),
    )
    merge_to_disk(recipe, out, shard_bytes=SHARD)
    done_names = {n for name in finished for n in load_file(out / name)}
    assert not done_names & set(read_names)
    assert {n: p.stat().st_mtime_ns for n in finished if (p := out / n)} == finished
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }

    read_names.clear()
    merge_to_disk(recipe, out, shard_bytes=SHARD)
    assert not read_names


def test_another_recipe_or_changed_inputs_are_not_mixed_in(models, tmp_path):
    _, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "linear")
    out = merge_to_disk(recipe, tmp_path / "out", shard_bytes=SHARD)
    for other, settings in (
        (Recipe.of([paths["a"], paths["b"]], "linear", weight=[1, 2]), {}),
        (Recipe.of([paths["a"], paths["c"]], "linear"), {}),
        (recipe, {"seed": 1}),
    ):
        with pytest.raises(InputError, match="not of this merge"):
            merge_to_disk(other, out, shard_bytes=SHARD, **settings)
    os.utime(paths["a"] / "model.safetensors", ns=(1, 1))
    with pytest.raises(InputError, match="not of this merge"):
        merge_to_disk(recipe, out, shard_bytes=SHARD)


def test_inputs_that_change_meanwhile_are_noticed(models, tmp_path):
    _, paths = models
    with pytest.raises(InputError, match="changed while"):
        merge_to_disk(
            Recipe.of([paths["a"], paths["b"]], "linear"), tmp_path / "out",
            progress=lambda *_: os.utime(paths["b"] / "model-00001-of-00003.safetensors", ns=(1, 1)),
        )  # fmt: skip
    assert not list((tmp_path / "out").iterdir())


def test_folders_with_other_files_are_left_alone(models, tmp_path):
    _, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "linear")
    for name in ("notes.txt", "config.json"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(InputError, match=f"holds other files .*{name}"):
            merge_to_disk(recipe, out)
        assert (out / name).read_text() == "mine"
    with pytest.raises(InputError, match="not of this merge"):
        merge_to_disk(recipe, paths["c"])
    with pytest.raises(InputError, match="not of this merge"):
        merge_to_disk(recipe, paths["c"] / "model.safetensors")


def test_room_is_checked_before_anything_is_written(models, tmp_path, monkeypatch):
    _, paths = models
    usage = namedtuple("usage", "total used free")(1000, 900, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="GB free, the result needs"):
        merge_to_disk(Recipe.of([paths["a"], paths["b"]], "linear"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_meanwhile_leaves_no_half_file(models, tmp_path, monkeypatch):
    _, paths = models

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unseen.merging.streaming._write", full)
    with pytest.raises(InputError, match="No space left"):
        merge_to_disk(Recipe.of([paths["a"], paths["b"]], "linear"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_nan_leaves_no_shard(models, make_state, write_model, tmp_path):
    _, paths = models
    broken = make_state(7)
    broken["lm_head.weight"][0, 0] = float("nan")
    bad = write_model(tmp_path / "bad", broken)
    with pytest.raises(InputError, match="'lm_head.weight' of .*bad: has NaN"):
        merge_to_disk(Recipe.of([paths["a"], bad], "linear"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_second_merge_into_the_same_folder_is_refused(models, tmp_path):
    _, paths = models
    recipe = Recipe.of([paths["a"], paths["b"]], "linear")
    refused = []

    def start_another(*_):
        with pytest.raises(InputError, match="being written by another"):
            merge_to_disk(recipe, tmp_path / "out")
        refused.append(True)

    merge_to_disk(recipe, tmp_path / "out", progress=start_another)
    assert refused


def test_configuration_and_tokenizer_come_along(make_state, write_model, tmp_path):
    vocabulary = json.dumps({"model": {"vocab": {"a": 0}}, "padding": None})
    padded = json.dumps({"model": {"vocab": {"a": 0}}, "padding": {"length": 3}})
    config = {"layer_types": ["x", "y", "x", "y"], "torch_dtype": "float32"}
    a = write_model(tmp_path / "a", make_state(1), config=config, tokenizer__json=vocabulary, other__txt="?")
    b = write_model(tmp_path / "b", make_state(2), config=config, tokenizer__json=padded)
    recipe = {
        "merge_method": "passthrough",
        "dtype": "float16",
        "tokenizer_source": str(b),
        "slices": [{"sources": [{"model": str(m), "layer_range": r}]} for m, r in ((a, [0, 3]), (b, [1, 4]))],
    }
    out = merge_to_disk(parse_recipe(recipe), tmp_path / "out")
    assert json.loads((out / "config.json").read_text()) == {
        "num_hidden_layers": 6, "layer_types": ["x", "y", "x", "y", "x", "y"], "torch_dtype": "float16"
    }  # fmt: skip
    assert (out / "tokenizer.json").read_text() == padded and not (out / "other.txt").exists()
    recipe["tokenizer_source"] = "elsewhere"
    with pytest.raises(InputError, match="none of the models"):
        merge_to_disk(parse_recipe(recipe), tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_other_tokenizers_are_refused(name, make_state, write_model, tmp_path):
    texts = [json.dumps({"model": {"vocab": {token: 0}}}) for token in "ab"]
    key = name.replace(".", "__")
    a, b = (write_model(tmp_path / str(i), make_state(i), **{key: texts[i]}) for i in range(2))
    with pytest.raises(InputError, match=f"tokenizer of .*differs.*{name}"):
        merge_to_disk(Recipe.of([a, b], "linear"), tmp_path / "out")


def test_another_order_of_classes_is_refused(make_state, write_model, tmp_path):
    a, b, c, d = (
        write_model(tmp_path / str(i), make_state(i), config={"id2label": dict(enumerate(names))})
        for i, names in enumerate((["cat", "dog"], ["dog", "cat"], ["cat", "cow"], ["LABEL_0", "LABEL_1"]))
    )
    with pytest.raises(InputError, match="orders its classes otherwise.*output 0 is 'dog', not 'cat'"):
        merge_to_disk(Recipe.of([a, b], "linear"), tmp_path / "out")
    with pytest.raises(InputError, match="has other classes"):
        merge_to_disk(Recipe.of([a, c], "linear"), tmp_path / "out")
    merge_to_disk(Recipe.of([a, d], "linear"), tmp_path / "out")


def test_a_model_that_says_nothing_hides_no_disagreement(make_state, write_model, tmp_path):
    def model(number, names=None, token=None):
        files = {} if token is None else {"tokenizer__json": json.dumps({"model": {"vocab": {token: 0}}})}
        config = None if names is None else {"id2label": dict(enumerate(names))}
        return write_model(tmp_path / str(number), make_state(number), config=config, **files)

    silent = model(0)
    with pytest.raises(InputError, match="orders its classes otherwise"):
        models = [model(1, ["cat", "dog"]), silent, model(2, ["dog", "cat"])]
        merge_to_disk(Recipe.of(models, "linear"), tmp_path / "out")
    with pytest.raises(InputError, match="tokenizer of .*differs"):
        models = [model(3, token="a"), silent, model(4, token="b")]
        merge_to_disk(Recipe.of(models, "linear"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batch_statistics_that_differ_are_told_once(make_state, write_model, tmp_path, recwarn):
    def model(number, mean):
        statistics = {"norm.running_mean": torch.full((3,), mean), "norm.running_var": torch.ones(3)}
        return write_model(tmp_path / str(number), make_state(number) | statistics)

    a, b, same = model(0, 0.0), model(1, 1.0), model(2, 0.0)
    merge_to_disk(Recipe.of([a, same], "linear"), tmp_path / "same")
    assert not recwarn.list
    with pytest.warns(UnseenWarning, match="batch statistics differ.*estimate them anew") as told:
        merge_to_disk(Recipe.of([a, b], "linear"), tmp_path / "out")
    assert len(told) == 1


def test_numbers_too_large_for_the_type_leave_no_file(make_state, write_model, tmp_path):
    state = make_state(0)
    state["lm_head.weight"] = 1e6 * state["lm_head.weight"]
    path = write_model(tmp_path / "a", state)
    with pytest.raises(InputError, match="'lm_head.weight': has numbers too large for torch.float16"):
        merge_to_disk(Recipe.of([path], "linear", dtype="float16"), tmp_path / "out")
    assert not list(tmp_path.glob("out/*.safetensors"))
    merge_to_disk(Recipe.of([path], "linear", dtype="bfloat16"), tmp_path / "out2")


# Model folders of this library --------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    from unseen.shifts.arrays import from_arrays
    from unseen.training import Learner
    from unseen.training.data import TrainingData
    from unseen.training.fit import train

    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    x = generator.normal(size=(60, 4)).astype("float32") + 2 * labels[:, None]
    split = from_arrays(x, labels, np.repeat([0, 1, 2], 20)).split("2")
    data = TrainingData(split)
    from unseen.training import fit

    folder = tmp_path_factory.mktemp("own")
    learner = Learner(network="mlp(width=4, depth=1)", steps=5)
    assert train(learner, data, seed=0)
    return x, [fit(learner, split, seed=seed).save(folder / str(seed)) for seed in (0, 1)]


def test_own_model_folders_merge_to_one_that_loads(predictors, tmp_path):
    from unseen.training.model_folder import load

    x, folders = predictors
    out = merge_to_disk(Recipe.of(folders, "linear", weight=[0.75, 0.25]), tmp_path / "out")
    merged, a, b = load(out), load(folders[0]), load(folders[1])
    expected = merge([a.network.state_dict(), b.network.state_dict()], "linear", weight=[0.75, 0.25])
    assert all(torch.equal(value, expected[name]) for name, value in merged.network.state_dict().items())
    assert merged.familiarity is None and merged.facts["merge"]["recipe"]["method"] == "linear"
    assert len(merged.predict(x)) == len(x)
    merged.save(out)  # the folder holds nothing that saving would delete
    with pytest.raises(InputError, match="not of this merge"):
        merge_to_disk(Recipe.of(folders, "linear"), out)


def test_own_folders_of_other_classes_or_networks_are_refused(predictors, tmp_path):
    _, folders = predictors

    def changed(name, **entries):
        folder = shutil.copytree(folders[1], tmp_path / name)
        description = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**description, **entries}))
        return Recipe.of([folders[0], folder], "linear")

    with pytest.raises(InputError, match="orders its classes otherwise"):
        merge_to_disk(changed("order", classes=["1", "0"]), tmp_path / "out")
    with pytest.raises(InputError, match="is another network"):
        merge_to_disk(changed("network", network={"name": "linear", "parameters": {}}), tmp_path / "out")
    with pytest.warns(UnseenWarning, match="prepare their inputs otherwise"):
        merge_to_disk(changed("inputs", preprocessing={"kind": "other"}), tmp_path / "out")
