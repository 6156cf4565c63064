"""Tables of a study's detectors: on unseen domains, on unfamiliar data from near to far, and what tuning chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unseen.detection.metrics import delong_interval, ood_metrics, oscr
from unseen.measures.coverage import aurc, threshold_at_coverage
from unseen.registry import Spec

if TYPE_CHECKING:
    from unseen.studies.results import Results

_SEPARATION = (
    "auroc", "auroc_low", "auroc_high", "aupr_in", "aupr_out", "fpr95", "fpr95_low", "fpr95_high",
)  # fmt: skip

COVERAGE = 0.95
"""Share of ID validation that the threshold accepts at which detectors are compared."""


def familiarity(results: Results) -> pd.DataFrame:
    """Detectors on the chosen method's cells: a row a (detector, unseen domain) with auroc and its 95 % bounds
    (DeLong, of examples), fpr95, accepted share at a coverage of 95 % of ID validation, accuracy of what was
    accepted, and aurc; all averaged over seeds."""
    records = []
    for domain in results.unseen_domains:
        for known, new in results.chosen_runs(domain):
            correct = new["logits"].argmax(1) == results.labels[new["rows"]]
            for name in results.detectors:
                inside = known[f"score/{name}"][known["judges"]]
                separation = _separation(inside, new[f"score/{name}"], correct)
                records.append({"detector": name, "domain": domain, **separation})
    measured = ["auroc", "auroc_low", "auroc_high", "fpr95", "accepted", "accuracy of accepted", "aurc"]
    frame = pd.DataFrame(records, columns=["detector", "domain", *measured])
    return frame.groupby(["detector", "domain"]).mean().reset_index()


def unfamiliar(results: Results) -> pd.DataFrame:
    """Detectors on the chosen method's runs, beside ID validation: a row a (set, detector) with its metrics.

    Sets are the unseen domains together ("shifted": the same classes) and the study's near and far data.
    Columns: set, nearness, detector, n (unfamiliar inputs a run), auroc, auroc_low, auroc_high (DeLong),
    aupr_in, aupr_out, fpr95, fpr95_low, fpr95_high, oscr, aurc (of ID validation, the same for every set). All
    are means over runs, the intervals' bounds too: they speak of examples, and are if anything too wide.
    """
    sets = [("unseen domains", "shifted", "unseen")]
    sets += [
        (u["name"], u["nearness"], f"unfamiliar/{u['name']}") for u in results.plan.get("unfamiliar", [])
    ]
    records = []
    for cell in results.selected[results.selected.method == results.choice.method].cell:
        rows, logits, unseen = results.arrays(cell, "validation/rows", "validation/logits", "unseen/rows")
        judges = results.judges(cell, len(rows))
        correct = (logits.argmax(1) == results.labels[rows])[judges]
        for name, nearness, role in sets if len(unseen) else sets[1:]:
            for detector in results.detectors:
                known, new = results.arrays(cell, f"validation/score/{detector}", f"{role}/score/{detector}")
                known = known[judges]
                found = vars(ood_metrics(known, new))
                values = {column: found[column] for column in _SEPARATION}
                records.append(
                    {
                        "set": name,
                        "nearness": nearness,
                        "detector": detector,
                        "n": len(new),
                        **values,
                        "oscr": oscr(known, new, correct),
                        "aurc": aurc(known, correct),
                    }
                )
    columns = ["set", "nearness", "detector"]
    frame = pd.DataFrame(records, columns=[*columns, "n", *_SEPARATION, "oscr", "aurc"])
    return frame.groupby(columns, sort=False).mean().reset_index()


def tuned(results: Results) -> pd.DataFrame:
    """Options that were chosen for the chosen method's runs: a row a (detector, chosen options), with `runs`, and
    the AUROC on tuning data of these options and of the given ones, means over those runs."""
    records = [
        {
            "detector": name,
            "chosen": str(Spec.of(found["spec"])),
            "auroc": found["auroc"],
            "given_auroc": found["given_auroc"],
        }
        for facts in results.selected[results.selected.method == results.choice.method].facts
        for name, found in facts.get("tuned", {}).items()
    ]
    columns = ["detector", "chosen", "auroc", "given_auroc"]
    groups = pd.DataFrame(records, columns=columns).groupby(columns[:2], sort=False)
    table = groups.agg(runs=("auroc", "size"), auroc=("auroc", "mean"), given_auroc=("given_auroc", "mean"))
    return table.reset_index().sort_values(["detector", "runs"], ascending=[True, False], kind="stable")


def _separation(known: np.ndarray, new: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """How well scores tell an unseen domain from ID validation, and its right predictions from its wrong ones."""
    found, (low, high) = ood_metrics(known, new, confidence=None), delong_interval(known, new)
    accepted = new >= threshold_at_coverage(known, COVERAGE)
    return {
        "auroc": found.auroc,
        "auroc_low": low,
        "auroc_high": high,
        "fpr95": found.fpr95,
        "accepted": float(accepted.mean()),
        "accuracy of accepted": float(correct[accepted].mean()) if accepted.any() else np.nan,
        "aurc": aurc(new, correct),
    }
