"""Enriched label texts: a class's name with a sentence on what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unseen.errors import InputError

TEMPLATE = "a photo of {name}. {description}"


def enrich_labels(
    names: Sequence[str], describe: Callable[[str], str], template: str = TEMPLATE
) -> list[str]:
    """One text a name, in their order: `template` with {name} and {description}, which `describe` gives for the name.

    `describe` may look up a table or ask a language model; nothing here uses a network. White space is trimmed.
    A description must not be written from images that judge. Raises `InputError` for names given twice, a template
    without both places and an empty description. (Li et al. 2023, arXiv 2307.03135, section 3.4.)
    """
    if isinstance(names, str) or not names:
        raise InputError("names", f"are {names!r}", "Give a list of at least one name.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError("names", f"hold {twice[0]!r} twice", "Give each class a name of its own.")
    if "{name}" not in template or "{description}" not in template:
        raise InputError(
            f"template {template!r}", "lacks a place", f"Write {{name}} and {{description}}: {TEMPLATE!r}."
        )
    texts = []
    for name in names:
        description = describe(name)
        if not isinstance(description, str) or not description.strip():
            raise InputError(f"description of {name!r}", f"is {description!r}", "Give a sentence.")
        texts.append(template.format(name=name, description=description.strip()))
    return texts
