"""Everything that has a name: shifts, networks, objectives, update rules, averaging, detectors, selectors, papers.

A method is one new file in its room; a decorator gives it a name, a line of summary and its paper.
`unseen list`, the learner strings of the command line and the tables of the docs all read from here.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unseen.errors import InputError, UnseenError, nearest


@dataclass(frozen=True)
class Spec:
    """A registered name with parameters, `irm(penalty_weight=10)`: hashable, printable, picklable."""

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, value: str | Spec | Mapping[str, Any]) -> Spec:
        """From a `Spec`, a string `name(key=value, ...)` or the mapping that `to_json` gives."""
        if isinstance(value, Spec):
            return value
        if isinstance(value, Mapping):
            return cls.make(value["name"], **value.get("parameters", {}))
        text = value.strip()
        name, parenthesis, _ = text.partition("(")
        if not parenthesis:
            return cls(text)
        try:  # the name may hold dashes, which Python's grammar does not allow: parse the call with another
            call = ast.parse("f" + text[len(name) :], mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise SyntaxError
            return cls.make(name.strip(), **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
        except (SyntaxError, ValueError, TypeError):
            raise InputError(
                f"specification {value!r}", "cannot be read", "Write name or name(key=value, ...)."
            ) from None

    @classmethod
    def make(cls, name: str, /, **parameters: Any) -> Spec:
        return cls(name, tuple(sorted((k, _frozen(v)) for k, v in parameters.items())))

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.parameters)

    def with_options(self, **parameters: Any) -> Spec:
        return Spec.make(self.name, **{**self.options, **parameters})

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "parameters": self.options}

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.parameters)
        return f"{self.name}({inside})" if inside else self.name


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Entry:
    """One registered method. `search` maps a hyperparameter to the distribution that draws it."""

    name: str
    target: Callable[..., Any]
    summary: str
    paper: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Hyperparameters that may be given by name, with their defaults."""
        signature = inspect.signature(self.target)
        found = {
            p.name: p.default
            for p in signature.parameters.values()
            if p.default is not p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        return {**found, **self.preset}


class Registry:
    """Names of one kind of thing. The room's modules are imported at the first look-up, not before."""

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(
        self,
        name: str,
        *,
        summary: str,
        paper: str = "",
        preset: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> Callable[[Any], Any]:
        """Decorator that gives a class or factory a name; may be stacked to register several presets."""

        def decorate(target: Any) -> Any:
            known = self._entries.get(name)
            if known and (known.target.__module__, known.target.__qualname__) != (
                target.__module__,
                target.__qualname__,
            ):
                raise InputError(
                    f"{self.kind} {name!r}",
                    f"is already registered by {known.target.__module__}.{known.target.__qualname__}",
                    "Choose another name.",
                )
            self._entries[name] = Entry(name, target, summary, paper, preset or {}, search or {})
            return target

        return decorate

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        room = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(room.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        _load_installed_plugins()

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            self._load()
        if name not in self._entries:
            raise InputError(f"{self.kind} {name!r}", "is not known", nearest(name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        return [entry.name for entry in self]

    def build(self, spec: str | Spec, **context: Any) -> Any:
        """Make the named thing: preset, then the spec's parameters, then what the caller knows (`context`)."""
        spec = Spec.of(spec)
        entry = self.check(spec, context)
        return entry.target(**{**entry.preset, **spec.options, **context})

    def check(self, spec: str | Spec, context: Iterable[str] = ()) -> Entry:
        """Raise `InputError` for an unknown name or option; `context` names what the caller gives to `build`."""
        spec = Spec.of(spec)
        entry = self[spec.name]
        allowed = entry.options()
        for key in spec.options:
            if key not in allowed or key in context:
                choices = [option for option in allowed if option not in context]
                raise InputError(
                    f"option {key!r} of {self.kind} {spec.name!r}",
                    "is not known",
                    nearest(key, choices) or "It takes no options.",
                )
        return entry

    def external(self) -> list[Entry]:
        """Entries of a script or notebook: other processes can't import these."""
        return [e for e in self._entries.values() if e.target.__module__ == "__main__"]

    def adopt(self, entries: list[Entry]) -> None:
        """Take over entries of another process (worker processes know only what they import)."""
        self._entries.update({entry.name: entry for entry in entries})


shifts = Registry("shift", "unseen.shifts.builtin")
networks = Registry("network", "unseen.networks")
objectives = Registry("objective", "unseen.objectives")
updates = Registry("update rule", "unseen.updates")
averaging = Registry("averaging", "unseen.averaging")
merging = Registry("merging method", "unseen.merging")
detectors = Registry("detector", "unseen.detection")
adaptation = Registry("adaptation", "unseen.adaptation")
selectors = Registry("selector", "unseen.curation")
papers = Registry("paper", "unseen.papers")

REGISTRIES: dict[str, Registry] = {
    "shifts": shifts,
    "networks": networks,
    "objectives": objectives,
    "updates": updates,
    "averaging": averaging,
    "merging": merging,
    "detectors": detectors,
    "adaptation": adaptation,
    "selectors": selectors,
    "papers": papers,
}

plugins: list[str] = []
"""Plug-in files that were loaded: worker processes load them, too."""

_installed_plugins_loaded = False


def _load_installed_plugins() -> None:
    """Packages that declare the entry point group `unseen.plugins` register themselves on import."""
    global _installed_plugins_loaded
    if not _installed_plugins_loaded:
        _installed_plugins_loaded = True
        for point in importlib.metadata.entry_points(group="unseen.plugins"):
            point.load()


def load_plugin(path: str | Path) -> None:
    """Run a Python file that registers methods: `unseen run ... --plugin my_objective.py`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"plug-in {str(path)!r}", "is not a file", "Give the path of a Python file.")
    name = f"unseen_plugin_{path.stem}"
    if name in sys.modules:
        known = sys.modules[name].__file__
        if known != str(path.resolve()):
            raise InputError(f"plug-in {str(path)!r}", f"has the name of {known!r}", "Rename one of them.")
        return
    specification = importlib.util.spec_from_file_location(name, path.resolve())
    module = importlib.util.module_from_spec(specification)  # type: ignore[arg-type]
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)  # type: ignore[union-attr]
    except Exception as error:  # whatever the user's code raises
        del sys.modules[name]
        if isinstance(error, UnseenError):
            raise
        problem = f"cannot be loaded ({type(error).__name__}: {error})"
        raise InputError(f"plug-in {str(path)!r}", problem, "Run it with python to see where.") from error
    plugins.append(str(path.resolve()))
