import json
import re
import sqlite3
from html.parser import HTMLParser

import numpy as np
import pytest

from unseen.errors import InputError
from unseen.reports.report import render, write_report
from unseen.studies import Results

ATTACK = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "link", "hr", "input", "path", "use"}


class Page(HTMLParser):
    """Checks nesting, and collects ids, links, tags and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._note(tag, attributes)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def _note(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src") and not value.startswith("data:image/png"):
                self.anchors.append(value)


def test_writes_page_and_numbers_and_nothing_else(study, tmp_path):
    path = write_report(*study, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]
    numbers = json.loads(path.with_name("report.json").read_text(), parse_constant=pytest.fail)
    assert numbers["choice"]["method"] == study[0].choice.method
    assert len(numbers["table"]) == 2 * 4  # two learners on three domains, and their averages


def test_page_is_well_formed_and_self_contained(study):
    page = Page(render(*study))
    assert len(page.ids) == len(set(page.ids))
    assert all(anchor.startswith("#") and anchor[1:] in page.ids for anchor in page.anchors)
    assert "script" not in page.tags
    assert page.tags.count("svg") >= 5


def test_figures_take_their_colours_from_the_page(study):
    text = render(*study)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert re.findall(r"(?:fill|stroke): #\w+", drawn) == []
    assert "var(--series-1)" in drawn and "var(--ink)" in drawn
    assert all(f"{name}:" in text for name in set(re.findall(r"var\((--[\w-]+)\)", drawn)))
    assert drawn.count("<title") == drawn.count("<desc") == drawn.count("<svg")


def test_same_results_give_the_same_page(study):
    results, shift = study
    assert render(results, shift) == render(Results(results.folder), shift)


def test_page_says_what_was_found(study):
    results, shift = study
    text = Page(render(results, shift)).text
    average = results.table[results.table.method == results.choice.method].iloc[-1]
    assert f"Deploy {results.choice.method}" in text
    assert f"{100 * average.accuracy:.1f}%" in text
    for note in results.pitfalls():
        assert note in text
    for row in results.table.itertuples():
        assert f"{100 * row.low:.1f}–{100 * row.high:.1f}" in text
    assert results.plan["shift"]["fingerprint"] in text


def test_every_string_of_the_user_is_escaped(run_study, make_shift):
    hostile = make_shift(
        domains=(f"a{ATTACK}", 'b" onload="x', "c$^$ & co"),
        classes=(f"no {ATTACK}", "yes"),
        description=ATTACK,
    )
    results, _ = run_study(hostile, seeds=1)
    page = Page(render(results, hostile))
    assert "script" not in page.tags
    assert not [name for name in page.attributes if name.startswith("on")]
    assert f"a{ATTACK}" in page.text and "c$^$ & co" in page.text


def test_one_seed_and_one_unseen_domain(run_study, make_shift):
    results, shift = run_study(make_shift(), seeds=1, unseen="south")
    text = Page(render(results, shift)).text
    assert "On south, which it has not seen" in text
    assert "1 seed" in text and "nan" not in text.lower()


def test_later_examples_as_the_unseen_ones(run_study, make_shift):
    shift = make_shift(time=np.arange(72) % 24)
    results, _ = run_study(shift, seeds=1, after=17)
    text = Page(render(results, shift)).text
    assert "On what is later than 17: accuracy" in text and "Rows are the later examples" in text
    assert results.unseen_domains == ["north", "south", "east"]


def test_groups_are_called_groups(run_study, make_shift):
    shift = make_shift(group=np.arange(72) % 3 % 2, groups=("day", "night"))
    results, _ = run_study(shift, ["erm"], seeds=1)
    text = Page(render(results, shift)).text
    assert "Worst group" in text and "Worst class" not in text
    assert "Nothing was compared with it" in text


def test_failed_runs_are_shown_and_do_not_win(run_study, make_shift):
    results, shift = run_study(make_shift())
    winner, loser = sorted(results.methods, key=results.choice.method.__ne__)
    table = results.table[(results.table.method == winner) & (results.table.domain != "average")]
    hardest = table.loc[table.accuracy.idxmin()].domain
    with sqlite3.connect(results.folder / "results.sqlite") as store:
        store.execute(
            "update cells set status = 'failed', error = ? where method = ? and unseen = ?",
            (f"loss became NaN {ATTACK}", winner, json.dumps([hardest])),
        )
    damaged = Results(results.folder)
    scores = {m: damaged.average_accuracy(m).estimate for m in (winner, loser)}
    assert scores[winner] > scores[loser]  # without its hardest domain, which is no reason to choose it
    assert damaged.choice.method == loser
    page = Page(render(damaged, shift))
    assert "2 of 3 domains" in page.text and f"loss became NaN {ATTACK}" in page.text


def test_study_without_any_finished_run_is_an_error_and_writes_nothing(run_study, tmp_path, make_shift):
    results, shift = run_study(make_shift(), ["erm"], seeds=1)
    with sqlite3.connect(results.folder / "results.sqlite") as store:
        store.execute("update cells set status = 'failed', error = 'out of memory'")
    with pytest.raises(InputError, match="no finished run"):
        write_report(Results(results.folder), shift, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_examples_are_left_out_without_data_and_with_other_data(study, make_shift):
    results, _ = study
    assert "not at hand" in Page(render(results, None)).text
    assert "data have changed" in Page(render(results, make_shift(examples=20))).text


def test_detector_that_was_not_scored_falls_back_and_none_is_fine(run_study, make_shift):
    results, shift = run_study(make_shift(), ["erm"], seeds=1, detectors=["energy"])
    assert "by the detector energy" in Page(render(results, shift)).text
    results, shift = run_study(make_shift(), ["erm"], seeds=1, detectors=[])
    assert "No detector was scored" in Page(render(results, shift)).text


def test_folder_that_cannot_be_written_is_named(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_report(*study, tmp_path / "file")
