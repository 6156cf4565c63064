import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unseen.errors import InputError
from unseen.merging import merge, open_checkpoint


@pytest.mark.parametrize("shards", [1, 3])
def test_folders_and_files_read_as_safetensors_reads_them(shards, make_state, write_model, tmp_path):
    state = make_state(1, torch.bfloat16) | {"flag": torch.tensor([True, False]), "none": torch.zeros(0, 2)}
    folder = write_model(tmp_path / "m", state, shards=shards)
    found = open_checkpoint(folder)
    assert set(found.tensors) == set(state)
    for name, value in state.items():
        assert torch.equal(found.read(name), value) and found.read(name).dtype == value.dtype
    flat = state["lm_head.weight"].reshape(-1)
    assert torch.equal(found.read_range("lm_head.weight", 3, 11), flat[3:11])
    if shards == 1:
        again = load_file(folder / "model.safetensors")
        assert all(torch.equal(found.read(name), value) for name, value in again.items())


def test_a_missing_shard_is_named(make_state, write_model, tmp_path):
    folder = write_model(tmp_path / "m", make_state(1), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors' *: is missing"):
        open_checkpoint(folder)


def test_a_truncated_shard_is_named(make_state, write_model, tmp_path):
    folder = write_model(tmp_path / "m", make_state(1), shards=3)
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors.*is truncated: tensor"):
        open_checkpoint(folder)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        open_checkpoint(folder)


def test_a_shard_without_its_tensor_is_named(make_state, write_model, tmp_path):
    folder = write_model(tmp_path / "m", make_state(1), shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["extra"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="lacks tensor 'extra'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "last.ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(name, tmp_path):
    opened = []

    class Trap:
        def __reduce__(self):
            return opened.append, (1,)

    torch.save({"x": torch.zeros(2), "trap": Trap()}, tmp_path / name)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match="pickled.*weights_only=True"):
            open_checkpoint(source)
    assert not opened


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist.*not downloaded"):
        open_checkpoint("meta/llama")
    with pytest.raises(InputError, match="holds no .safetensors file"):
        open_checkpoint(tmp_path)
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="2 .safetensors files and no index"):
        open_checkpoint(tmp_path)


def test_a_tied_head_that_is_not_stored_is_explained(make_state, write_model, tmp_path):
    full, tied = make_state(1), make_state(2)
    del tied["lm_head.weight"]
    a = write_model(tmp_path / "a", full)
    b = write_model(tmp_path / "b", tied, config={"tie_word_embeddings": True})
    with pytest.raises(InputError, match="ties the output head to the embedding"):
        merge([a, b], "linear")


def test_files_and_states_mix(make_state, write_model, tmp_path):
    a, b = make_state(1), make_state(2)
    mixed = merge([write_model(tmp_path / "a", a), b], "linear")
    plain = merge([a, b], "linear")
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)
