import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.multimodal import SubsetAttention

SHAPES = {"text": (5,), "audio": (3, 4), "video": (2, 6)}


def examples(count=7):
    generator = torch.Generator().manual_seed(0)
    return {
        "text": torch.randint(20, (count, 5), generator=generator),
        "audio": torch.randn(count, 3, 4, generator=generator),
        "video": torch.randn(count, 2, 6, generator=generator),
    }


def build(options="", classes=3, shapes=SHAPES):
    torch.manual_seed(0)
    return build_network(f"multimodal(vocabulary=20, width=8{options})", shapes, classes)


class TestSubsetAttention:
    def slow(self, layer, h):
        """One softmax for each modality and set that contains it, as the paper says it."""
        batch, width = len(h), h.shape[-1]
        q, k, v = (
            part.view(batch, -1, layer.heads, width // layer.heads).transpose(1, 2)
            for part in layer.queries_keys_values(h).chunk(3, -1)
        )
        places = torch.arange(h.shape[1]).split(layer.lengths)
        sets = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
        results = []
        for modality, rows in enumerate(places):
            pieces = []
            for index, members in enumerate(sets):
                if modality in members:
                    columns = torch.cat([places[m] for m in members])
                    scores = (
                        q[:, :, rows] @ k[:, :, columns].transpose(-1, -2) / (width // layer.heads) ** 0.5
                    )
                    out = scores.softmax(-1) @ v[:, :, columns]
                    pieces.append(layer.of_set[index](out.transpose(1, 2).reshape(batch, len(rows), width)))
            results.append(layer.of_modality[modality](torch.cat(pieces, -1)))
        return torch.cat(results, 1), q @ k.transpose(-1, -2) / (width // layer.heads) ** 0.5

    @pytest.mark.parametrize("heads", [1, 2])
    def test_it_is_a_softmax_for_every_set(self, heads, generator):
        layer = SubsetAttention((4, 1, 3), 6, heads).double()
        h = torch.randn(5, 8, 6, generator=generator).double()
        torch.testing.assert_close(layer(h), self.slow(layer, h))

    def test_far_apart_scores_stay_finite(self, generator):
        layer = SubsetAttention((2, 2), 4, 1)
        h = (1e3 * torch.randn(3, 4, 4, generator=generator)).requires_grad_()
        out, _ = layer(h)
        out.sum().backward()
        assert torch.isfinite(out).all() and torch.isfinite(h.grad).all()


class TestNetwork:
    @pytest.mark.filterwarnings("ignore:causal head")
    @pytest.mark.parametrize(
        "options", ["", ", layers=2, heads=4, dropout=0.1", ", align='text'", ", causal=True"]
    )
    def test_every_parameter_but_decoders_matters_for_logits(self, options):
        network = build(options)
        logits = network(examples())
        assert logits.shape == (7, 3) and network.features == 24
        logits.square().sum().backward()
        idle = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
        allowed = ("featurizer.decoders", "head.encoders")  # prototypes are zero before they are set
        assert all(name.startswith(allowed) for name in idle), idle

    @pytest.mark.parametrize("options", ["", ", align='text'"])
    def test_named_outputs(self, options):
        network = build(options)
        x = examples()
        found = network.featurizer.outputs(x)
        torch.testing.assert_close(found["features"], network.featurizer(x))
        length = 15 if options else 10
        assert found["attention"].shape == (7, 1, length, length)
        for name, size in (("text", (5, 8)), ("audio", (3, 4)), ("video", (2, 6))):
            assert found["reconstruction"][name].shape == found["originals"][name].shape == (7, *size)
            assert not found["originals"][name].requires_grad
        assert torch.equal(found["originals"]["audio"], x["audio"])

    def test_examples_do_not_see_each_other(self):
        network, x = build(), examples()
        alone = {name: value[2:3] for name, value in x.items()}
        torch.testing.assert_close(network(x)[2:3], network(alone))

    def test_the_order_of_modalities_in_a_batch_does_not_matter(self):
        network, x = build(), examples()
        torch.testing.assert_close(network(dict(reversed(x.items()))), network(x))

    def test_four_modalities(self):
        shapes = {**SHAPES, "pulse": (1, 2)}
        network = build(shapes=shapes)
        assert len(network.featurizer.fusion[0].attention.of_set) == 15
        assert network({**examples(), "pulse": torch.ones(7, 1, 2)}).shape == (7, 3)

    def test_other_modalities_than_at_the_start_are_told(self):
        network = build()
        with pytest.raises(InputError, match=r"inputs: are \['text'\]"):
            network({"text": examples()["text"]})

    @pytest.mark.parametrize(
        ("shapes", "options", "match"),
        [
            ((3, 4), "", "takes several sequences"),
            ({"audio": (3, 4)}, "", "takes several sequences"),
            ({"audio": (3, 4), "image": (1, 4, 4)}, "", "modality 'image'"),
            (SHAPES, "vocabulary=0", "vocabulary: is 0"),
            (SHAPES, "vocabulary=20, align='words'", "align: is 'words'"),
            (SHAPES, "vocabulary=20, width=10, heads=4", "Width is a multiple of heads"),
            (SHAPES, "vocabulary=20, layers=0", "at least one layer"),
        ],
    )
    def test_what_cannot_be_is_told(self, shapes, options, match):
        with pytest.raises(InputError, match=match):
            build_network(f"multimodal({options})", shapes, 2)

    def test_it_learns(self):
        x, y = examples(60), torch.arange(60) % 3
        x["audio"][:, 0, :3] += 3 * nn.functional.one_hot(y, 3)
        network = build()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        assert (network(x).argmax(1) == y).double().mean() > 0.9
