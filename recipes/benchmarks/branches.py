"""Time blocks of parallel branches before and after `tn.merge_branches`.

    python -m recipes.benchmarks.branches --threads 1
    python -m recipes.benchmarks.branches --smoke

The blocks are those of UniRepLKNet (a large depthwise kernel and dilated ones, and the dilated ones alone), RepLKNet (a
large and a small depthwise kernel), RepVGG (3x3, 1x1 and the input) and ACNet (3x3, 1x3 and 3x1), each branch with its
batch normalisation in evaluation mode. The outputs are compared before they take turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Call, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned


class Block(NamedTuple):
    """windows: (kh, kw, dilation) of each branch; identity: whether the input, normalised, is added too."""

    windows: tuple[tuple[int, int, int], ...]
    channels: int
    positions: int
    depthwise: bool
    identity: bool = False


DILATED_13 = ((5, 5, 1), (7, 7, 2), (3, 3, 3), (3, 3, 4), (3, 3, 5))
DILATED_7 = ((5, 5, 1), (3, 3, 2), (3, 3, 3))
BLOCKS = {
    "UniRepLKNet 13x13": Block(((13, 13, 1), *DILATED_13), 96, 56, True),
    "dilated into 13x13": Block(DILATED_13, 96, 56, True),
    "UniRepLKNet 7x7": Block(((7, 7, 1), *DILATED_7), 96, 56, True),
    "dilated into 7x7": Block(DILATED_7, 96, 56, True),
    "RepLKNet 31x31": Block(((31, 31, 1), (5, 5, 1)), 128, 28, True),
    "RepVGG 64": Block(((3, 3, 1), (1, 1, 1)), 64, 56, False, True),
    "ACNet 64": Block(((3, 3, 1), (1, 3, 1), (3, 1, 1)), 64, 56, False),
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time blocks of branches, and their one convolution."""

    rounds: int = 21
    """turns of each contender"""
    batches: tuple[int, ...] = (1, 16)
    """numbers of images"""
    output: Path = Path("runs/benchmark-branches")
    """folder for the rows (results.jsonl) and the table; a cell that it has is not timed again"""


class Cell(NamedTuple):
    block: str
    batch: int


class Problem(NamedTuple):
    model: nn.Module
    x: Tensor


class Branches(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        groups = block.channels if block.depthwise else 1
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    block.channels,
                    block.channels,
                    (kh, kw),
                    padding=(d * (kh // 2), d * (kw // 2)),
                    dilation=d,
                    groups=groups,
                    bias=False,
                ),
                nn.BatchNorm2d(block.channels),
            )
            for kh, kw, d in block.windows
        )
        if block.identity:
            self.branches.append(nn.BatchNorm2d(block.channels))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class BranchBenchmark(Benchmark[Config, Cell, Problem]):
    name = "branches"
    warmup = 2
    tolerance = 1e-5

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, rounds=1, batches=(1,))

    def cells(self) -> list[Cell]:
        return [Cell(block, batch) for block in BLOCKS for batch in self.config.batches]

    def contenders(self, cell: Cell) -> list[str]:
        return ["branches", "branches" + AGAIN, "merged"]

    def problem(self, cell: Cell) -> Problem:
        torch.manual_seed(self.config.seed)
        block = BLOCKS[cell.block]
        if self.config.smoke:
            block = block._replace(channels=4, positions=max(9, block.windows[0][0]))
        model = Branches(block).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        return Problem(model, torch.randn(cell.batch, block.channels, block.positions, block.positions))

    def contender(self, name: str, problem: Problem) -> Contender:
        model, x = problem

        if name == "merged":
            model, report = tn.merge_branches(model, x)
            count = sum(len(group.branches) for group in report.merged)
            return Contender(_call(model, x), lambda: {"merged": count})
        return Contender(_call(model, x))

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each cell: milliseconds, and the ratios of the fastest turns."""
        lines = [
            ["block", "batch", "merged", "branches ms", "merged ms", "branches / merged", "branches again / branches"]
        ]
        for row in rows:
            least = {name: min(one["times"]) for name, one in row["contenders"].items()}
            before, again, after = (least[name] for name in ("branches", "branches" + AGAIN, "merged"))
            facts = [row["block"], str(row["batch"]), str(row["contenders"]["merged"]["merged"])]
            times = [f"{1e3 * before:.2f}", f"{1e3 * after:.2f}", f"{before / after:.2f}", f"{again / before:.3f}"]
            lines.append([*facts, *times])
        return aligned(lines, left=1, ruled=False)


def _call(model: nn.Module, x: Tensor) -> Call:
    @torch.no_grad()
    def call(_: int) -> tuple[Tensor]:
        return (model(x),)

    return call


main = partial(run, BranchBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
