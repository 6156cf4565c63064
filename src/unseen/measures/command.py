"""`unseen measure`: numbers about data, a model or a study. A part of the command line beside what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unseen.console import Plugins


def measure(
    source: Annotated[
        str,
        typer.Argument(
            help="Data (file, image folder, built-in name), a model folder, or a study's folder (runs/NAME)."
        ),
    ],
    data: Annotated[
        str | None, typer.Argument(help="For a model: labelled data to compare with its validation.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    domain: Annotated[str | None, typer.Option(help="Column that says where a row comes from.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of texts to learn from.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns to learn from, separated by commas.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels to which images are brought.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad rows and images out and say how many.")] = False,
    network: Annotated[
        str, typer.Option(help="Network that is trained on all domains but one, in turn; auto by the data.")
    ] = "auto",
    backbone: Annotated[str | None, typer.Option(help="Frozen pretrained encoder under it.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps of that network.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of draws and training.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of page and numbers; default runs/measure-NAME."),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """How hard is it to generalize here, why is a model worse elsewhere, and what can be told at home."""
    from unseen.console import escaped, folder_name, load_plugins, new_console, saying, warnings_told

    console = new_console()
    folder = out or Path("runs") / f"measure-{folder_name(source)}"
    load_plugins(plugin)
    with warnings_told(console):
        with saying(console, "loading"):
            from unseen.errors import InputError
            from unseen.measures.page import write_sections
            from unseen.shifts.opening import open_shift
            from unseen.studies.measuring import measure_data, measure_model, measure_study
        kind = _kind(source)
        if data is not None and kind != "model":
            raise InputError(
                f"source {source!r}", "is no model folder", "Give data to compare with a model alone."
            )
        shift = None
        if kind == "data" or data is not None:
            opened = source if data is None else data
            with saying(console, f"opening {opened}"):
                shift = open_shift(
                    opened,
                    label=label,
                    domain=domain,
                    text=text,
                    features=None if features is None else [name.strip() for name in features.split(",")],
                    skip_bad=skip_bad,
                    image_size=image_size,
                )
        if kind == "study":
            from unseen.studies.results import Results

            sections = measure_study(Results(source))
        elif kind == "model":
            from unseen.training.model_folder import load

            sections = measure_model(load(source), shift, seed=seed)
        else:
            assert shift is not None
            sections = measure_data(shift, network=network, backbone=backbone, steps=steps, seed=seed)
        found = []
        while True:
            with saying(console, "measuring"):
                section = next(sections, None)
            if section is None:
                break
            found.append(section)
            _print(console, section)
    facts = {"source": source, **({} if data is None else {"data": data}), "seed": seed}
    page = write_sections(found, folder, facts)
    console.print(f"page  {escaped(page)}", highlight=False)


def _kind(source: str) -> str:
    path = Path(source)
    if (path / "model.json").is_file():
        return "model"
    return "study" if (path / "results.sqlite").is_file() else "data"


def _print(console: Any, section: Any) -> None:
    from pandas.api.types import is_numeric_dtype
    from rich.table import Table

    from unseen.console import escaped
    from unseen.measures.page import cells

    names, rows = cells(section.table)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in names:
        words = not is_numeric_dtype(section.table[name])
        table.add_column(escaped(name), justify="left" if words else "right", no_wrap=not words)
    for row in rows:
        table.add_row(*map(escaped, row))
    console.print(
        f"[bold]{escaped(section.title)}[/]", table, f"[dim]{escaped(section.note)}[/]\n", highlight=False
    )
