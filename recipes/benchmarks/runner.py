"""What every benchmark does: contenders take turns in each cell, rows are kept and resumed, tables and figures drawn.

A benchmark is a list of cells, the contenders of each, and what its table shows. A cell is timed once: its row is one
line of results.jsonl. One contender may take part twice, as "dense" and "dense again": the ratio of the two is noise.
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
from recipes.benchmarks.timing import device_name, peak_bytes, time_in_turns
from recipes.reporting import check_least, print_settings, write, write_figure, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Call: TypeAlias = Callable[[int], Any]
"""What is timed, of the number of a round."""

Pass: TypeAlias = Literal["forward", "training"]

TUNED = " tuned"
SLOW_ROUNDS = 5
"""Turns of a contender that takes several times as long as the fastest."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every benchmark."""

    rounds: int = 21
    """turns of each contender; odd, so that the median is one of them"""
    threads: int | None = None
    """torch's and numpy's, for all contenders; by default as many as torch takes by itself"""
    seed: int = 0
    """of weights, inputs, and the order of turns"""
    smoke: bool = False
    """a few small cells and rounds: whether all of it runs; its numbers mean nothing"""
    output: Path = Path("runs/benchmark")
    """folder of the rows, the table and the figure; a cell that is there is not timed again"""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Settings of the benchmarks of torch modules."""

    passes: tuple[Pass, ...] = ("forward", "training")
    """training is forward and backward"""
    tune: Literal["off", "on", "both"] = "off"
    """whether ours are made with tune=True ("ours ... tuned"), without, or both beside each other"""
    warmup: int = 3
    """calls before the first turn"""
    memory: bool = False
    """measure peak memory instead of times; rows go to memory.jsonl"""
    device: str = "cpu"
    """cpu, cuda, cuda:1"""

    def with_tuned(self, names: Sequence[str]) -> list[str]:
        """The contenders, each once; ours as `tune` says."""
        found = []
        for name in dict.fromkeys(names):
            ours = name.startswith("ours")
            found += [name] * (not ours or self.tune != "on") + [name + TUNED] * (ours and self.tune != "off")
        return found


class Contender(NamedTuple):
    """What is timed, and what its row says beside the times, asked for after them."""

    call: Call
    facts: Callable[[], Row] = dict


Config = TypeVar("Config", bound=Settings)
Cell = TypeVar("Cell")
Problem = TypeVar("Problem")

INTERRUPTED = "stopped: the same command continues where it was"


class Benchmark(ABC, Generic[Config, Cell, Problem]):
    """A list of cells, the contenders of each, what a table shows."""

    name: str
    packages: ClassVar[Mapping[str, str]] = {}
    """Module -> package of the contenders that are not ours."""
    device: str = "cpu"
    memory: bool = False
    warmup: int = 0
    rerun_above: float | None = None
    tolerance: float | None = None
    """Relative difference of two contenders' outputs that is rounding; None: they are not compared."""

    def __init__(self, config: Config) -> None:
        check_least(config, {"rounds": 1, "threads": 1})
        self.config = dataclasses.replace(config, threads=config.threads or torch.get_num_threads())
        if isinstance(config, NetworkSettings):
            check_least(config, {"warmup": 1})
            self.device, self.memory, self.warmup = config.device, config.memory, config.warmup
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise tn.errors.StudyError(
                tn.errors.explain(f"the device is {self.device!r}, and torch finds no CUDA", fix="--device cpu")
            )

    @staticmethod
    @abstractmethod
    def smaller(config: Any) -> Any:
        """The config of a smoke run."""

    @abstractmethod
    def cells(self) -> Sequence[Cell]: ...

    def facts(self, cell: Any) -> Row:
        """What distinguishes a cell from all others, as JSON has it."""
        return {"pass" if name == "goes" else name: value for name, value in cell._asdict().items()}

    @abstractmethod
    def contenders(self, cell: Cell) -> Sequence[str]: ...

    @abstractmethod
    def problem(self, cell: Cell) -> Problem:
        """What the contenders are made from."""

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
        """What a row says of its cell besides."""
        return {}

    def alike(self, name: str) -> str:
        """Contenders with the same text compute the same."""
        return "all"

    def worst_ratio(self, row: Row) -> float:
        """What is compared with `rerun_above`."""
        return 0.0


def run(kind: type[Benchmark[Config, Any, Any]], config: Config) -> list[Row]:
    """Time what is missing, then print, write and draw all rows in the output folder; returns these.

    Raises:
        StudyError: a setting is not what it should be; contenders that should agree do not; a line is not a row; the
            output cannot be written.
        DataError: a network is unknown.
    """
    benchmark = kind(kind.smaller(config) if config.smoke else config)
    config = benchmark.config
    print_settings(config)
    cells = benchmark.cells()
    if not cells:
        raise tn.errors.StudyError(tn.errors.explain("no cell is left", fix="other layers or decompositions"))
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
                with writing(config.output):
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
    """The contenders to be measured: none, or all that take part and all that the known row has."""
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
        "device_name": device_name(benchmark.device),
        "threads": benchmark.config.threads,
        "smoke": benchmark.config.smoke,
        "seed": benchmark.config.seed,
        "versions": {"tnalgebra": tn.__version__}
        | {package: version(package) for module, package in packages.items() if find_spec(module)},
    }


@contextmanager
def _fixed(threads: int | None) -> Iterator[None]:
    """Threads of torch and of numpy's BLAS; on CUDA no TF32, and cuDNN's choice of algorithms by trial."""
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
                found = made[name].call(0)
                first, expected = outputs.setdefault(benchmark.alike(name), (name, found))
                _compare(found, expected, f"{name}: the output is not that of {first}", benchmark.tolerance)
        except Exception as error:
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
def _compare(found: Sequence[Tensor], expected: Sequence[Tensor], false: str, tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        error = float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))
        if not error < tolerance:  # NaN too
            raise tn.errors.StudyError(
                tn.errors.explain(false, relative_error=f"{error:.1e}, where {tolerance:g} would be rounding")
            )


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
    """What is timed of a contender, made from the cell alone."""
    return benchmark.contender(name, benchmark.problem(cell)).call
