"""Groups of parameters by their names: the layers or blocks that are looked at one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from unseen.errors import InputError

Groups = Callable[[str], str | None] | Mapping[str, str]
"""From a parameter's name to its group (None: in no group); or regular expressions by the group's name."""


def block_of(name: str) -> str:
    """The block of a parameter, "encoder.layers.3" of "encoder.layers.3.attention.weight": its name up to the first
    number, and without one the module that holds it."""
    parts = name.split(".")
    numbered = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[:-1] if numbered is None else parts[: numbered + 1]) or name


def grouped(names: Iterable[str], groups: Groups | None = None) -> dict[str, list[str]]:
    """Names by group, in order of first appearance (of the mapping); default by block (`block_of`).

    With regular expressions a name is in the first group whose expression is found in it. Raises `InputError` for
    an expression that is found in no name.
    """
    found: dict[str, list[str]] = {}
    if isinstance(groups, Mapping):
        patterns = groups
        found = {group: [] for group in patterns}

        def group_of(name: str) -> str | None:
            return next((group for group, pattern in patterns.items() if re.search(pattern, name)), None)
    else:
        group_of = groups or block_of  # type: ignore[assignment]
    for name in names:
        group = group_of(name)
        if group is not None:
            found.setdefault(group, []).append(name)
    for group, members in found.items():
        if not members:
            assert isinstance(groups, Mapping)
            raise InputError(
                f"group {group!r}",
                f"has no parameter: nothing matches {groups[group]!r}",
                "Look at the names.",
            )
    if not found:
        raise InputError("groups", "take in no parameter", "Look at the names.")
    return found
