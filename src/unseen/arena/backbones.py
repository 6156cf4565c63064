"""A backbone that competes: raw inputs to features, what it reads, and what is declared and counted about it."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unseen.arena.baselines import Colours, HashedText, Pixels, randomised
from unseen.errors import InputError, nearest
from unseen.networks.backbones import Backbone, ImageInput, backbone, backbone_names
from unseen.networks.feature_cache import (
    BATCH,
    Progress,
    cached_features,
    compute_features,
    content_hash,
    encode_in_batches,
)
from unseen.networks.feature_maps import StoredMaps, feature_maps
from unseen.registry import Spec
from unseen.shifts.shift import count_rows, take

Reads = Literal["image", "text", "array"]

_IMAGENET = 1_281_167
_DECLARED: dict[str, tuple[str, str, int]] = {
    "efficientnet-lite0": ("cnn", "supervised", _IMAGENET),
    "efficientnet-lite1": ("cnn", "supervised", _IMAGENET),
    "efficientnet-lite2": ("cnn", "supervised", _IMAGENET),
    "mobilenet-v1-025": ("cnn", "supervised", _IMAGENET),
    "mobilenet-v2": ("cnn", "supervised", _IMAGENET),
    "minilm": ("transformer", "contrastive", 1_170_060_424),  # pairs of sentences, by its model card
}
"""Architecture, pretraining objective and number of pretraining examples of the packaged backbones."""

_UNTRAINED: dict[str, tuple[Callable[..., nn.Module], Reads]] = {
    "pixels": (Pixels, "image"),
    "colours": (Colours, "image"),
    "hashed-words": (lambda width=1024: HashedText("words", width), "text"),
    "hashed-letters": (lambda width=1024: HashedText("letters", width), "text"),
}


class Candidate:
    """A backbone in the arena.

    encoder       module from a batch (what `prepare` gives) to features (B, D). It is used in evaluation mode, and
                  everything in it is counted: leave a decoder or a classifier outside
    prepare       from raw inputs (uint8 images, texts) to what the encoder takes: scaling and normalisation belong
                  to the backbone. None when the encoder takes raw inputs, as a `Backbone` does
    reads         kind of inputs: "image", "text" or "array"
    architecture, objective, data_size
                  declared: family, pretraining objective ("none" without), number of pretraining examples or None
    keep_features whether features go by way of the cache on disk; tiny encoders are faster without
    """

    def __init__(
        self,
        name: str,
        encoder: nn.Module,
        *,
        prepare: Callable[[Any], Any] | None = None,
        reads: Reads = "image",
        architecture: str = "unknown",
        objective: str = "unknown",
        data_size: int | None = None,
        keep_features: bool = True,
    ):
        if not isinstance(encoder, nn.Module):
            raise InputError(f"backbone {name!r}", f"is a {type(encoder).__name__}", "Give an nn.Module.")
        if data_size is not None and data_size < 0:
            raise InputError(f"data_size of backbone {name!r}", f"is {data_size}", "Give a number from 0.")
        self.name, self.encoder, self.prepare, self.reads = name, encoder.eval(), prepare, reads
        self.architecture, self.objective, self.data_size = architecture, objective, data_size
        self.keep_features = keep_features
        self._width: int | None = None
        self._remembered: dict[str, Tensor] = {}
        self._remembered_maps: dict[str, StoredMaps] = {}

    def encode(self, raw: Any, encoder: nn.Module | None = None) -> Tensor:
        """Features (B, D) of a batch of raw inputs; with gradients where the caller allows them."""
        encoder = self.encoder if encoder is None else encoder
        return encoder(self._prepared(raw, encoder))

    def encode_maps(self, raw: Any, encoder: nn.Module | None = None) -> list[Tensor]:
        """Feature maps (B, C, side, side) of a batch of raw images, finest first; see `feature_maps`."""
        encoder = self.encoder if encoder is None else encoder
        try:
            return feature_maps(encoder, self._prepared(raw, encoder))
        except InputError as error:
            subject = f"backbone {self.name!r}: {error.subject}"
            raise InputError(subject, error.problem, error.remedy) from None

    def _prepared(self, raw: Any, encoder: nn.Module) -> Any:
        if isinstance(raw, np.ndarray):
            raw = torch.from_numpy(raw)
        if isinstance(raw, Tensor):
            parameter = next(encoder.parameters(), None)
            raw = raw if parameter is None else raw.to(parameter.device)
        return raw if self.prepare is None else self.prepare(raw)

    def features(self, inputs: Any, progress: Progress | None = None) -> Tensor:
        """Features, float (N, D), of N raw inputs, computed once and then read from the cache.

        Raises InputError when the encoder gives no matrix, a width that depends on the inputs, or NaN.
        """
        key = content_hash(inputs)
        if key in self._remembered:
            return self._remembered[key]
        width = self._width_of(inputs)
        self._to_device()
        if self.keep_features:
            found = compute_features(self.encode, inputs, width, self.fingerprint, progress)
        else:
            found = torch.cat(list(encode_in_batches(self.encode, inputs, 0, progress)))
        if not bool(torch.isfinite(found).all()):
            raise InputError(f"backbone {self.name!r}", "gives features that are NaN or infinite")
        self._remembered[key] = found
        return found

    def maps(self, inputs: Any, progress: Progress | None = None) -> StoredMaps:
        """Feature maps of N raw images in half precision, computed once; read from disk where N exceeds a batch.

        Raises InputError when the encoder gives no map, or maps that are NaN or infinite.
        """
        key = content_hash(inputs)
        if key in self._remembered_maps:
            return self._remembered_maps[key]
        self._to_device()
        with torch.inference_mode():
            shapes = [
                (each.shape[1], each.shape[2]) for each in self.encode_maps(take(inputs, torch.arange(1)))
            ]
        width = sum(channels * side * side for channels, side in shapes)

        def encode(raw: Any) -> Tensor:
            flat = torch.cat([each.flatten(1) for each in self.encode_maps(raw)], 1).half()
            if not bool(torch.isfinite(flat).all()):
                raise InputError(f"backbone {self.name!r}", "gives feature maps that are NaN or infinite")
            return flat

        if self.keep_features and count_rows(inputs) > BATCH:
            rows: np.ndarray = cached_features(
                encode, inputs, width, f"{self.fingerprint} maps", dtype="float16", progress=progress
            )
        else:
            rows = torch.cat([part.half() for part in encode_in_batches(encode, inputs, 0, progress)]).numpy()
        self._remembered_maps[key] = StoredMaps(rows, shapes)
        return self._remembered_maps[key]

    def _to_device(self) -> None:
        self.encoder.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))

    def forget(self) -> None:
        """Let go of the features in memory; those on disk stay."""
        self._remembered.clear()
        self._remembered_maps.clear()

    def _width_of(self, inputs: Any) -> int:
        with torch.inference_mode():
            shape = self.encode(take(inputs, torch.arange(1))).shape
        if len(shape) != 2:
            problem = f"gives features of shape {tuple(shape[1:])} an example"
            raise InputError(f"backbone {self.name!r}", problem, "Pool them to one vector.")
        if self._width not in (None, shape[1]):
            problem = f"gave {self._width} features before and {shape[1]} for other inputs"
            remedy = "Its preparation must bring all inputs to one size, or its pooling remove the size."
            raise InputError(f"backbone {self.name!r}", problem, remedy)
        self._width = shape[1]
        return shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides the features: weights, structure, and the source of encoder and preparation."""
        if isinstance(self.encoder, Backbone) and self.prepare is None:
            return self.encoder.fingerprint
        digest = hashlib.sha256(f"{self.encoder!r} {_options(self.encoder)}".encode())
        for thing in [type(self.encoder), self.prepare]:
            digest.update(_source(thing).encode())
        for key, value in sorted(self.encoder.state_dict().items()):
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @cached_property
    def params(self) -> int:
        """Number of parameters of the encoder."""
        return sum(parameter.numel() for parameter in self.encoder.parameters())

    def flops(self, inputs: Any) -> int:
        """Operations for the first of `inputs`: two for each product in matrix products and convolutions."""
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self.encode(take(inputs, torch.arange(1)))
        return int(counter.get_total_flops())

    def attributes(self, inputs: Any) -> dict[str, Any]:
        """Declared and counted attributes, one column each in the results."""
        return {
            "architecture": self.architecture,
            "objective": self.objective,
            "data_size": np.nan if self.data_size is None else float(self.data_size),
            "params": self.params,
            "flops": self.flops(inputs),
            "features": self._width_of(inputs),
        }


def candidate(spec: str | Spec | Candidate, **declared: Any) -> Candidate:
    """A candidate by name.

    spec      a backbone of `unseen.networks.backbones.backbone`, such as "efficientnet-lite0(size=112)",
              "timm:NAME" or "transformers:FOLDER"; "random:NAME", the same architecture with random weights
              (option seed); "pixels", "colours", "hashed-words", "hashed-letters"; or "FILE.py:FUNCTION", a
              function without arguments that gives an nn.Module on uint8 images, or a `Candidate`
    declared  architecture, objective and data_size where they are not known here, or are known better
    """
    if isinstance(spec, Candidate):
        return spec
    name = str(spec)
    if ".py:" in name:
        return _from_file(name, declared)
    parsed = Spec.of(spec)
    if parsed.name in _UNTRAINED:
        make, reads = _UNTRAINED[parsed.name]
        known = {"architecture": "none", "objective": "none", "data_size": 0, **declared}
        try:
            return Candidate(name, make(**parsed.options), reads=reads, **known)
        except TypeError:
            problem = f"does not take the options {', '.join(parsed.options)}"
            raise InputError(f"backbone {name!r}", problem) from None
    if parsed.name.startswith("random:"):
        options = parsed.options
        seed = options.pop("seed", 0)
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed of backbone {name!r}", f"is {seed!r}", "Give a whole number from 0.")
        inner = Spec.make(parsed.name.removeprefix("random:"), **options)
        built = randomised(_known(inner), seed)
        family = _DECLARED.get(inner.name, (type(built.body).__name__,))[0]
        known = {"architecture": family, "objective": "none", "data_size": 0, **declared}
    else:
        built = _known(parsed)
        family, objective, size = _DECLARED.get(
            parsed.name, (type(built.body).__name__.lower(), "unknown", None)
        )
        known = {"architecture": family, "objective": objective, "data_size": size, **declared}
    reads = "image" if isinstance(built.input, ImageInput) else "text"
    return Candidate(name, built, reads=reads, **known)


def candidate_names() -> list[str]:
    """Names that `candidate` knows."""
    return [*backbone_names(), "random:NAME", *_UNTRAINED, "FILE.py:FUNCTION"]


def _known(spec: Spec) -> Backbone:
    if spec.name not in backbone_names() and ":" not in spec.name:
        raise InputError(f"backbone {spec.name!r}", "is not known", nearest(spec.name, candidate_names()))
    return backbone(spec)


def _from_file(name: str, declared: dict[str, Any]) -> Candidate:
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"backbone {name!r}", f"names {file!r}, which is no file", "Give FILE.py:FUNCTION.")
    specification = importlib.util.spec_from_file_location(f"unseen_backbone_{path.stem}", path.resolve())
    module = importlib.util.module_from_spec(specification)  # type: ignore[arg-type]
    specification.loader.exec_module(module)  # type: ignore[union-attr]
    made = getattr(module, function, None)
    if not callable(made):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(f"function {function!r} of {file!r}", "is not there", nearest(function, known))
    built = made()
    return built if isinstance(built, Candidate) else Candidate(f"{path.stem}:{function}", built, **declared)


def _source(thing: Any) -> str:
    """Source text of a class or function, so that an edited one is another; its name where there is no source."""
    try:
        return inspect.getsource(thing)
    except (TypeError, OSError):  # None, a partial, something built in or typed into a console
        return repr(thing) if thing is None else getattr(thing, "__qualname__", type(thing).__qualname__)


def _options(module: nn.Module) -> list[tuple[str, Any]]:
    """Plain numbers and texts of a module, which its `repr` may not show."""
    return sorted((k, v) for k, v in vars(module).items() if isinstance(v, (int, float, str)) and k[0] != "_")
