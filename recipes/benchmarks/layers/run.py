"""How long single layers take: compiled by this library, written by hand, by its peers, and dense.

    python -m recipes.benchmark_layers
    python -m recipes.benchmark_layers --smoke
    python -m recipes.benchmark_layers --shapes "3x3-64-*" --decompositions cp svd --batches 1
    python -m recipes.benchmark_layers --rerun-above 1.05 --rounds 101
    python -m recipes.benchmark_layers --memory --shapes "3x3-64-64-56" --batches 16

What is measured, for each layer, decomposition of its kernel, ranks, batch and pass (a cell):
- The contenders take turns, in an order drawn anew each round; what is timed is one call, from the same contiguous
  float32 input for all. Forward: under no_grad. Training: forward, then the gradients of the input and of all
  parameters, of a sum of the output's elements with fixed random weights.
- Medians count. Intervals hold 95 % of the bootstrap of a ratio of medians. The dense layer stands twice among the
  contenders: the ratio of the two is the noise floor. Contenders far slower than the fastest take fewer turns.
- Before that, each output, and in training the input's gradient, is compared with the dense layer's.
- On CUDA without TF32, and with cuDNN's choice of algorithms by trial, for all.
- --memory: instead of times, the peak memory of three calls of each contender, after a first one, in a process of its
  own. On a CPU: the peak resident set less the resident set before the three calls (VmHWM - VmRSS); on CUDA: the
  allocator's. Without the input and the parameters, which are there before.

The cells:
- Layers of ResNet-18 and ResNet-50, and 3x3 depthwise ones of their widths.
- CP, Tucker-2, train (order in kh kw out), ring (the same order), a cut (out kh | in kw), a loop with a hyperedge that
  stands in no catalogue, and the kernel as it is. Each bond has a fraction of the largest rank that can be of use
  there, which is at most the number of channels. In ring and loop one bond is 4, and those beside it a fourth of the
  train's, so that all their chains are as wide.
- No train, ring, loop of 1x1 and of depthwise layers: the cores on an axis of size 1 would have bonds alone.

The contenders:
- ours: `tnalgebra.compile`, of all forms, or factored only; as it is, or frozen (forward only).
- hand: the chain of torch layers that one writes by hand, in either memory format (channels_last converts its input
  in the call); merged: the window's cores contracted beforehand to one layer, or without a window all cores but one.
- dense; dense + rebuild: the kernel contracted from the cores in each call.
- tensorly: tensorly-torch's FactorizedConv (CP, Tucker with full ranks on the window, train; no groups).
- einconv: its einsum with the cores in the place of the kernel.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from tqdm import tqdm

import tnalgebra as tn
from recipes.benchmarks.layers.contenders import (
    CONTENDERS,
    DECOMPOSITIONS,
    OURS,
    PEERS,
    SHAPES,
    SMOKE_SHAPES,
    TUNED,
    UNDECOMPOSED,
    Cell,
    Contender,
    Pass,
    Shape,
    make_contender,
    make_problem,
    missing_cell,
    takes_part,
)
from recipes.benchmarks.layers.report import CELL, figure, memory_table, ratios_in, read_rows, summary
from recipes.benchmarks.timing import Found, Row, Task, one_call, peak_bytes, time_in_turns, waiter
from recipes.command import run_command

TOLERANCE = 1e-4
"""Relative error of float32 that a contender may have."""

PACKAGES = {"tltorch": "tensorly-torch", "einconv": "einconv"}


@dataclass(frozen=True)
class Config:
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
    passes: tuple[Pass, ...] = ("forward", "training")
    """training is forward and backward"""
    contenders: tuple[str, ...] = CONTENDERS
    """by name, each in quotes; the dense layer is timed twice in any case, as the reference and the noise floor"""
    tune: Literal["off", "on", "both"] = "off"
    """whether ours are compiled with tune=True ("ours ... tuned"), without, or both beside each other"""
    rounds: int = 31
    """turns of a contender; odd, so that the median is one of them"""
    slow_rounds: int = 5
    """turns of a contender that is slow"""
    slow_factor: float = 8.0
    """slow is above so many times the fastest's time"""
    slow_seconds: float = 20.0
    """seconds that the turns of one slow contender may take together in a cell; one turn there is"""
    warmup: int = 3
    """calls before the first turn; the quickest of them tells who is slow"""
    rerun_above: float | None = None
    """repeat the cells, among those asked for, in which one of the summary's ratios is above this and which have fewer
    rounds than --rounds; what comes replaces what is there"""
    memory: bool = False
    """measure peak memory instead of times; rows go to memory.jsonl"""
    smoke: bool = False
    """tiny layers, one fraction, one batch, 3 rounds: whether all of it runs"""
    threads: int | None = None
    """torch's, for all contenders; by default as many as torch takes by itself"""
    device: str = "cpu"
    """cpu, cuda, cuda:1"""
    seed: int = 0
    """of cores, inputs, and the order of turns"""
    output: Path = Path("runs/layers")
    """folder of the rows (results.jsonl), the summary and the figure; a cell that is there is not timed again"""


def main(config: Config) -> list[Row]:
    """Time what is missing, then sum up all rows there are; returns these.

    Raises:
        StudyError: a setting is not what it should be; a contender computes something else than the dense layer.
    """
    _check(config)
    if config.smoke:
        config = dataclasses.replace(
            config,
            fractions=config.fractions[:1],
            batches=config.batches[:1],
            rounds=min(config.rounds, 3),
            slow_rounds=min(config.slow_rounds, 2),
        )
    config = dataclasses.replace(config, threads=config.threads or torch.get_num_threads())
    for field in fields(config):
        print(f"{field.name:<16}{getattr(config, field.name)}")
    cells = chosen_cells(config)
    names = chosen_contenders(config)
    path = config.output / ("memory.jsonl" if config.memory else "results.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_rows(path)
    with _settings(config):
        bar = tqdm(cells, desc="cells", unit="cell")
        for cell in bar:
            bar.set_postfix_str(str(cell))
            taking = _missing(_find(before, cell, config), cell, names, config)
            if taking:
                row = (memory_row if config.memory else timed_row)(cell, taking, config)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    rows = [row for row in read_rows(path) if row["smoke"] == config.smoke]
    if config.memory:
        print(memory_table(rows))
    elif rows:
        text = summary(rows)
        print(text)
        tn.studies.write_text(config.output / "summary.txt", f"{text}\n")
        drawing = figure(rows)
        for suffix in (".png", ".svg"):
            tn.studies.write_whole(config.output / f"layers{suffix}", lambda file: drawing.savefig(file, dpi=150))
    print(f"rows, summary and figure: {config.output}/")
    return rows


def _check(config: Config) -> None:
    for name, least in {"rounds": 1, "slow_rounds": 1, "warmup": 1, "threads": 1}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise tn.errors.StudyError(tn.errors.explain(f"{name} is {value}", fix=f"at least {least}"))
    for batch in config.batches:
        if batch < 1:
            raise tn.errors.StudyError(tn.errors.explain(f"a batch is {batch}", fix="at least 1"))
    for fraction in config.fractions:
        if not 0 < fraction <= 1:
            raise tn.errors.StudyError(
                tn.errors.explain(f"a fraction of the channels is {fraction}", fix="above 0, at most 1")
            )
    for kind, asked, known in (
        ("decomposition", config.decompositions, tuple(DECOMPOSITIONS)),
        ("contender", config.contenders, CONTENDERS),
    ):
        for name in asked:
            if name not in known:
                raise tn.errors.StudyError(tn.errors.explain(f"there is no {kind} {name!r}", known=", ".join(known)))
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise tn.errors.StudyError(
            tn.errors.explain(f"the device is {config.device!r}, and torch finds no CUDA", fix="--device cpu")
        )


def chosen_cells(config: Config) -> list[Cell]:
    """The cells that are asked for and exist; of fractions that lead to the same ranks the first.

    Raises:
        StudyError: no layer has such a name.
    """
    shapes = SMOKE_SHAPES if config.smoke else SHAPES
    for pattern in config.shapes:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise tn.errors.StudyError(tn.errors.explain(f"no layer is called {pattern!r}", layers=" ".join(shapes)))
    cells: dict[tuple[object, ...], Cell] = {}
    for name, shape in shapes.items():
        if not any(fnmatchcase(name, pattern) for pattern in config.shapes):
            continue
        for decomposition in config.decompositions:
            reason = missing_cell(shape, decomposition)
            if reason is not None:
                continue
            for fraction in config.fractions:
                ranks = tuple(DECOMPOSITIONS[decomposition].ranks(shape, fraction).items())
                for batch in config.batches:
                    for goes in config.passes:
                        cell = Cell(name, decomposition, ranks, fraction, batch, goes)
                        cells.setdefault((name, decomposition, ranks, batch, goes), cell)
    return list(cells.values())


def chosen_contenders(config: Config) -> list[str]:
    """All that take part where they exist; says which peers are not installed."""
    names = list(dict.fromkeys(("dense", "dense again", *config.contenders)))
    absent = {PEERS[name] for name in names if name in PEERS and find_spec(PEERS[name]) is None}
    for module in sorted(absent):
        print(f"without {PACKAGES[module]}, which is not installed: pip install 'tnalgebra[bench]'")
    found = []
    for name in names:
        if name in OURS:
            found += [name] * (config.tune != "on") + [name + TUNED] * (config.tune != "off")
        elif PEERS.get(name) not in absent:
            found.append(name)
    return found


@contextmanager
def _settings(config: Config) -> Iterator[None]:
    """torch's threads and cuDNN's settings, for as long as it is timed."""
    used = torch.get_num_threads()
    assert config.threads is not None
    torch.set_num_threads(config.threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(used)


def _shape(cell: Cell) -> Shape:
    return SHAPES[cell.shape] if cell.shape in SHAPES else SMOKE_SHAPES[cell.shape]


def _missing(there: Row | None, cell: Cell, names: Sequence[str], config: Config) -> list[str]:
    """The contenders to be measured: none, or all that are asked for and all that the row there has."""
    taking = [name for name in names if takes_part(name, cell, _shape(cell))]
    if there is None:
        return taking if config.rerun_above is None else []
    known = list(there["contenders"])
    if config.rerun_above is None:
        again = not set(taking) <= set(known)
    else:
        worst = max((ratio.value for ratio in ratios_in(there).values()), default=0.0)
        again = worst > config.rerun_above and there["rounds"] < config.rounds
    return list(dict.fromkeys((*taking, *known))) if again else []


def _find(rows: Sequence[Row], cell: Cell, config: Config) -> Row | None:
    wanted = _facts(cell, config)
    return next((row for row in rows if all(row[key] == wanted[key] for key in CELL)), None)


def _facts(cell: Cell, config: Config) -> Row:
    return {
        "shape": cell.shape,
        "family": _shape(cell).family,
        "decomposition": cell.decomposition,
        "ranks": dict(cell.ranks),
        "fraction": None if cell.decomposition == UNDECOMPOSED else cell.fraction,
        "batch": cell.batch,
        "pass": cell.goes,
        "device": config.device,
        "device_name": device_name(config.device),
        "threads": config.threads,
        "smoke": config.smoke,
        "seed": config.seed,
        "versions": versions(),
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    peers = {package: version(package) for module, package in PACKAGES.items() if find_spec(module)}
    return {"tnalgebra": tn.__version__, "torch": torch.__version__, **peers}


def timed_row(cell: Cell, names: Sequence[str], config: Config) -> Row:
    """Compare the contenders of a cell, then time them.

    Raises:
        StudyError: one computes something else than the dense layer.
    """
    problem = make_problem(cell, _shape(cell), seed=config.seed, dtype=torch.float32, device=config.device)
    made: dict[str, Contender] = {}
    calls: dict[str, Callable[[], Found]] = {}
    expected: Found | None = None
    for name in names:
        with _named(name, cell):
            made[name] = made["dense"] if name == "dense again" else make_contender(name, problem)
            calls[name] = one_call(made[name].module, problem)
            found = calls[name]()
        expected = expected or found
        _compare(name, cell, found, expected)
    times = time_in_turns(
        calls,
        rounds=config.rounds,
        slow_rounds=config.slow_rounds,
        slow_factor=config.slow_factor,
        slow_seconds=config.slow_seconds,
        warmup=config.warmup,
        seed=config.seed,
        synchronise=waiter(config.device),
    )
    measured = {
        name: {"seconds": median(seconds), "times": seconds, "multiply_adds": made[name].multiply_adds}
        for name, seconds in times.items()
    }
    return {**_facts(cell, config), "rounds": config.rounds, "contenders": measured}


@contextmanager
def _named(name: str, cell: Cell) -> Iterator[None]:
    """Tell whose error it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"contender: {name}, of {cell}")
        raise


def _compare(name: str, cell: Cell, found: Found, expected: Found) -> None:
    for what, ours, dense in zip(("output", "gradient of the input"), found, expected, strict=True):
        if ours is None or dense is None:
            continue
        if ours.shape != dense.shape:
            raise tn.errors.StudyError(
                tn.errors.explain(
                    f"{name}: the {what} is not the dense layer's",
                    cell=cell,
                    shape=f"{tuple(ours.shape)}, and {tuple(dense.shape)} of the dense layer",
                )
            )
        ours, dense = ours.detach(), dense.detach()
        error = float(torch.linalg.vector_norm(ours - dense) / torch.linalg.vector_norm(dense))
        if not error < TOLERANCE:  # NaN too
            raise tn.errors.StudyError(
                tn.errors.explain(
                    f"{name}: the {what} is not the dense layer's",
                    cell=cell,
                    relative_error=f"{error:.1e}, where {TOLERANCE:g} would be rounding",
                )
            )


def memory_row(cell: Cell, names: Sequence[str], config: Config) -> Row:
    """The peak memory of each contender."""
    assert config.threads is not None
    measured = {
        name: {"bytes": peak_bytes(Task(name, cell, _shape(cell), config.seed, config.device, config.threads))}
        for name in names
        if name != "dense again"
    }
    return {**_facts(cell, config), "rounds": 1, "contenders": {**measured, "dense again": measured["dense"]}}


def run() -> None:
    """The command `python -m recipes.benchmarks.layers`."""
    run_command(Config, main, description=__doc__, interrupted="stopped: the same command goes on where it was")
