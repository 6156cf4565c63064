"""The command line. Heavy libraries are imported inside the commands: `unseen --help` answers at once."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unseen.arena.command import backbones
from unseen.console import (
    Plugins,
    check_table_ending,
    load_plugins,
    new_console,
    progress_bar,
    resumable,
    say,
    warnings_told,
    write_table,
)
from unseen.curation.command import curate
from unseen.extrapolation.command import extrapolate
from unseen.measures.command import measure
from unseen.merging.command import merge
from unseen.studies.command import report, run
from unseen.watch.command import watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Generalization beyond the training distribution: train, judge and deploy models under shift.",
)


def main() -> None:
    """Entry point: errors that name the input are printed plainly, without a traceback."""
    from unseen.errors import UnseenError

    # Threads that wait give the processor up. Measured with all cores busy: 200 s became 38 s; idle, no loss.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except UnseenError as error:
        say(new_console(stderr=True), "[bold red]error:[/]", error)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from unseen import __version__

        typer.echo(f"unseen {__version__}")
        raise typer.Exit


app.command()(run)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Model folder that `unseen run` wrote.")],
    data: Annotated[Path, typer.Argument(help="Table, folder of images or .npz file, without labels.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV or Parquet file; default the terminal.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of texts; default the column it was trained on.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave images that cannot be decoded out.")] = False,
    adapt: Annotated[
        str | None,
        typer.Option(help="Adapt on the way, in the order of the data: tent, t3a, ... (list adaptation)."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples that --adapt learns from together.")] = 64,
    steer: Annotated[
        str | None,
        typer.Option(
            help="Choose among the heads of a drm model: entropy, discriminator, prototype, uniform."
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of a table: --steer chooses for each of its values by itself.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Label, probabilities, familiarity and accept/abstain for new data.

    With --adapt or --steer the answers are another network's than the one whose sense of the familiar is stored:
    there is no familiarity then.
    """
    console = new_console(stderr=out is None)
    if out is not None:
        check_table_ending(out)
    _check_predicting(adapt, steer, group)
    load_plugins(plugin)
    from unseen.shifts.new_inputs import open_inputs, read_column
    from unseen.training.model_folder import load

    with warnings_told(console):
        predictor = load(model)
        text = text or predictor.facts.get("data", {}).get("source", {}).get("text")
        inputs, names = open_inputs(data, predictor.preprocessing, text, skip_bad=skip_bad)
        if adapt is not None:
            from unseen.training.adapted import predict_adapted

            table = predict_adapted(predictor, inputs, adapt, batch_size=batch_size)
        elif steer is not None:
            from unseen.networks.steering import Steering
            from unseen.training.steered import predict_steered

            groups = None if group is None else read_column(data, group)
            table = predict_steered(predictor, inputs, groups, Steering(by=steer))
        else:
            table = predictor.predict(inputs)
    table.insert(0, "id", names)
    if out is None:
        table.to_csv(sys.stdout, index=False)
    else:
        write_table(table, out)
    accepted = f", {table.accept.mean():.1%} accepted" if "accept" in table else ""
    console.print(f"{len(table):,} predictions{accepted}" + (f" -> {out}" if out else ""), highlight=False)


def _check_predicting(adapt: str | None, steer: str | None, group: str | None) -> None:
    from unseen.errors import InputError

    if adapt is not None and steer is not None:
        raise InputError("--adapt and --steer", "were given together", "Give one of them.")
    if group is not None and steer is None:
        raise InputError("--group", "was given without --steer", "Say how heads are chosen: --steer entropy.")


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="shifts, networks, objectives, updates, averaging, ...")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """What there is, by name, with its paper."""
    from rich.table import Table

    from unseen.errors import InputError, nearest
    from unseen.registry import REGISTRIES

    load_plugins(plugin)
    if kind is not None and kind not in REGISTRIES:
        raise InputError(f"kind {kind!r}", "is not known", nearest(kind, REGISTRIES))
    console = new_console()
    for name, registry in REGISTRIES.items():
        if kind in (None, name):
            table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
            table.add_column("name", style="cyan", no_wrap=True)
            table.add_column("what it is")
            table.add_column("paper", style="dim")
            for entry in registry:
                table.add_row(entry.name, entry.summary, entry.paper)
            console.print(table, "")


app.command()(report)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="Name of a paper (see `unseen list papers`), or all.")],
    seeds: Annotated[
        int | None, typer.Option(help="Seeds, at least 3; default the reproduction's own.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Run at the paper's own scale.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of measurements.")] = Path(
        "runs/reproductions"
    ),
    record: Annotated[
        Path | None, typer.Option(help="Also write the record (JSON, plot) to this folder.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Test a paper's central claim; prints a table with a verdict a claim. Goes on where it was stopped."""
    console = new_console()
    load_plugins(plugin)
    from unseen.papers.reproduce import record as write_record
    from unseen.papers.reproduce import reproduce as run_reproduction
    from unseen.registry import papers
    from unseen.reports.reproductions import print_outcome

    for each in papers.names() if name == "all" else [name]:
        papers[each]  # an unknown name is reported before a progress bar appears
        with resumable(console), progress_bar(console) as bar:
            task = bar.add_task(each, total=None)
            tell = functools.partial(_tell_unit, bar, task, each)
            scale: Any = "full" if full else "laptop"
            outcome = run_reproduction(each, folder=out, seeds=seeds, scale=scale, report=tell)
        print_outcome(outcome, console)
        if record is not None:
            console.print(f"record  {write_record(outcome, record)}", highlight=False)


app.command()(backbones)
app.command()(curate)
app.command()(extrapolate)
app.command()(measure)
app.command()(merge)
app.command()(watch)


def _tell_unit(bar: Any, task: Any, name: str, what: str, done: int, total: int) -> None:
    bar.update(task, description=f"{name}: {what}", completed=done, total=total)


if __name__ == "__main__":
    main()
