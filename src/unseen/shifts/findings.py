"""What a check has to say about a part of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Something that cannot be used ("error") or deserves a look ("warning")."""

    level: Literal["error", "warning"]
    subject: str
    problem: str
    remedy: str = ""

    @property
    def message(self) -> str:
        return f"{self.problem}." + (f" {self.remedy}" if self.remedy else "")

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


def error(subject: str, problem: str, remedy: str) -> Finding:
    return Finding("error", subject, problem, remedy)


def warning(subject: str, problem: str, remedy: str = "") -> Finding:
    return Finding("warning", subject, problem, remedy)
