"""Time single layers: compiled by this library, written by hand, made by its peers, and dense.

    python -m recipes.benchmarks.layers
    python -m recipes.benchmarks.layers --smoke
    python -m recipes.benchmarks.layers --shapes "3x3-64-*" --decompositions cp svd --batches 1
    python -m recipes.benchmarks.layers --rerun-above 1.05 --rounds 101
    python -m recipes.benchmarks.layers --memory --shapes "3x3-64-64-56" --batches 16

- ours: `tnalgebra.compile` with all forms, or with factored ones only; as it is, or frozen (forward only).
- hand: the chain of torch layers that one writes by hand, in the memory format of the input; merged: the window's cores
  contracted beforehand to one layer, or without a window all cores but one.
- dense; dense + rebuild: the kernel contracted from the cores in each call.
- tensorly: tensorly-torch's FactorizedConv (CP, Tucker with full ranks on the window, train; no groups).
- einconv: its einsum with the cores instead of the kernel.
- docs/benchmarks.md describes the measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import ClassVar

import torch

import tnalgebra as tn
from recipes.benchmarks.layers.cells import (
    DECOMPOSITIONS,
    SHAPES,
    SMOKE_SHAPES,
    UNDECOMPOSED,
    Cell,
    Layout,
    Shape,
    exists,
    ranks_of,
)
from recipes.benchmarks.layers.contenders import (
    CONTENDERS,
    PEERS,
    Problem,
    make_contender,
    make_problem,
    takes_part,
)
from recipes.benchmarks.layers.report import describe, figure, ratios_in, summary
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, NetworkSettings, run
from recipes.command import run_command
from recipes.reporting import check_known, check_least, check_part


@dataclass(frozen=True, kw_only=True)
class Config(NetworkSettings):
    """Time single layers."""

    # one line each: the command's --help breaks them where it must
    shapes: tuple[str, ...] = ("*",)
    """globs of layers: 3x3-IN-OUT-SIZE, with -s2 at stride 2; 1x1-*, 7x7-*, depthwise-CHANNELS-SIZE"""
    decompositions: tuple[str, ...] = tuple(DECOMPOSITIONS)
    """cp, tucker2, train, ring, svd, loop, undecomposed"""
    fractions: tuple[float, ...] = (0.5, 0.25)
    """ranks, each a fraction of the channels, in (0, 1]"""
    batches: tuple[int, ...] = (1, 16)
    """images at a time"""
    memory_formats: tuple[Layout, ...] = ("contiguous", "channels_last")
    """memory formats of the input, and of the weights of the layers by hand"""
    contenders: tuple[str, ...] = CONTENDERS
    """names, each in quotes; the dense layer is always timed twice, as the reference and as the noise floor"""
    rounds: int = 31
    """turns of a contender; an odd number, so that the median is one of the times; a slow contender has 5"""
    rerun_above: float | None = None
    """time cells again in which one of the summary's ratios is above this and which have fewer rounds than --rounds;
    the new rows replace the old ones"""
    output: Path = Path("runs/layers")
    """folder for the rows (results.jsonl), the summary and the figure; a cell that it has is not timed again"""


class Layers(Benchmark[Config, Cell, Problem]):
    name = "layers"
    packages: ClassVar = {"tltorch": "tensorly-torch", "einconv": "einconv"}
    tolerance = 1e-4

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_least(config, {"batches": 1})
        check_part(config, "fractions")
        check_known("decomposition", config.decompositions, DECOMPOSITIONS)
        check_known("contender", config.contenders, CONTENDERS)
        self.rerun_above = config.rerun_above
        self.shapes: dict[str, Shape] = SMOKE_SHAPES if config.smoke else SHAPES
        self.names = config.with_predicted(("dense", f"dense{AGAIN}", *config.contenders))
        absent = {PEERS[name] for name in self.names if name in PEERS and find_spec(PEERS[name]) is None}
        how = "which is not installed: pip install 'tnalgebra[bench]'"
        self.notes = [f"without {self.packages[module]}, {how}" for module in sorted(absent)]
        self.names = [name for name in self.names if PEERS.get(name) not in absent]

    @staticmethod
    def smaller(config: Config) -> Config:
        fractions, batches = config.fractions[:1], config.batches[:1]
        shorter = dataclasses.replace(config, fractions=fractions, batches=batches, rounds=min(config.rounds, 3))
        return dataclasses.replace(shorter, memory_formats=config.memory_formats[:1])

    def cells(self) -> list[Cell]:
        """The cells that are asked for and exist; of fractions that lead to the same ranks only the first.

        Raises:
            StudyError: a glob matches no layer.
        """
        for pattern in self.config.shapes:
            if not any(fnmatchcase(name, pattern) for name in self.shapes):
                raise tn.errors.StudyError(f"no layer is called {pattern!r}", layers=" ".join(self.shapes))
        cells: dict[Cell, Cell] = {}
        asked = self.config
        names = [name for name in self.shapes if any(fnmatchcase(name, pattern) for pattern in asked.shapes)]
        grid = product(names, asked.decompositions, asked.fractions, asked.batches, asked.passes, asked.memory_formats)
        for name, decomposition, fraction, batch, goes, layout in grid:
            if exists(self.shapes[name], decomposition):
                ranks = tuple(ranks_of(decomposition, self.shapes[name], fraction).items())
                cell = Cell(name, decomposition, ranks, fraction, batch, goes, layout)
                cells.setdefault(cell._replace(fraction=0.0), cell)
        return list(cells.values())

    def facts(self, cell: Cell) -> Row:
        fraction = None if cell.decomposition == UNDECOMPOSED else cell.fraction
        more = {"ranks": dict(cell.ranks), "fraction": fraction, "family": self.shapes[cell.shape].family}
        return super().facts(cell) | more

    def contenders(self, cell: Cell) -> Sequence[str]:
        return [name for name in self.names if takes_part(name, cell, self.shapes[cell.shape])]

    def problem(self, cell: Cell) -> Problem:
        seed, shape = self.config.seed, self.shapes[cell.shape]
        return make_problem(cell, shape, seed=seed, dtype=torch.float32, device=self.device)

    def contender(self, name: str, problem: Problem) -> Contender:
        return make_contender(name, problem)

    def worst_ratio(self, row: Row) -> float:
        return max(ratios_in(row), default=0.0)

    describe = staticmethod(describe)
    figure = staticmethod(figure)

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        return summary(rows)


main = partial(run, Layers)


def command() -> None:
    """The command `python -m recipes.benchmarks.layers`."""
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
