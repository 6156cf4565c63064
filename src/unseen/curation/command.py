"""`unseen curate`: what to keep of a data set. A part of the command line that stands beside what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unseen.console import Plugins


def curate(
    data: Annotated[
        str, typer.Argument(help="CSV/Parquet/Feather file, image folder, .npz file or built-in name.")
    ],
    keep: Annotated[float, typer.Option(help="Share of the examples to keep, in (0, 1].")],
    by: Annotated[
        str,
        typer.Option(
            help="Selector (see `unseen list selectors`); further ones, after commas, are compared."
        ),
    ] = "small_loss",
    within: Annotated[str, typer.Option(help="Keep the share of each: domain, class or all.")] = "domain",
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    domain: Annotated[str | None, typer.Option(help="Column that says where a row comes from.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of texts to learn from.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns to learn from, separated by commas.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels to which images are brought.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad rows and images out and say how many.")] = False,
    network: Annotated[
        str, typer.Option(help="Network that scores; auto chooses by the kind of data.")
    ] = "auto",
    backbone: Annotated[str | None, typer.Option(help="Frozen pretrained encoder under the network.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps of the network that scores.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of training and of selectors that draw.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of what is written; default curated/NAME.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Choose what to train on: writes ids with scores, the reduced data set, and says what was kept."""
    from unseen.console import folder_name, load_plugins, new_console, saying, split_names, warnings_told

    console = new_console()
    folder = out or Path("curated") / folder_name(data)
    with warnings_told(console):
        with saying(console, "loading"):
            from unseen.curation.reduced import write_ids, write_reduced
            from unseen.shifts.opening import open_shift
            from unseen.studies.scoring import score_shift

        load_plugins(plugin)
        given: dict[str, Any] = {"label": label, "domain": domain, "text": text, "image_size": image_size}
        names = split_names(by)
        grouping = _check(data, names, keep, within, folder)
        with saying(console, f"opening {data}"):
            shift = open_shift(
                data,
                **given,
                features=None if features is None else [name.strip() for name in features.split(",")],
                skip_bad=skip_bad,
            )
        with saying(console, f"training and scoring by {', '.join(names)}"):
            found = score_shift(
                shift, names, keep, by=grouping, network=network, backbone=backbone, steps=steps, seed=seed
            )
        folder.mkdir(parents=True, exist_ok=True)
        rows = found.rows[names[0]]
        reduced = write_reduced(shift, rows, data, folder)
        ids = write_ids(found.ids(names[0]), folder / "ids.csv")
        report = write_ids(found.report, folder / "report.csv")
    _print(console, found, names)
    written = {
        "ids": ids,
        "data": reduced or "(not copied: ids.csv names what to keep)",
        "report": report,
    }
    console.print("\n" + "\n".join(f"{what:<8}{path}" for what, path in written.items()), highlight=False)


def _check(data: str, names: list[str], keep: float, within: str, folder: Path) -> Any:
    """What is used last is checked first: before anything is opened or trained."""
    from unseen.errors import InputError, nearest
    from unseen.registry import selectors

    for name in names:
        selectors.build(name)
    if not names:
        raise InputError("--by", "names no selector", "Give one, such as donod or small_loss.")
    if not 0 < keep <= 1:
        raise InputError("--keep", f"is {keep}", "Give the share to keep, above 0 and at most 1.")
    groups = {"domain": "domain", "class": "class", "all": None}
    if within not in groups:
        raise InputError(f"--within {within!r}", "is not known", nearest(within, groups))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r}", "is a file", "Name a folder.")
    source = Path(data).expanduser()
    if source.is_file() and (folder / source.name).resolve() == source.resolve():
        raise InputError(
            f"--out {str(folder)!r}", "is where the data are", "Name another: they would be replaced."
        )
    return groups[within]


def _print(console: Any, found: Any, names: list[str]) -> None:
    from rich.table import Table

    report = found.report[found.report.selector == names[0]]
    table = Table(title=f"kept by {names[0]}", title_justify="left", box=None, pad_edge=False)
    for column in ("", "", "examples", "kept", "share", "score of kept"):
        table.add_column(column, justify="right" if column else "left")
    for row in report.itertuples():
        part = "" if row.part == "all" else row.part
        score = "-" if row.score != row.score else f"{row.score:+.2f} sd"
        table.add_row(part, str(row.name), f"{row.examples:,}", f"{row.kept:,}", f"{row.share:.0%}", score)
    console.print(table)
    if len(names) > 1:
        overlap = Table(title="overlap (Jaccard)", title_justify="left", box=None, pad_edge=False)
        overlap.add_column("")
        for name in names:
            overlap.add_column(name, justify="right")
        for name, values in found.overlap.iterrows():
            overlap.add_row(str(name), *(f"{value:.2f}" for value in values))
        console.print("", overlap)
