import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def command() -> Callable[..., Said]:
    """`unseen ARGUMENTS` in this process, as the shell would run it (an unexpected exception escapes)."""
    from unseen.cli import main

    def run(*arguments: object) -> Said:
        out, err = io.StringIO(), io.StringIO()
        before = sys.argv
        sys.argv = ["unseen", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.argv = before
        return Said(code, out.getvalue(), err.getvalue())

    return run


@dataclass
class StudyFolder:
    """A study that the command line has run: its data file, its folder, and what was printed."""

    data: Path
    folder: Path
    said: Said

    @property
    def model(self) -> Path:
        return self.folder / "model"


@pytest.fixture(scope="session")
def penguins(tmp_path_factory) -> pd.DataFrame:
    """344 penguins of three islands as palmerpenguins ships them; the sex of 11 is not known."""
    return pytest.importorskip("palmerpenguins").load_penguins()


@pytest.fixture(scope="session")
def penguin_study(penguins, command, tmp_path_factory) -> StudyFolder:
    """`unseen run penguins.csv`, small."""
    folder = tmp_path_factory.mktemp("penguins")
    data = folder / "penguins.csv"
    penguins.to_csv(data, index=False)
    said = command(
        "run", data, "--label", "sex", "--domain", "island", "--skip-bad", "--steps", 20, "--seeds", 2,
        "--learners", "erm,coral", "--out", folder / "study",
    )  # fmt: skip
    return StudyFolder(data, folder / "study", said)
