"""Recipes: what is merged from what, as mergekit's YAML says it; read without mergekit.

Of mergekit's keys these are read: merge_method, models, slices (sources, layer_range, base_model), base_model,
parameters (numbers, gradients over the layers, filters by tensor name; at every level), dtype, out_dtype and
tokenizer_source (base or a model). Others are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unseen.errors import InputError, MissingExtra, nearest
from unseen.merging.base import Method

TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"
)  # fmt: skip
RENAMED = {"lambda": "scaling", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
"""mergekit's options with another name here."""
WITHOUT_EFFECT = ("int8_mask",)
"""mergekit's options that only change how it computes."""

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A model of a slice, with the layers [first, last) that it gives; None: all."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the result, merged from the same number of layers of each source."""

    sources: tuple[Source, ...]
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A merge. Models are named by path; without `slices` in the YAML there is one slice of all layers."""

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: torch.dtype | None = None
    tokenizer: str | None = None

    @classmethod
    def of(
        cls,
        models: Sequence[str | Path],
        method: str,
        *,
        base: str | Path | None = None,
        fisher: Sequence[str | Path] | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> Recipe:
        """From paths and options; a list as an option that may differ between models is one value a model.

        `fisher` has the path of each model's diagonal, for method "fisher".
        """
        chosen = Method.of(method)
        own: list[dict[str, Any]] = [{} for _ in models]
        shared = {}
        for name, value in options.items():
            chosen.check_option(name)
            if chosen.is_per_model(name) and isinstance(value, (list, tuple)):
                if len(value) != len(models):
                    raise InputError(
                        name, f"has {len(value)} values for {len(models)} models", "Give one each."
                    )
                for mapping, each in zip(own, value, strict=True):
                    mapping[name] = each
            else:
                shared[name] = value
        for mapping, diagonal in zip(own, fisher or (), strict=False):
            mapping["fisher"] = str(diagonal)
        sources = tuple(Source(str(m), None, p) for m, p in zip(models, own, strict=True))
        root = None if base is None else str(base)
        return cls(method, (Slice(sources),), root, shared, _dtype("dtype", dtype))

    @property
    def models(self) -> list[str]:
        """Every model that is read, each once, the base first."""
        named = [self.base, *(s.base for s in self.slices)]
        named += [source.model for s in self.slices for source in s.sources]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def stacked(self) -> bool:
        """Whether layers are chosen."""
        return any(source.layers is not None for s in self.slices for source in s.sources)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a YAML file. Raises `InputError` for keys and options that are not known, by name."""
    try:
        import yaml
    except ImportError:
        raise MissingExtra("reading recipes", "language") from None
    path = Path(path)
    if not path.is_file():
        raise InputError(f"recipe {str(path)!r}", "does not exist", "Give a YAML file.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {str(path)!r}", f"is not YAML ({' '.join(str(error).split())})") from None
    return parse_recipe(found)


def parse_recipe(found: Any) -> Recipe:
    """The recipe of what a YAML file holds."""
    content = _mapping("recipe", found, KEYS)
    if "merge_method" not in content:
        raise InputError("recipe", "lacks merge_method", "Write, for example, merge_method: linear.")
    if ("models" in content) == ("slices" in content):
        raise InputError("recipe", "needs either models or slices", "Give one of the two.")
    method = Method.of(str(content["merge_method"]))
    if "models" in content:
        sources = [_source(entry, method, sliced=False) for entry in _list("models", content["models"])]
        slices = [Slice(tuple(sources))]
    else:
        slices = [_slice(entry, method) for entry in _list("slices", content["slices"])]
    return Recipe(
        method.name,
        tuple(slices),
        _model(content.get("base_model")),
        _parameters(content.get("parameters"), method),
        _dtype("out_dtype", content.get("out_dtype") or content.get("dtype")),
        _tokenizer(content.get("tokenizer_source")),
    )


def evaluate(setting: Any, tensor: str, position: float) -> Any:
    """A setting for one tensor; None when no filter fits.

    setting   a value; a list of numbers, interpolated at `position` in [0, 1] from the first to the last layer;
              or a list of {filter, value}, of which the first counts whose filter is part of the tensor's name
    """
    if not isinstance(setting, (list, tuple)):
        return setting
    if any(isinstance(each, Mapping) for each in setting):
        for each in setting:
            if each.get("filter") in (None, "*") or each["filter"] in tensor:
                return evaluate(each["value"], tensor, position)
        return None
    if all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in setting):
        scaled = position * (len(setting) - 1)
        low = int(scaled)
        high = min(low + 1, len(setting) - 1)
        return setting[low] + (scaled - low) * (setting[high] - setting[low])
    return setting[int(position * (len(setting) - 1))]


def _slice(found: Any, method: Method) -> Slice:
    entry = _mapping("slice", found, ("sources", "base_model", "parameters"))
    sources = tuple(_source(each, method, sliced=True) for each in _list("sources", entry.get("sources")))
    lengths = {last - first for first, last in (source.layers for source in sources if source.layers)}
    if len(lengths) != 1:
        raise InputError(
            "sources of a slice", "have different numbers of layers", "Give ranges of one length."
        )
    return Slice(sources, _model(entry.get("base_model")), _parameters(entry.get("parameters"), method))


def _source(found: Any, method: Method, *, sliced: bool) -> Source:
    entry = _mapping("source" if sliced else "model", found, ("model", "layer_range", "parameters"))
    layers = entry.get("layer_range")
    if sliced != (layers is not None):
        raise InputError("layer_range", "is needed in slices, and only there", "Use slices to choose layers.")
    if sliced and not (
        isinstance(layers, list)
        and len(layers) == 2
        and all(isinstance(each, int) for each in layers)
        and 0 <= layers[0] < layers[1]
    ):
        raise InputError(f"layer_range {layers!r}", "is not a range", "Write [first, last], last excluded.")
    model = _model(entry.get("model"))
    if model is None:
        raise InputError("entry of the recipe", "lacks model", "Write model: path.")
    return Source(
        model, (layers[0], layers[1]) if layers else None, _parameters(entry.get("parameters"), method)
    )


def _model(found: Any) -> str | None:
    if isinstance(found, Mapping):  # mergekit's long form: {model: {path: ...}}
        inner = _mapping("model", found, ("model",))["model"]
        found = _mapping("model", inner, ("path",))["path"] if isinstance(inner, Mapping) else inner
    if found is None:
        return None
    if not isinstance(found, str):
        raise InputError(f"model {found!r}", "is not a path", "Write the path of a file or folder.")
    if "+" in found and not Path(found).exists():
        raise InputError(f"model {found!r}", "adds a LoRA adapter", "Merge the adapter into the model first.")
    return found


def _parameters(found: Any, method: Method) -> Parameters:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise InputError("parameters", f"are {found!r}", "Write option: value.")
    result = {}
    for key, value in found.items():
        if key in WITHOUT_EFFECT:
            continue
        name = RENAMED.get(str(key), str(key))
        if name == "fisher" and method.weighs_by_fisher:
            result[name] = value
            continue
        method.check_option(name)
        for condition in value if isinstance(value, list) else ():
            if isinstance(condition, Mapping) and "value" not in _mapping(
                name, condition, ("filter", "value")
            ):
                raise InputError(
                    f"condition of {name!r}", "lacks value", "Write filter: text, value: number."
                )
        if name == "rescale" and isinstance(value, bool):  # mergekit's switch
            value = "l1" if value else "none"
        result[name] = value
    return result


def _tokenizer(found: Any) -> str | None:
    if found in ("union", {"source": "union"}):
        raise InputError(
            "tokenizer_source 'union'",
            "is not offered",
            "Bring the models to one vocabulary first, or give base.",
        )
    return _model(found)


def _dtype(name: str, found: Any) -> torch.dtype | None:
    if found is None:
        return None
    if found not in TYPES:
        raise InputError(f"{name} {found!r}", "is not known", nearest(str(found), TYPES))
    return TYPES[found]


def _mapping(what: str, found: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise InputError(what, f"is {found!r}", f"Write {', '.join(keys)}.")
    for key in found:
        if key not in keys:
            raise InputError(f"key {key!r} of {what}", "is not supported", nearest(str(key), keys))
    return found


def _list(what: str, found: Any) -> list[Any]:
    if not isinstance(found, list) or not found:
        raise InputError(what, "is not a list with entries", "Write one entry a line, each after a dash.")
    return found
