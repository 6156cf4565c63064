"""What all checks share: the error, the report, and comparisons that end in a clear sentence."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unseen.errors import UnseenError
from unseen.registry import Registry, Spec

Buildable = str | Spec | Callable[[], Any]


class ContractError(UnseenError, AssertionError):
    """A method does not keep the contract of its kind."""


@dataclass
class ContractReport:
    """Checks that passed, and facts that are not errors (`vmap`, `stacked`: True or the reason why not)."""

    name: str
    passed: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def builder(registry: Registry, what: Buildable) -> tuple[Callable[[], Any], ContractReport]:
    if isinstance(what, (str, Spec)):
        return lambda: registry.build(what), ContractReport(f"{registry.kind} {str(what)!r}")
    return what, ContractReport(f"{registry.kind} {getattr(what, '__name__', repr(what))!r}")


def require(condition: bool, report: ContractReport, sentence: str) -> None:
    if not condition:
        raise ContractError(f"{report.name} {sentence}")


def close(
    found: Tensor, expected: Tensor, report: ContractReport, sentence: str, tolerance: float = 1e-4
) -> None:
    same = torch.allclose(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)
    require(
        same, report, f"{sentence}: {found.flatten()[:3].tolist()}, not {expected.flatten()[:3].tolist()}"
    )


def equal(first: Any, second: Any) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def through_file(state: Any, report: ContractReport) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True)
    except Exception as error:
        message = str(error).splitlines()[0]
        raise ContractError(
            f"{report.name} has a state_dict with more than tensors and plain values: {message}"
        ) from error
