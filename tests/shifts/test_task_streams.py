import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.shifts import Shift
from unseen.shifts.preprocessing import ArrayPreprocessing
from unseen.shifts.task_streams import (
    Labelled,
    ShiftStream,
    ShiftTask,
    corruption_stream,
    domain_stream,
    rotated,
    rotation_stream,
    transform_stream,
)


@pytest.fixture
def images(generator):
    """30 grey images of 3 classes whose first pixel names them, and 7 of others."""
    x = torch.rand(37, 1, 8, 8, generator=generator)
    x[:, 0, 0, 0] = torch.arange(37) / 37
    return x[:30], torch.arange(30) % 3, x[30:]


def test_support_and_test_are_disjoint_complete_and_drawn_anew_for_every_task(images):
    x, y, ood = images
    stream = transform_stream(x, y, ood, {"same": lambda v: v, "again": lambda v: v}, shots=2)
    assert len(stream) == 2 and [task.name for task in stream] == ["same", "again"]
    for task in (*stream, stream.source):
        assert torch.bincount(task.support.y).tolist() == [2, 2, 2]
        both = torch.cat([task.support.x, task.id_test.x])[:, 0, 0, 0]
        assert torch.equal(both.sort().values, x[:, 0, 0, 0])
        lookup = {round(float(v), 6): int(label) for v, label in zip(x[:, 0, 0, 0], y, strict=True)}
        for part in (task.support, task.id_test):
            assert [lookup[round(float(v), 6)] for v in part.x[:, 0, 0, 0]] == part.y.tolist()
    assert not torch.equal(stream[0].support.x, stream[1].support.x)
    again = transform_stream(x, y, ood, {"same": lambda v: v, "again": lambda v: v}, shots=2)
    other = transform_stream(x, y, ood, {"same": lambda v: v, "again": lambda v: v}, shots=2, seed=1)
    assert torch.equal(stream[1].support.x, again[1].support.x)
    assert not torch.equal(stream[1].support.x, other[1].support.x)


def test_unfamiliar_inputs_are_shifted_as_the_others_are(images):
    x, y, ood = images
    (task,) = rotation_stream(x, y, ood, [90])
    torch.testing.assert_close(task.ood_test, torch.rot90(ood, 1, (2, 3)), atol=1e-5, rtol=0)
    (brighter,) = transform_stream(x, y, ood, {"plus": lambda v: v + 5})
    assert brighter.ood_test.min() >= 5 and brighter.support.x.min() >= 5 and brighter.id_test.x.min() >= 5


def test_rotation_by_right_angles_is_exact(images):
    x = images[0]
    for turns in (0, 1, 2, 3):
        torch.testing.assert_close(rotated(x, 90 * turns), torch.rot90(x, turns, (2, 3)), atol=1e-5, rtol=0)


def test_corruptions_damage_every_image_of_its_own(images):
    x, y, _ = images
    same = x[:1].expand(30, -1, -1, -1)
    stream = corruption_stream(same, y, same[:4], ["gaussian_noise"], [1, 5], shots=2)
    assert [task.name for task in stream] == ["gaussian_noise-1", "gaussian_noise-5"]
    damaged = torch.cat([stream[0].support.x, stream[0].id_test.x, stream[0].ood_test])
    assert len(damaged.flatten(1).unique(dim=0)) == 34
    distance = [(task.ood_test - same[:4]).square().mean() for task in stream]
    assert distance[0] < distance[1] and torch.equal(stream.source.ood_test, same[:4])


def years() -> Shift:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 4
    return Shift(
        name="years",
        kind="array",
        inputs=torch.from_numpy(generator.normal(size=(60, 3)) + labels[:, None]),
        labels=torch.from_numpy(labels),
        domain=torch.arange(60) // 20,
        classes=("a", "new", "b", "c"),
        domains=("2019", "2020", "2021"),
    )


def test_real_domains_hold_classes_out_and_number_the_others_anew():
    shift = years()
    preprocessing = ArrayPreprocessing.fit(shift, torch.arange(20))
    stream = domain_stream(shift, ["new"], preprocessing, source="2019", shots=2)
    assert [task.name for task in stream] == ["2020", "2021"] and stream.source.name == "2019"
    for task in stream:
        assert torch.bincount(task.support.y).tolist() == [2, 2, 2] and len(task.id_test.y) == 9
        assert len(task.ood_test) == 5
    rows = ((shift.domain == 1) & (shift.labels == 1)).nonzero().squeeze(1)
    expected = preprocessing.finish(preprocessing.encode(shift.take(rows)))
    torch.testing.assert_close(stream[0].ood_test, expected)
    rare = domain_stream(shift, ["new"], preprocessing, ["2021"], shots=4)
    assert torch.bincount(rare[0].support.y).tolist() == [4, 4, 4]


def test_what_does_not_fit_is_refused(images):
    x, y, ood = images
    preprocessing = ArrayPreprocessing.fit(years(), torch.arange(20))
    with pytest.raises(InputError, match="shots"):
        rotation_stream(x, y, ood, [90], shots=0)
    with pytest.raises(InputError, match="class 0.*has 10 examples"):
        rotation_stream(x, y, ood, [90], shots=10)
    with pytest.raises(InputError, match="y.*29 labels for 30"):
        rotation_stream(x, y[:-1], ood, [90])
    with pytest.raises(InputError, match="ood_test of task.*is empty"):
        rotation_stream(x, y, ood[:0], [90])
    with pytest.raises(InputError, match="tasks"):
        rotation_stream(x, y, ood, [])
    with pytest.raises(InputError, match="tasks"):
        rotation_stream(x, y, ood, [90, 90.0]).tasks and ShiftStream(
            (rotation_stream(x, y, ood, [90])[0],) * 2
        )
    with pytest.raises(InputError, match="support of task 'a'.*3 inputs, but 2"):
        ShiftTask("a", Labelled(x[:3], y[:2]), Labelled(x, y), ood)
    with pytest.raises(InputError, match="corruption"):
        corruption_stream(x, y, ood, "fogg")
    with pytest.raises(InputError, match="class 'neww'"):
        domain_stream(years(), ["neww"], preprocessing)
    with pytest.raises(InputError, match="domain '2018'"):
        domain_stream(years(), ["new"], preprocessing, ["2018"])
    with pytest.raises(InputError, match="support of domain '2019'"):
        domain_stream(years(), ["new"], preprocessing, shots=5)
