"""`unseen backbones`: which pretrained backbone to take for your data. A part of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def backbones(
    data: Annotated[
        str,
        typer.Argument(
            help="Image folder domain/class/*.png, folder with boxes in COCO's format, table with --text, .npz or "
            "built-in name."
        ),
    ],
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Names, separated by commas, such as 'efficientnet-lite0(size=112),random:minilm,pixels', or "
            "FILE.py:FUNCTION. Default: those at hand."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="probe, few-shot, ood, retrieval, fine-tune; default all but the last, which is slow. With boxes: "
            "detection, tuned-detection; default the first."
        ),
    ] = None,
    constraints: Annotated[
        str | None, typer.Option(help="What the recommended one must keep, as in 'params<30e6,flops<1e9'.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    domain: Annotated[str | None, typer.Option(help="Column that says where a row comes from.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of texts.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels to which images are brought when read.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad rows and images out and say how many.")] = False,
    examples: Annotated[
        int, typer.Option(help="Examples of each domain, or images of each split, at most.")
    ] = 300,
    seeds: Annotated[int, typer.Option(help="Repetitions with other splits and heads.")] = 3,
    trials: Annotated[int, typer.Option(help="Learning rates tried for each backbone, task and seed.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of results; default runs/backbones-NAME.")
    ] = None,
) -> None:
    """Compare backbones on your data at equal budget: a ranking, its uncertainty, and a recommendation."""
    from unseen.console import (
        folder_name,
        new_console,
        progress_bar,
        resumable,
        saying,
        split_names,
        warnings_told,
    )

    console = new_console()
    folder = out or Path("runs") / f"backbones-{folder_name(data)}"
    with warnings_told(console):
        with saying(console, "loading"):
            from unseen.arena.arena import BackboneArena
            from unseen.arena.page import advice_in_words, write_comparison
            from unseen.arena.pool import at_most, backbones_at_hand, tasks_of
            from unseen.arena.protocols import Budget
            from unseen.arena.ranking import FEWEST, recommend, zscore_ranking

        rules = _check(folder, constraints, seeds)
        with saying(console, f"opening {data}"):
            columns = {"label": label, "domain": domain, "text": text}
            opened = _open(data, columns, image_size=image_size, skip_bad=skip_bad)
        names = split_names(backbones) if backbones else list(backbones_at_hand(opened.kind))
        if len(names) < FEWEST:
            from unseen.errors import InputError

            remedy = f"A ranking by z-scores needs {FEWEST} or more: add pixels, colours or random:NAME."
            raise InputError("--backbones", f"names {len(names)}", remedy)
        opened = at_most(opened, examples)
        with saying(console, "loading backbones"):
            arena = BackboneArena(
                names, tasks_of(opened, split_names(tasks) if tasks else None), Budget(trials=trials),
                seeds=range(seeds),
            )  # fmt: skip
        console.print(
            f"{opened.name}: {len(opened):,} examples, {len(opened.classes)} classes, "
            f"{len(opened.domains)} domains; {len(names)} backbones",
            highlight=False,
            markup=False,
        )
        with resumable(console), progress_bar(console) as bar:
            shown = bar.add_task("", total=None)
            frame = arena.run(
                folder / "scores.sqlite",
                lambda what, done, total: bar.update(shown, description=what, completed=done, total=total),
            )
        ranking, advice = zscore_ranking(frame), recommend(frame, rules)
        facts = {
            "data": data, "examples": len(opened), "domains": ", ".join(opened.domains), "seeds": seeds,
            "trials": trials, "constraints": constraints or "none",
        }  # fmt: skip
        page = write_comparison(folder, frame, ranking, advice, facts)
    _print(console, frame, ranking)
    console.print("\n" + advice_in_words(advice), highlight=False, markup=False)
    console.print(f"\nscores  {folder / 'scores.csv'}\nchart   {page}", highlight=False, markup=False)


def _check(folder: Path, constraints: str | None, seeds: int) -> list[str]:
    """What is used last is checked first: before anything is opened or computed."""
    from unseen.arena.ranking import read_constraints
    from unseen.console import split_names
    from unseen.errors import InputError

    rules = split_names(constraints) if constraints else []
    read_constraints(rules)
    if seeds < 1:
        raise InputError("--seeds", f"is {seeds}", "Give a number from 1.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r}", "is a file", "Name a folder.")
    return rules


def _open(data: str, columns: dict[str, Any], **options: Any) -> Any:
    """A shift, or images with boxes, which have no columns."""
    from unseen.arena.boxes import holds_boxes, open_boxes
    from unseen.errors import InputError
    from unseen.shifts.opening import open_shift

    if not holds_boxes(data):
        return open_shift(data, **columns, **options)
    for name, value in columns.items():
        if value is not None:
            raise InputError(f"--{name}", "names a column, but a folder with boxes has none", "Leave it.")
    return open_boxes(data, **options)


def _print(console: Any, frame: Any, ranking: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    tasks = [column for column in ranking if column not in ("score", "low", "high", "rank")]
    params = frame.drop_duplicates("backbone").set_index("backbone").params
    table = Table(title="z-scores, higher is better", title_justify="left", box=None, pad_edge=False)
    for column in ("", "backbone", *tasks, "overall", "over seeds", "params"):
        named = column == "backbone"  # names are what a narrow terminal breaks
        table.add_column(
            column,
            justify="left" if named else "right",
            no_wrap=not named,
            overflow="fold",
            min_width=12 * named,
        )
    for name, row in ranking.iterrows():
        table.add_row(
            str(int(row["rank"])),
            escape(str(name)),
            *(f"{row[task]:+.2f}" for task in tasks),
            f"{row.score:+.2f}",
            f"{row.low:+.1f}..{row.high:+.1f}",
            _short(params[name]),
        )
    console.print(table)


def _short(number: float) -> str:
    """3371008 as 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
