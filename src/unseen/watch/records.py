"""What a watch leaves behind: watch.json, watch.csv and watch.html, each written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

import unseen
from unseen.errors import InputError
from unseen.reports.page import write_texts
from unseen.watch.chart import page
from unseen.watch.watcher import Watcher


def write_watch(watcher: Watcher, folder: str | Path, facts: dict[str, Any]) -> Path:
    """Write the three files; gives the page. `facts` say what was watched ("model", "stream", ...).

    watch.json comes last: where it is, the others are of the same watch. Raises InputError when the folder cannot
    be written, or nothing was observed.
    """
    if not watcher.chunks:
        raise InputError("watch", "has seen nothing", "Observe a chunk first.")
    folder = Path(folder)
    record = {
        "library": f"unseen {unseen.__version__}",
        **facts,
        "alpha": watcher.alpha,
        "permutations": watcher.permutations,
        "seed": watcher.seed,
        "reference": {"examples": len(watcher.reference), **watcher.expected},
        "chunks": [asdict(chunk) for chunk in watcher.chunks],
    }
    texts = {
        "watch.csv": table(watcher).to_csv(index=False),
        "watch.html": page(watcher, facts),
        "watch.json": json.dumps(record, indent=1) + "\n",
    }
    write_texts(folder, texts)
    return folder / "watch.html"


def table(watcher: Watcher) -> pd.DataFrame:
    """One row a chunk; accuracy estimates as columns, alarms in one cell."""
    rows = []
    for chunk in watcher.chunks:
        row = asdict(chunk)
        estimates, alarms = row.pop("accuracy"), row.pop("alarms")
        rows.append(row | {f"accuracy: {k}": v for k, v in estimates.items()} | {"alarms": "; ".join(alarms)})
    return pd.DataFrame(rows)
