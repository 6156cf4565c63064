"""Outputs of modules by name."""

import pytest
import torch
from torch import nn

from unseen.distillation.named_outputs import layer_names, logits_of, named_outputs
from unseen.errors import InputError
from unseen.sequences.language_model import DecoderLM


def decoder(**options):
    return DecoderLM(16, width=8, layers=3, heads=2, window=8, seed=1, **options)


def test_outputs_are_what_the_modules_return_in_the_order_asked_for():
    model, ids = decoder(), torch.arange(6)[None]
    with named_outputs(model, ["blocks.2", "blocks.0", "embedding"]) as hidden:
        logits = model(ids)
    assert list(hidden) == ["blocks.2", "blocks.0", "embedding"]
    torch.testing.assert_close(model.head(model.norm(hidden["blocks.2"])), logits)
    torch.testing.assert_close(hidden["embedding"], model.embedding(ids))


def test_a_pattern_names_one_level_in_the_order_of_definition():
    model = decoder()
    with named_outputs(model, "blocks.*") as hidden:
        model(torch.arange(6)[None])
    assert list(hidden) == ["blocks.0", "blocks.1", "blocks.2"]


def test_gradients_flow_and_hooks_go():
    model = decoder()
    with named_outputs(model, "blocks.*") as hidden:
        model(torch.arange(6)[None])
    hidden["blocks.1"].sum().backward()
    assert model.blocks[0].feedforward[0].weight.grad is not None
    assert model.blocks[2].feedforward[0].weight.grad is None
    with pytest.raises(RuntimeError, match="stop"), named_outputs(model, "blocks.*"):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


def test_the_first_tensor_of_a_tuple_counts():
    lstm = nn.ModuleDict({"lstm": nn.LSTM(3, 4, batch_first=True)})
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    with named_outputs(lstm, "lstm") as hidden:
        states, _ = lstm["lstm"](x)
    assert torch.equal(hidden["lstm"], states)


def test_layers_of_transformers_are_found():
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    config = transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=3, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    names = layer_names(model)
    assert names == ("transformer.h.0", "transformer.h.1", "transformer.h.2")
    ids = torch.arange(6)[None]
    with named_outputs(model, names) as hidden:
        output = model(ids, output_hidden_states=True)
    for ours, theirs in zip(list(hidden.values())[:-1], output.hidden_states[1:-1], strict=True):
        assert torch.equal(ours, theirs)
    # transformers normalises what it calls the last hidden state
    assert torch.equal(model.transformer.ln_f(hidden["transformer.h.2"]), output.hidden_states[-1])
    assert torch.equal(logits_of(output), output.logits)


def test_layer_names_of_other_networks():
    assert layer_names(decoder()) == ("blocks.0", "blocks.1", "blocks.2")
    assert layer_names(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ("0", "1")
    with pytest.raises(InputError, match="no hidden states are returned"):
        layer_names(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_errors():
    model, ids = decoder(), torch.arange(6)[None]
    with pytest.raises(InputError, match="Did you mean 'blocks.0'"), named_outputs(model, "block.0"):
        pass
    with pytest.raises(InputError, match="the network has not run"), named_outputs(model, "blocks.0"):
        pass
    with pytest.raises(InputError, match="ran twice"), named_outputs(model, "blocks.0"):
        model(ids)
        model(ids)
    wordy = Wordy()
    with pytest.raises(InputError, match="returned no tensor"), named_outputs(wordy, "says"):
        wordy()
    with pytest.raises(InputError, match="is str"):
        logits_of("logits")


class Says(nn.Module):
    def forward(self):
        return "nothing"


class Wordy(nn.Module):
    def __init__(self):
        super().__init__()
        self.says = Says()

    def forward(self):
        return self.says()
