"""Time how long Python takes until the package, one of its names, or the help of the command is there.

    python -m recipes.benchmarks.start
    python -m recipes.benchmarks.start --smoke

Each contender is a process of its own. `torch` imports torch alone, twice as two contenders, for the noise.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned

IMPORTS = {
    "torch": "import torch",
    "torch" + AGAIN: "import torch",
    "torch and tnalgebra": "import torch, tnalgebra",
    "tnalgebra": "import tnalgebra",
    "tn.parse": "import tnalgebra as tn; tn.parse('A[i j] B[j k]')",
    "tn.convert": "import tnalgebra as tn; tn.convert",
}
HELP = {f"tnalgebra {line}": line.split() for line in ("--help", "compress --help", "study --help", "plan --help")}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time the start."""

    rounds: int = 11
    """turns of each contender"""
    output: Path = Path("runs/benchmark-start")
    """folder for the rows (results.jsonl) and the table"""


class StartBenchmark(Benchmark[Config, str, None]):
    name = "start"
    warmup = 1  # the first process compiles the package

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, rounds=1)

    def cells(self) -> list[str]:
        return ["start"]

    def facts(self, cell: str) -> Row:
        return {"cell": cell}

    def contenders(self, cell: str) -> list[str]:
        return [*IMPORTS, *HELP]

    def problem(self, cell: str) -> None:
        return None

    def contender(self, name: str, problem: None) -> Contender:
        words = ["-c", IMPORTS[name]] if name in IMPORTS else ["-m", "tnalgebra", *HELP[name]]
        command = [sys.executable, *words]
        return Contender(lambda _: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        lines = [["process", "seconds", "above torch"]]
        for row in rows:
            torch = row["contenders"]["torch"]["seconds"]
            for name, one in row["contenders"].items():
                lines.append([name, f"{one['seconds']:.3f}", f"{one['seconds'] - torch:+.3f}"])
        return aligned(lines, ruled=False)


main = partial(run, StartBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
