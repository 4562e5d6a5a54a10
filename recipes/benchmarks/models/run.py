"""How long whole networks take: dense, decomposed by this library, and decomposed by hand at the same ranks.

    python -m recipes.benchmark_model
    python -m recipes.benchmark_model --smoke
    python -m recipes.benchmark_model --models resnet50 --batch 8 --multiply-adds 0.5 --passes forward --threads 2
    python -m recipes.benchmark_model --models resnet20 resnet56 --rewrite "out kh | in kw" --fraction 0.25
    python -m recipes.benchmark_model --models resnet50 --batch 8 --memory

What is decomposed:
- Every convolution but the first that gets smaller: windows by --rewrite, those of one element by --pointwise (of
  which a Tucker-2 would only have one matrix more). Each rank is one fraction of the largest of use at its bond, the
  same for all layers: --fraction, or the largest that keeps --multiply-adds of the kernel layers' multiply-adds.
- Networks have random weights, cores come from one start without sweeps: times do not depend on them. For accuracy
  see recipes.compress.

What is measured, for each network, batch and pass (a cell):
- The contenders take turns, in an order drawn anew each round; what is timed is one call, from the same contiguous
  float32 images. Forward: under no_grad, in evaluation mode. Training: forward, cross-entropy, gradients of all
  parameters, without the optimizer's step.
- Medians count. Intervals hold 95 % of the bootstrap of a ratio of medians. The dense network stands twice among the
  contenders: the ratio of the two is the noise floor.
- Before that, the outputs are compared: of the decomposed with each other, of the dense with each other.
- fraction: speed-up over dense, divided by dense over own multiply-adds. 1 is what they alone would give.
- --memory: instead of times, the peak memory of three calls of each contender, after a first one, in a process of its
  own. On a CPU: the peak resident set less the resident set before the three calls (VmHWM - VmRSS); on CUDA: the
  allocator's. Without the images and the parameters, which are there before.

The contenders:
- dense: torch's network.
- hand: the same with torch layers, one for each core, in the place of the decomposed ones.
- ours: `tnalgebra.convert`, of all forms, or factored only; as it is, or frozen (forward only).
- channels_last: the weights in the other memory format; the call converts its input.
- folded: batch normalisations put into the convolutions (forward only); ours then frozen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import tnalgebra as tn
from recipes.benchmarks.layers.run import device_name
from recipes.benchmarks.models.contenders import (
    CONTENDERS,
    TUNED,
    Cell,
    Contender,
    Pass,
    Problem,
    make_contender,
    make_problem,
    one_call,
    rewrite_chain,
    takes_part,
)
from recipes.benchmarks.models.report import CELL, figure, memory_table, read_rows, table
from recipes.benchmarks.timing import CLEAR, Row, peak_of_calls, prepare_memory, time_in_turns, waiter
from recipes.command import run_command

TOLERANCE = 1e-3
"""Relative difference of outputs that is rounding: float32, layer upon layer."""

SMALL = 32
"""Pixels of a side for all networks but those of `LARGE`."""

LARGE = {"resnet50": 224}


@dataclass(frozen=True)
class Config:
    """Time whole networks."""

    # one line each: the command's --help breaks them where it must
    models: tuple[str, ...] = ("resnet50", "resnet20")
    """resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar, or package.module:function; of colour images"""
    batch: tuple[int, ...] = (8,)
    """images at a time"""
    passes: tuple[Pass, ...] = ("forward", "training")
    """training is forward and backward"""
    rewrite: str = "tucker2"
    """of kernels with a window: tucker2, a cut such as "out kh | in kw", or a rule whose cores lead from in to out"""
    pointwise: str = "out | in kh kw"
    """of kernels with a window of one element: the same, or none"""
    multiply_adds: float | None = None
    """part of the kernel layers' multiply-adds that is kept at most, in (0, 1); 0.5 if there is no --fraction"""
    fraction: float | None = None
    """ranks, each a fraction of the largest of use at its bond, in (0, 1]"""
    image_size: int | None = None
    """pixels of a side; by default 224 for resnet50, 32 for the others"""
    contenders: tuple[str, ...] = CONTENDERS
    """by name, each in quotes; the dense network is timed twice in any case, as the reference and the noise floor"""
    tune: Literal["off", "on", "both"] = "off"
    """whether ours are converted with tune=True ("ours ... tuned"), without, or both beside each other"""
    rounds: int = 21
    """turns of a contender; odd, so that the median is one of them"""
    warmup: int = 2
    """calls before the first turn"""
    memory: bool = False
    """measure peak memory instead of times; rows go to memory.jsonl"""
    smoke: bool = False
    """resnet20 if no other network is given, two images of 16x16 and 3 rounds: whether all of it runs"""
    threads: int | None = None
    """torch's, for all contenders; by default as many as torch takes by itself"""
    device: str = "cpu"
    """cpu, cuda, cuda:1"""
    seed: int = 0
    """of weights, images, and the order of turns"""
    output: Path = Path("runs/models")
    """folder of the rows (results.jsonl), the table and the figure; a cell that is there is not timed again"""


def main(config: Config) -> list[Row]:
    """Time what is missing, then sum up all rows there are; returns these.

    Raises:
        StudyError: a setting is not what it should be; contenders that should agree do not.
        DataError: there is no such network.
    """
    config = _resolved(config)
    for field in fields(config):
        print(f"{field.name:<16}{getattr(config, field.name)}")
    _check(config)
    names = chosen_contenders(config)
    path = config.output / ("memory.jsonl" if config.memory else "results.jsonl")
    before = read_rows(path)
    with _settings(config):
        bar = tqdm(chosen_cells(config), desc="cells", unit="cell", disable=None)
        for cell in bar:
            bar.set_postfix_str(str(cell))
            taking = [name for name in names if takes_part(name, cell.goes)]
            wanted = _facts(cell, config)
            there = next((row for row in before if all(row[key] == wanted[key] for key in CELL)), None)
            if there is not None and set(taking) <= set(there["contenders"]):
                continue
            taking = list(dict.fromkeys((*taking, *(there or {"contenders": ()})["contenders"])))
            row = (memory_row if config.memory else timed_row)(cell, taking, config)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    rows = [row for row in read_rows(path) if row["smoke"] == config.smoke]
    if config.memory:
        print(memory_table(rows))
    elif rows:
        text = table(rows, read_rows(config.output / "memory.jsonl"))
        print(text)
        tn.studies.write_text(config.output / "table.md", f"{text}\n")
        drawing = figure(rows)
        for suffix in (".png", ".svg"):
            tn.studies.write_whole(config.output / f"models{suffix}", lambda file: drawing.savefig(file, dpi=150))
    print(f"rows, table and figure: {config.output}/")
    return rows


def _resolved(config: Config) -> Config:
    if config.smoke:
        models = ("resnet20",) if config.models == Config.models else config.models
        config = dataclasses.replace(
            config,
            models=models,
            batch=tuple(dict.fromkeys(min(batch, 2) for batch in config.batch)),
            rounds=min(config.rounds, 3),
            warmup=1,
            image_size=config.image_size or 16,
        )
    if config.multiply_adds is None and config.fraction is None:
        config = dataclasses.replace(config, multiply_adds=0.5)
    return dataclasses.replace(config, threads=config.threads or torch.get_num_threads())


def _check(config: Config) -> None:
    for name, least in {"rounds": 1, "warmup": 1, "threads": 1, "image_size": 1}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise tn.errors.StudyError(tn.errors.explain(f"{name} is {value}", fix=f"at least {least}"))
    for batch in config.batch:
        if batch < 1:
            raise tn.errors.StudyError(tn.errors.explain(f"a batch is {batch}", fix="at least 1"))
    if config.multiply_adds is not None and config.fraction is not None:
        raise tn.errors.StudyError(tn.errors.explain("the ranks are said twice", fix="--multiply-adds or --fraction"))
    for name in ("multiply_adds", "fraction"):
        value = getattr(config, name)
        if value is not None and not 0 < value <= 1:
            raise tn.errors.StudyError(tn.errors.explain(f"{name} is {value}", fix="above 0, at most 1"))
    for name in config.contenders:
        if name not in CONTENDERS:
            raise tn.errors.StudyError(
                tn.errors.explain(f"there is no contender {name!r}", known=", ".join(CONTENDERS))
            )
    for rewrite in (config.rewrite, *([config.pointwise] if config.pointwise != "none" else [])):
        rewrite_chain(rewrite)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise tn.errors.StudyError(
            tn.errors.explain(f"the device is {config.device!r}, and torch finds no CUDA", fix="--device cpu")
        )


def chosen_cells(config: Config) -> list[Cell]:
    return [
        Cell(
            model,
            batch,
            config.image_size or LARGE.get(model, SMALL),
            goes,
            config.rewrite,
            None if config.pointwise == "none" else config.pointwise,
            config.multiply_adds,
            config.fraction,
        )
        for model in config.models
        for batch in config.batch
        for goes in config.passes
    ]


def chosen_contenders(config: Config) -> list[str]:
    """All that take part; ours as `tune` says."""
    found = []
    for name in dict.fromkeys(("dense", "dense again", *config.contenders)):
        if name.startswith("ours"):
            found += [name] * (config.tune != "on") + [name + TUNED] * (config.tune != "off")
        else:
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


def _facts(cell: Cell, config: Config) -> Row:
    facts = dataclasses.asdict(cell)
    facts["pass"] = facts.pop("goes")
    return {
        **facts,
        "device": config.device,
        "device_name": device_name(config.device),
        "threads": config.threads,
        "smoke": config.smoke,
        "seed": config.seed,
        "versions": {"tnalgebra": tn.__version__, "torch": torch.__version__},
    }


def timed_row(cell: Cell, names: Sequence[str], config: Config) -> Row:
    """Compare the contenders of a cell, then time them.

    Raises:
        StudyError: one computes something else than its like.
    """
    problem = make_problem(cell, seed=config.seed, device=config.device)
    made: dict[str, Contender] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    expected: dict[bool, tuple[str, Tensor]] = {}
    for name in names:
        made[name] = made["dense"] if name == "dense again" else make_contender(name, problem)
        calls[name] = one_call(made[name].module, problem)
        output = calls[name]()
        first, wanted = expected.setdefault(name.startswith("dense"), (name, output))
        error = float(torch.linalg.vector_norm(output - wanted) / torch.linalg.vector_norm(wanted))
        if not error < TOLERANCE:  # NaN too
            raise tn.errors.StudyError(
                tn.errors.explain(
                    f"{name}: the output is not that of {first}",
                    cell=cell,
                    relative_error=f"{error:.1e}, where {TOLERANCE:g} would be rounding",
                )
            )
    times = time_in_turns(
        calls,
        rounds=config.rounds,
        slow_rounds=config.rounds,
        slow_factor=float("inf"),
        slow_seconds=1e9,
        warmup=config.warmup,
        seed=config.seed,
        synchronise=waiter(config.device),
    )
    measured = {
        name: {
            "seconds": median(seconds),
            "times": seconds,
            "multiply_adds": made[name].multiply_adds,
            "parameters": made[name].parameters,
        }
        for name, seconds in times.items()
    }
    return {**_facts(cell, config), **_ranks(problem), "rounds": config.rounds, "contenders": measured}


def _ranks(problem: Problem) -> Row:
    return {
        "converted": len(problem.chosen),
        "ranks": {name: {"rewrite": rewrite, **ranks} for name, (rewrite, ranks) in problem.chosen.items()},
    }


# Memory -------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What a child process needs to measure the memory of one contender."""

    contender: str
    cell: Cell
    seed: int
    device: str
    threads: int


def memory_row(cell: Cell, names: Sequence[str], config: Config) -> Row:
    """The peak memory of each contender.

    Raises:
        StudyError: on a CPU, the system has no /proc/self/clear_refs.
    """
    assert config.threads is not None
    if not config.device.startswith("cuda") and not CLEAR.exists():
        raise tn.errors.StudyError(
            tn.errors.explain(f"peak memory needs {CLEAR}, which only Linux has", fix="Linux, or --device cuda")
        )
    measured = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
            task = Task(name, cell, config.seed, config.device, config.threads)
            measured[name] = {"bytes": child.submit(_measured_peak, task).result()}
    return {**_facts(cell, config), "rounds": 1, "contenders": measured}


def _measured_peak(task: Task) -> int:
    prepare_memory(task.threads)
    problem = make_problem(task.cell, seed=task.seed, device=task.device)
    return peak_of_calls(one_call(make_contender(task.contender, problem).module, problem), task.device)


def run() -> None:
    """The command `python -m recipes.benchmarks.models`."""
    run_command(Config, main, description=__doc__, interrupted="stopped: the same command goes on where it was")
