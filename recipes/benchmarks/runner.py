"""What every benchmark does: time contenders in turns, cell by cell, keep the rows, draw the table and the figure.

A benchmark is a list of cells, the contenders of each cell, and what its table shows. A cell is timed once: its row is
one line of results.jsonl. A contender may take part twice, as "dense" and "dense again": their ratio is the noise.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

import tnalgebra as tn
from recipes.benchmarks.report import AGAIN, Row, conditions, memory_table, read_rows
from recipes.benchmarks.timing import peak_bytes, time_in_turns
from recipes.reporting import check_least, print_settings, write, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Call: TypeAlias = Callable[[int], Any]
"""What is timed. It receives the number of the round."""

Pass: TypeAlias = Literal["forward", "training"]

PREDICTED = " predicted"
SLOW_ROUNDS = 5
"""Turns of a contender that takes several times as long as the fastest."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every benchmark."""

    rounds: int = 21
    """turns of each contender; an odd number, so that the median is one of the times"""
    threads: int | None = None
    """threads of torch and numpy for all contenders; by default the number that torch chooses"""
    seed: int = 0
    """seed of the weights, the inputs and the order of the turns"""
    smoke: bool = False
    """run a few small cells and rounds, to see that everything works; the numbers mean nothing"""
    output: Path = Path("runs/benchmark")
    """folder for the rows, the table and the figure; a cell that it has already is not timed again"""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Settings of the benchmarks of torch modules."""

    passes: tuple[Pass, ...] = ("forward", "training")
    """what is timed: the forward pass; or training, which is the forward and the backward pass"""
    tune: Literal["on", "off", "both"] = "on"
    """off: our contenders are made with tune=False ("ours ... predicted"); both: with and without it, side by side"""
    warmup: int = 3
    """calls before the first turn"""
    memory: bool = False
    """measure the peak memory instead of the time; the rows go to memory.jsonl"""
    device: str = "cpu"
    """cpu, cuda, cuda:1"""

    def with_predicted(self, names: Sequence[str]) -> list[str]:
        """The contenders, each once; ours measured, predicted, or both, as `tune` says."""
        chosen = []
        for name in dict.fromkeys(names):
            ours = name.startswith("ours")
            chosen += [name] * (not ours or self.tune != "off") + [name + PREDICTED] * (ours and self.tune != "on")
        return chosen


class Contender(NamedTuple):
    """What is timed, and a function that is called after the timing and returns what the row says beside the times."""

    call: Call
    facts: Callable[[], Row] = dict


Config = TypeVar("Config", bound=Settings)
Cell = TypeVar("Cell")
Problem = TypeVar("Problem")

INTERRUPTED = "stopped: the same command continues where it was"


class Benchmark(ABC, Generic[Config, Cell, Problem]):
    """A list of cells, the contenders of each cell, and what the table shows."""

    name: str
    packages: ClassVar[Mapping[str, str]] = {}
    """Module -> package, of the contenders that are not ours."""
    device: str = "cpu"
    memory: bool = False
    warmup: int = 0
    rerun_above: float | None = None
    notes: Sequence[str] = ()
    """What is printed after the settings, such as the peers that are not installed."""
    tolerance: float | None = None
    """The relative difference of two outputs up to which it counts as rounding; None: outputs are not compared."""

    def __init__(self, config: Config) -> None:
        check_least(config, {"rounds": 1, "threads": 1})
        self.config = dataclasses.replace(config, threads=config.threads or torch.get_num_threads())
        if isinstance(config, NetworkSettings):
            check_least(config, {"warmup": 1})
            self.device, self.memory, self.warmup = config.device, config.memory, config.warmup
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise tn.errors.StudyError(f"the device is {self.device!r}, and torch finds no CUDA", fix="--device cpu")

    @staticmethod
    @abstractmethod
    def smaller(config: Any) -> Any:
        """The config of a smoke run."""

    @abstractmethod
    def cells(self) -> Sequence[Cell]: ...

    def facts(self, cell: Any) -> Row:
        """The fields of a row that distinguish its cell from all others."""
        return {"pass" if name == "goes" else name: value for name, value in cell._asdict().items()}

    @abstractmethod
    def contenders(self, cell: Cell) -> Sequence[str]: ...

    @abstractmethod
    def problem(self, cell: Cell) -> Problem:
        """What the contenders of a cell are made from."""

    @abstractmethod
    def contender(self, name: str, problem: Problem) -> Contender: ...

    @abstractmethod
    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str: ...

    def figure(self, rows: Sequence[Row]) -> Figure | None:
        return None

    def describe(self, row: Row) -> str:
        """A cell in one line, from its row."""
        return str(row)

    def about(self, problem: Problem) -> Row:
        """Further fields of a row, which say something about its cell."""
        return {}

    def alike(self, name: str) -> str:
        """A text that contenders have in common if they compute the same."""
        return "all"

    def worst_ratio(self, row: Row) -> float:
        """The ratio of a cell that is compared with `rerun_above`."""
        return 0.0


def run(kind: type[Benchmark[Config, Any, Any]], config: Config) -> list[Row]:
    """Time the cells that have no row yet, then print, write and draw all rows of the output folder.

    Returns:
        The rows.

    Raises:
        StudyError: a setting is wrong; contenders that should agree do not; a line of the folder's file is not a row;
            the output cannot be written.
        DataError: a network is unknown.
    """
    benchmark = kind(kind.smaller(config) if config.smoke else config)
    config = benchmark.config
    print_settings(config)
    for note in benchmark.notes:
        print(note)
    cells = benchmark.cells()
    if not cells:
        raise tn.errors.StudyError("these settings leave no cell to time", fix="other layers or decompositions")
    times, memory = config.output / "results.jsonl", config.output / "memory.jsonl"
    path = memory if benchmark.memory else times
    key = [*benchmark.facts(cells[0]), "device", "device_name", "threads", "smoke", "seed"]
    before = read_rows(path, key)
    with _fixed(config.threads):
        bar = tqdm(cells, desc="cells", unit="cell", disable=None)
        for cell in bar:
            bar.set_postfix_str(str(cell))
            row = {**benchmark.facts(cell), **_conditions(benchmark)}
            known = next((old for old in before if all(old[name] == row[name] for name in key)), None)
            names = _missing(benchmark, cell, known)
            if names:
                row |= _memory(benchmark, cell, names) if benchmark.memory else _timed(benchmark, cell, names)
                with tn.studies.writing(config.output):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
    rows = [row for row in read_rows(path, key) if row["smoke"] == config.smoke]
    if benchmark.memory:
        print(memory_table(rows, benchmark.describe))
    elif rows:
        text = f"{benchmark.table(rows, read_rows(memory, key))}\n\n{conditions(rows)}"
        print(text)
        write(config.output / f"{benchmark.name}.md", text)
        figure = benchmark.figure(rows)
        if figure is not None:
            write_figure(figure, config.output / benchmark.name)
    print(f"rows, table and figure: {config.output}/")
    return rows


def _missing(benchmark: Benchmark[Any, Any, Any], cell: Any, row: Row | None) -> list[str]:
    """The contenders to measure: none, or all that take part together with all that the known row has."""
    names = list(benchmark.contenders(cell))
    if row is None:
        return names if benchmark.rerun_above is None else []
    if benchmark.rerun_above is None:
        again = not set(names) <= set(row["contenders"])
    else:
        again = benchmark.worst_ratio(row) > benchmark.rerun_above and row["rounds"] < benchmark.config.rounds
    return list(dict.fromkeys((*names, *row["contenders"]))) if again else []


def _conditions(benchmark: Benchmark[Any, Any, Any]) -> Row:
    packages = {"torch": "torch", **benchmark.packages}
    return {
        "device": benchmark.device,
        "device_name": tn.compiler.device_name(benchmark.device),
        "threads": benchmark.config.threads,
        "smoke": benchmark.config.smoke,
        "seed": benchmark.config.seed,
        "versions": {"tnalgebra": tn.__version__}
        | {package: version(package) for module, package in packages.items() if find_spec(module)},
    }


@contextmanager
def _fixed(threads: int | None) -> Iterator[None]:
    """Fix the threads of torch and of numpy's BLAS; on CUDA, turn TF32 off and let cuDNN try its algorithms."""
    used = torch.get_num_threads()
    assert threads is not None
    torch.set_num_threads(threads)
    try:
        with (
            threadpool_limits(threads, user_api="blas"),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_num_threads(used)


def _timed(benchmark: Benchmark[Any, Any, Any], cell: Any, names: Sequence[str]) -> Row:
    """Compare the contenders of a cell, then time them."""
    problem = benchmark.problem(cell)
    made: dict[str, Contender] = {}
    outputs: dict[str, tuple[str, tuple[Tensor, ...]]] = {}
    for name in names:
        try:
            twin = made.get(name.removesuffix(AGAIN))
            made[name] = twin or benchmark.contender(name, problem)
            if benchmark.tolerance is not None and twin is None:
                output = made[name].call(0)
                first, expected = outputs.setdefault(benchmark.alike(name), (name, output))
                _compare(output, expected, f"{name}: the output is not that of {first}", benchmark.tolerance)
        except Exception as error:  # nothing is hidden: it is raised again, with the contender's name
            error.add_note(f"contender: {name}, of {cell}")
            raise
    times = time_in_turns(
        {name: contender.call for name, contender in made.items()},
        rounds=benchmark.config.rounds,
        slow_rounds=SLOW_ROUNDS,
        warmup=benchmark.warmup,
        seed=benchmark.config.seed,
        device=benchmark.device,
    )
    contenders = {
        name: {"seconds": median(seconds), "times": seconds, **made[name].facts()} for name, seconds in times.items()
    }
    return {**benchmark.about(problem), "rounds": benchmark.config.rounds, "contenders": contenders}


@torch.no_grad()
def _compare(output: Sequence[Tensor], expected: Sequence[Tensor], fact: str, tolerance: float) -> None:
    for ours, theirs in zip(output, expected, strict=True):
        error = float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))
        if not error < tolerance:  # NaN too
            fix = f"at most {tolerance:g}, which would be rounding"
            raise tn.errors.StudyError(fact, relative_error=f"{error:.1e}", needed=fix)


def _memory(benchmark: Benchmark[Any, Any, Any], cell: Any, names: Sequence[str]) -> Row:
    """The peak memory of each contender. Raises StudyError where the system does not report it."""
    assert benchmark.config.threads is not None
    settings: dict[str, Any] = {"device": benchmark.device, "threads": benchmark.config.threads}
    measured = {
        name: {"bytes": peak_bytes(partial(make_call, benchmark, cell, name), **settings)}
        for name in names
        if not name.endswith(AGAIN)
    }
    return {"rounds": 1, "contenders": {name: measured[name.removesuffix(AGAIN)] for name in names}}


def make_call(benchmark: Benchmark[Any, Any, Any], cell: Any, name: str) -> Call:
    """The call of a contender, made from its cell alone, as another process needs it."""
    return benchmark.contender(name, benchmark.problem(cell)).call
