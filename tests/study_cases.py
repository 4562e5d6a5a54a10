"""Networks, images and an oracle in numpy that the tests of studies share."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tnalgebra.model.images import Images
from tnalgebra.studies.rows import BASELINE

CLASSES = 5
MEAN, STD = (0.4, 0.5, 0.6), (0.25, 0.3, 0.2)
CUTS = ("out | in kh kw", "out kh | in kw")
NO_FIT = {
    field: value for field, value in BASELINE.fields.items() if field not in ("model", "rewrite", "scope", "keep")
}
"""The fields of a row that only rows of fits have."""


class Net(nn.Module):
    """Convolutions of unequal widths, one grouped, with batch normalisation between them and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.wide = nn.Conv2d(5, 12, (3, 2), padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 8, (2, 3), groups=4)
        self.linear = nn.Linear(48, CLASSES, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.wide(self.stem(images).relu())).relu()
        return self.linear(self.grouped(hidden).tanh().flatten(1))


class Kinds(nn.Module):
    """One layer of each kind that has a kernel, for images of 3 x 6 x 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(3, 6, (3, 2))  # 4 x 4
        self.up = nn.ConvTranspose2d(6, 4, (2, 3), groups=2)  # 5 x 6
        self.conv1 = nn.Conv1d(4, 7, 3)  # 28
        self.conv3 = nn.Conv3d(1, 2, (2, 3, 4))  # 6 x 2 x 1
        self.linear = nn.Linear(24, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv1(self.up(self.conv2(images).relu()).relu().flatten(2)).relu()
        return self.linear(self.conv3(hidden.reshape(-1, 1, 7, 4, 7)[..., :4]).relu().flatten(1))


LABELS = {
    nn.Linear: "out in",
    nn.Conv1d: "out in k",
    nn.Conv2d: "out in kh kw",
    nn.Conv3d: "out in kd kh kw",
    nn.ConvTranspose2d: "in out kh kw",
}


def network(kind: Callable[[], nn.Module] = Net, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.02, 0.1)
    return model


def some_images(count: int = 400, classes: int = CLASSES, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 6, 5), dtype=torch.uint8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Images(pixels, labels, tuple(f"class {n}" for n in range(classes)), "some", MEAN, STD)


def labelled(images: Images, model: nn.Module) -> Images:
    """The images, three in four of them labelled as the network would, so that its accuracy is far from chance."""
    with torch.no_grad():
        said = copy.deepcopy(model).double().eval()(images.normalise(images.pixels, dtype=torch.float64))
    labels = torch.where(torch.arange(len(images)) % 4 == 0, images.labels, said.argmax(1))
    return dataclasses.replace(images, labels=labels)


# by hand


def truncated(weight: Tensor, labels: str, cut: str, keep: float) -> tuple[np.ndarray, int, int]:
    """The kernel cut as `cut` says (perhaps several times), the last rank, the parameters of the last two factors."""
    kernel = weight.detach().double().numpy()
    axes = labels.split()
    for part in cut.split(" then "):
        left, right = (side.split() for side in part.split("|"))
        order = [axes.index(label) for label in left + right]
        turned = kernel.transpose(order)
        matrix = turned.reshape(math.prod(turned.shape[: len(left)]), -1)
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        rank = max(1, round(keep * len(s)))
        small = (u[:, :rank] * s[:rank]) @ v[:rank]
        kernel = small.reshape(turned.shape).transpose(np.argsort(order))
    return kernel, rank, rank * sum(matrix.shape)


def top1(model: nn.Module, images: Images, weights: Mapping[str, np.ndarray], dtype: torch.dtype) -> float:
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, weight in weights.items():
            other.get_submodule(name).weight.copy_(torch.from_numpy(weight))
        logits = other.to(dtype)(images.normalise(images.pixels, dtype=dtype))
    return float((logits.argmax(1) == images.labels).double().mean())


def values_of(weight: np.ndarray, labels: str, cut: str) -> int:
    """How many singular values the last cut has."""
    left = cut.split(" then ")[-1].split(" | ")[0].split()
    axes = [labels.split().index(label) for label in left]
    matrix = np.moveaxis(weight, axes, range(len(axes)))
    return min(matrix.reshape(math.prod(matrix.shape[: len(axes)]), -1).shape)


def row_by_hand(
    model: nn.Module, images: Images, cut: str, keep: float | None, layers: list[str], dtype: torch.dtype
) -> dict[str, Any]:
    weights, details, errors = {}, {}, []
    total = kept = sum(parameter.numel() for parameter in model.parameters())
    for name in layers:
        module = model.get_submodule(name)
        assert keep is not None
        weight = module.weight.detach().double().numpy()
        weights[name], rank, parameters = truncated(module.weight, LABELS[type(module)], cut, keep)
        error = np.linalg.norm(weights[name] - weight) / np.linalg.norm(weight)
        errors.append(error**2)
        kept += parameters - weight.size
        details[name] = {
            "rank": rank,
            "values": values_of(weight, LABELS[type(module)], cut),
            "relative_error": error,
            "norm_kept": np.linalg.norm(weights[name]) / np.linalg.norm(weight),
            "parameters": parameters,
        }
    accuracy = top1(model, images, weights, dtype)
    return {
        "accuracy": accuracy,
        "accuracy_change": accuracy - top1(model, images, {}, dtype),
        "images": len(images),
        "mean_squared_relative_error": float(np.mean(errors)) if errors else 0.0,
        "parameters_kept": kept / total,
        "layers": details,
    }


def close(row: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Counts and accuracies are equal, norms to rounding."""
    assert row["layers"].keys() == expected["layers"].keys()
    for name, details in expected["layers"].items():
        assert row["layers"][name] == pytest.approx(details, rel=1e-9, abs=1e-12)
    numbers = {key: value for key, value in expected.items() if key != "layers"}
    assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-9, abs=1e-12)


def without_seconds(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in rows)


def study(
    model: nn.Module | Mapping[str, nn.Module],
    images: Images | str,
    output: Path,
    rewrites: Sequence[Any] = CUTS,
    sizes: Sequence[Any] = (0.5,),
    **options: Any,
) -> tn.studies.Study:
    """A study in float64 of a network that need not be trained; a float is a fraction of the singular values."""
    read = [tn.KeepFraction(size) if isinstance(size, float) else size for size in sizes]
    chosen = tn.StudyOptions(**{"dtype": torch.float64, "progress": False, "untrained": True, **options})
    return tn.study(model, images, output, rewrites=rewrites, sizes=read, options=chosen)
