import pytest
import torch
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder, OpenClipDualEncoder, TransformersDualEncoder
from unseen.papers.tiny_world import ImageEncoder, TextEncoder, TinyClip
from unseen.papers.word_clip import LONGEST, WordClip, WordTransformer
from unseen.prompts import LearntPrompts, PromptableEncoder, promptable
from unseen.prompts.text import encode_prompts, initial_context

TEXTS = ["red dog", "cat"]
WORDS = ("a", "photo", "of", "red", "dog", "cat")


class Tokenizer:
    """Start 38, words 1 to 37, end 39, which is the padding too, as in CLIP."""

    def __call__(self, texts, padding, max_length, truncation, return_tensors, return_attention_mask=False):
        start = [38] if padding == "longest" else []
        rows = [[*start, *(sum(map(ord, w)) % 37 + 1 for w in t.split()), 39] for t in texts]
        length = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [39] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return {
            "input_ids": ids,
            **({"attention_mask": mask} if padding == "longest" or return_attention_mask else {}),
        }


def transformers_model(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**sizes, "vocab_size": 40, "max_position_embeddings": 12, "eos_token_id": 39, "bos_token_id": 38}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config={**text, "pad_token_id": 39}, vision_config=vision, projection_dim=8
        )
        return transformers.CLIPModel(config).eval()
    config = transformers.SiglipConfig(
        text_config={**text, "projection_size": 16, "pad_token_id": 39}, vision_config=vision
    )
    return transformers.SiglipModel(config).eval()


class OpenClip(torch.nn.Module):
    """A text tower with open_clip's names: pooled at the largest token, padded with zero."""

    def __init__(self):
        super().__init__()
        self.token_embedding = torch.nn.Embedding(40, 16)
        self.positional_embedding = torch.nn.Parameter(torch.randn(12, 16))
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))

    def encode_text(self, ids):
        hidden = self.token_embedding(ids) + self.positional_embedding
        mask = torch.nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        hidden = self.layer(hidden, src_mask=mask)
        return hidden[torch.arange(len(ids)), ids.argmax(1)]

    def encode_image(self, images):
        return images.flatten(1)


def open_clip_tokens(texts):
    rows = [[38, *(sum(map(ord, w)) % 37 + 1 for w in t.split()), 39] for t in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


def encoder(kind):
    torch.manual_seed(0)
    if kind == "word":
        return WordClip(torch.nn.Flatten(), WordTransformer(WORDS, width=16, size=8), 10.0).eval()
    if kind == "open_clip":
        return promptable(OpenClipDualEncoder(OpenClip(), open_clip_tokens))
    return promptable(TransformersDualEncoder(transformers_model(kind), Tokenizer()))


KINDS = ("word", "clip", "siglip", "open_clip")


@pytest.mark.parametrize("kind", KINDS)
class TestEncoders:
    def test_embedded_tokens_encode_as_the_texts_do(self, kind):
        clip = encoder(kind)
        assert isinstance(clip, PromptableEncoder)
        with torch.no_grad():
            tokens = clip.embed_tokens(TEXTS)
            torch.testing.assert_close(clip.encode_embeddings(tokens), clip.encode_text(TEXTS))

    def test_a_context_of_words_equals_the_sentence(self, kind):
        clip = encoder(kind)
        context = initial_context(clip, "a photo of a", generator=torch.Generator())
        assert context.shape == (4, 16)
        with torch.no_grad():
            sentence = normalize(clip.encode_text([f"a photo of a {t}" for t in TEXTS]), dim=1)
            found = encode_prompts(clip, clip.embed_tokens(TEXTS), context)
        torch.testing.assert_close(found, sentence, rtol=1e-4, atol=1e-5)

    def test_gradients_reach_the_context_and_no_hook_is_left(self, kind):
        clip = encoder(kind)
        prompts = LearntPrompts(clip, 3)
        tokens = clip.embed_tokens(TEXTS)
        before = clip.encode_text(TEXTS).detach()
        prompts(tokens)[0, 0].backward(inputs=[prompts.context])
        assert prompts.context.grad.abs().sum() > 0
        torch.testing.assert_close(clip.encode_text(TEXTS).detach(), before)

    def test_chunks_give_the_same_features_and_gradients(self, kind):
        clip = encoder(kind)
        context = initial_context(clip, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
        tokens = clip.embed_tokens(["red dog", "cat", "dog", "red cat", "a dog"])
        weights = torch.randn(encode_prompts(clip, tokens, context).shape)
        found = []
        for chunk in (None, 2):
            features = encode_prompts(clip, tokens, context, chunk=chunk)
            found.append((features.detach(), *torch.autograd.grad((features * weights).sum(), context)))
        for whole, parts in zip(*found, strict=True):
            torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(encode_prompts(clip, tokens, context, chunk=2), found[0][0])

    def test_too_many_vectors_are_told(self, kind):
        clip = encoder(kind)
        context = torch.zeros(LONGEST, 16)
        with pytest.raises(InputError, match="fewer context vectors"):
            encode_prompts(clip, clip.embed_tokens(TEXTS), context)


def test_tiny_clip_is_promptable():
    torch.manual_seed(0)
    clip = TinyClip(ImageEncoder(8, 16), TextEncoder(16), 10.0).eval()
    assert promptable(clip) is clip
    tokens = clip.embed_tokens(["disk 3", "ring"])
    torch.testing.assert_close(clip.encode_embeddings(tokens), clip.encode_text(["disk 3", "ring"]))
    prompts = LearntPrompts(clip, 2)
    prompts(tokens).sum().backward(inputs=[prompts.context])
    assert prompts.context.grad.abs().sum() > 0


def test_the_encoder_is_no_part_of_the_prompts():
    prompts = LearntPrompts(encoder("word"), "a photo of a")
    assert list(prompts.state_dict()) == ["context"]


def test_an_encoder_without_token_embeddings_is_refused():
    class Plain:
        logit_scale = 1.0

        def encode_image(self, images):
            return images

        def encode_text(self, texts):
            return torch.zeros(len(texts), 2)

    assert isinstance(Plain(), DualEncoder)
    with pytest.raises(InputError, match="takes no token embeddings"):
        promptable(Plain())


def test_contexts_start_from_words_or_draws():
    clip = encoder("word")
    first, again, other = (LearntPrompts(clip, 4, seed=s).context for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.std() < 0.05
    for context in ("  ", 0):
        with pytest.raises(InputError, match="context"):
            LearntPrompts(clip, context)
