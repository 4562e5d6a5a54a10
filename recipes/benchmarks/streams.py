"""Time a step of a stream, the same by the package continual-inference, and the clip that would be computed again.

    pip install -e ".[bench]"
    python -m recipes.benchmarks.streams --threads 1
    python -m recipes.benchmarks.streams --smoke
    python -m recipes.benchmarks.streams --kernels dense cp --channels 64 --positions 28

A network of four convolutions along time takes one frame after another. Contenders, which take turns:
- `ours`: a step of `tn.stream`;
- `continual`: a step of `continual.continual`, of dense kernels, since it has no decomposed layers;
- `clip`: the network on the last frames, as without a stream.
All give the same output for the last frame. Times are those of one frame.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.report import Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned

LAYERS = 4
SIZE = 3
"""Frames, and positions, of a window."""

STEPS = 8
"""Frames of a turn of a stream; of the clip one output is computed in a turn."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time the steps of streams of four convolutions along time."""

    rounds: int = 15
    """turns of each contender"""
    kernels: tuple[str, ...] = ("dense", "cp", "tucker2", "tensor_train", "tensor_ring")
    """dense, or names of decompositions, whose kernels have a fifth of the parameters"""
    channels: tuple[int, ...] = (32, 64)
    """channels of all layers; the input has 3"""
    positions: tuple[int, ...] = (32,)
    """height and width of the frames; 1 is a convolution along time alone"""
    clip: int = 16
    """frames of the clip that is computed again without a stream"""
    output: Path = Path("runs/benchmark-streams")
    """folder for the rows (results.jsonl) and the table; a cell that it has is not timed again"""


class Cell(NamedTuple):
    kernel: str
    channels: int
    positions: int
    clip: int


class Problem(NamedTuple):
    model: nn.Module
    frames: Tensor
    """(1, 3, clip + STEPS, h, w), or without h and w."""
    stream: tn.streams.Stream
    clip: int


class StreamBenchmark(Benchmark[Config, Cell, Problem]):
    name = "streams"
    packages: ClassVar[Mapping[str, str]] = {"continual": "continual-inference"}
    warmup = 2
    tolerance = 1e-4

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, kernels=("dense", "cp"), channels=(8,), positions=(5, 1), rounds=1)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if find_spec("continual") is None:
            self.notes = ('without `continual`: pip install -e ".[bench]"',)

    def cells(self) -> list[Cell]:
        config = self.config
        shapes = [(channels, positions) for channels in config.channels for positions in config.positions]
        return [Cell(kernel, *shape, config.clip) for shape in shapes for kernel in config.kernels]

    def contenders(self, cell: Cell) -> list[str]:
        peers = ["continual"] if cell.kernel == "dense" and find_spec("continual") else []
        return ["ours", "ours again", *peers, "clip"]

    def problem(self, cell: Cell) -> Problem:
        torch.manual_seed(self.config.seed)
        model = make_model(cell)
        axes = 2 * (cell.positions > 1)
        frames = torch.randn(1, 3, cell.clip + STEPS, *[cell.positions] * axes)
        stream = tn.stream(model, "t", example=frames[:, :, : cell.clip])
        return Problem(model, frames, stream, cell.clip)

    def about(self, problem: Problem) -> Row:
        stream = problem.stream
        return {"step": stream.multiply_adds, "whole": stream.clip_multiply_adds, "delay": stream.delay}

    def contender(self, name: str, problem: Problem) -> Contender:
        frames, clip = list(problem.frames.unbind(2)), problem.clip
        if name == "clip":
            last = problem.frames[:, :, STEPS:]
            return Contender(_without_gradients(lambda: problem.model(last)[:, :, -1]))
        theirs = name == "continual"
        step: Callable[[Tensor], Any] = _continual_step(problem.model) if theirs else copy.deepcopy(problem.stream).step
        with torch.no_grad():
            for frame in frames[:clip]:
                step(frame)
        return Contender(_without_gradients(lambda: [step(frame) for frame in frames[clip:]][-1]))

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each cell: the times of a frame and their ratios, and the ratio of multiply-adds."""
        head = ["kernel", "channels", "positions", "clip ms", "step ms", "continual ms", "clip / step", "multiply-adds"]
        lines = [[*head, "continual / step", "again"]]
        for row in rows:
            times = {name: one["seconds"] / (1 if name == "clip" else STEPS) for name, one in row["contenders"].items()}
            ours, theirs = times["ours"], times.get("continual")
            lines.append(
                [
                    *(row["kernel"], str(row["channels"]), str(row["positions"])),
                    *(f"{1e3 * times['clip']:.2f}", f"{1e3 * ours:.3f}"),
                    "" if theirs is None else f"{1e3 * theirs:.3f}",
                    *(f"{times['clip'] / ours:.1f}", f"{row['whole'] / row['step']:.1f}"),
                    "" if theirs is None else f"{theirs / ours:.2f}",
                    f"{times['ours again'] / ours:.2f}",
                ]
            )
        return aligned(lines, ruled=False)


def make_model(cell: Cell) -> nn.Module:
    """Four convolutions without padding along time, each but the last with a ReLU."""
    layers: list[nn.Module] = []
    for number in range(LAYERS):
        before = cell.channels if number else 3
        if cell.positions > 1:
            conv: nn.Module = nn.Conv3d(before, cell.channels, SIZE, padding=(0, SIZE // 2, SIZE // 2))
        else:
            conv = nn.Conv1d(before, cell.channels, SIZE)
        if cell.kernel != "dense":
            shape = (1, before, cell.clip, *[cell.positions] * (2 * (cell.positions > 1)))
            conv = tn.nn.decomposed(conv, cell.kernel, "parameters 0.2", starts=1, sweeps=20, input_size=shape[2:])
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def _continual_step(model: nn.Module) -> Callable[[Tensor], Any]:
    import continual

    logging.getLogger("continual").setLevel(logging.ERROR)
    stepping: Any = continual.continual(copy.deepcopy(model))  # which changes the modules
    return stepping.eval().forward_step  # type: ignore[no-any-return]


def _without_gradients(function: Callable[[], Tensor]) -> Callable[[int], tuple[Tensor, ...]]:
    def call(_: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(),)

    return call


main = partial(run, StreamBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
