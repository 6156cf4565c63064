import pytest
import torch

from unseen.errors import InputError
from unseen.sequences.extend_context import extend_context
from unseen.sequences.language_model import DecoderLM
from unseen.sequences.passkey import passkey_accuracy, passkey_dataset


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_passkey_hides_one_number_at_its_depth(depth):
    data = passkey_dataset(None, 600, depth, 4, seed=1)
    assert data.tokens.shape == (4, 600) and len(set(data.keys)) == 4
    for row, key, (begin, end) in zip(data.tokens, data.keys, data.spans.tolist(), strict=True):
        text = data.decode(row)
        assert len(key) == 5 and text.count(key) == 2 and text.endswith("The pass key is ")
        assert data.decode(row[begin:end]) == f"The pass key is {key}. Remember it. {key} is the pass key. "
    starts = {d: int(passkey_dataset(None, 600, d, 1).spans[0, 0]) for d in (0.0, 0.5, 1.0)}
    assert starts[0.0] < starts[0.5] < starts[1.0]
    assert passkey_dataset(None, 600, depth, 4, seed=1).keys == data.keys
    for bad, message in ((dict(length=50), "length"), (dict(depth=2), "depth"), (dict(n=0), "n, digits")):
        with pytest.raises(InputError, match=message):
            passkey_dataset(**{**dict(tokenizer=None, length=600, depth=0.5, n=1), **bad})


def test_passkey_accuracy_counts_right_continuations():
    data = passkey_dataset(None, 300, 0.5, 3)

    class Oracle(DecoderLM):
        """Knows the number of the first two prompts."""

        def generate(self, prompt, new_tokens):
            known = {
                bytes(row.tolist()): key for row, key in zip(data.tokens[:2], data.keys[:2], strict=True)
            }
            answer = known.get(bytes(prompt[0].tolist()), "?????") + "." * (new_tokens - 5)
            return torch.cat([prompt, torch.tensor([list(answer.encode())])], dim=1)

    assert passkey_accuracy(Oracle(), data) == pytest.approx(2 / 3)
    with extend_context(DecoderLM(width=16, layers=1, heads=2)) as model:
        assert passkey_accuracy(model, data) == 0.0
