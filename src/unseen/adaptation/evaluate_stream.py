"""Methods that learn from a few labels of each new distribution, judged step by step along a stream of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from torch import Tensor

from unseen.detection.metrics import delong_interval, ood_metrics
from unseen.errors import InputError
from unseen.shifts.task_streams import Labelled, ShiftStream, ShiftTask

METRICS = ("accuracy", "auroc", "fpr95", "aupr_in", "aupr_out")
INTERVAL = ("auroc_low", "auroc_high")
_LOWER_IS_BETTER = ("fpr95",)


@runtime_checkable
class StreamMethod(Protocol):
    """Whatever adapts, classifies and rejects: `MetaOOD`, or one of `unseen.adaptation.stream_methods`."""

    def adapt(self, support: Labelled, reset: bool = False) -> Any:
        """Learn from labelled examples; `reset` forgets earlier ones."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Classes (N,) int64."""
        ...

    def score(self, x: Tensor) -> Tensor:
        """(N,), higher = more familiar."""
        ...


@dataclass(frozen=True)
class StreamOutcome:
    """What `evaluate_stream` measured; all numbers in [0, 1].

    steps       a row for each distribution, in order of arrival: accuracy on its ID test, and how its ID test is told
                from its OOD test (auroc, fpr95, aupr_in, aupr_out); auroc_low and auroc_high are DeLong's 95 % interval
                of examples, which says nothing of other supports
    area        mean of each metric over the steps: the area under its curve, a step being 1 / T wide
    worst       the worst step's value of each metric
    forgetting  by how much each metric got worse on the source distribution, from adapting to its own support to the
                end of the stream; None where the stream has no source
    """

    steps: pd.DataFrame
    area: pd.Series
    worst: pd.Series
    forgetting: pd.Series | None


def evaluate_stream(method: StreamMethod, stream: ShiftStream, *, reset: bool = False) -> StreamOutcome:
    """Let a method adapt to each distribution's support in turn, and judge it there.

    reset  every adaptation starts from the method's first state; otherwise each goes on from the one before
    The first distribution is always met in the first state, and OOD inputs are never learnt from. A method is left
    as it is after the last step. Raises InputError for an object without adapt, predict and score.
    """
    if not isinstance(method, StreamMethod):
        missing = [name for name in ("adapt", "predict", "score") if not hasattr(method, name)]
        raise InputError(f"method {type(method).__name__}", f"has no {', '.join(missing)}", "Define it.")
    before = None
    if stream.source is not None:
        method.adapt(stream.source.support, reset=True)
        before = judge(method, stream.source)
    rows = []
    for number, task in enumerate(stream):
        method.adapt(task.support, reset=reset or number == 0)
        rows.append(judge(method, task))
    steps = pd.DataFrame(rows, index=pd.Index([task.name for task in stream], name="task"))
    curves = steps[list(METRICS)]
    lower = curves.columns.isin(_LOWER_IS_BETTER)
    worst = curves.min().where(~lower, curves.max())
    forgetting = None
    if stream.source is not None and before is not None:
        loss = (pd.Series(before) - pd.Series(judge(method, stream.source)))[list(METRICS)]
        forgetting = loss.where(~lower, -loss)
    return StreamOutcome(steps, curves.mean(), worst, forgetting)


def judge(method: StreamMethod, task: ShiftTask) -> dict[str, float]:
    """A method, as it is, on one distribution."""
    predicted = method.predict(task.id_test.x).cpu()
    familiar, unfamiliar = method.score(task.id_test.x).cpu(), method.score(task.ood_test).cpu()
    found = ood_metrics(familiar, unfamiliar, confidence=None)
    return {
        "accuracy": float((predicted == task.id_test.y.cpu()).double().mean()),
        **{name: float(getattr(found, name)) for name in METRICS[1:]},
        **dict(zip(INTERVAL, delong_interval(familiar, unfamiliar), strict=True)),
    }
