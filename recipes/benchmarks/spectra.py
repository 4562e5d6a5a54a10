"""Time the spectra of all cuts of a network's kernels, and svdvals on the same matrices.

    python -m recipes.benchmarks.spectra
    python -m recipes.benchmarks.spectra --smoke
    python -m recipes.benchmarks.spectra --layers "layer1.*" --rounds 5

The kernels are those of ResNet-50. For every layer two calls take turns, and medians over the rounds are compared:
- `tnalgebra.spectra` on its weight (float32, all cuts, everything included);
- `torch.linalg.svdvals` on the same matricisations, which are ready in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.benchmarks.report import Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned

FLOOR = 1e-6
"""Singular values above this part of the largest are compared; a Gram matrix does not resolve much smaller ones."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time the spectra of ResNet-50's kernels against svdvals."""

    layers: str = "*"
    """glob of layer names, to measure fewer: "layer4.*" holds the largest kernels, "*.conv2" the 3x3 ones"""
    rounds: int = 1
    """turns of each side on a layer, of which the median counts; one is enough for a total over 54 layers"""
    weights: str | None = None
    """a checkpoint, as `tn.command.load_weights` reads it; by default random ones, which cost the same time"""
    device: str = "cpu"
    """device of both sides: cpu, cuda, cuda:1"""
    output: Path = Path("runs/benchmark-spectra")
    """folder for the rows (results.jsonl) and the table; a layer that it has is not timed again"""


class Problem(NamedTuple):
    weight: Tensor
    cuts: list[tn.networks.Bipartition]
    matrices: list[Tensor]


class SpectraBenchmark(Benchmark[Config, str, Problem]):
    name = "spectra"
    warmup = 1

    def __init__(self, config: Config) -> None:
        self.device = config.device
        super().__init__(config)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Layer -> its weight, float32."""
        torch.manual_seed(self.config.seed)
        model = tn.command.build_model("resnet50", classes=1000, channels=3)
        if self.config.weights is not None:
            tn.command.load_weights(model, self.config.weights)
        layers = tn.nn.kernel_layers(model)
        return {name: layer.weight.detach().to(self.device) for name, layer in layers.items()}

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, layers="layer1.0.conv[12]", rounds=1)

    def cells(self) -> list[str]:
        """The names of the layers. Raises StudyError if the glob matches none."""
        names = [name for name in self.weights if fnmatchcase(name, self.config.layers)]
        if not names:
            raise tn.errors.StudyError(f"no layer is called {self.config.layers!r}", layers=" ".join(self.weights))
        return names

    def facts(self, cell: str) -> Row:
        return {"layer": cell, "shape": list(self.weights[cell].shape), "weights": self.config.weights}

    def contenders(self, cell: str) -> list[str]:
        return ["ours", "svdvals"]

    def problem(self, cell: str) -> Problem:
        weight = self.weights[cell]
        cuts, labels = [item.cut for item in tn.spectra(weight)], tn.networks.KERNEL_LABELS[weight.ndim]
        return Problem(weight, cuts, [tn.tensors.matricise(weight.double(), labels, cut).contiguous() for cut in cuts])

    def about(self, problem: Problem) -> Row:
        """The largest difference of two singular values, relative to the largest value of their cut."""
        worst = 0.0
        for spectrum, matrix in zip(tn.spectra(problem.weight), problem.matrices, strict=True):
            values = torch.linalg.svdvals(matrix).cpu()
            counted = values > FLOOR * values[0]
            worst = max(worst, float((spectrum.singular_values - values).abs()[counted].max() / values[0]))
        return {"worst": worst}

    def contender(self, name: str, problem: Problem) -> Contender:
        if name == "ours":
            return Contender(lambda _: tn.spectra(problem.weight))
        return Contender(lambda _: [torch.linalg.svdvals(matrix) for matrix in problem.matrices])

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each layer, then the totals over all of them."""
        lines = [["layer", "shape", "ours s", "svdvals s", "ratio", "worst difference"]]
        seconds = [[row["contenders"][name]["seconds"] for name in ("ours", "svdvals")] for row in rows]
        for row, (ours, theirs) in zip(rows, seconds, strict=True):
            shape = "x".join(map(str, row["shape"]))
            times = [f"{ours:.4f}", f"{theirs:.4f}", f"{theirs / ours:.1f}"]
            lines.append([row["layer"], shape, *times, f"{row['worst']:.1e}"])
        ours, theirs = (sum(column) for column in zip(*seconds, strict=True))
        return "\n".join(
            [
                aligned(lines, ruled=False),
                f"total ratio: {theirs / ours:.2f} ({theirs:.2f} s of svdvals over {ours:.2f} s of ours)",
                f"worst difference: {max(row['worst'] for row in rows):.1e} of the largest value, "
                f"over values above {FLOOR:g} of it",
            ]
        )


main = partial(run, SpectraBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
