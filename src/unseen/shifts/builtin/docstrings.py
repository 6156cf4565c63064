"""Documentation of scientific Python packages: is it about a class, a function or a method? By package."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from unseen.errors import InputError
from unseen.registry import Spec, shifts
from unseen.shifts.shift import Shift

KINDS = ("class", "function", "method")
SKIPPED_FOLDERS = {"tests", "testing", "test", "_vendor", "externals", "examples"}
SHORTEST, LONGEST = 4, 60  # words; shorter texts say too little to tell, longer ones say no more
# Words that name the kind or belong to one kind only: without them the text must be understood.
MENTIONS = re.compile(
    r"\b(class|classes|function|functions|method|methods|classmethod|constructor|instance|instances|self|cls)\b",
    re.I,
)
MARKUP = re.compile(r":[a-z:]+:|[`*]+|\.\. [\w-]+::\s*\S*|>>>.*|\bExamples?::|%\(\w+\)s")
PROPERTY = re.compile(r"property|\.(setter|deleter)")  # read like attributes, so documented like them
SECTION = re.compile(r"^\s*(\w[\w ]*\n\s*[-=]{3,}|\w[\w ]*:\s*$|[.:@][ \w])", re.M)


@shifts.register(
    "docstrings",
    summary="Does a docstring describe a class, a function or a method? By Python package",
)
def docstrings(
    packages: Sequence[str] = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib"),
    size: int = 100,
    seed: int = 0,
) -> Shift:
    """Opening words of docstrings (4 to 60) of installed packages; the label is the kind of thing.

    Read from source files without importing them. Only the text before the first section heading is kept
    (headings such as Attributes give classes away), without markup and words such as class, method,
    instance. A text that occurs twice is kept once. Other versions of the packages have other
    texts, and so another fingerprint.

    packages  names as they are imported; each is a domain
    size      texts per package and kind at most
    seed      of the choice of source files

    Raises InputError for a package that is not installed or lacks one of the three kinds.
    """
    if size < 2:
        raise InputError("size", f"is {size}", "Give 2 or more texts per package and kind.")
    texts, labels, domain, ids = [], [], [], []
    seen: set[str] = set()
    for index, package in enumerate(packages):
        found: dict[str, int] = dict.fromkeys(KINDS, 0)
        for name, kind, text in _documented(package, seed):
            if found[kind] < size and seen.isdisjoint((name, text.lower())):
                seen |= {name, text.lower()}
                found[kind] += 1
                texts.append(text)
                labels.append(KINDS.index(kind))
                domain.append(index)
                ids.append(name)
            if min(found.values()) == size:
                break
        if lacking := [kind for kind, count in found.items() if count < 2]:
            raise InputError(
                f"package {package!r}",
                f"has {found[lacking[0]]} usable docstring(s) of the kind {lacking[0]!r}",
                "Name a package that documents classes, functions and methods.",
            )
    return Shift(
        name="docstrings",
        kind="text",
        inputs=texts,
        labels=torch.tensor(labels, dtype=torch.int64),
        domain=torch.tensor(domain, dtype=torch.int64),
        classes=KINDS,
        domains=tuple(packages),
        ids=ids,
        description="What kind of thing a docstring describes, by Python package.",
        source={"source": str(Spec.make("docstrings", packages=packages, size=size, seed=seed))},
    )


def _documented(package: str, seed: int) -> Iterator[tuple[str, str, str]]:
    """Name, kind and cleaned text of public things, from the package's source files in a random order."""
    root = _folder(package)
    files = sorted(
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts) and path.name != "conftest.py"
    )
    random.Random(seed).shuffle(files)
    for file in files:
        module = ".".join((package, *file.with_suffix("").parts)).removesuffix(".__init__")
        for name, kind, node in _public(ast.parse((root / file).read_bytes())):
            text = clean(ast.get_docstring(node) or "")
            if len(text.split()) >= SHORTEST:
                yield f"{module}.{name}", kind, text


def _public(tree: ast.Module) -> Iterator[tuple[str, str, ast.ClassDef | ast.FunctionDef]]:
    """Functions, classes and their methods in a module, without properties and names that begin with _."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, "function", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, "class", node
            for inner in node.body:
                if (
                    isinstance(inner, ast.FunctionDef)
                    and not inner.name.startswith("_")
                    and not PROPERTY.search(" ".join(map(ast.unparse, inner.decorator_list)))
                ):
                    yield f"{node.name}.{inner.name}", "method", inner


def clean(docstring: str) -> str:
    """The opening of a docstring without signature, sections, markup and words that name the kind."""
    text = docstring.strip()
    first, _, rest = text.partition("\n\n")
    if re.match(r"^r?[\w.]+\(.*\)", first, re.S) and not re.search(r"\)\s+\w", first):
        text = rest  # some packages repeat the signature in the first line
    if section := SECTION.search(text):
        text = text[: section.start()]
    text = MENTIONS.sub("", MARKUP.sub("", text))
    return " ".join(text.split()[:LONGEST])


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"package {package!r}", "is not installed", "Name installed packages as they are imported."
        )
    return Path(next(iter(found.submodule_search_locations)))
