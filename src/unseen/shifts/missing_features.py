"""Sensors that fail: positions of the inputs are missing at random, one by one, in blocks, or a modality at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.shifts.batch import Inputs

MissingMode = Literal["element", "modality", "temporal", "block"]
MODES: tuple[MissingMode, ...] = ("element", "modality", "temporal", "block")


class RandomFeatureMissing:
    """Fills positions of sequences, (B, T, ...) each, that are taken to be missing.

    rate  share that is missing, in [0, 1]: of all modalities, or of each by its name. None lets every position
          draw a rate of its own from U(0, 1), as in the training of CIDer: that is a coin toss for each. In mode
          "block" every run has a length of its own then
    mode  what goes missing together. "element": each position by itself; "temporal": the same positions (by
          relative time) of every modality; "block": one run of round(rate * T) positions of each modality;
          "modality": all positions of a modality
    fill  value in place of what is missing, one for all modalities or one for each by its name (100 for the tokens
          of a BERT, whose [UNK] it is, and 0 for frames); 0 is [UNK] in the token sequences of this library
    keep  token ids that are never missing, such as [CLS] and [SEP]; only of integer sequences

    Zhong et al. 2025, arXiv 2506.10452, section 3 (random modality feature missing) and its other protocols.
    Raises `InputError` for rates outside [0, 1], an unknown mode, and modalities that have no rate or no fill.
    """

    def __init__(
        self,
        rate: float | Mapping[str, float] | None = None,
        mode: MissingMode = "element",
        *,
        fill: float | Mapping[str, float] = 0,
        keep: tuple[int, ...] = (),
    ):
        rates = rate.values() if isinstance(rate, Mapping) else [0.5 if rate is None else rate]
        if not all(0 <= value <= 1 for value in rates):
            raise InputError("rate", f"is {rate}", "Give shares from 0 to 1, or None.")
        if mode not in MODES:
            raise InputError("mode", f"is {mode!r}", nearest(mode, MODES))
        if mode == "temporal" and isinstance(rate, Mapping):
            raise InputError("rate", "differs by modality", "Mode 'temporal' has one rate for all.")
        self.rate, self.mode, self.fill, self.keep = rate, mode, fill, keep

    def __call__(self, x: Inputs, generator: torch.Generator) -> tuple[Inputs, Inputs]:
        """Masked inputs, and which positions are missing, (B, T) bool for each sequence. `x` stays as it is.

        A tensor instead of a dict is a single modality, and its coordinates are positions when it is (B, T).
        """
        if not isinstance(x, dict):
            masked, missing = self({"": x}, generator)
            return masked[""], missing[""]  # type: ignore[index]
        for option, value in (("rate", self.rate), ("fill", self.fill)):
            if isinstance(value, Mapping) and set(value) != set(x):
                raise InputError(
                    option,
                    f"names {sorted(value)}, but the inputs are {sorted(x)}",
                    "Give one for each modality.",
                )
        first = next(iter(x.values()))
        shared = torch.rand(len(first), max(v.shape[1] for v in x.values()), generator=generator)
        missing = {name: self._missing(name, value, shared, generator) for name, value in x.items()}
        fills = self.fill if isinstance(self.fill, Mapping) else dict.fromkeys(x, self.fill)
        return {name: _filled(value, missing[name], fills[name]) for name, value in x.items()}, missing

    def _missing(self, name: str, x: Tensor, shared: Tensor, generator: torch.Generator) -> Tensor:
        count, length = x.shape[:2]
        given = self.rate[name] if isinstance(self.rate, Mapping) else self.rate
        rate = 0.5 if given is None else given
        if self.mode == "element":
            missing = torch.rand(count, length, generator=generator) < rate
        elif self.mode == "temporal":
            missing = shared[:, torch.arange(length) * shared.shape[1] // length] < rate
        elif self.mode == "modality":
            missing = (torch.rand(count, 1, generator=generator) < rate).expand(count, length)
        else:
            size = torch.full((count, 1), round(rate * length))
            if given is None:
                size = torch.randint(length + 1, (count, 1), generator=generator)
            start = (torch.rand(count, 1, generator=generator) * (length - size + 1)).long()
            position = torch.arange(length)
            missing = (position >= start) & (position < start + size)
        missing = missing.to(x.device)
        for token in self.keep if not x.is_floating_point() else ():
            missing = missing & (x != token)
        return missing


def _filled(x: Tensor, missing: Tensor, fill: float) -> Tensor:
    return x.masked_fill(missing.view(*missing.shape, *[1] * (x.dim() - 2)), fill)
