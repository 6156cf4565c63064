"""`unseen merge`: recipes, or models and a method. A part of the command line that stands beside what it calls."""

from __future__ import annotations

import ast
import contextlib
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from unseen.console import Plugins


def merge(
    inputs: Annotated[
        list[Path], typer.Argument(help="A recipe (.yaml), or models: .safetensors files and folders.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder, or a file that ends in .safetensors.")
    ],
    method: Annotated[
        str | None, typer.Option(help="How to merge (see `unseen list merging`); default linear.")
    ] = None,
    t: Annotated[
        float | None,
        typer.Option("-t", "--alpha", help="Way from the first (base) model to the other, 0 to 1."),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="What the models were tuned from.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weight of each model, separated by commas: 0.5,0.3,0.2.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the method, name=value; may be repeated: density=0.2.")
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(help="Write what one model changed of --base as a LoRA adapter of this rank, for peft."),
    ] = None,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Allow -t outside [0, 1].")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; default the first model's.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest file of the result: 5GB, 500MB.")] = "5GB",
    seed: Annotated[int, typer.Option(help="Seed of methods that draw (DARE, DELLA).")] = 0,
    plugin: Plugins = None,
) -> None:
    """Merge checkpoints tensor by tensor, in little memory; or extract a LoRA. Goes on where it was stopped."""
    from unseen.console import load_plugins, new_console, resumable, saying, warnings_told

    console = new_console()
    load_plugins(plugin)
    with saying(console, "loading"):
        from unseen.merging.recipe import read_recipe
        from unseen.merging.streaming import merge_to_disk

    if lora is not None:
        others = {"method": method, "weights": weights, "t": t, "dtype": dtype, "option": option}
        _extract_lora(inputs, base, out, lora, others, extrapolate, console)
        return
    chosen = {"method": method, "base": base, "weights": weights, "t": t, "dtype": dtype, "option": option}
    if len(inputs) == 1 and inputs[0].suffix.lower() in (".yaml", ".yml"):
        _require_none(chosen, extrapolate, "a recipe", "Write it in the recipe.")
        recipe = read_recipe(inputs[0])
    else:
        recipe = _recipe(inputs, chosen, extrapolate)
    limit = _bytes(shard_size)
    with warnings_told(console), resumable(console), _bar(console) as bar:
        task = bar.add_task(f"{recipe.method}", total=None)
        made = merge_to_disk(
            recipe,
            out,
            seed=seed,
            shard_bytes=limit,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"merged  {made}", highlight=False)


def _recipe(inputs: list[Path], chosen: dict[str, Any], extrapolate: bool) -> Any:
    from unseen.errors import InputError
    from unseen.merging.base import Method
    from unseen.merging.recipe import Recipe

    method = Method.of(chosen["method"] or "linear")
    options = {**method.options, **dict(_option(text) for text in chosen["option"] or ())}
    if chosen["weights"] is not None:
        method.check_option("weight")
        options["weight"] = _numbers(chosen["weights"])
    if chosen["t"] is not None:
        names = method.option_names()
        name = "t" if "t" in names else "alpha" if {"alpha", "extrapolate"} <= set(names) else None
        if name is None:
            raise InputError(
                "-t", f"is not an option of method {method.name!r}", "Use slerp, wise_ft, nearswap."
            )
        options[name] = chosen["t"]
    if extrapolate:
        method.check_option("extrapolate")
        options["extrapolate"] = True
    return Recipe.of(inputs, method.name, base=chosen["base"], dtype=chosen["dtype"], **options)


def _extract_lora(
    inputs: list[Path],
    base: Path | None,
    out: Path,
    rank: int,
    others: dict[str, Any],
    extrapolate: bool,
    console: Any,
) -> None:
    """The one model's difference from its base as an adapter folder, and how much of it the rank keeps."""
    from unseen.console import saying
    from unseen.errors import InputError
    from unseen.merging.lora import extract_lora

    _require_none(others, extrapolate, "--lora", "Merge first, then extract.")
    if base is None or len(inputs) != 1:
        problem = "has no --base" if base is None else f"was given {len(inputs)} models"
        raise InputError("--lora", problem, "Name one tuned model, and with --base what it was tuned from.")
    with saying(console, f"decomposing {inputs[0]}"):
        kept = extract_lora(base, inputs[0], out, rank=rank)
    shares = sorted(kept.values())
    console.print(
        f"adapter  {out}\n{len(kept)} matrices of rank {rank} keep {shares[0]:.0%} to {shares[-1]:.0%} of each "
        f"update's energy, {shares[len(shares) // 2]:.0%} in the middle; what else changed (biases, norms, "
        "convolutions) is not in it",
        highlight=False,
        soft_wrap=True,
    )


def _require_none(chosen: dict[str, Any], extrapolate: bool, beside: str, remedy: str) -> None:
    from unseen.errors import InputError

    given = [name for name, value in chosen.items() if value not in (None, [])]
    given += ["extrapolate"] if extrapolate else []
    if given:
        names = ", ".join("-t" if name == "t" else f"--{name}" for name in given)
        raise InputError(names, f"can't be given with {beside}", remedy)


def _option(text: str) -> tuple[str, Any]:
    from unseen.errors import InputError

    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"option {text!r}", "has no value", "Write name=value.")
    try:
        return name.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return name.strip(), {"true": True, "false": False}.get(value.strip().lower(), value.strip())


def _numbers(text: str) -> list[float]:
    from unseen.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"weights {text!r}", "are not numbers", "Separate them by commas: 0.5,0.5."
        ) from None


def _bytes(text: str) -> int:
    from unseen.errors import InputError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", text.strip())
    if match is None:
        raise InputError(f"shard size {text!r}", "cannot be read", "Write a number and kB, MB or GB: 5GB.")
    return max(1, int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]))


@contextlib.contextmanager
def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield bar
