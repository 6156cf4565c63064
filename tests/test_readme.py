"""The examples of the README and of the tutorials run as they are written."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/own-objective.md"]
BLOCKS = {
    page: re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for page in PAGES
}


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict:
    """What earlier examples of a page have defined: a reader goes from the top to the bottom."""
    return {page: {"__name__": "__main__", "folder": tmp_path_factory.mktemp("page")} for page in PAGES}


def test_there_are_examples():
    assert all(len(blocks) >= 2 for blocks in BLOCKS.values())


@pytest.mark.parametrize(
    ("page", "number"), [(page, number) for page in PAGES for number in range(len(BLOCKS[page]))]
)
def test_example_runs(page, number, names, monkeypatch):
    monkeypatch.chdir(names[page]["folder"])
    exec(compile(BLOCKS[page][number], f"{page}, python block {number + 1}", "exec"), names[page])
