"""Time the conversion of whole networks under a budget, beside the eigenvalues that it cannot do without.

    python -m recipes.benchmarks.conversions
    python -m recipes.benchmarks.conversions --smoke
    python -m recipes.benchmarks.conversions --networks resnet18 vgg11 --rewrites tucker2

The networks are those of torchvision with random weights, at 224 x 224, and a GPT of four
blocks of width 128. For each network and each set of rewrites, these take turns:
- `eigh`: torch's eigendecompositions of the Gram matrices of both channel axes of every
  kernel in float64, the products included: what a Tucker-2 of every kernel needs at least;
- `convert`: `tnalgebra.convert` to a half of the multiply-adds (of the parameters for the
  GPT and ViT), with all that it does: copy, example, curves, sharing, fits, plans, checks;
- `calibrated`, for the GPT: the same in the norm of the outputs, and
- `metrics`: the covariances of its inputs alone, which the calibrated conversion includes.

Each call is timed once by default, because a second conversion in a process finds plans
that the first one made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.report import Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned

WIDTH, HEADS = 128, 4
"""Of the GPT."""

REWRITES = ("tucker2", "tucker2; out | in kh kw; tensor_train", "mpo", "monarch")
"""Those of linear layers are for the GPT and ViT, the others for convolutions."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time conversions under a budget."""

    networks: tuple[str, ...] = ("resnet18", "resnet34", "resnet50", "vgg11", "vit_b_16", "gpt")
    """networks of torchvision, and gpt"""
    rewrites: tuple[str, ...] = REWRITES
    """what every layer is offered: decompositions, several of them with ';' between"""
    blocks: int = 4
    """blocks of the GPT"""
    rounds: int = 1
    """turns of each contender; from the second on, plans are known"""
    output: Path = Path("runs/benchmark-conversions")
    """folder for the rows (results.jsonl) and the table; a cell that it has is not timed again"""


class Cell(NamedTuple):
    network: str
    rewrites: str


class Problem(NamedTuple):
    model: nn.Module
    kind: type[nn.Module]
    rewrites: list[str]
    example: Tensor
    size: str


class Block(nn.Module):
    """A block of a GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inputs, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = [
            each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.inputs(self.before(x)).chunk(3, dim=-1)
        ]
        mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        z: Tensor = x + self.down(nn.functional.gelu(self.up(self.between(x))))
        return z


class ConversionBenchmark(Benchmark[Config, Cell, Problem]):
    name = "conversions"

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, networks=("gpt",), rewrites=config.rewrites[-1:], blocks=1)

    def cells(self) -> list[Cell]:
        return [
            Cell(network, rewrites)
            for network in self.config.networks
            for rewrites in self.config.rewrites
            if (rewrites in ("mpo", "monarch")) == (network in ("gpt", "vit_b_16"))
        ]

    def contenders(self, cell: Cell) -> list[str]:
        return ["eigh", "convert", *(["metrics", "calibrated"] if cell.network == "gpt" else [])]

    def problem(self, cell: Cell) -> Problem:
        torch.manual_seed(self.config.seed)
        rewrites = [rewrite.strip() for rewrite in cell.rewrites.split(";")]
        if cell.network == "gpt":
            model: nn.Module = nn.Sequential(*(Block() for _ in range(self.config.blocks)))
            return Problem(model.eval(), nn.Linear, rewrites, torch.randn(64, 32, WIDTH), "parameters 0.5")
        model = tn.command.build_model(f"torchvision:{cell.network}", classes=1000, channels=3).eval()
        image = torch.randn(1, 3, 224, 224)
        if cell.network == "vit_b_16":
            return Problem(model, nn.Linear, rewrites, image, "parameters 0.5")
        return Problem(model, nn.Conv2d, rewrites, image, "multiply-adds 0.5")

    def contender(self, name: str, problem: Problem) -> Contender:
        if name == "eigh":
            return Contender(lambda _: decompose_grams(problem))
        if name == "metrics":
            return Contender(lambda _: tn.input_metrics(problem.model, [problem.example]))
        errors: dict[str, float] = {}
        calibration = [problem.example] if name == "calibrated" else None
        return Contender(partial(convert, problem, calibration, errors), lambda: dict(errors))

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each contender of each cell but the first; ratios are over the first, and over uncalibrated."""
        lines = [["network", "rewrites", "", "s", "of eigh", "of convert", "error", "output error"]]
        for row in rows:
            seconds = {name: each["seconds"] for name, each in row["contenders"].items()}
            for name, value in seconds.items():
                facts = row["contenders"][name]
                over = f"{(value - seconds['metrics']) / seconds['convert']:.1f}" if name == "calibrated" else ""
                errors = [f"{facts[key]:.4f}" if facts.get(key) else "" for key in ("error", "output_error")]
                times = [f"{value:.2f}", f"{value / seconds['eigh']:.1f}", over]
                lines.append([row["network"], row["rewrites"], name, *times, *errors])
        note = "of convert: without the metrics; error: root mean square over the layers"
        return f"{aligned(lines, ruled=False)}\n{note}"


def decompose_grams(problem: Problem) -> list[Tensor]:
    """The eigenvectors of the Gram matrices of both channel axes of every kernel."""
    vectors = []
    for module in problem.model.modules():
        if isinstance(module, problem.kind):
            kernel = module.get_parameter("weight").detach().double()
            for axis in (0, 1):
                matrix = kernel.movedim(axis, 0).flatten(1)
                vectors.append(torch.linalg.eigh(matrix @ matrix.mT)[1])
    return vectors


def convert(problem: Problem, calibration: Any, errors: dict[str, float], turn: int) -> None:
    """Convert a copy of the network, and note the root mean square of the errors of its layers."""
    _, report = tn.convert(
        problem.model,
        {problem.kind: problem.rewrites},
        size=problem.size,
        example=problem.example,
        calibration=calibration,
        inplace=False,
        progress=False,
    )

    def mean(error_of: Callable[[Any], float | None]) -> float:
        squares = [(error_of(row) or 0.0) ** 2 for row in report.rows]
        return math.sqrt(sum(squares) / len(squares))

    errors["error"] = mean(lambda row: row.relative_error)
    errors["output_error"] = mean(lambda row: row.output_error)


main = partial(run, ConversionBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
