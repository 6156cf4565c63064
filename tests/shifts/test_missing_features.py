import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.shifts.missing_features import MODES, RandomFeatureMissing


def inputs(count=400):
    generator = torch.Generator().manual_seed(1)
    return {
        "text": torch.randint(2, 50, (count, 12), generator=generator),
        "video": torch.rand(count, 6, 5, generator=generator) + 1,
    }


def missed(rate, mode="element", seed=0, x=None, **options):
    return RandomFeatureMissing(rate, mode, **options)(
        inputs() if x is None else x, torch.Generator().manual_seed(seed)
    )


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(MODES), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 50))
def test_what_is_missing_is_filled_and_the_rest_is_as_it_was(mode, rate, seed):
    x = inputs(50)
    before = {name: value.clone() for name, value in x.items()}
    masked, missing = missed(rate, mode, seed, x)
    for name, value in x.items():
        assert torch.equal(value, before[name]) and missing[name].shape == value.shape[:2]
        assert (masked[name][missing[name]] == 0).all()
        assert torch.equal(masked[name][~missing[name]], value[~missing[name]])
        if rate in (0, 1):
            assert bool((missing[name] == bool(rate)).all())


@pytest.mark.parametrize("mode", MODES)
def test_the_share_is_the_rate(mode):
    _, missing = missed(0.3, mode, x=inputs(3000))
    share = torch.tensor([m.double().mean() for m in missing.values()])
    expected = (
        torch.tensor([round(0.3 * 12) / 12, round(0.3 * 6) / 6]) if mode == "block" else torch.full((2,), 0.3)
    )
    torch.testing.assert_close(share.double(), expected.double(), atol=0.03, rtol=0)


def test_what_goes_together():
    _, modality = missed(0.5, "modality")
    assert all(((m.sum(1) == 0) | m.all(1)).all() for m in modality.values())
    assert not torch.equal(modality["text"][:, 0], modality["video"][:, 0])
    _, temporal = missed(0.5, "temporal")
    assert torch.equal(temporal["text"][:, ::2], temporal["video"])
    _, block = missed(0.5, "block")
    for value in block.values():
        edges = value.int().diff(dim=1).abs().sum(1)
        assert (edges <= 2).all() and (value.sum(1) == value.shape[1] // 2).all()


def test_a_rate_of_its_own_for_each_position_is_a_coin_toss():
    """Bernoulli(U) with U uniform and drawn for each position is Bernoulli(1/2), independent."""
    _, missing = missed(None, x=inputs(5000))
    text = missing["text"].double()
    assert text.mean() == pytest.approx(0.5, abs=0.01)
    assert torch.corrcoef(text.T).fill_diagonal_(0).abs().max() < 0.06
    assert torch.equal(missing["text"], missed(0.5, x=inputs(5000))[1]["text"])


def test_rates_by_modality_kept_tokens_fills_and_single_tensors(generator):
    _, missing = missed({"text": 0.0, "video": 1.0})
    assert not missing["text"].any() and missing["video"].all()
    x = inputs()
    x["text"][:, 0] = 7
    masked, missing = missed(1.0, x=x, keep=(7,), fill=3)
    assert torch.equal(missing["text"], x["text"] != 7)
    assert (masked["text"][:, 0] == 7).all() and (masked["video"] == 3).all()
    alone, places = missed(0.5, x=torch.ones(20, 8))
    assert torch.equal(alone == 0, places)


def test_each_modality_may_have_its_own_fill():
    masked, _ = missed(1.0, fill={"text": 100, "video": 0.5})
    assert (masked["text"] == 100).all() and (masked["video"] == 0.5).all()
    with pytest.raises(InputError, match=r"fill: names \['text'\], but the inputs are \['text', 'video'\]"):
        missed(0.5, fill={"text": 100})


def test_blocks_without_a_rate_have_every_length_and_place_alike():
    _, missing = missed(None, "block", x=inputs(13_000))
    lengths = missing["text"].sum(1).bincount(minlength=13) / 13_000
    torch.testing.assert_close(lengths, torch.full((13,), 1 / 13), atol=0.01, rtol=0)
    single = missing["text"][missing["text"].sum(1) == 1].float().mean(0)
    torch.testing.assert_close(single, torch.full((12,), 1 / 12), atol=0.04, rtol=0)
    assert (missing["text"].int().diff(dim=1).abs().sum(1) <= 2).all()


def test_masks_are_of_the_generator_alone():
    first, again, other = (missed(0.5, seed=seed)[1]["video"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("rate", "mode", "match"),
    [
        (1.5, "element", "rate: is 1.5"),
        ({"text": -0.1}, "element", "rate: is"),
        (0.5, "frames", "mode: is 'frames'"),
        ({"text": 0.1, "video": 0.2}, "temporal", "differs by modality"),
    ],
)
def test_wrong_settings_are_told(rate, mode, match):
    with pytest.raises(InputError, match=match):
        RandomFeatureMissing(rate, mode)


def test_other_modalities_than_rates_are_told():
    with pytest.raises(InputError, match=r"names \['audio'\], but the inputs are \['text', 'video'\]"):
        missed({"audio": 0.5})
