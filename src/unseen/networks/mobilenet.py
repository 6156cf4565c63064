"""MobileNet v1 and v2, pretrained on ImageNet, from arrays of 8-bit weights (exported from Google's TFLite files)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unseen.errors import InputError


class SamePadding(nn.Module):
    """Zeros around an image as TensorFlow's 'SAME' puts them: ceil(side / stride) positions, the odd one at the end."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        around = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((math.ceil(side / self.stride) - 1) * self.stride + self.kernel - side, 0)
            around += [total // 2, total - total // 2]
        return nn.functional.pad(x, around)


class LayerGraph(nn.Module):
    """Convolutions, sums and mean pooling, run in the order of a list of layers.

    layers  dicts with `op` ("conv", "dwconv", "add" or "avgpool"), `inp` (number or numbers of the values read),
            `out` (number of the value written); convolutions also have `id`, `stride` and `act`
    arrays  w{id}, s{id}, z{id}, b{id}: weights (out, height, width, in) as integers, scale, zero point, bias
    """

    def __init__(self, layers: list[dict[str, Any]], arrays: dict[str, np.ndarray]):
        super().__init__()
        self.layers = layers
        self.convolutions = nn.ModuleDict()
        for layer in layers:
            if layer["op"] in ("conv", "dwconv"):
                self.convolutions[str(layer["id"])] = _convolution(layer, arrays)

    def forward(self, x: Tensor) -> Tensor:
        values = {self.layers[0]["inp"]: x}
        for layer in self.layers:
            if layer["op"] == "add":
                first, second = layer["inp"]
                result = values[first] + values[second]
            elif layer["op"] == "avgpool":
                result = values[layer["inp"]].mean((2, 3))
            else:
                result = self.convolutions[str(layer["id"])](values[layer["inp"]])
            values[layer["out"]] = result
        return result


def read_mobilenet(path: Path) -> tuple[LayerGraph, tuple[Tensor, Tensor]]:
    """The network up to its pooled features, and the class head: weight (1000, D) and bias (1000,).

    Raises `InputError` when the file is no such export.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        layers = json.loads(str(arrays["graph"]))
        *body, last = layers
        weight, bias = _weight(last["id"], arrays)
        network = LayerGraph(body, arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"weights file {str(path)!r}",
            f"is no exported MobileNet ({error!r})",
            "Give the .npz with arrays w0, s0, z0, b0, ... and the layer list `graph`.",
        ) from error
    return network, (weight.flatten(1)[1:], bias[1:])  # class 0 is background


def _weight(number: int, arrays: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Weight (out, in, height, width) and bias (out,) as floats."""
    integers = arrays[f"w{number}"].astype(np.float32) - arrays[f"z{number}"].astype(np.float32)
    weight = torch.from_numpy(integers * arrays[f"s{number}"].astype(np.float32))
    return weight.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(arrays[f"b{number}"]).float()


def _convolution(layer: dict[str, Any], arrays: dict[str, np.ndarray]) -> nn.Sequential:
    weight, bias = _weight(layer["id"], arrays)
    groups = 1
    if layer["op"] == "dwconv":  # stored as (1, height, width, channels)
        weight, groups = weight.transpose(0, 1).contiguous(), weight.shape[1]
    outer, inner, kernel, _ = weight.shape
    convolution = nn.Conv2d(inner * groups, outer, kernel, stride=layer["stride"], groups=groups)
    convolution.load_state_dict({"weight": weight, "bias": bias})
    activation = nn.ReLU6() if layer["act"] == "relu6" else nn.Identity()
    return nn.Sequential(SamePadding(kernel, layer["stride"]), convolution, activation)
