from pathlib import Path

import pytest

from unseen.registry import REGISTRIES
from unseen.reports.documents import METHODS, REPRODUCTIONS, entries, methods_page, reproductions_page

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [METHODS, REPRODUCTIONS])
def test_generated_pages_are_up_to_date(name):
    made = methods_page(DOCS) if name == METHODS else reproductions_page(DOCS / "reproductions")
    assert (DOCS / name).read_text() == made, "run `make docs`"


def test_costs_come_from_the_benchmarks_page():
    page = methods_page(DOCS)
    rows = (DOCS / "benchmarks.md").read_text().splitlines()
    (measured,) = (
        row.split(" | ")[1] for row in rows if row.startswith("| fishr step: MLP 392") and "2 x 64" in row
    )
    (shown,) = (row for row in page.splitlines() if row.startswith("| `fishr` |"))
    assert f"| several domains | {measured} | objectives/domain_match.py |" in shown


def test_every_method_is_on_the_page_once():
    sections = methods_page().split("\n## ")[1:]
    for section, kind in zip(sections, REGISTRIES, strict=True):
        assert section.startswith(f"{kind}\n")
        for entry in entries(kind):
            assert section.count(f"| `{entry.name}` |") == 1
