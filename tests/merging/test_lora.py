import json

import pytest
import torch
from safetensors.torch import load_file

from unseen.errors import InputError
from unseen.merging import extract_lora, low_rank


def test_the_factors_are_the_nearest_of_their_rank(generator):
    delta = torch.randn(7, 5, generator=generator)
    values = torch.linalg.svdvals(delta)
    for rank in (1, 3, 5, 9):
        a, b = low_rank(delta, rank)
        assert a.shape[0] == b.shape[1] == min(rank, 5)
        rest = values[rank:].square().sum().sqrt()
        torch.testing.assert_close((delta - b @ a).norm(), rest, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_low_rank_is_found_exactly(make_state, write_model, tmp_path, generator):
    base = make_state(1)
    tuned = {name: value.clone() for name, value in base.items()}
    name = "model.layers.1.mlp.weight"
    tuned[name] += torch.randn(4, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    tuned["model.norm.weight"] += 1
    kept = extract_lora(write_model(tmp_path / "a", base), tuned, tmp_path / "lora", rank=3)
    assert kept == {name: pytest.approx(1.0, abs=1e-5)}
    found = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    module = "base_model.model.model.layers.1.mlp"
    update = found[f"{module}.lora_B.weight"] @ found[f"{module}.lora_A.weight"]
    torch.testing.assert_close(base[name] + update, tuned[name], rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3 and config["target_modules"] == ["model.layers.1.mlp"]


def test_peft_loads_the_adapter(make_state, tmp_path, generator):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `peers`)")
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base, tuned = (
            nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 2, bias=False)) for _ in range(2)
        )
    extract_lora(base.state_dict(), tuned.state_dict(), tmp_path / "lora", rank=6)
    x = torch.randn(3, 5, generator=generator)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    torch.testing.assert_close(model(x), tuned(x), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused(make_state, tmp_path):
    with pytest.raises(InputError, match="3 dimensions"):
        low_rank(torch.zeros(2, 2, 2), 1)
    with pytest.raises(InputError, match="rank: is 0"):
        low_rank(torch.zeros(2, 2), 0)
    with pytest.raises(InputError, match="differs from the base in no matrix"):
        extract_lora(make_state(1), make_state(1), tmp_path / "lora")
    (tmp_path / "lora").mkdir()
    with pytest.raises(InputError, match="exists"):
        extract_lora(make_state(1), make_state(2), tmp_path / "lora")
