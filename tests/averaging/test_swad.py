import io

import pytest
import torch
from torch import nn

from unseen.averaging.swad import SWAD
from unseen.errors import InputError

CURVES = {
    "valley": [2.0, 1.5, 1.2, 1.0, 0.9, 0.95, 0.92, 0.97, 1.0, 1.1, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 0.5],
    "plateau": [2.0, 1.0, 0.8, 0.7, 0.66, 0.65, 0.66, 0.65, 0.66, 0.67, 0.66, 0.65],
    "late": [3.0, 2.5, 2.0, 1.5, 1.2, 1.0, 0.9, 0.8, 0.85, 0.83, 3.0, 3.1],
    "steep": [9.0, 8.0, 7.0, 6.0, 5.0, 1.0, 1.1, 1.2, 1.1, 1.3, 1.0],
    "falling": [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3],
    "rising at once": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}


class Walk(nn.Module):
    """Weights that are different after every step, and a counter that is not averaged."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.double))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def go(self, step):
        with torch.no_grad():
            self.weight.copy_(torch.tensor([step, step**2, -step], dtype=torch.double))
            self.steps += 1


def run(average, losses, per_segment=4, first=0, model=None):
    model = model or Walk()
    average.setup(steps=len(losses) * per_segment)
    for step in range(first, len(losses) * per_segment):
        model.go(step)
        evaluated = step % per_segment == per_segment - 1
        average.observe(step, model, losses[step // per_segment] if evaluated else None)
    return average


def published_segments(losses, n_converge=3, n_tolerance=6, ratio=0.3):
    """Which segments the published code averages, in its own bookkeeping, with every step spelt out."""
    converge, smooth, final = [], [], []
    start, threshold, dead = None, None, False
    for i, _ in enumerate(losses):
        if dead:
            break
        converge = [*converge, i][-n_converge:]
        smooth = [*smooth, i][-n_tolerance:]
        if start is None:
            if len(converge) == n_converge and losses[converge[0]] == min(losses[j] for j in converge):
                start = converge[0]
                threshold = sum(losses[j] for j in converge) / n_converge * (1 + ratio)
                before = smooth[: n_tolerance - n_converge + 1]
                above = [k for k, j in enumerate(before) if losses[j] > threshold]
                final += before[(above[-1] + 1 if above else 0) + 1 :]
            continue
        if smooth[0] < start:
            continue
        if min(losses[j] for j in smooth) > threshold:
            dead = True
        else:
            final.append(smooth[0])
    if start is not None and not dead:
        smooth = smooth[1:]
        while smooth and min(losses[j] for j in smooth) <= threshold:
            final.append(smooth.pop(0))
    return start, threshold, final


def mean_weight(segments, per_segment=4):
    steps = [s * per_segment + k for s in sorted(set(segments)) for k in range(per_segment)]
    return torch.tensor([[t, t**2, -t] for t in steps], dtype=torch.double).mean(0)


@pytest.mark.parametrize("name", [name for name in CURVES if name != "falling"])
def test_recorded_curves_average_the_segments_of_the_published_algorithm(name):
    losses = CURVES[name]
    _, threshold, segments = published_segments(losses)
    average = run(SWAD(), losses)
    assert average.threshold == pytest.approx(threshold)
    torch.testing.assert_close(average.result()["weight"], mean_weight(segments))


def test_random_curves_average_the_segments_of_the_published_algorithm(generator):
    compared, ended = 0, 0
    for _ in range(200):
        noise = 0.3 * torch.randn(24, generator=generator).abs()
        shape = (torch.linspace(-1.5, 2.5, 24) ** 2) * torch.rand((), generator=generator) * 3
        losses = (noise + shape + 0.5).tolist()
        start, _, segments = published_segments(losses)
        average = run(SWAD(), losses, per_segment=2)
        if start is None or start < 3:  # its queue is not full yet, and its reaching back means another thing
            continue
        compared, ended = compared + 1, ended + average.ended
        torch.testing.assert_close(average.result()["weight"], mean_weight(segments, 2))
    assert compared > 50 and ended > 20


def test_valley_by_hand():
    # lowest at evaluation 4 of window (4, 5, 6), threshold 1.3 * mean(.9, .95, .92) = 1.2003. Of 1, 2, 3 only
    # 2 and 3 lie below it, and 2 is left out. From 10 on six in a row are above: the valley is 3 .. 9.
    average = run(SWAD(), CURVES["valley"])
    assert average.ended
    torch.testing.assert_close(average.result()["weight"], mean_weight(range(3, 10)))


def test_without_a_valley_the_last_segment_is_the_result():
    average = run(SWAD(), CURVES["falling"])
    assert average.threshold is None
    torch.testing.assert_close(average.result()["weight"], mean_weight([len(CURVES["falling"]) - 1]))
    early = SWAD()
    assert early.result() is None
    model = Walk()
    model.go(5)
    early.observe(0, model, None)
    torch.testing.assert_close(early.result()["weight"], model.weight.detach())


def test_counters_come_from_the_last_network_of_the_valley():
    result = run(SWAD(), CURVES["plateau"]).result()
    assert result["steps"].dtype == torch.int64 and int(result["steps"]) == 4 * len(CURVES["plateau"])


@pytest.mark.parametrize("settings", [(3, 6), (3, 3), (4, 2), (1, 1)])
@pytest.mark.parametrize("name", CURVES)
def test_interrupted_anywhere_it_goes_on_exactly(name, settings):
    losses = CURVES[name]
    whole = run(SWAD(*settings), losses).result()
    for cut in (1, 6, 18, 27, 4 * len(losses) - 3):
        model = Walk()
        first = SWAD(*settings)
        for step in range(cut):
            model.go(step)
            first.observe(step, model, losses[step // 4] if step % 4 == 3 else None)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = SWAD(*settings)
        second.load_state_dict(torch.load(file, weights_only=True))
        result = run(second, losses, first=cut, model=model).result()
        assert all(torch.equal(result[key], whole[key]) for key in whole)


def test_asking_for_the_result_changes_nothing():
    average = SWAD()
    model = Walk()
    for step in range(4 * 12):
        model.go(step)
        average.observe(step, model, CURVES["plateau"][step // 4] if step % 4 == 3 else None)
        average.result()
    expected = run(SWAD(), CURVES["plateau"]).result()
    torch.testing.assert_close(average.result(), expected)


def test_it_keeps_few_states():
    average = run(SWAD(), [1.0] * 50)
    assert len(average._recent) <= 6


def test_errors_name_what_is_wrong():
    with pytest.raises(InputError, match=r"n_converge: is 0"):
        SWAD(n_converge=0)
    with pytest.raises(InputError, match=r"tolerance_ratio: is -1"):
        SWAD(tolerance_ratio=-1)
