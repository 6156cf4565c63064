"""Recipes for sharded language models, by `unseen merge` and, where it is installed, by mergekit: time and memory.

The models are made: the shapes of a small llama in bfloat16, in shards of 0.5 GB; the number of layers alone makes
them 1 or 4 GB large. A merge is a process of its own, start-up included (the first row is nothing else). Seconds are
CPU time, of the system on its behalf, too. Memory is sampled: resident is what `top` shows, with the pages of files
that a process has mapped (mergekit maps its inputs), private what is its own alone.

`python -m benchmarks.merging_llama FILE.svg` draws memory over time of the two sizes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unseen.errors import InputError

SHARD = 500_000_000
EVERY = 0.01
"""Seconds between two looks at a process."""
OURS = "from unseen.cli import main; main()"
THEIRS = "from mergekit.scripts.run_yaml import main; main()"
RECIPES = {
    "linear": """
models:
  - {{model: {0}, parameters: {{weight: 0.3}}}}
  - {{model: {1}, parameters: {{weight: 0.7}}}}
merge_method: linear
dtype: bfloat16
""",
    "slerp": """
models: [{{model: {0}}}, {{model: {1}}}]
merge_method: slerp
base_model: {0}
parameters:
  t:
    - {{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}
    - {{filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}}
    - value: 0.5
dtype: bfloat16
""",
    "ties": """
models:
  - {{model: {1}, parameters: {{weight: 0.5, density: 0.5}}}}
  - {{model: {2}, parameters: {{weight: 0.3, density: 0.5}}}}
merge_method: ties
base_model: {0}
dtype: bfloat16
""",
}


@dataclass(frozen=True)
class Llama:
    """Sizes of a model."""

    hidden: int = 2048
    inner: int = 5632
    words: int = 32_000
    layers: int = 7

    @property
    def bytes(self) -> int:
        return sum(2 * torch.Size(shape).numel() for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        square, wide = (self.hidden, self.hidden), (self.inner, self.hidden)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.words, self.hidden)}
        for number in range(self.layers):
            parts = {f"self_attn.{name}_proj": square for name in "qkvo"}
            parts |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": wide[::-1]}
            parts |= {"input_layernorm": (self.hidden,), "post_attention_layernorm": (self.hidden,)}
            found |= {f"model.layers.{number}.{part}.weight": shape for part, shape in parts.items()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.words, self.hidden)}

    def write(self, folder: Path, seed: int) -> Path:
        """A checkpoint as transformers writes it; models of other seeds are near, as if tuned from the same one."""
        folder.mkdir(parents=True)
        shards: list[dict[str, Tensor]] = [{}]
        where, total = {}, 0
        noise = [torch.randn(1 << 22, generator=torch.Generator().manual_seed(s)) for s in (0, seed + 1)]
        values = (0.02 * noise[0] + 0.002 * noise[1]).bfloat16()
        for index, (name, shape) in enumerate(self.shapes().items()):
            count = torch.Size(shape).numel()
            if sum(2 * tensor.numel() for tensor in shards[-1].values()) + 2 * count > SHARD:
                self._shard(folder, shards)
                shards.append({})
            repeated = values.roll(997 * index).repeat(-(-count // len(values)))
            shards[-1][name] = repeated[:count].view(shape).clone()
            where[name], total = len(shards), total + 2 * count
        self._shard(folder, shards)
        files = {name: f"model-{number:05}.safetensors" for name, number in where.items()}
        index_file = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
        (folder / "config.json").write_text(json.dumps(self._config()))
        return folder

    def _shard(self, folder: Path, shards: list[dict[str, Tensor]]) -> None:
        save_file(shards[-1], folder / f"model-{len(shards):05}.safetensors", {"format": "pt"})
        shards[-1] = {}

    def _config(self) -> dict[str, Any]:
        heads = max(1, self.hidden // 64)
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden, "intermediate_size": self.inner, "vocab_size": self.words,
            "num_hidden_layers": self.layers, "num_attention_heads": heads, "num_key_value_heads": heads,
            "tie_word_embeddings": False,
        }  # fmt: skip


@dataclass
class Run:
    """A process that has ended: its CPU seconds, and after how many of them how many MiB were resident and private."""

    seconds: float
    memory: list[tuple[float, float, float]]

    @property
    def resident(self) -> float:
        return max(row[1] for row in self.memory)

    @property
    def private(self) -> float:
        return max(row[2] for row in self.memory)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of seconds and of MiB (reference: mergekit, where it is installed)."""
    small, large = (Llama(64, 128, 256, n) for n in (2, 4)) if quick else (Llama(layers=n) for n in (7, 36))
    rows = []
    with _folder(large) as folder:
        tiny = [Llama(64, 128, 256, 1).write(folder / f"tiny{seed}", seed) for seed in range(3)]
        rows += _rows("start-up: a model of 0.2 MB", "linear", tiny, folder, 1 if quick else 3)
        models = [small.write(folder / f"small{seed}", seed) for seed in range(3)]
        for name in () if quick else RECIPES:
            rows += _rows(f"{name}, 1 GB", name, models, folder, 2)
        for path in models:
            shutil.rmtree(path)
        models = [large.write(folder / f"large{seed}", seed) for seed in range(2)]
        rows += _rows("slerp, 4 GB", "slerp", models, folder, 1)
    return rows


def curves() -> dict[str, Run]:
    """Runs of the slerp recipe by their names in the figure."""
    found = {}
    sizes = {"1 GB": Llama(layers=7), "4 GB": Llama(layers=36)}
    with _folder(sizes["4 GB"]) as folder:
        for name, size in sizes.items():
            models = [size.write(folder / f"{size.layers}-{seed}", seed) for seed in range(2)]
            for command, watched_run in _each("slerp", models, folder).items():
                found[f"{command}, two models of {name}"] = watched_run
            for path in models:
                shutil.rmtree(path)
    return found


def draw(runs: dict[str, Run]) -> Any:
    """Memory over time, a colour a run: resident and, dotted, private."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, found) in enumerate(runs.items()):
        seconds, resident, private = zip(*_thinned(found.memory), strict=True)
        axes.plot(seconds, resident, color=f"C{number}", label=name)
        axes.plot(seconds, private, color=f"C{number}", linewidth=0.8, linestyle=":")
    axes.set(xlabel="CPU seconds since the start of the command", ylabel="memory, MiB")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, title="resident; dotted: private", title_fontsize=9)
    return figure


def _thinned(memory: list[tuple[float, float, float]], points: int = 250) -> list[tuple[float, ...]]:
    """At most about so many looks, each the highest of its neighbours."""
    size = max(1, len(memory) // points)
    parts = [memory[first : first + size] for first in range(0, len(memory), size)]
    return [(part[0][0], *(max(column) for column in list(zip(*part, strict=True))[1:])) for part in parts]


@contextlib.contextmanager
def _folder(largest: Llama) -> Iterator[Path]:
    """A temporary folder with room for three of the largest model."""
    need = 3.2 * largest.bytes
    with TemporaryDirectory() as name:
        if shutil.disk_usage(name).free < need:
            raise InputError(f"disk of {name!r}", "is too full", f"The benchmark needs {need / 1e9:.0f} GB.")
        yield Path(name)


def _rows(what: str, recipe: str, models: list[Path], folder: Path, rounds: int) -> list[dict[str, Any]]:
    best: dict[str, Run] = {}
    for _ in range(rounds):
        for command, found in _each(recipe, models, folder).items():
            if command not in best or found.seconds < best[command].seconds:
                best[command] = found
    ours, theirs = best["unseen merge"], best.get("mergekit")
    rows = []
    for kind, unit, name in (
        ("seconds", "s", "whole command"),
        ("resident", "MiB", "peak memory"),
        ("private", "MiB", "peak of private memory"),
    ):
        value, reference = getattr(ours, kind), theirs and getattr(theirs, kind)
        rows.append(
            {
                "what": f"{what}: {name}",
                "value": value,
                "unit": unit,
                "reference": reference,
                "ratio": reference and reference / value,
                "target": 1 if reference else None,
            }
        )
    return rows


def _each(recipe: str, models: list[Path], folder: Path) -> dict[str, Run]:
    """The merge by every command that is installed."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPES[recipe].format(*models))
    commands = {"unseen merge": [OURS, "merge", path, "-o"]}
    if importlib.util.find_spec("mergekit") is not None:
        commands["mergekit"] = [THEIRS, "--no-copy-tokenizer", "--no-write-model-card", "--quiet", path]
    found = {}
    for name, arguments in commands.items():
        found[name] = watched([sys.executable, "-c", *map(str, arguments), str(folder / "out")])
        shutil.rmtree(folder / "out")
    return found


def watched(command: list[str]) -> Run:
    """Run a command with one thread to its end, looking at its memory all the while."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    memory = []
    with TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            if (found := _look(process.pid)) is not None:
                memory.append(found)
            time.sleep(EVERY)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    return Run(usage.ru_utime + usage.ru_stime, memory)


def _look(process: int) -> tuple[float, float, float] | None:
    """CPU seconds so far, MiB resident and private; None of a process that is ending."""
    folder = Path(f"/proc/{process}")
    used = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]  # by the user and by the system
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    if "VmRSS" not in status:
        return None
    resident, private = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK"), resident, private


if __name__ == "__main__":
    draw(curves()).savefig(sys.argv[1], metadata={"Date": None})
