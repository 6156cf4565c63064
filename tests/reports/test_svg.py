import xml.etree.ElementTree as ET

import numpy as np

from unseen.reports.plots import Dots, accuracy_dots, familiarity_histogram, training_curves
from unseen.reports.svg import INK, SERIES, drawing, to_svg

NAN = float("nan")


def drawn(name="figure", label="plain"):
    with drawing(900, 200) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=SERIES[3], marker="o")
        axes.text(0.1, 0.1, label, color=INK)
        return to_svg(figure, name, "a <title>", "a & description")


def texts(svg):
    return [
        "".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_is_well_formed_and_described():
    root = ET.fromstring(drawn())
    assert root.attrib["role"] == "img"
    assert [child.text for child in root][:2] == ["a <title>", "a & description"]


def test_text_between_tags_is_left_alone():
    label = f'{INK} id="x" url(#y) $z$ <b> font-family: serif;'
    assert label in texts(drawn(label=label))


def test_ids_are_those_of_the_figure_and_every_reference_is_there():
    svg = drawn("first")
    root = ET.fromstring(svg)
    ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
    assert len(ids) == len(set(ids)) and all(name.startswith("first-") for name in ids)
    links = [v for node in root.iter() for k, v in node.attrib.items() if k.endswith("href")]
    assert links and all(link[1:] in ids for link in links)


def test_global_state_of_matplotlib_is_untouched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn()
    assert dict(matplotlib.rcParams) == before


def test_absent_intervals_and_single_rows_are_drawn_without_warnings(recwarn):
    svg = accuracy_dots("a", "t", [Dots("one", (0.9, NAN, NAN), (0.5, NAN, NAN))])
    ET.fromstring(svg)
    assert "NaN" not in svg and "nan" not in svg and not recwarn.list


def test_names_in_other_scripts_are_kept(recwarn):
    assert "東京の病院" in texts(
        accuracy_dots("a", "t", [Dots("東京の病院", (0.9, 0.8, 1), (0.5, 0.4, 0.6))])
    )
    assert not recwarn.list


def test_equal_scores_still_make_a_histogram():
    ET.fromstring(familiarity_histogram("h", "d", np.ones(5), np.ones(3), 1.0))


def test_training_runs_that_stopped_at_different_steps():
    runs = [(np.array([1, 2, 3]), np.array([0.1, 0.5, 0.9])), (np.array([1, 2]), np.array([0.3, 0.7]))]
    assert "2 runs; mean at the last common step 60.0%" in training_curves("t", "erm", runs, 0.0)
