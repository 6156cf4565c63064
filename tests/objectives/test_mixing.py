import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.mixing import (
    beta_share,
    blend,
    cross_distribution_mix,
    cross_modal_mix,
    cutmix,
    masking,
    mix_outliers,
    mixup,
    paste_rectangle,
    random_partners,
    soft_cross_entropy,
    swap_values,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=6, side=8, seed=1):
    return torch.randn(count, 2, side, side, generator=seeded(seed))


LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
TARGETS = nn.functional.one_hot(LABELS, 3).float()


def test_soft_cross_entropy_is_the_written_out_sum_and_extreme_logits_stay_finite():
    logits = torch.randn(5, 3, generator=seeded())
    targets = torch.rand(5, 3, generator=seeded(1)).softmax(1)
    written = [
        -sum(t[k] * torch.log_softmax(z, 0)[k] for k in range(3))
        for z, t in zip(logits, targets, strict=True)
    ]
    torch.testing.assert_close(soft_cross_entropy(logits, targets), torch.stack(written))
    torch.testing.assert_close(
        soft_cross_entropy(logits, TARGETS[:5]),
        nn.functional.cross_entropy(logits, LABELS[:5], reduction="none"),
    )
    assert torch.isfinite(soft_cross_entropy(1e4 * logits, targets)).all()
    with pytest.raises(InputError, match="soft targets"):
        soft_cross_entropy(logits, targets[:, :2])
    with pytest.raises(InputError, match="soft targets"):
        soft_cross_entropy(logits, torch.zeros(5, 3, dtype=torch.int64))


def test_shares_follow_the_beta_distribution_and_the_seed():
    generator = seeded(3)
    draws = np.array([beta_share(2.0, generator) for _ in range(3000)])
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.var() - 1 / 20) < 0.005
    assert beta_share(0.3, seeded(5)) == beta_share(0.3, seeded(5)) != beta_share(0.3, seeded(6))
    for alpha in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="alpha"):
            beta_share(alpha, generator)


@pytest.mark.parametrize("mixer", [mixup, cutmix, masking])
def test_the_same_seed_mixes_alike_without_touching_inputs_or_the_global_generator(mixer):
    x, before = images(), torch.get_rng_state()
    kept = x.clone()
    first, second = mixer(x, TARGETS, 1.0, seeded(4)), mixer(x, TARGETS, 1.0, seeded(4))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and first[2] == second[2]
    assert torch.equal(x, kept) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first[0], mixer(x, TARGETS, 1.0, seeded(5))[0])


@pytest.mark.parametrize("mixer", [mixup, cutmix, masking])
def test_targets_hold_the_share_that_the_inputs_have(mixer):
    """Ones are mixed with zeros, so the mean of a mixture tells its share of the first part."""
    x = torch.cat([torch.ones(3, 2, 8, 8), torch.zeros(3, 2, 8, 8)])
    targets = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    partner = torch.tensor([3, 4, 5, 0, 1, 2])
    for seed in range(20):
        mixed, soft, share = mixer(x, targets, 1.0, seeded(seed), partner)
        torch.testing.assert_close(mixed.mean((1, 2, 3))[:3], soft[:3, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(soft[:3, 0], torch.full((3,), share), atol=1e-5, rtol=0)
        torch.testing.assert_close(soft.sum(1), torch.ones(6))


def test_mixup_reads_dicts_and_masking_and_cutmix_say_what_they_read():
    x = {"a": torch.randn(6, 2), "b": torch.randn(6, 3)}
    mixed, soft, share = mixup(x, TARGETS, 1.0, seeded(2), torch.arange(6).flip(0))
    for name, value in x.items():
        torch.testing.assert_close(mixed[name], share * value + (1 - share) * value.flip(0))
    torch.testing.assert_close(soft, share * TARGETS + (1 - share) * TARGETS.flip(0))
    with pytest.raises(InputError, match="inputs of masking: are a dict"):
        masking(x, TARGETS, 1.0, seeded())
    for wrong in (x, torch.randn(6, 4)):
        with pytest.raises(InputError, match="inputs of cutmix"):
            cutmix(wrong, TARGETS, 1.0, seeded())


def test_the_rectangle_is_as_large_as_published_and_its_share_is_what_is_left_after_clipping():
    ones, zeros = torch.ones(2, 1, 12, 16), torch.zeros(2, 1, 12, 16)
    clipped = 0
    for seed in range(200):
        share = 0.05 + 0.9 * seed / 200
        mixed, left = paste_rectangle(ones, zeros, share, seeded(seed))
        assert left == pytest.approx(float(mixed.mean()), abs=1e-6)
        rows, columns = ((mixed[0, 0] == 0).any(d).sum().item() for d in (1, 0))
        area = (mixed[0, 0] == 0).sum().item()
        assert area == rows * columns  # one rectangle
        sides = [2 * (int(size * (1 - share) ** 0.5) // 2) for size in (12, 16)]
        assert rows <= sides[0] and columns <= sides[1]
        clipped += (rows, columns) != tuple(sides) and area > 0
    assert clipped > 20  # else nothing of clipping was tested
    assert torch.equal(paste_rectangle(ones, zeros, 1.0, seeded())[0], ones)


def test_values_are_swapped_for_all_examples_alike():
    ones, zeros = torch.ones(4, 50), torch.zeros(4, 50)
    mixed, left = swap_values(ones, zeros, 0.7, seeded())
    assert torch.equal(mixed, mixed[:1].expand(4, -1)) and set(mixed.unique().tolist()) == {0.0, 1.0}
    assert left == pytest.approx(float(mixed.mean()))
    assert swap_values(ones, zeros, 1.0, seeded())[1] == 1.0
    assert torch.equal(blend(ones, zeros, 0.25, seeded())[0], 0.25 * ones)


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "masking"])
def test_outliers_take_the_label_towards_uniform(mix):
    x, others = torch.ones(6, 2, 8, 8), torch.zeros(9, 2, 8, 8)
    for seed in range(10):
        mixed, soft, share = mix_outliers(x, LABELS, others, 3, mix=mix, alpha=1.0, generator=seeded(seed))
        assert share == pytest.approx(float(mixed.mean()), abs=1e-5)
        torch.testing.assert_close(soft, share * TARGETS + (1 - share) / 3)
        from_soft = mix_outliers(x, TARGETS, others, 3, mix=mix, alpha=1.0, generator=seeded(seed))
        torch.testing.assert_close(from_soft[1], soft)


def test_what_mixing_with_outliers_refuses():
    x, others = torch.zeros(6, 4), torch.zeros(6, 4)

    def mixed(x=x, y=LABELS, outliers=others, classes=3, mix="mixup", alpha=1.0):
        return mix_outliers(x, y, outliers, classes, mix=mix, alpha=alpha, generator=seeded())

    for match, wrong in {
        "outliers: are 5 for 6 examples": {"outliers": others[:5]},
        "outliers: are 0 for 6": {"outliers": others[:0]},
        "inputs to mix: have shapes": {"outliers": torch.zeros(6, 3)},
        "alpha: is 0": {"alpha": 0},
        "classes: are 1": {"classes": 1, "y": torch.zeros(6, dtype=torch.int64)},
        "inputs of cutmix": {"mix": "cutmix"},
        r"labels: lie in 0\.\.2": {"classes": 2},
        r"labels: lie in -1\.\.": {"y": LABELS - 1},
        "mix 'mixupp'": {"mix": "mixupp"},
        "inputs to mix: have other parts": {"x": {"a": x}, "outliers": {"b": others}},
    }.items():
        with pytest.raises(InputError, match=match):
            mixed(**wrong)


def unit(count, size, seed):
    return nn.functional.normalize(torch.randn(count, size, generator=seeded(seed)), dim=-1)


def test_modalities_are_mixed_on_the_sphere():
    u, t = unit(5, 4, 0), unit(5, 4, 1)
    mixed, share = cross_modal_mix(u, t, 1.0, seeded(2))
    torch.testing.assert_close(mixed, nn.functional.normalize(share * u + (1 - share) * t, dim=-1))
    with pytest.raises(InputError, match="image features: have norms"):
        cross_modal_mix(2 * u, t, 1.0, seeded())
    with pytest.raises(InputError, match="text features: have norms"):
        cross_modal_mix(u, 2 * t, 1.0, seeded())


def test_each_feature_is_mixed_with_one_of_the_other_kind():
    negative = torch.tensor([False, True, True, False, True, False])
    targets, features = torch.eye(6), unit(6, 8, 0)
    partners = set()
    for seed in range(40):
        mixed, soft, share = cross_distribution_mix(features, targets, negative, 1.0, seeded(seed))
        for i in range(6):
            (j,) = [j for j in range(6) if j != i and soft[i, j] > 0] or [i]
            partners.add((i, j))
            assert negative[i] != negative[j]
            expected = nn.functional.normalize(share * features[i] + (1 - share) * features[j], dim=-1)
            torch.testing.assert_close(mixed[i], expected)
            assert float(soft[i, i]) == pytest.approx(share, abs=1e-6)
    assert len(partners) == 18  # three of the other kind each
    for kind in (torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)):
        with pytest.raises(InputError, match="batch: has no"):
            cross_distribution_mix(features, targets, kind, 1.0, seeded())


def test_partners_come_from_the_admissible():
    admissible = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    draws = torch.stack([random_partners(admissible, seeded(seed)) for seed in range(50)])
    assert set(draws[:, 0].tolist()) == {1, 2} and set(draws[:, 1].tolist()) == {1}
    assert set(draws[:, 2].tolist()) == {0}
