"""Time a study whose rows rewrite one layer each, and the same tests one by one.

    python -m recipes.benchmarks.studies
    python -m recipes.benchmarks.studies --smoke
    python -m recipes.benchmarks.studies --models resnet56 --images 1000 --every 1

The kernels of a network are cut to half of their singular values, one in each row. These take turns:
- `tnalgebra.study`, with everything that it does, which keeps what the layers before the rewritten one give;
- the same with `memory=0`, so that several rows share a pass instead;
- one by one: each network is tested by itself, from its first layer on, with the same kernels.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.benchmarks.timing import ratio_of_medians
from recipes.command import run_command
from recipes.reporting import aligned

CUT, SIZE = "out | in kh kw", "keep 0.5"
ONE_BY_ONE = "one by one"
ROOM = {"study": 2**34, "study, nothing kept": 0}
"""Contender -> the bytes that it may keep."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time studies of single layers."""

    models: tuple[str, ...] = ("resnet20", "resnet56")
    """networks for images of 32x32 pixels, as `tn.command.build_model` knows them; their weights are random"""
    images: int = 500
    """random images with random labels"""
    every: int = 3
    """each third convolution has a row; 1: all of them"""
    batch_size: int = 128
    """images in a batch"""
    rounds: int = 3
    """turns of each contender"""
    output: Path = Path("runs/benchmark-studies")
    """folder for the rows (results.jsonl) and the table; a network that it has is not timed again"""


class Problem(NamedTuple):
    model: nn.Module
    images: tn.model.Images
    layers: list[str]
    kernels: dict[str, Tensor]


class StudyBenchmark(Benchmark[Config, str, Problem]):
    name = "studies"
    tolerance = 1e-12  # accuracies are equal

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, models=("cnn4",), images=20, every=2, rounds=1)

    def cells(self) -> Sequence[str]:
        return self.config.models

    def facts(self, cell: str) -> Row:
        return {"model": cell, **{name: getattr(self.config, name) for name in ("images", "every", "batch_size")}}

    def contenders(self, cell: str) -> list[str]:
        return [*ROOM, ONE_BY_ONE, ONE_BY_ONE + AGAIN]

    def problem(self, cell: str) -> Problem:
        model = tn.command.build_model(cell, classes=10, channels=3, seed=self.config.seed).eval()
        generator = torch.Generator().manual_seed(self.config.seed)
        pixels = torch.randint(256, (self.config.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (self.config.images,), generator=generator)
        images = tn.model.Images(pixels, labels, tuple("0123456789"), "random", (0.5,) * 3, (0.25,) * 3)
        kernels = {name: one.weight for name, one in tn.studies.compress_kernels(model, CUT, SIZE).items()}
        return Problem(model, images, list(kernels)[:: self.config.every], kernels)

    def about(self, problem: Problem) -> Row:
        return {"rows": len(problem.layers)}

    def contender(self, name: str, problem: Problem) -> Contender:
        if name == ONE_BY_ONE:
            return Contender(lambda _: (self._one_by_one(problem),))
        return Contender(lambda _: (self._study(problem, ROOM[name]),))

    def _study(self, problem: Problem, memory: int) -> Tensor:
        options = tn.StudyOptions(
            scope=tuple(problem.layers),
            batch_size=self.config.batch_size,
            memory=memory,
            untrained=True,
            progress=False,
        )
        with TemporaryDirectory() as folder:
            rows = tn.study(problem.model, problem.images, folder, rewrites=[CUT], sizes=[SIZE], options=options).rows
        return torch.tensor([row["accuracy"] for row in rows], dtype=torch.float64)

    def _one_by_one(self, problem: Problem) -> Tensor:
        """The accuracies of the network as it is, and with each of the kernels."""
        model, accuracies = copy.deepcopy(problem.model), []
        for name in (None, *problem.layers):
            changed = copy.deepcopy(model)
            if name is not None:
                weight = changed.get_submodule(name).get_parameter("weight")
                weight.data.copy_(problem.kernels[name])
            accuracies.append(tn.studies.accuracy(changed, problem.images, batch_size=self.config.batch_size))
        return torch.tensor(accuracies, dtype=torch.float64)

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        lines = [["network", "rows", *(f"{name} s" for name in (*ROOM, ONE_BY_ONE)), "faster", "nothing kept", "noise"]]
        for row in rows:
            times = {name: one["times"] for name, one in row["contenders"].items()}
            seconds = [f"{row['contenders'][name]['seconds']:.2f}" for name in (*ROOM, ONE_BY_ONE)]
            ratios = [str(ratio_of_medians(times[ONE_BY_ONE], times[name])) for name in (*ROOM, ONE_BY_ONE + AGAIN)]
            lines.append([row["model"], str(row["rows"]), *seconds, *ratios])
        return aligned(lines, ruled=False)


main = partial(run, StudyBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
