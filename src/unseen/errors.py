"""Errors that name the input, what is wrong with it, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UnseenError(Exception):
    """Base of every error that this library raises on purpose."""


class InputError(UnseenError, ValueError):
    """Something that the caller passed cannot be used.

    `subject` names the input, `problem` says what is wrong, `remedy` what would be right.
    """

    def __init__(self, subject: str, problem: str, remedy: str = ""):
        self.subject, self.problem, self.remedy = subject, problem, remedy
        super().__init__(f"{subject}: {problem}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self):  # worker processes send errors back to the caller
        return type(self), (self.subject, self.problem, self.remedy)


class MissingExtra(UnseenError, ImportError):
    """An optional dependency is needed; the message says which extra brings it."""

    def __init__(self, what: str, extra: str):
        self.what, self.extra = what, extra
        super().__init__(f"{what} needs an optional dependency: pip install 'unseen[{extra}]'")

    def __reduce__(self):
        return type(self), (self.what, self.extra)


class TrainingDiverged(UnseenError, ArithmeticError):
    """The loss became NaN or infinite. `state` holds the best weights measured before, or None."""

    state: Any = None


class UnseenWarning(UserWarning):
    """A result can be had, but something about it deserves a look."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence that offers the names nearest to a misspelt one: "Did you mean 'a' or 'b'?"."""
    options = [str(option) for option in options]
    close = difflib.get_close_matches(str(name).lower(), [o.lower() for o in options], n=3, cutoff=0.5)
    found = [option for name in dict.fromkeys(close) for option in options if option.lower() == name]
    if found:
        return "Did you mean " + " or ".join(repr(option) for option in found) + "?"
    shown = ", ".join(repr(option) for option in options[:20])
    return f"There is: {shown}{', ...' if len(options) > 20 else ''}." if options else ""
