"""Updates on disk: their own file, and adapter folders exchanged with peft."""

import copy
import json

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks.low_rank import inject_low_rank, low_rank_parameters, low_rank_updates, merge_low_rank
from unseen.networks.low_rank_files import load_low_rank, load_peft, save_low_rank, save_peft


class Body(nn.Module):
    """A fused and a plain linear layer and a convolution."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.conv = nn.Linear(8, 24), nn.Linear(8, 8), nn.Conv2d(1, 4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        mixed = self.out(torch.softmax(q @ k.mT, -1) @ v)
        return self.conv(mixed.unsqueeze(1)).sum(1)


TARGETS = ("q", "v", "out", "conv")


@pytest.fixture
def x(generator):
    return torch.randn(2, 5, 8, generator=generator)


@pytest.fixture
def body():
    torch.manual_seed(0)
    return Body()


def filled(model):
    for parameter in low_rank_parameters(model):
        parameter.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    return model


def test_own_file_goes_round(body, x, tmp_path):
    model = filled(inject_low_rank(copy.deepcopy(body), TARGETS, rank=2, groups=3, alpha=5.0))
    path = save_low_rank(model, tmp_path / "updates.safetensors")
    loaded = load_low_rank(body, path)
    assert torch.equal(loaded(x), model(x))
    assert [p.name for p in tmp_path.iterdir()] == ["updates.safetensors"]
    assert not loaded.out.bias.requires_grad
    with pytest.raises(InputError, match="already"):
        load_low_rank(body, path)


def test_own_file_errors(body, tmp_path):
    with pytest.raises(InputError, match="no low-rank updates to save"):
        save_low_rank(body, tmp_path / "x")
    with pytest.raises(InputError, match="holds no low-rank updates"):
        load_low_rank(body, tmp_path / "absent")
    path = save_low_rank(inject_low_rank(body, TARGETS, rank=2), tmp_path / "x")
    with pytest.raises(InputError, match="which the model lacks"):
        load_low_rank(nn.ModuleDict({"other": nn.Linear(8, 8)}), path)


def test_a_folder_in_pefts_layout_goes_round(body, x, tmp_path):
    """Groups and thirds come back as one update of the whole layer: the same function."""
    model = filled(inject_low_rank(copy.deepcopy(body), ("q", "v", "out"), rank=2, groups=3, alpha=5.0))
    loaded = load_peft(body, save_peft(model, tmp_path / "adapter"))
    torch.testing.assert_close(loaded(x), model(x))
    ranks = {u.name: (u.update.rank, u.update.groups) for u in low_rank_updates(loaded)}
    assert ranks == {"qkv.weight": (12, 1), "out.weight": (6, 1)}


def test_what_peft_cannot_hold_is_refused(body, tmp_path):
    attention = inject_low_rank(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), rank=2)
    with pytest.raises(InputError, match="MultiheadAttention"):
        save_peft(attention, tmp_path / "x")
    folder = save_peft(inject_low_rank(copy.deepcopy(body), ("out",), rank=2), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, words in (
        ({"use_dora": True}, "no plain LoRA"),
        ({"peft_type": "IA3"}, "no plain LoRA"),
        ({"bias": "all"}, "no plain LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=words):
            load_peft(body, folder)
    with pytest.raises(InputError, match="cannot be read"):
        load_peft(body, tmp_path)


class TestWithPeft:
    """What peft computes with a folder of ours, and we with one of its."""

    @pytest.fixture(autouse=True)
    def peft(self):
        return pytest.importorskip("peft", reason="extra `peers` is absent: parity with peft is not checked")

    def test_peft_reads_ours(self, peft, body, x, tmp_path):
        model = filled(inject_low_rank(copy.deepcopy(body), TARGETS, rank=2, groups=3, alpha=5.0))
        theirs = peft.PeftModel.from_pretrained(body, save_peft(model, tmp_path / "adapter"))
        torch.testing.assert_close(theirs(x), model(x))
        torch.testing.assert_close(theirs.merge_and_unload()(x), model(x))

    def test_we_read_pefts(self, peft, body, x, tmp_path):
        config = peft.LoraConfig(
            r=3, lora_alpha=6, target_modules=["qkv", "out", "conv"], use_rslora=True, init_lora_weights=False,
            rank_pattern={"out": 2}, alpha_pattern={"out": 9}, lora_dropout=0.1,
        )  # fmt: skip
        theirs = peft.get_peft_model(copy.deepcopy(body), config).eval()
        theirs.save_pretrained(tmp_path / "adapter")
        ours = load_peft(body, tmp_path / "adapter")
        torch.testing.assert_close(ours(x), theirs(x))
        assert len(low_rank_updates(ours)) == 3
        merge_low_rank(ours)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)

    def test_gpt2_both_ways(self, peft, tmp_path):
        transformers = pytest.importorskip("transformers", reason="extra `language` is absent")
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=6)
        ).eval()
        tokens = torch.arange(6)[None] % 11
        config = peft.LoraConfig(
            r=2, target_modules=["c_attn", "c_fc"], init_lora_weights=False, fan_in_fan_out=True
        )
        theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
        theirs.save_pretrained(tmp_path / "theirs")
        ours = load_peft(copy.deepcopy(model), tmp_path / "theirs")
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits)
        grouped = filled(inject_low_rank(copy.deepcopy(model), ("q", "v"), rank=2, groups=2))
        read = peft.PeftModel.from_pretrained(model, save_peft(grouped, tmp_path / "ours")).eval()
        torch.testing.assert_close(read(tokens).logits, grouped(tokens).logits)

    def test_an_equal_start_trains_equally(self, peft, body, x, tmp_path):
        """Ten steps of Adam on peft's own modules and on parametrized weights."""
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["out"])
        theirs = peft.get_peft_model(copy.deepcopy(body), config)
        theirs.save_pretrained(tmp_path / "start")
        ours = load_peft(copy.deepcopy(body), tmp_path / "start")
        for model in (theirs, ours):
            trained = [p for p in model.parameters() if p.requires_grad]
            assert len(trained) == 2
            optimizer = torch.optim.Adam(trained, lr=0.01)
            for _ in range(10):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        assert not torch.allclose(ours(x), body(x))
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
