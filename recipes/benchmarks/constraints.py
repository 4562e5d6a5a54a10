"""Time nonnegative CP and Tucker of this library and of tensorly, and compare their errors.

    python -m recipes.benchmarks.constraints
    python -m recipes.benchmarks.constraints --smoke
    python -m recipes.benchmarks.constraints --channels 64 --rounds 3 --threads 1

The kernels are 3x3: nonnegative ones of uniform random numbers, and sums of nonnegative components with noise. All
cores are nonnegative in both libraries:
- tnalgebra: `apply` with `constraints=`, from one start and from the default number of starts.
- tensorly: `non_negative_parafac_hals` and `non_negative_tucker_hals` for numpy arrays, from SVDs, 200 iterations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.benchmarks.report import Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned

NOISE = 0.3
"""The largest element of the noise; the components are products of absolute values of normal numbers."""

ITERATIONS = 200
"""Iterations of tensorly, as many as the most sweeps of this library."""

NAMES = ("1 start", "default", *(["tensorly"] if find_spec("tensorly") else []))

RULES = {
    "CP": tn.rule("K[o i h w] => A[o r] B[i r] C[h r] D[w r]"),
    "Tucker": tn.rule("K[o i h w] => G[a b c d] A[o a] B[i b] C[h c] D[w d]"),
}

CORES = {"CP": "ABCD", "Tucker": "GABCD"}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time nonnegative decompositions: this library, tensorly."""

    channels: tuple[int, ...] = (16, 64)
    """channels of the kernels; half of them is the rank of CP, a quarter that of Tucker's channels"""
    rounds: int = 3
    """turns of each contender"""
    threads: int | None = 1
    """threads of torch and of numpy's BLAS"""
    output: Path = Path("runs/benchmark-constraints")
    """folder for the rows (results.jsonl) and the table; a kernel that it has is not timed again"""


class Problem(NamedTuple):
    kernel: Tensor
    rule: str
    ranks: dict[str, int]


class Constraints(Benchmark[Config, tuple[str, str, int], Problem]):
    name = "constraints"
    packages: ClassVar = {"tensorly": "tensorly"}
    warmup = 0

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, channels=(4,), rounds=1)

    def cells(self) -> list[tuple[str, str, int]]:
        return [(rule, kind, n) for rule in RULES for kind in ("uniform", "planted") for n in self.config.channels]

    def facts(self, cell: tuple[str, str, int]) -> Row:
        return {"rule": cell[0], "kernel": cell[1], "channels": cell[2]}

    def contenders(self, cell: tuple[str, str, int]) -> list[str]:
        return list(NAMES)

    def problem(self, cell: tuple[str, str, int]) -> Problem:
        rule, kind, channels = cell
        generator = torch.Generator().manual_seed(self.config.seed)
        kernel = torch.rand(channels, channels, 3, 3, dtype=torch.float64, generator=generator)
        rank = max(2, channels // 2)
        if kind == "planted":
            sizes = (channels, channels, 3, 3)
            cores = [torch.randn(size, rank, dtype=torch.float64, generator=generator).abs() for size in sizes]
            kernel = torch.einsum("or,ir,hr,wr->oihw", *cores) + NOISE * kernel
        few = max(2, channels // 4)
        return Problem(kernel, rule, {"r": rank} if rule == "CP" else {"a": few, "b": few, "c": 2, "d": 2})

    def about(self, problem: Problem) -> Row:
        """The error of each contender, of the first seed."""
        return {"errors": {name: self._error(problem, self._fit(name, problem, 0)) for name in NAMES}}

    def contender(self, name: str, problem: Problem) -> Contender:
        return Contender(lambda number: self._fit(name, problem, number))

    @cached_property
    def tensorly(self) -> Any:
        tensorly = import_module("tensorly")
        tensorly.set_backend("numpy")
        import_module("tensorly.decomposition")
        return tensorly

    def _fit(self, name: str, problem: Problem, seed: int) -> Any:
        if name == "tensorly":
            array, decomposition = problem.kernel.numpy(), self.tensorly.decomposition
            if problem.rule == "CP":
                return decomposition.non_negative_parafac_hals(array, rank=problem.ranks["r"], n_iter_max=ITERATIONS)
            ranks = list(problem.ranks.values())
            return decomposition.non_negative_tucker_hals(array, rank=ranks, n_iter_max=ITERATIONS)
        choices = tn.rewriting.Choices(seed=seed, constraints=dict.fromkeys(CORES[problem.rule], "nonnegative"))
        if name == "1 start":
            choices["starts"] = 1
        return RULES[problem.rule].apply(problem.kernel, problem.ranks, **choices)

    def _error(self, problem: Problem, fit: Any) -> float:
        if isinstance(fit, tn.Fit):
            return fit.relative_error
        dense = self.tensorly.cp_to_tensor(fit) if problem.rule == "CP" else self.tensorly.tucker_to_tensor(fit)
        return float((torch.from_numpy(dense) - problem.kernel).norm() / problem.kernel.norm())

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        columns = [f"{name} {what}" for name in rows[0]["errors"] for what in ("s", "error")]
        lines = [["rule", "kernel", "channels", *columns]]
        for row in rows:
            cells = []
            for name, error in row["errors"].items():
                cells += [f"{row['contenders'][name]['seconds']:.3f}", f"{error:.5f}"]
            lines.append([row["rule"], row["kernel"], str(row["channels"]), *cells])
        return aligned(lines, ruled=False)


main = partial(run, Constraints)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
