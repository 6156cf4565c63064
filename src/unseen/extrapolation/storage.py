"""Generated examples on disk: a manifest, and a file or folder a cell (domain x class), written whole or not at all.

manifest.json               what was asked for, the domains, and for every cell what was kept and rejected
images/DOMAIN/CLASS/*.png   images, laid out so that `unseen run FOLDER/images` opens them
cells/DOMAIN/CLASS.*        texts (.json) and rows (.npy), which `data.npz` gathers when all are there
answers/                    raw answers of a language model, when the proposer keeps them here
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from unseen.errors import InputError
from unseen.extrapolation.generators import Examples
from unseen.extrapolation.proposals import DomainSpec
from unseen.shifts.arrays import open_npz
from unseen.shifts.image_folders import open_image_folder
from unseen.shifts.shift import Shift

FORMAT = 1


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder of generated examples: "request", "domains" and "cells"."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        return {key: manifest[key] for key in ("format", "request", "domains", "cells")}
    except FileNotFoundError:
        raise InputError(
            f"folder {str(folder)!r}", "has no manifest.json", "Give one of `extrapolate`."
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"file {str(path)!r}", f"cannot be read ({error})", "Remove the folder and generate again."
        ) from None


def rejections(folder: str | Path) -> pd.DataFrame:
    """Generated, rejected and kept examples of every class, and the share that a filter rejected.

    A filter that rejects some classes more than others leaves the easy pictures of these.
    """
    cells = pd.DataFrame(read_manifest(folder)["cells"])
    table = cells.groupby("class", sort=False)[["generated", "rejected", "kept"]].sum()
    return table.assign(share=table.rejected / table.generated)


class ExampleFolder:
    """The folder of one request. Raises `InputError` when it holds the examples of another."""

    def __init__(self, folder: str | Path, request: dict[str, Any]):
        self.folder = Path(folder)
        request = json.loads(json.dumps(request, default=str))
        if (self.folder / "manifest.json").exists():
            self.manifest = read_manifest(self.folder)
            for key, value in request.items():
                if self.manifest["request"].get(key) != value:
                    raise InputError(
                        f"folder {str(self.folder)!r}",
                        f"holds examples of another request ({key} is {self.manifest['request'].get(key)!r})",
                        "Choose another folder, or remove this one.",
                    )
        else:
            self.manifest = {"format": FORMAT, "request": request, "domains": [], "cells": []}
        self.cells = {(cell["domain"], cell["class"]) for cell in self.manifest["cells"]}

    def domains(self) -> list[DomainSpec]:
        """The domains that were proposed before; none for a new folder."""
        return [DomainSpec(**domain) for domain in self.manifest["domains"]]

    def write_domains(self, specs: list[DomainSpec]) -> None:
        self.manifest["domains"] = [spec.to_json() for spec in specs]
        self._write_manifest()

    def write(self, spec: DomainSpec, cls: str, examples: Examples, record: dict[str, Any]) -> None:
        if isinstance(examples, Tensor) and examples.dtype == torch.uint8:
            _write_images(self.folder / "images" / spec.name / cls, examples)
        else:
            place = self.folder / "cells" / spec.name / cls
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f".{cls}.part")
            if isinstance(examples, Tensor):
                with part.open("wb") as file:
                    np.save(file, examples.numpy(), allow_pickle=False)
                os.replace(part, place.with_name(f"{cls}.npy"))
            else:
                part.write_text(json.dumps(examples, indent=0))
                os.replace(part, place.with_name(f"{cls}.json"))
        self.manifest["cells"].append({"domain": spec.name, "class": cls, **record})
        self.cells.add((spec.name, cls))
        self._write_manifest()

    def open(self) -> Shift:
        """All cells as a shift; `open_shift(**shift.source)` opens it again."""
        images = self.folder / "images"
        if images.is_dir():
            return open_image_folder(images, source={"source": str(images)})
        path = self.folder / "data.npz"
        if not path.exists():
            self._gather(path)
        return open_npz(path, source={"source": str(path)})

    def _gather(self, path: Path) -> None:
        rows, labels, domains = [], [], []
        for cell in self.manifest["cells"]:
            place = self.folder / "cells" / cell["domain"] / cell["class"]
            numbers = place.with_name(f"{place.name}.npy")
            if numbers.exists():
                found = np.load(numbers, allow_pickle=False)
            else:
                found = np.array(json.loads(place.with_name(f"{place.name}.json").read_text()))
            rows.append(found)
            labels += [cell["class"]] * len(found)
            domains += [cell["domain"]] * len(found)
        part = path.with_name(".data.part")
        with part.open("wb") as file:
            np.savez(file, x=np.concatenate(rows), y=np.array(labels), domain=np.array(domains))
        os.replace(part, path)

    def _write_manifest(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / ".manifest.part"
        part.write_text(json.dumps(self.manifest, indent=1))
        os.replace(part, self.folder / "manifest.json")


def _write_images(place: Path, images: Tensor) -> None:
    part = place.with_name(f".{place.name}.part")
    for left_over in (part, place):
        shutil.rmtree(left_over, ignore_errors=True)
    part.mkdir(parents=True)
    for row, pixels in enumerate(images.numpy()):
        array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        Image.fromarray(array).save(part / f"{row:05d}.png")
    os.replace(part, place)
