import io

import pytest
from rich.console import Console

from unseen.reports.terminal import MOST_ROWS, print_summary
from unseen.studies.plan import DETECTORS


def printed(results, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_summary(results, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [100, 80, 60])
def test_fits_the_terminal_and_keeps_every_number(study, width):
    results, _ = study
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    for row in results.table.itertuples():
        assert f"{100 * row.accuracy:.1f}%  {100 * row.low:.1f}–{100 * row.high:.1f}" in text
    assert (
        ("calib." in text) == (width >= 75)
        and ("(n=" in text) == (width >= 90)
        and ("  worst class" in text) == (width >= 75)
    )


def test_the_choice_is_marked_and_the_pitfalls_follow(study):
    results, _ = study
    text = printed(results, 200)
    assert text.count("→") == 4  # three domains and the average
    assert text.count(f"→ {results.choice.method}") == 4
    for note in results.pitfalls():
        assert note in text


def test_one_domain_has_no_average(run_study, make_shift):
    results, _ = run_study(make_shift(), seeds=1, unseen="east")
    text = printed(results, 100)
    assert "average" not in text and "east" in text and "see the report" not in text


def test_many_rows_show_the_choice_by_domain_and_all_averages(run_study, make_shift):
    shift = make_shift(
        domains=tuple(f"a rather long place name {i}" for i in range(MOST_ROWS // 2)), examples=12
    )
    results, _ = run_study(shift, seeds=1, steps=1, detectors=[])
    text = printed(results, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("→") == MOST_ROWS // 2 + 1 and text.count("a rather") > MOST_ROWS // 2
    table = text[: text.index("Other learners by domain: see the report")]
    assert len([line for line in table.splitlines() if "%" in line]) - 1 == MOST_ROWS // 2 + 2


def test_detectors_that_were_asked_for_are_shown(run_study, make_shift):
    results, _ = run_study(make_shift(), seeds=1, steps=1, detectors=["msp", "gen"])
    table = printed(results, 80).split("AUROC, 95 %")[1]
    assert "(shifted)" in table and "gen" in table and "msp" in table
    results, _ = run_study(make_shift(), seeds=1, steps=1, detectors=DETECTORS)
    assert "AUROC" not in printed(results, 80)


def test_names_are_no_markup(run_study, make_shift):
    results, _ = run_study(make_shift(domains=("[red]a[/]", "[/]", "b")), ["erm"], seeds=1)
    assert "[red]a[/]" in printed(results, 150)
