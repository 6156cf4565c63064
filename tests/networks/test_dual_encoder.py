"""Dual encoders of other libraries, tried on tiny models with random weights."""

import builtins
import types

import pytest
import torch
from torch import nn

from unseen.errors import InputError, MissingExtra
from unseen.networks.backbones import ImageInput
from unseen.networks.dual_encoder import (
    DualEncoder,
    OpenClipDualEncoder,
    TransformersDualEncoder,
    dual_encoder,
)

transformers = pytest.importorskip("transformers")
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 16}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": 64, "max_position_embeddings": 7}


class Tokenizer:
    """Letters as tokens between 1 and 63, by the rules of transformers' tokenizers."""

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        assert truncation and return_tensors == "pt"
        rows = [[*(1 + ord(letter) % 62 for letter in text[: max_length - 1]), 63] for text in texts]
        length = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.fixture
def clip():
    torch.manual_seed(0)
    text = {**TEXT, "eos_token_id": 63, "bos_token_id": 62, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    return transformers.CLIPModel(config)


def test_clip_gives_its_own_embeddings_and_logits(clip):
    encoder = TransformersDualEncoder(clip, Tokenizer())
    assert isinstance(encoder, DualEncoder) and not clip.training
    pixels, texts = torch.randn(3, 3, 32, 32), ["cat", "a long text that is cut"]
    tokens = Tokenizer()(texts, padding="longest", truncation=True, max_length=7, return_tensors="pt")
    with torch.no_grad():
        expected = clip(pixel_values=pixels, **tokens).logits_per_image
        image, text = encoder.encode_image(pixels), encoder.encode_text(texts)
    assert image.shape == (3, 8) and text.shape == (2, 8)
    cosine = nn.functional.normalize(image, dim=1) @ nn.functional.normalize(text, dim=1).T
    assert torch.allclose(encoder.logit_scale * cosine, expected, atol=1e-4)


def test_images_of_any_size_enter_by_the_rule(clip):
    rule = ImageInput(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images = torch.randint(0, 256, (2, 3, 40, 24), dtype=torch.uint8)
    found = TransformersDualEncoder(clip, Tokenizer(), rule).encode_image(images)
    assert torch.equal(found, TransformersDualEncoder(clip, Tokenizer()).encode_image(rule.prepare(images)))


def test_siglip_reads_texts_padded_to_its_length():
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    model = transformers.SiglipModel(config)
    encoder = TransformersDualEncoder(model, Tokenizer())
    assert encoder.padding == "max_length"
    tokens = Tokenizer()(["cat"], padding="max_length", truncation=True, max_length=7, return_tensors="pt")
    with torch.no_grad():
        expected = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        assert torch.allclose(encoder.encode_text(["cat"]), expected.pooler_output, atol=1e-5)
        assert encoder.encode_image(torch.randn(1, 3, 32, 32)).shape == encoder.encode_text(["cat"]).shape


def test_open_clip_models_get_tokens():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit_scale = nn.Parameter(torch.tensor(3.0))

        def encode_image(self, images):
            return images.mean((2, 3))

        def encode_text(self, tokens):
            return tokens.float()

    encoder = OpenClipDualEncoder(Model(), lambda texts: torch.tensor([[len(t), 1, 2] for t in texts]))
    assert isinstance(encoder, DualEncoder)
    assert encoder.logit_scale == pytest.approx(torch.tensor(3.0).exp().item())
    assert encoder.encode_text(("cat", "horse")).tolist() == [[3, 1, 2], [5, 1, 2]]
    assert encoder.encode_image(torch.ones(2, 3, 4, 4)).shape == (2, 3)


def test_a_folder_is_a_name(clip, tmp_path, monkeypatch):
    clip.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "image_processor_type": "CLIPImageProcessor"}'
    )
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Tokenizer())
    encoder = dual_encoder(f"transformers:{tmp_path}")
    assert encoder.images == ImageInput(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    images = torch.rand(2, 3, 32, 32)
    rule = ImageInput(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    same = TransformersDualEncoder(clip, Tokenizer(), rule)
    assert torch.allclose(encoder.encode_image(images), same.encode_image(images), atol=1e-6)


def test_names_that_are_none(tmp_path):
    for name in ("clip", "timm:vit", "open_clip:ViT-B-32"):
        with pytest.raises(InputError, match="open_clip:ARCHITECTURE/PRETRAINED"):
            dual_encoder(name)
    with pytest.raises(InputError, match="cannot be loaded"):
        dual_encoder(f"transformers:{tmp_path}")
    with pytest.raises(InputError, match="get_image_features"):
        TransformersDualEncoder(types.SimpleNamespace(), Tokenizer())


def test_open_clip_may_be_missing(monkeypatch):
    plain = builtins.__import__

    def without(name, *rest, **options):
        if name == "open_clip":
            raise ImportError
        return plain(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match="unseen\\[open-clip\\]"):
        dual_encoder("open_clip:ViT-B-32/openai")
