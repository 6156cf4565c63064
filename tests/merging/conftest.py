import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


@pytest.fixture
def make_state() -> Callable[..., State]:
    """A small language model's tensors: four numbered layers, an embedding, a norm, a head, a counter."""

    def make(seed: int, dtype: torch.dtype = torch.float32, layers: int = 4) -> State:
        g = torch.Generator().manual_seed(seed)
        state = {"model.embed_tokens.weight": torch.randn(10, 4, generator=g)}
        for index in range(layers):
            for part in ("mlp", "self_attn"):
                state[f"model.layers.{index}.{part}.weight"] = torch.randn(4, 6, generator=g)
        state |= {
            "model.norm.weight": torch.rand(4, generator=g),
            "lm_head.weight": torch.randn(10, 4, generator=g),
        }
        return {name: value.to(dtype) for name, value in state.items()} | {"steps": torch.tensor(seed)}

    return make


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """A folder as transformers writes it, in one file or sharded."""

    def write(
        folder: Path, state: State, *, shards: int = 1, config: dict | None = None, **files: str
    ) -> Path:
        folder.mkdir(parents=True)
        names = list(state)
        if shards == 1:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            where = {}
            for index in range(shards):
                file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
                part = {name: state[name] for name in names[index::shards]}
                save_file(part, folder / file, metadata={"format": "pt"})
                where |= dict.fromkeys(part, file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 4, **(config or {})}))
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder

    return write
