"""`unseen watch`: a deployed model beside what arrives. A part of the command line that stands beside what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unseen.console import Plugins


def watch(
    model: Annotated[Path, typer.Argument(help="Model folder that `unseen run` wrote.")],
    stream: Annotated[
        Path, typer.Argument(help="Table, .npz file or folder of images, in order of arrival.")
    ],
    chunk: Annotated[int, typer.Option(help="Examples that are judged together.")] = 200,
    time: Annotated[
        str | None,
        typer.Option(
            help="Column of times, whose order is checked; for a folder: modified (times of its files)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the chart and numbers; default runs/watch-NAME."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm a chunk.")] = 0.01,
    text: Annotated[
        str | None, typer.Option(help="Column of texts; default the column it was trained on.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave images that cannot be decoded out.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the permutations.")] = 0,
    plugin: Plugins = None,
) -> None:
    """Familiarity, drift, estimated accuracy and alarms for what arrives, chunk by chunk, without labels."""
    from unseen.console import escaped, load_plugins, new_console, saying, warnings_told

    console = new_console()
    load_plugins(plugin)
    with saying(console, "loading"):
        from unseen.training.model_folder import load
        from unseen.watch.arrivals import open_arrivals
        from unseen.watch.records import write_watch
        from unseen.watch.watcher import Watcher

    with warnings_told(console):
        predictor = load(model)
        watcher = Watcher(predictor, alpha=alpha, seed=seed)
        text = text or predictor.facts.get("data", {}).get("source", {}).get("text")
        arrivals = open_arrivals(stream, predictor.preprocessing, time=time, text=text, skip_bad=skip_bad)
        console.print(
            "chunk  examples  familiarity  accepted  drift p  effect  est. accuracy", highlight=False
        )
        for inputs, names in arrivals.chunks(chunk):
            seen = watcher.observe(inputs, names)
            console.print(
                f"{seen.number:5}  {seen.examples:8,}  {seen.familiarity:11.4g}  {seen.accepted:8.1%}  "
                f"{seen.drift_p_value:7.2g}  {seen.drift_effect:6.3f}  {_range(seen.accuracy_range):>13}",
                highlight=False,
            )
            for reason in seen.alarms:
                console.print(
                    f"       [bold red]alarm:[/] {escaped(reason)}", highlight=False, soft_wrap=True
                )
    folder = out or Path("runs") / f"watch-{stream.resolve().stem}"
    page = write_watch(watcher, folder, {"model": str(model), "stream": str(stream), "chunk": chunk})
    alarming = sum(bool(seen.alarms) for seen in watcher.chunks)
    console.print(
        f"\n{alarming} of {len(watcher.chunks)} chunks with an alarm\nchart  {page}", highlight=False
    )


def _range(shares: tuple[float, float]) -> str:
    low, high = (round(100 * share) for share in shares)
    return f"{low}-{high}%" if low < high else f"{low}%"
