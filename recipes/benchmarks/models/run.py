"""Time whole networks: dense, decomposed by this library, and decomposed by hand at the same ranks.

    python -m recipes.benchmarks.models
    python -m recipes.benchmarks.models --smoke
    python -m recipes.benchmarks.models --models resnet50 --batch 8 --multiply-adds 0.5 --passes forward --threads 2
    python -m recipes.benchmarks.models --models resnet20 resnet56 --rewrite "out kh | in kw" --fraction 0.25
    python -m recipes.benchmarks.models --models resnet50 --batch 8 --memory

- dense: torch's network.
- hand: the same with torch layers, one for each core, instead of the decomposed layers.
- ours: `tnalgebra.convert` with all forms, or with factored ones only; as it is, or frozen (forward only).
- channels_last: with weights in that memory format; the call converts its input.
- folded: with batch normalisations folded into the convolutions (forward only); ours are then frozen.
- docs/benchmarks.md describes the layers and the measurement. For accuracy see recipes.compress.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import tnalgebra as tn
from recipes.benchmarks.models.contenders import CONTENDERS, Cell, Problem, make_contender, make_problem, rewrite_chain
from recipes.benchmarks.models.report import describe, figure, table
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, NetworkSettings, run
from recipes.command import run_command
from recipes.reporting import check_known, check_least, check_part

IMAGE_SIZES = {"resnet50": 224}
"""The height and width of images in pixels; 32 for all other networks."""


@dataclass(frozen=True, kw_only=True)
class Config(NetworkSettings):
    """Time whole networks."""

    # one line each: the command's --help breaks them where it must
    models: tuple[str, ...] = ("resnet50", "resnet20")
    """networks for colour images: resnet20 to resnet56, resnet50, resnet50_cifar, or package.module:function"""
    batch: tuple[int, ...] = (8,)
    """images at a time"""
    rewrite: str = "tucker2"
    """for kernels with a window: tucker2, a cut such as "out kh | in kw", or a rule whose cores lead from in to out"""
    pointwise: str = "out | in kh kw"
    """for kernels with a window of one element: the same, or none"""
    multiply_adds: float | None = None
    """the largest part of the kernel layers' multiply-adds, in (0, 1]; 0.5 without --fraction"""
    fraction: float | None = None
    """ranks, as a fraction of the largest useful rank of each bond, in (0, 1]"""
    image_size: int | None = None
    """height and width of the images in pixels; by default 224 for resnet50, 32 for the others"""
    contenders: tuple[str, ...] = CONTENDERS
    """names, each in quotes; the dense network is always timed twice, as the reference and as the noise floor"""
    warmup: int = 2
    """calls before the first turn"""
    output: Path = Path("runs/models")
    """folder for the rows (results.jsonl), the table and the figure; a cell that it has is not timed again"""


class Models(Benchmark[Config, Cell, Problem]):
    name = "models"
    tolerance = 1e-3

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_least(config, {"image_size": 1, "batch": 1})
        if config.multiply_adds is not None and config.fraction is not None:
            raise tn.errors.StudyError("two settings determine the ranks", fix="--multiply-adds or --fraction")
        check_part(config, "multiply_adds", "fraction")
        check_known("contender", config.contenders, CONTENDERS)
        self.pointwise = None if config.pointwise == "none" else config.pointwise
        for rewrite in (config.rewrite, self.pointwise):
            if rewrite is not None:
                rewrite_chain(rewrite)

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(
            config,
            models=("resnet20",) if config.models == Config.models else config.models,
            batch=tuple(dict.fromkeys(min(batch, 2) for batch in config.batch)),
            rounds=min(config.rounds, 3),
            warmup=1,
            image_size=config.image_size or 16,
        )

    def cells(self) -> list[Cell]:
        asked = self.config
        return [
            Cell(
                model,
                batch,
                asked.image_size or IMAGE_SIZES.get(model, 32),
                goes,
                asked.rewrite,
                self.pointwise,
                0.5 if asked.multiply_adds is None and asked.fraction is None else asked.multiply_adds,
                asked.fraction,
            )
            for model, batch, goes in product(asked.models, asked.batch, asked.passes)
        ]

    def contenders(self, cell: Cell) -> Sequence[str]:
        """The contenders; frozen weights and folded normalisations are for the forward pass only."""
        names = self.config.with_predicted(("dense", f"dense{AGAIN}", *self.config.contenders))
        return [name for name in names if cell.goes == "forward" or not {"frozen", "folded"} & set(name.split())]

    def problem(self, cell: Cell) -> Problem:
        return make_problem(cell, seed=self.config.seed, device=self.device)

    def about(self, problem: Problem) -> Row:
        ranks = {name: {"rewrite": rewrite, **ranks} for name, (rewrite, ranks) in problem.chosen.items()}
        return {"converted": len(ranks), "ranks": ranks}

    def contender(self, name: str, problem: Problem) -> Contender:
        return make_contender(name, problem)

    def alike(self, name: str) -> str:
        return "dense" if name.startswith("dense") else "decomposed"

    describe = staticmethod(describe)
    figure = staticmethod(figure)
    table = staticmethod(table)


main = partial(run, Models)


def command() -> None:
    """The command `python -m recipes.benchmarks.models`."""
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
