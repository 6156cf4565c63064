"""Proposals of new domains: what a domain is called, how each class looks in it, and how it is to be generated."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Protocol

from unseen.errors import InputError, UnseenWarning

SIMILAR = 0.9
"""Share of words in common from which two domains say the same."""
FEW_DUPLICATES = 0.1
"""Share of domains that may say the same as another before a warning."""


@dataclass(frozen=True)
class DomainSpec:
    """A domain that does not exist yet.

    name         what the domain is called in the data; also the name of a folder
    description  a sentence, for the reader and for templates
    prompts      class name -> texts for a generator that reads texts
    parameters   numbers and words for a generator that computes, the same for every class
    """

    name: str
    description: str = ""
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_folder_name(f"domain {self.name!r}", self.name)
        if isinstance(self.prompts, str) or any(isinstance(texts, str) for texts in self.prompts.values()):
            raise InputError(
                f"prompts of domain {self.name!r}", "are a string", "Give {class: [prompt, ...], ...}."
            )
        object.__setattr__(self, "prompts", {str(c): tuple(texts) for c, texts in self.prompts.items()})

    def prompts_of(self, cls: str) -> tuple[str, ...]:
        """The prompts of one class; raises `InputError` when there is none."""
        found = tuple(text for text in self.prompts.get(cls, ()) if text.strip())
        if not found:
            raise InputError(
                f"domain {self.name!r}",
                f"has no prompt for class {cls!r}",
                "Give one for every class, or a template with {cls}.",
            )
        return found

    @property
    def text(self) -> str:
        """All that the domain says, for comparison and search."""
        words = [self.name, self.description, *(text for texts in self.prompts.values() for text in texts)]
        return " ".join([*words, *(f"{key}={value}" for key, value in self.parameters.items())])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "prompts": {cls: list(texts) for cls, texts in self.prompts.items()},
            "parameters": dict(self.parameters),
        }


class DomainProposer(Protocol):
    """Anything that names `n` domains for a task. `facts` (strings, numbers) go into the manifest."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def propose(self, task: str, classes: Sequence[str], n: int) -> list[DomainSpec]: ...


def check_proposals(
    specs: Sequence[DomainSpec], classes: Sequence[str], n: int, unseen: Sequence[str] = ()
) -> None:
    """Raise `InputError` for proposals that cannot be used, warn of those that say the same.

    specs    must be `n`, of different names, each with prompts of every class or of none
    unseen   names of domains that are to stay unseen: no proposal may name one, or it is no longer unseen
    """
    if len(specs) < n:
        raise InputError("proposer", f"gave {len(specs)} domains of {n}", f"Ask for {len(specs)} or fewer.")
    names = [spec.name.casefold() for spec in specs]
    for spec in specs:
        if names.count(spec.name.casefold()) > 1:
            raise InputError(f"domain {spec.name!r}", "is proposed twice", "Name every domain once.")
        missing = [cls for cls in classes if spec.prompts and not spec.prompts.get(cls)]
        if missing:
            raise InputError(
                f"domain {spec.name!r}",
                f"has no prompt for class {missing[0]!r}"
                + (f" and {len(missing) - 1} more" * (len(missing) > 1)),
                "A domain that lacks a class makes the class known by the domain: give every class a prompt.",
            )
        if (name := named(spec.text, unseen)) is not None:
            raise InputError(
                f"domain {spec.name!r}",
                f"names the unseen domain {name!r}",
                "What is generated after its name is no longer unseen: leave the proposal out.",
            )
    same = near_duplicates(specs)
    repeated = len({second for _, second in same})
    if repeated > FEW_DUPLICATES * len(specs):
        first, second = same[0]
        warnings.warn(
            f"{repeated} of {len(specs)} proposed domains say nearly the same as another, "
            f"such as {first!r} and {second!r}: they count as fewer.",
            UnseenWarning,
            stacklevel=3,
        )


def near_duplicates(specs: Sequence[DomainSpec], similarity: float = SIMILAR) -> list[tuple[str, str]]:
    """Pairs of names whose domains share at least this part of their words (Jaccard), their names left aside."""
    words = {}
    for spec in specs:
        text = spec.text[len(spec.name) :].casefold()
        words[spec.name] = set(re.findall(r"[^\s,;]+", text))
    return [
        (a, b)
        for a, b in combinations(words, 2)
        if words[a] and len(words[a] & words[b]) >= similarity * len(words[a] | words[b])
    ]


def named(text: str, names: Sequence[str]) -> str | None:
    """The first of `names` that occurs in the text as words of its own (also in the plural), or None."""
    text = text.casefold().replace("_", " ")
    for name in names:
        words = [re.escape(word) for word in re.split(r"[\s_\-]+", name.casefold()) if word]
        if words and re.search(r"(?<!\w)" + r"[\s-]*".join(words) + r"(e?s)?(?!\w)", text):
            return name
    return None


def require_folder_name(subject: str, name: str) -> None:
    """Raise `InputError` when examples cannot lie in a folder of this name."""
    if (
        not name.strip()
        or name != name.strip()
        or name.startswith(".")
        or re.search(r'[/\\\0-\x1f:*?"<>|]', name)
    ):
        raise InputError(
            subject,
            "cannot be the name of a folder",
            'Give a name without a leading dot, spaces at the ends, or any of / \\ : * ? " < > |.',
        )
