"""A study from Python: `Study(shift, ["erm", "irm"]).run("runs/first")`."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import unseen
from unseen.errors import InputError
from unseen.shifts import Shift
from unseen.studies.execution import Engine, Progress, execute
from unseen.studies.plan import Plan
from unseen.studies.results import Results
from unseen.studies.store import Store
from unseen.training import Hardware, Learner


class Study:
    """Learners x unseen domains x seeds on one shift; see `Plan.make` for the options."""

    def __init__(self, shift: Shift, learners: Iterable[str | Learner] = ("erm",), **options: Any):
        self.plan = Plan.make(shift, learners, **options)
        self.shift = self.plan.shift

    def run(
        self,
        folder: str | Path,
        *,
        engine: Engine = "auto",
        workers: int | None = None,
        hardware: Hardware = Hardware(),
        progress: Progress | None = None,
    ) -> Results:
        """Run what `folder` does not hold yet and return the results. Kill it at any moment and run it again."""
        with self.open_store(folder) as store:
            execute(self.plan, store, engine=engine, workers=workers, hardware=hardware, progress=progress)
        return Results(folder)

    def open_store(self, folder: str | Path) -> Store:
        """The study's store in `folder`, made or continued; raises when it belongs to another study's data."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise InputError(
                f"folder {str(folder)!r}",
                f"cannot be written ({error.strerror})",
                "Choose another with --out.",
            ) from None
        store = Store(folder / "results.sqlite")
        before = store.fact("plan")
        if before is not None and before["shift"]["fingerprint"] != self.shift.fingerprint:
            store.close()
            raise InputError(
                f"folder {str(folder)!r}",
                f"holds a study of other data ({before['shift']['name']!r})",
                "Choose another folder with --out, or delete it.",
            )
        store.write_fact("plan", self.plan.to_json())
        store.write_fact("cells", [cell.key for cell in self.plan.cells])
        store.write_fact("labels", self.shift.labels.tolist())
        store.write_fact("domain", self.shift.domain.tolist())
        store.write_fact("group", None if self.shift.group is None else self.shift.group.tolist())
        store.write_fact("environment", environment())
        return store


def environment() -> dict[str, str]:
    """Versions, machine and command line, for the record."""
    return {
        "unseen": unseen.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
