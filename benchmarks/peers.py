"""What others have written, where it is installed (extra `peers`): compared with, never used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any


def pytorch_ood() -> Any:
    """The module of pytorch-ood's detectors, or None where it is not installed.

    The package imports torchvision, for data sets and networks that are not compared and often not for the torch
    that is here. Its detectors do not need it: they are imported without the rest.
    """
    if "pytorch_ood" not in sys.modules:
        found = importlib.util.find_spec("pytorch_ood")
        if found is None or found.submodule_search_locations is None:
            return None
        package = types.ModuleType("pytorch_ood")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["pytorch_ood"] = package
    return importlib.import_module("pytorch_ood.detector")
