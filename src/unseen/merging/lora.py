"""A fine-tuned model as a low-rank update of its base (LoRA), by singular value decomposition."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unseen.errors import InputError
from unseen.merging.checkpoints import check_same_tensors, open_checkpoint
from unseen.merging.memory import Source


@torch.no_grad()
def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with B A the nearest matrix of rank r = min(rank, out, in) to delta (out, in).

    The singular values are shared equally: A = sqrt(S) V^T, B = U sqrt(S) (Eckart-Young; Hu et al. 2022, arXiv
    2106.09685, for the form). Computed in float32.
    """
    if delta.dim() != 2:
        raise InputError("delta", f"has {delta.dim()} dimensions", "LoRA is for matrices (out, in).")
    if rank < 1:
        raise InputError("rank", f"is {rank}", "Give a whole number from 1.")
    left, values, right = torch.linalg.svd(delta.float(), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    return root[:, None] * right[:kept], left[:, :kept] * root


@torch.no_grad()
def extract_lora(
    base: Source,
    tuned: Source,
    out: str | Path,
    *,
    rank: int = 16,
    include: Callable[[str], bool] | None = None,
) -> dict[str, float]:
    """Write an adapter folder that peft loads; returns the share of each update's energy that it keeps.

    Every matrix named *.weight that differs and that `include` accepts (default all) becomes A and B; other
    differences (biases, norms, embeddings left out) are lost. One matrix is in memory at a time, and the
    adapter. The folder must not exist.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"folder {str(out)!r}", "exists", "Choose another.")
    start, end = open_checkpoint(base, "the base"), open_checkpoint(tuned, "the tuned model")
    check_same_tensors([start, end])
    adapter: dict[str, Tensor] = {}
    kept: dict[str, float] = {}
    modules = []
    for name, info in start.tensors.items():
        if len(info.shape) != 2 or not name.endswith(".weight") or not info.dtype.is_floating_point:
            continue
        if include is not None and not include(name):
            continue
        delta = end.read(name).float() - start.read(name).float()
        energy = float(delta.square().sum())
        if not energy:
            continue
        a, b = low_rank(delta, rank)
        module = name.removesuffix(".weight")
        adapter[f"base_model.model.{module}.lora_A.weight"] = _full(a, rank, 0).contiguous()
        adapter[f"base_model.model.{module}.lora_B.weight"] = _full(b, rank, 1).contiguous()
        kept[name] = 1 - float((delta - b @ a).square().sum()) / energy
        modules.append(module)
    if not adapter:
        raise InputError("the tuned model", "differs from the base in no matrix", "Are they the same model?")
    part = out.with_name(f".{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    save_file(adapter, part / "adapter_model.safetensors", metadata={"format": "pt"})
    (part / "adapter_config.json").write_text(json.dumps(_config(rank, modules), indent=1) + "\n")
    os.replace(part, out)
    return kept


def _full(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Padded with zeros to `rank`: one rank for all modules, small ones included."""
    lacking = rank - factor.shape[dim]
    if not lacking:
        return factor
    shape = list(factor.shape)
    shape[dim] = lacking
    return torch.cat([factor, factor.new_zeros(shape)], dim)


def _config(rank: int, modules: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
    }
