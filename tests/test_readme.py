"""The README's examples run as they are written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict:
    """What earlier examples have defined: a reader goes from the top to the bottom."""
    return {"__name__": "__main__", "folder": tmp_path_factory.mktemp("readme")}


def test_there_are_examples():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example_runs(number, names, monkeypatch):
    monkeypatch.chdir(names["folder"])
    exec(compile(BLOCKS[number], f"README.md, python block {number + 1}", "exec"), names)
