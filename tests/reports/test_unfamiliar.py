"""Detectors on near and far data: in the page, its numbers, the terminal and the way to run it again."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from unseen.cli import app
from unseen.errors import InputError
from unseen.registry import shifts
from unseen.reports.report import render, unfamiliar_sets, write_report
from unseen.reports.rerun import python_snippet
from unseen.reports.terminal import print_summary
from unseen.studies.unfamiliar import Unfamiliar


@pytest.fixture(scope="module")
def compared(run_study, make_shift):
    shift = make_shift()
    odd = Unfamiliar("<b>[red]odd[/]</b>", "near", shift.inputs[:20] * 5)
    options = {"unseen": "east", "detectors": ["msp", "knn", "gram"], "near": [odd], "far": ["noise"]}
    return run_study(shift, ["erm"], network="mlp(width=8)", **options)


def printed(results, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_summary(results, console)
    return console.file.getvalue()


def test_the_page_holds_every_number_from_near_to_far(compared, tmp_path):
    results, shift = compared
    page = render(results, shift)
    assert [each["nearness"] for each in unfamiliar_sets(results)] == ["shifted", "near", "far"]
    assert page.index("AUROC of detectors from near to far") < page.index("Detectors on noise")
    for row in results.unfamiliar.itertuples():
        assert f"{100 * row.auroc:.1f}%" in page and f"{100 * row.fpr95:.1f}%" in page
        assert f"{100 * row.auroc_low:.1f}–{100 * row.auroc_high:.1f}" in page
    assert "<b>[red]odd" not in page and "&lt;b&gt;[red]odd" in page
    numbers = json.loads((write_report(results, shift, tmp_path).parent / "report.json").read_text())
    assert len(numbers["unfamiliar"]) == 9
    expected = {"set", "nearness", "detector", "n", "auroc", "auroc_low", "auroc_high", "aupr_in", "aupr_out"}
    expected |= {"fpr95", "fpr95_low", "fpr95_high", "oscr", "aurc"}
    assert set(numbers["unfamiliar"][0]) == expected


@pytest.mark.parametrize("width", [120, 80, 60])
def test_the_terminal_shows_the_sets_that_fit(compared, width):
    results, _ = compared
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert "AUROC, 95 %" in text and "unseen domains" in text and "knn" in text
    assert (": see the report." in text) == (width < 80)


def test_a_study_without_further_data_says_how_to_get_them(study):
    results, shift = study
    assert "AUROC, 95 %" not in printed(results, 100)
    page = render(results, shift)
    assert (
        "--near, --far and --hold-out-classes" in page and "AUROC of detectors from near to far" not in page
    )


def test_shared_examples_are_a_pitfall(run_study, make_shift):
    shift = make_shift()
    with pytest.warns(UserWarning, match="5 of 5 examples are also among"):
        shared = Unfamiliar.of("same", "far", shift.inputs[:5], shift)
    results, _ = run_study(shift, ["erm"], unseen="east", far=[shared], seeds=1)
    assert any("5 of 5 examples of the unfamiliar data 'same'" in note for note in results.pitfalls())
    assert "far=" not in python_snippet(results)  # it cannot be opened again by name


def test_the_command_line_takes_detectors_and_data(tmp_path):
    domain = shifts.build("gaussian-shift").domains[0]
    folder = ["--out", str(tmp_path / "run")]
    options = [
        "gaussian-shift",
        "--unseen",
        domain,
        "--learners",
        "erm",
        "--seeds",
        "1",
        "--steps",
        "3",
        *folder,
    ]
    options += ["--engine", "serial", "--detectors", "msp,knn(k=3)", "--far", "noise"]
    found = CliRunner().invoke(app, ["run", *options])
    assert found.exit_code == 0, found.output
    assert "noise (far)" in found.output and "knn(k=3)" in found.output
    again = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert again.exit_code == 0 and "noise (far)" in again.output
    page = (tmp_path / "run" / "report.html").read_text()
    assert "far=[&#39;noise&#39;]" in page


def test_a_deployed_detector_that_cannot_work_is_refused_before_training(tmp_path):
    options = [
        "gaussian-shift",
        "--detector",
        "rankfeat",
        "--learners",
        "erm",
        "--out",
        str(tmp_path / "run"),
    ]
    found = CliRunner().invoke(app, ["run", *options])
    assert isinstance(found.exception, InputError) and "needs a layer that is a map" in str(found.exception)
    assert not (tmp_path / "run").exists()
