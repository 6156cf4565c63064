"""Pieces of the terminal that the commands share. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file that registers methods.")]


def new_console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


def escaped(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


def load_plugins(paths: list[Path] | None) -> None:
    if paths:
        from unseen.registry import load_plugin

        for path in paths:
            load_plugin(path)


@contextlib.contextmanager
def warnings_told(console: Any) -> Iterator[None]:
    """Print this library's warnings as one line each, as they come; keep others out of the way."""
    from unseen.errors import UnseenWarning

    told: set[str] = set()

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if issubclass(category, UnseenWarning) and str(message) not in told:
            told.add(str(message))
            say(console, "[yellow]warning:[/]", message)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnseenWarning)
        warnings.showwarning = show
        yield


def say(console: Any, mark: str, message: object) -> None:
    """One message; a terminal gets it wrapped between words, a file as one line."""
    console.print(f"{mark} {escaped(message)}", highlight=False, soft_wrap=not console.is_terminal)


@contextlib.contextmanager
def resumable(console: Any) -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost, and end with the shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted: what is finished is kept; the same command goes on from there")
        raise typer.Exit(130) from None


@contextlib.contextmanager
def saying(console: Any, what: str) -> Iterator[None]:
    with console.status(what + " ..."):
        yield


def progress_bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def split_names(text: str) -> list[str]:
    """Parts between commas that are outside parentheses."""
    from unseen.training.learner import split_outside_parentheses

    return [part.strip() for part in split_outside_parentheses(text, ",")]


def folder_name(data: str) -> str:
    """runs/NAME for a path or the name of a shift with options."""
    name = Path(data).stem if Path(data).exists() else data
    return "".join(c if c.isalnum() or c in "-_.=" else "-" for c in name).strip("-") or "study"


def check_table_ending(path: Path) -> None:
    from unseen.errors import InputError

    if path.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"file {str(path)!r}", "has an unknown ending", "Write to .csv or .parquet.")


def write_table(table: Any, path: Path) -> None:
    from unseen.errors import InputError

    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.suffix.lower() == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)
        os.replace(temporary, path)
    except OSError as error:
        problem = (
            f"cannot be written ({error.strerror or error})"  # pandas gives a missing folder no strerror
        )
        raise InputError(f"file {str(path)!r}", problem, "Choose another.") from None
    finally:
        with contextlib.suppress(OSError):  # it is gone when all went well
            temporary.unlink()
