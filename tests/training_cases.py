"""A small network and task for tests of trainings, with all that depends on the mode and on chance."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.cnn4 import cnn4
from recipes.training import Classification, History
from tnalgebra.model import Images

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "log_tensorboard": False}
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.7, 0.9)


def some_images(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 7, 6), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 4, ("a", "b", "c", "d"), f"some {count}", MEAN, STD)


def some_task(**more: Any) -> Classification:
    return Classification(some_images(21, 0), some_images(13, 1), **more)


class Noise(nn.Module):
    """In training, chance from the generators of numpy and of Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * random.random() + 0.1 * np.random.rand()) if self.training else x


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()),
        *(nn.Linear(100, 4), Noise()),
    )


def small_cnn(classes: int, channels: int) -> nn.Module:
    """For recipes that train several networks: `--model tests.training_cases:small_cnn`."""
    return cnn4(classes=classes, channels=channels, widths=(6, 8, 10, 12))


class CountSteps:
    """Counts the steps of all trainings; at the one that is given the process is interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.stop_at = 0, -1
        plain: Callable[..., Tensor] = Classification.loss

        def loss(task: Classification, *given: Any) -> Tensor:
            self.count += 1
            if self.count == self.stop_at:
                raise KeyboardInterrupt
            return plain(task, *given)

        monkeypatch.setattr(Classification, "loss", loss)

    def reset(self, stop_at: int = -1) -> None:
        self.count, self.stop_at = 0, stop_at


def without_seconds(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps({**row, "seconds": None}, sort_keys=True) for row in rows)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = state(a), state(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rows(history: History) -> list[tuple[Any, ...]]:
    """All but the seconds."""
    return [row[:-1] for row in history.rows]


def table(folder: Path) -> Sequence[Sequence[str]]:
    """history.csv without the seconds."""
    return [line.split(",")[:-1] for line in (folder / "history.csv").read_text().splitlines()]
