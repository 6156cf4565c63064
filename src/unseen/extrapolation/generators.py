"""What turns a proposed domain into examples: a function, templates of text, or a text-to-image model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from unseen.errors import InputError, MissingExtra
from unseen.extrapolation.proposals import DomainSpec
from unseen.shifts.images import to_pixels
from unseen.shifts.sampling import derive_seed

Examples = Tensor | list[str]


class Generator(Protocol):
    """Anything that makes examples of a class in a domain. `facts` (model, licence, ...) go into the manifest."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def generate(self, spec: DomainSpec, cls: str, n: int, seed: int) -> Examples:
        """At most n images, uint8 (n, C, H, W); rows, float (n, ...); or texts. The same seed, the same examples."""
        ...


class ProceduralGenerator:
    """Examples by a function of a domain's parameters.

    function  (parameters, class name, n, torch.Generator) -> images, rows or texts as of `Generator`
    name, licence  for the manifest
    """

    def __init__(
        self,
        function: Callable[[Mapping[str, Any], str, int, torch.Generator], Examples],
        name: str = "",
        licence: str = "",
    ):
        self.function, self.name, self.licence = function, name or function.__qualname__, licence

    @property
    def facts(self) -> dict[str, Any]:
        return {"generator": "procedural", "model": self.name, "licence": self.licence}

    def generate(self, spec: DomainSpec, cls: str, n: int, seed: int) -> Examples:
        return self.function(spec.parameters, cls, n, torch.Generator().manual_seed(seed))


class TemplateTextGenerator:
    """Texts by templates, each place filled with one of its words at random.

    templates  texts with places {prompt} (one of the class's prompts in the domain), {domain}, {description},
               {cls}, the names of the domain's parameters, and those of `slots`
    slots      place -> words to choose from: one sequence for all classes, or {class: sequence}
    """

    def __init__(
        self,
        templates: Sequence[str] = ("{prompt}",),
        slots: Mapping[str, Sequence[str] | Mapping[str, Sequence[str]]] | None = None,
    ):
        if isinstance(templates, str) or not templates:
            raise InputError("templates", f"are {templates!r}", "Give a sequence of texts.")
        self.templates, self.slots = tuple(templates), dict(slots or {})

    @property
    def facts(self) -> dict[str, Any]:
        return {"generator": "templates", "templates": list(self.templates), "slots": self.slots}

    def generate(self, spec: DomainSpec, cls: str, n: int, seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return [self._text(spec, cls, generator) for _ in range(n)]

    def _text(self, spec: DomainSpec, cls: str, generator: torch.Generator) -> str:
        fixed = {"domain": spec.name, "description": spec.description, "cls": cls, **spec.parameters}

        def fill(match: re.Match[str]) -> str:
            place = match.group(1)
            if place in fixed:
                return str(fixed[place])
            return _chosen(self._words(place, spec, cls), generator)

        return re.sub(r"\{(\w+)\}", fill, _chosen(self.templates, generator))

    def _words(self, place: str, spec: DomainSpec, cls: str) -> Sequence[str]:
        if place == "prompt":
            return spec.prompts_of(cls)
        words = self.slots.get(place, ())
        words = words.get(cls, ()) if isinstance(words, Mapping) else words
        if isinstance(words, str) or not words:
            raise InputError(
                f"place {{{place}}} of a template",
                f"has no words for class {cls!r}",
                "Give slots={place: [word, ...]}, or {place: {class: [word, ...]}}.",
            )
        return words


class DiffusersGenerator:
    """Images of a class's prompts by a text-to-image pipeline of the library diffusers.

    model     folder, or name of a model that is in the cache already: nothing is downloaded. safetensors only
    size      (height, width) in pixels that the images are scaled to
    steps     denoising steps; `guidance` is the weight of the prompt
    batch     images at a time
    licence   for the manifest
    device    of the model; None takes a GPU when there is one
    pipeline  a pipeline that is loaded already, in place of `model`: called as
              pipeline(prompt=[...], generator=[...], num_inference_steps=..., guidance_scale=...)

    Images that the pipeline's safety checker blackens are left out. Raises `MissingExtra` without diffusers.
    """

    def __init__(
        self,
        model: str,
        *,
        size: tuple[int, int] = (224, 224),
        steps: int = 30,
        guidance: float = 7.5,
        batch: int = 4,
        licence: str = "",
        device: str | None = None,
        pipeline: Callable[..., Any] | None = None,
    ):
        self.model, self.size, self.steps, self.guidance, self.batch = model, size, steps, guidance, batch
        self.licence = licence
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._pipeline = pipeline

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "generator": "diffusers",
            "model": self.model,
            "licence": self.licence,
            "size": list(self.size),
            "steps": self.steps,
            "guidance": self.guidance,
        }

    def generate(self, spec: DomainSpec, cls: str, n: int, seed: int) -> Tensor:
        if self._pipeline is None:
            self._pipeline = _load_pipeline(self.model, self.device)
        texts = spec.prompts_of(cls)
        prompts = [texts[i % len(texts)] for i in range(n)]
        seeds = [derive_seed(seed, i) for i in range(n)]
        kept = []
        for start in range(0, n, self.batch):
            part = slice(start, start + self.batch)
            result = self._pipeline(
                prompt=prompts[part],
                generator=[torch.Generator(self.device).manual_seed(s) for s in seeds[part]],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
            )
            flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(result.images)
            kept += [image for image, bad in zip(result.images, flagged, strict=True) if not bad]
        pixels = [torch.from_numpy(to_pixels(image, self.size, 3).copy()) for image in kept]
        return torch.stack(pixels) if pixels else torch.empty(0, 3, *self.size, dtype=torch.uint8)


def _load_pipeline(model: str, device: str) -> Any:
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError:
        raise MissingExtra("Text-to-image generation", "diffusion") from None
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(
            model,
            torch_dtype=torch.float16 if device.startswith("cuda") else torch.float32,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"text-to-image model {model!r}",
            f"cannot be loaded ({str(error).splitlines()[0]})",
            "Give its folder, or fetch it first: hf download MODEL.",
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _chosen(options: Sequence[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]
