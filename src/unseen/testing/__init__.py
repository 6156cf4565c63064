"""Executable contracts: run them on your own method, as this library does on every registered one.

    from unseen.testing import check_objective
    check_objective("mine(strength=2)")  # a registered name with options, or anything that builds one

A broken contract raises `ContractError` with a sentence that says which. What a method may choose not to do,
such as running under `torch.func.vmap`, is no error: it stands in the report that is returned.
"""

from __future__ import annotations

from collections.abc import Callable

from unseen.testing.adaptation import check_adaptation
from unseen.testing.averaging import check_averaging
from unseen.testing.contract import ContractError, ContractReport
from unseen.testing.detectors import check_detector
from unseen.testing.objectives import check_objective
from unseen.testing.selectors import check_selector
from unseen.testing.updates import check_update

CHECKS: dict[str, Callable[..., ContractReport]] = {
    "objectives": check_objective,
    "updates": check_update,
    "averaging": check_averaging,
    "detectors": check_detector,
    "adaptation": check_adaptation,
    "selectors": check_selector,
}
"""The check of each kind, under the names of `unseen.registry.REGISTRIES`; the tests run all of them."""

__all__ = [
    "CHECKS",
    "ContractError",
    "ContractReport",
    "check_adaptation",
    "check_averaging",
    "check_detector",
    "check_objective",
    "check_selector",
    "check_update",
]
