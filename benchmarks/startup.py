"""How long the command line takes to answer: wall time of whole processes, imports included."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

COMMAND = [sys.executable, "-c", "from unseen.cli import main; main()"]
WITHOUT_TORCH = """
import sys
from unseen.cli import main
try:
    main()
except SystemExit:
    print("torch" in sys.modules, file=sys.stderr)
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Seconds, the best of several processes, beside those of a Python that only imports torch."""
    times = 1 if quick else 7
    torch_alone = min(_seconds([sys.executable, "-c", "import torch"]) for _ in range(times))
    with TemporaryDirectory() as folder:
        study = [*COMMAND, "run", "penguins", "--out", str(Path(folder) / "study")]
        rows = [
            _row("unseen --help", min(_seconds([*COMMAND, "--help"]) for _ in range(times)), None, "<= 0.5"),
            _row(
                "unseen list objectives, beside `import torch`",
                min(_seconds([*COMMAND, "list", "objectives"]) for _ in range(times)),
                torch_alone,
                None,
            ),
            _row(
                "unseen run penguins: to the first line on the data, beside `import torch`",
                min(_seconds_to_line(study, "examples") for _ in range(times)),
                torch_alone,
                None,
            ),
        ]
    found = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "--help"], capture_output=True, text=True)
    imported = found.stderr.strip() != "False"
    return [*rows, _row("unseen --help imports torch (1 yes, 0 no)", float(imported), None, "<= 0", "")]


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def _seconds_to_line(command: list[str], word: str) -> float:
    """Until the process prints a line that holds `word`; it is ended then."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if word in line:
                process.kill()
                return time.perf_counter() - began
    raise RuntimeError(f"{' '.join(command)} ended without a line that holds {word!r}:\n{''.join(seen)}")


def _row(
    what: str, value: float, reference: float | None, target: str | None, unit: str = "s"
) -> dict[str, Any]:
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": None if reference is None else reference / value,
        "target": target,
    }
