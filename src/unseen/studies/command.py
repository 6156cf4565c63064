"""`unseen run` and `unseen report`: a study from data to a model. A part of the command line beside what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unseen.console import (
    Plugins,
    duration,
    escaped,
    folder_name,
    load_plugins,
    new_console,
    progress_bar,
    resumable,
    say,
    saying,
    split_names,
    warnings_told,
)

WORTH_ESTIMATING = 5000
"""Training steps in all: with fewer, estimating how long they take would take about as long."""


def run(
    data: Annotated[
        str, typer.Argument(help="CSV/Parquet/Feather file, image folder, .npz file or built-in name.")
    ],
    label: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    domain: Annotated[str | None, typer.Option(help="Column that says where a row comes from.")] = None,
    group: Annotated[str | None, typer.Option(help="Column for worst-group metrics.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of numbers or dates, for --after.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of texts to learn from.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns to learn from, separated by commas.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels to which images are brought.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad rows and images out and say how many.")] = False,
    unseen: Annotated[
        list[str] | None, typer.Option(help="Domain to hold out (repeat for several). Default: each in turn.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Hold out rows with a later time.")] = None,
    unlabelled: Annotated[
        float | None,
        typer.Option(help="Share of the unseen rows given to training without labels, and not judged."),
    ] = None,
    outliers: Annotated[
        str | None,
        typer.Option(help="Table, folder of images or .npz of no class, for learners such as oe and mixoe."),
    ] = None,
    learners: Annotated[
        str, typer.Option(help="Learners, separated by commas; + combines: irm,hgp+sam+swad.")
    ] = "erm,coral,groupdro,erm+swad",
    seeds: Annotated[int, typer.Option(help="Repetitions with other initial weights and splits.")] = 3,
    search: Annotated[int, typer.Option(help="Random hyperparameter draws a learner.")] = 0,
    rule: Annotated[
        str, typer.Option(help="Selects hyperparameters: id-validation, leave-one-domain-out or oracle.")
    ] = "id-validation",
    network: Annotated[str, typer.Option(help="Network; auto chooses by the kind of data.")] = "auto",
    backbone: Annotated[str | None, typer.Option(help="Frozen pretrained encoder under the network.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Examples a domain and step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam",
    schedule: Annotated[str, typer.Option(help="Learning rate: constant, linear or cosine.")] = "constant",
    layer_decay: Annotated[
        float, typer.Option(help="Rate of each layer, as a factor of that of the layer above.")
    ] = 1.0,
    layers: Annotated[
        str, typer.Option(help="Layers to train, from inputs to head: ':' all, '-1' the head, '0' the first.")
    ] = ":",
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Evaluations without progress before a run stops.")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="Detector of unfamiliar inputs in the deployed model.")
    ] = "knn",
    detectors: Annotated[
        str | None,
        typer.Option(
            help="Detectors to compare, separated by commas: odin,gram,knn. Default: five quick ones."
        ),
    ] = None,
    near: Annotated[
        list[str] | None,
        typer.Option(
            help="Data of other classes to judge detectors on: file, folder, name, noise or scrambled."
        ),
    ] = None,
    far: Annotated[list[str] | None, typer.Option(help="The same, farther from what is learnt.")] = None,
    hold_out_classes: Annotated[
        str | None, typer.Option(help="Classes not to learn, to judge detectors on, separated by commas.")
    ] = None,
    tune_detectors: Annotated[
        str | None,
        typer.Option(
            help="Data of other classes, apart from --near and --far, on which detectors' options are chosen: file, "
            "folder, name, noise, scrambled or a corruption such as fog."
        ),
    ] = None,
    tuning_draws: Annotated[int, typer.Option(help="Random options tried of each detector.")] = 20,
    coverage: Annotated[float, typer.Option(help="Share of familiar inputs that the model accepts.")] = 0.95,
    engine: Annotated[str, typer.Option(help="auto, serial, local, batched or ray.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu, mps, ... (Lightning Fabric).")] = "auto",
    devices: Annotated[int, typer.Option(help="Devices of one training run (DDP).")] = 1,
    precision: Annotated[str, typer.Option(help="32-true, 16-mixed, bf16-mixed, 64-true.")] = "32-true",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of results; default runs/NAME.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Train learners, judge them on domains they have not seen, write a report and a model to deploy."""
    console = new_console()
    folder = out or Path("runs") / folder_name(data)
    with saying(console, "loading"):
        from unseen.shifts.checks import check_shift
        from unseen.shifts.opening import open_shift
        from unseen.studies.study import Study
        from unseen.training import Hardware

    hardware = Hardware(accelerator, devices, precision)
    with warnings_told(console):
        load_plugins(plugin)
        _check_before_training(folder, detector, coverage, engine, workers, hardware)
        _check_unlabelled(unlabelled, unseen, after)
        with saying(console, f"opening {data}"):
            given = {"label": label, "domain": domain, "group": group, "time": time, "text": text}
            shift = open_shift(
                data,
                **given,
                features=None if features is None else [name.strip() for name in features.split(",")],
                skip_bad=skip_bad,
                image_size=image_size,
                outliers=outliers,
            )
            check_shift(shift)
        console.print(
            f"[bold]{escaped(shift.name)}[/]: {len(shift):,} examples, {len(shift.classes)} classes, "
            f"{len(shift.domains)} domains ({escaped(', '.join(shift.domains[:8]))}"
            f"{', ...' if len(shift.domains) > 8 else ''})"
        )
        study = Study(
            shift,
            split_names(learners),
            unseen=unseen or None,
            after=after,
            unlabelled=unlabelled,
            seeds=seeds,
            search=search,
            rule=rule,
            network=network,
            backbone=backbone,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
            layer_decay=layer_decay,
            layers=layers,
            clip=clip,
            patience=patience,
            near=near or (),
            far=far or (),
            held_out_classes=split_names(hold_out_classes) if hold_out_classes else (),
            tune_detectors=tune_detectors,
            tuning_draws=tuning_draws,
            **_detectors(detectors, detector, tune_detectors is not None),
        )
        study.plan.check_detector(detector)
        with resumable(console):
            _execute(study, folder, engine, workers, hardware, console)
            _finish(folder, study, detector, coverage, hardware, console)


def _check_before_training(
    folder: Path, detector: str, coverage: float, engine: str, workers: int | None, hardware: Any
) -> None:
    """What is used last is checked first: nobody should train for an hour to learn of a misspelt detector."""
    from unseen.measures.coverage import check_coverage
    from unseen.registry import detectors
    from unseen.studies.execution import check_engine
    from unseen.training.model_folder import require_replaceable

    detectors.build(detector)
    check_coverage(coverage)
    check_engine(engine, workers)
    hardware.fabric()
    require_replaceable(folder / "model")


def _detectors(names: str | None, deployed: str, tuned: bool) -> dict[str, Any]:
    """The study's detectors; a deployed one that is tuned must be among those that are judged."""
    from unseen.studies.plan import DETECTORS, tunable

    chosen = list(DETECTORS) if names is None else split_names(names)
    return {"detectors": [*chosen, *(tunable([deployed]) if tuned and deployed not in chosen else [])]}


def _check_unlabelled(unlabelled: float | None, unseen: list[str] | None, after: str | None) -> None:
    from unseen.errors import InputError

    if unlabelled is not None and not unseen and after is None:
        raise InputError(
            "--unlabelled",
            "was given without --unseen or --after: the model to deploy would be trained on every domain, and "
            "there would be no unlabelled examples of the next one",
            "Name the domain whose inputs you have with --unseen.",
        )


def _execute(study: Any, folder: Path, engine: str, workers: int | None, hardware: Any, console: Any) -> None:
    from unseen.studies.execution import estimate_seconds, execute

    with study.open_store(folder) as store:
        missing = len({cell.key for cell in study.plan.cells} - store.finished())
        there = len(study.plan.cells) - missing
        if there:
            console.print(f"{there} of {len(study.plan.cells)} runs are already in {folder}")
        steps = sum(learner.steps for learner in study.plan.learners) * missing // len(study.plan.learners)
        if steps > WORTH_ESTIMATING:
            with saying(console, "estimating the time"):
                seconds = estimate_seconds(study.plan, store, workers)
            console.print(f"{missing} runs to train, about {duration(seconds)}")
        with progress_bar(console) as bar:
            task = bar.add_task("training", total=len(study.plan.cells))
            execute(
                study.plan,
                store,
                engine=engine,  # type: ignore[arg-type]
                workers=workers,
                hardware=hardware,
                progress=lambda done, total: bar.update(task, completed=done),
            )


def _finish(folder: Path, study: Any, detector: str, coverage: float, hardware: Any, console: Any) -> None:
    from unseen.reports.report import write_report
    from unseen.reports.terminal import print_summary
    from unseen.studies.deploy import train_for_deployment
    from unseen.studies.results import Results
    from unseen.studies.store import Store

    results = Results(folder)
    with saying(console, "training the model to deploy"):
        predictor = train_for_deployment(
            results,
            study.shift,
            detector=detector,
            coverage=coverage,
            after=study.plan.after,
            hardware=hardware,
            tuning=study.plan.tuning,
        )
        model = predictor.save(folder / "model")
    with Store(folder / "results.sqlite") as store:
        store.write_fact("deployed", {"detector": detector, **predictor.facts.get("detector_tuning", {})})
    results = Results(folder)
    with saying(console, "writing the report"):
        report = write_report(results, study.shift, folder, detector=results.deployed_detector)
    print_summary(results, console)
    console.print(f"\nreport  {report}\nmodel   {model}", highlight=False)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `unseen run` wrote, runs/NAME.")],
    rule: Annotated[str | None, typer.Option(help="Select by another rule than the study's.")] = None,
) -> None:
    """Write the report of a study again, and print its summary."""
    console = new_console()
    from unseen.errors import InputError
    from unseen.reports.report import write_report
    from unseen.reports.terminal import print_summary
    from unseen.shifts.opening import open_shift
    from unseen.studies.results import Results
    from unseen.studies.unfamiliar import hold_out_classes

    results = Results(folder, rule)  # type: ignore[arg-type]
    source = results.plan["shift"]["source"]
    try:
        with warnings_told(console):
            shift = open_shift(**source) if source else None
            if shift is not None and results.plan.get("held_out_classes"):
                shift, _ = hold_out_classes(shift, results.plan["held_out_classes"])
        if shift is not None and shift.fingerprint != results.plan["shift"]["fingerprint"]:
            raise InputError(f"data {source['source']!r}", "have changed since the study")
    except InputError as error:
        say(console, "[yellow]note:[/] examples are left out:", error)
        shift = None
    print_summary(results, console)
    written = write_report(results, shift, folder, detector=results.deployed_detector)
    console.print(f"\nreport  {written}", highlight=False)
