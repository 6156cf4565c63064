import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.reports.group_weights import plot_group_weights, weights_by_group


def test_numbers_of_each_group():
    weights, group = torch.tensor([1.0, 3.0, 0.0, 4.0, 4.0, 0.0]), torch.tensor([0, 0, 0, 2, 2, 3])
    table = weights_by_group(weights, group, ("few", "nobody", "many", "nothing"))
    assert list(table.index) == ["few", "many", "nothing"] and table.examples.tolist() == [3, 2, 1]
    assert table["mean"].tolist() == pytest.approx([4 / 3 / 2, 2.0, 0.0])
    assert table.share.tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert table.effective.tolist()[:2] == pytest.approx([16 / 10 / 3, 1.0])
    assert np.isnan(table.effective["nothing"])


def test_the_unit_of_weights_does_not_matter():
    weights, group = torch.rand(50, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    first, second = weights_by_group(weights, group), weights_by_group(7 * weights, group)
    np.testing.assert_allclose(first, second)
    assert list(first.index) == ["0", "1", "2"] and first.share.sum() == pytest.approx(1)
    assert (first["mean"] * first.examples).sum() == pytest.approx(50)


def test_the_figure_shows_the_mean_of_each_group():
    weights, group = torch.tensor([1.0, 3.0, 8.0, 4.0]), torch.tensor([0, 0, 1, 1])
    (axes,) = plot_group_weights(weights, group, ("a", "b")).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert means == pytest.approx([6 / 4, 2 / 4])


@pytest.mark.parametrize(
    ("weights", "group", "names", "said"),
    [
        ([1.0, 2.0], [0], (), "shapes"),
        ([], [], (), "shapes"),
        ([1.0, -1.0], [0, 1], (), "negative"),
        ([1.0, float("nan")], [0, 1], (), "not finite"),
        ([0.0, 0.0], [0, 1], (), "all 0"),
        ([1.0, 1.0], [0.0, 1.0], (), "not numbered"),
        ([1.0, 1.0], [0, 2], ("a", "b"), "2 names"),
    ],
)
def test_what_cannot_be_shown(weights, group, names, said):
    for function in (weights_by_group, plot_group_weights):
        with pytest.raises(InputError, match=said):
            function(np.array(weights), np.array(group), names)
