"""`unseen extrapolate`: a folder of synthetic domains. A part of the command line that stands beside what it calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def extrapolate(
    task: Annotated[str, typer.Argument(help="What is to be recognised: 'photographs of animals'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; goes on where it was stopped.")],
    classes: Annotated[str, typer.Option(help="Classes, separated by commas.")],
    domains: Annotated[int, typer.Option(help="Number of synthetic domains.")] = 16,
    per_cell: Annotated[int, typer.Option(help="Examples of each class in each domain.")] = 20,
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address that proposes: http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's name of its language model.")] = None,
    key: Annotated[
        str, typer.Option(help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    style: Annotated[str, typer.Option(help="How to ask: direct, cot or role.")] = "direct",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Ask for each class by itself, as the paper does.")
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts that it writes for each class in each domain.")] = 1,
    proposals: Annotated[
        Path | None,
        typer.Option(help="Instead of an endpoint: JSON list of names or {name, description, prompts}."),
    ] = None,
    template: Annotated[
        str, typer.Option(help="Prompt of domains that are only named.")
    ] = "a {cls} in this domain: {domain}",
    diffusion: Annotated[
        str | None, typer.Option(help="Folder or name of a text-to-image model (diffusers): makes images.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of that model, for the manifest.")] = "",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Keep the images that fit their prompts best by this CLIP: transformers:FOLDER or open_clip:A/B."
        ),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the images that is kept then, in (0, 1].")] = 0.5,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Instead: template of a text, with {prompt}, {cls}, {domain}; may be repeated."),
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="Domain that is to stay unseen; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 0,
) -> None:
    """Let a language model (or a list) propose domains, generate examples there, and write them as data to open."""
    from unseen.console import new_console, progress_bar, resumable, saying, warnings_told

    console = new_console()
    with saying(console, "loading"):
        from unseen.extrapolation.synthesis import extrapolate as run

    hidden = tuple(unseen or ())
    proposer = _proposer(endpoint, model, key, style, per_class, prompts, proposals, template, hidden, out)
    generator = _generator(diffusion, licence, image_size, text)
    chosen = None if encoder is None else _filter(encoder, keep, text)
    with warnings_told(console), resumable(console), progress_bar(console) as bar:
        shown = bar.add_task("generating", total=None)
        shift = run(
            task,
            [name.strip() for name in classes.split(",") if name.strip()],
            proposer,
            generator,
            domains=domains,
            per_cell=per_cell,
            keep=chosen,
            folder=out,
            unseen=hidden,
            seed=seed,
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    console.print(
        f"{len(shift):,} examples of {len(shift.classes)} classes in {len(shift.domains)} domains"
        f"\n\nmanifest  {out / 'manifest.json'}\ndata      {shift.source['source']}",
        highlight=False,
    )


def _proposer(
    endpoint: str | None,
    model: str | None,
    key: str,
    style: Any,
    per_class: bool,
    prompts: int,
    proposals: Path | None,
    template: str,
    unseen: tuple[str, ...],
    out: Path,
) -> Any:
    from unseen.errors import InputError
    from unseen.extrapolation import ChatEndpoint, ListProposer, LLMProposer

    if (endpoint is None) == (proposals is None):
        raise InputError(
            "--endpoint, --proposals",
            "are both given or both missing",
            "Say who proposes domains: one of them.",
        )
    if proposals is not None:
        return ListProposer(_read_proposals(proposals), template)
    if model is None:
        raise InputError("--model", "is missing", "Name the language model of the endpoint.")
    chat = ChatEndpoint(str(endpoint), model, key_variable=key)
    return LLMProposer(
        chat, style=style, per_class=per_class, prompts=prompts, exclude=unseen, answers=out / "answers"
    )


def _read_proposals(path: Path) -> list[Any]:
    from unseen.errors import InputError
    from unseen.extrapolation import DomainSpec

    try:
        listed = json.loads(path.read_text())
        return [item if isinstance(item, str) else DomainSpec(**item) for item in listed]
    except InputError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"file {str(path)!r}",
            f"cannot be read ({error})",
            'Give a JSON list of names, or of {"name": ..., "description": ..., "prompts": {class: [text, ...]}}.',
        ) from None


def _generator(diffusion: str | None, licence: str, image_size: int, text: list[str] | None) -> Any:
    from unseen.errors import InputError
    from unseen.extrapolation import DiffusersGenerator, TemplateTextGenerator

    if (diffusion is None) == (not text):
        raise InputError(
            "--diffusion, --text", "are both given or both missing", "Say what generates: one of them."
        )
    if text:
        return TemplateTextGenerator(text)
    return DiffusersGenerator(str(diffusion), size=(image_size, image_size), licence=licence)


def _filter(encoder: str, keep: float, text: list[str] | None) -> Any:
    from unseen.errors import InputError
    from unseen.extrapolation import ImageTextScorer, filter_by_score
    from unseen.networks.dual_encoder import dual_encoder

    if text:
        raise InputError("--encoder", "is given with --text", "It filters images: leave one of them out.")
    return filter_by_score(ImageTextScorer(dual_encoder(encoder), name=encoder), keep=keep)
