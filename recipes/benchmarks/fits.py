"""Time how long this library and its peers take to fit the same kernels to the same error.

    python -m recipes.benchmarks.fits
    python -m recipes.benchmarks.fits --smoke
    python -m recipes.benchmarks.fits --weights W.pth --error 0.785 --output runs/fits

- tnalgebra: `apply` or `apply_many` with `stability=0`, because the others ask for the least error alone, of the
  default number of starts; and with one start. The Gauss-Newton steps after the sweeps of a call count too.
- tensorly: `parafac(init="random")`, `tensor_ring_als`, `partial_tucker`, `tucker`, `tensor_train`, one start, on the
  torch backend, which took half the time of numpy's, without a test for convergence; CP also with line search.
- quimb: `fit(method="als")` on numpy arrays from one normal start, without a test for convergence, with
  greedy paths, which are found faster than "auto-hq" ones and are as good here. By default it solves for
  larger cores by four steps of conjugate gradients; `dense_solve=True` solves exactly.
- docs/benchmarks.md describes the kernels and the measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.benchmarks.fit_methods import RULES, TREES, Method, Tnalgebra, all_methods, ranks_of, relative_error
from recipes.benchmarks.report import Bar, Row, bar_figure
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import check_least, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MORE = 2
"""A method may take at most this many times the sweeps of the reference."""

MOST = 200
"""The most sweeps that a method may take to reach a given error."""

NEAR = 1e-3
"""The part by which an error may exceed the reference's where methods agree in the limit of many sweeps."""

SLACK = 1e-9
"""The part of an error that is rounding between the traced and the timed run of the same fit."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time fits to the same error: this library, tensorly, quimb."""

    weights: str | None = None
    """a ResNet-20's, as `tn.command.load_weights` reads it; by default random kernels with decaying spectra"""
    layer: str = "layer3.1.conv1"
    """the kernel that is fitted alone"""
    layers: str = "*.conv?"
    """glob of the layers that are fitted together; the first has no dot, and is left out"""
    error: float | None = None
    """relative error of the CP of one kernel; by default as of the tensor ring"""
    channels: tuple[int, ...] = (64, 128, 256, 512)
    """channels of random 3x3 kernels in float32, to which trees are fitted"""
    iterations: int = 50
    """sweeps of the reference, whose errors the others have to reach"""
    rounds: int = 5
    """turns of each method, each with a seed of its own; the median counts"""
    threads: int | None = 1
    """threads of torch and of numpy's BLAS; such small matrices gain little from more"""
    output: Path = Path("runs/fits")
    """folder for the rows (results.jsonl), the table and the figure; a problem that it has is not timed again"""


class Problem(NamedTuple):
    """Kernels, and the error to which they are fitted."""

    title: str
    rule: str
    kernels: Mapping[str, Tensor]
    """Layer -> kernel."""
    error: float | None = None
    """The error for all kernels; None: those of the reference, see `Fits.targets`."""
    slack: float = SLACK
    """The part by which an error may exceed its target."""
    on_average: bool = False
    """Whether the mean over the kernels has to be reached instead of the error of each."""

    def __str__(self) -> str:
        return self.title

    @property
    def groups(self) -> list[list[str]]:
        """Layers whose kernels have one shape."""
        shapes = {name: tuple(kernel.shape) for name, kernel in self.kernels.items()}
        return [[name for name in shapes if shapes[name] == shape] for shape in dict.fromkeys(shapes.values())]


class Fits(Benchmark[Config, Problem, Problem]):
    name = "fits"
    packages: ClassVar = {"quimb": "quimb", "numpy": "numpy", "tensorly": "tensorly"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_least(config, {"iterations": 1})
        self.methods, self.notes = all_methods()
        self.traces: dict[tuple[object, ...], list[list[float]]] = {}

    @staticmethod
    def smaller(config: Config) -> Config:
        few: dict[str, Any] = {"layer": "layer1.0.conv1", "layers": "layer1.0.conv[12]", "iterations": 3, "rounds": 1}
        few["channels"] = (8,)
        return dataclasses.replace(config, **few)

    def cells(self) -> list[Problem]:
        """The problems, with kernels in float64.

        Raises:
            StudyError: a pattern matches no layer with a 3x3 kernel.
        """
        torch.manual_seed(0)
        model = tn.command.build_model("resnet20", classes=10, channels=3)
        weights, alone, together = self.config.weights, self.config.layer, self.config.layers
        if weights is not None:
            tn.command.load_weights(model, weights)
        kernels = {
            name: layer.weight.detach().double().contiguous() if weights else random_kernel(layer.weight.shape, number)
            for number, (name, layer) in enumerate(tn.nn.kernel_layers(model).items())
            if layer.weight.shape[2:] == (3, 3)
        }
        several = {name: kernel for name, kernel in kernels.items() if fnmatchcase(name, together)}
        for pattern, matches in ((together, bool(several)), (alone, alone in kernels)):
            if not matches:
                fact = f"no layer with a 3x3 kernel is called {pattern!r}"
                raise tn.errors.StudyError(fact, layers=" ".join(kernels))
        one, error = {alone: kernels[alone]}, self.config.error
        shape = "x".join(map(str, kernels[alone].shape))
        ranks = {rule: max(ranks_of(rule, kernels[alone]).values()) for rule in RULES}
        slack = NEAR if error is None else SLACK
        many = f"CP of {len(several)} kernels"
        cells = [
            Problem(f"CP of one kernel, {shape}, rank {ranks['cp']}", "cp", one, error, slack),
            Problem(f"{many}, each as near", "cp", several),
            Problem(f"{many}, as near in the mean", "cp", several, on_average=True),
            *(
                Problem(f"{rule} of one kernel, ranks {ranks[rule]}", rule, one, slack=NEAR)
                for rule in ("tensor ring", "Tucker-2")
            ),
            *(self._of_channels(rule, size) for size in self.config.channels for rule in TREES),
        ]
        return [cell for cell in cells if self._peers(cell)]

    def _peers(self, cell: Problem) -> list[Method]:
        """The methods of other libraries that take part in a cell; the first is the one whose errors are reached."""
        return [one for one in self.methods if one.suits(cell.rule) and not isinstance(one, Tnalgebra)]

    def _of_channels(self, rule: str, size: int) -> Problem:
        kernel = random_kernel((size, size, 3, 3), size).float()
        return Problem(f"{rule} of {size}x{size}x3x3, ranks {size // 2}", rule, {f"random {size}": kernel}, slack=NEAR)

    def facts(self, cell: Problem) -> Row:
        settings = {name: getattr(self.config, name) for name in ("weights", "layer", "layers", "error", "iterations")}
        return {"problem": cell.title, **settings}

    def contenders(self, cell: Problem) -> list[str]:
        return [method.name for method in self.methods if method.suits(cell.rule)]

    def problem(self, cell: Problem) -> Problem:
        return cell

    def contender(self, name: str, problem: Problem) -> Contender:
        method = next(method for method in self.methods if method.name == name)
        kernels = problem.kernels
        sweeps = [
            sweeps_needed(self.trace(method, problem, turn), self.targets(problem, turn), on_average=problem.on_average)
            for turn in range(self.config.rounds)
        ]
        cpu, results = [0.0] * len(sweeps), [[] for _ in sweeps]  # type: list[float], list[list[Any]]

        def call(turn: int) -> None:
            started = process_time()
            results[turn] = [
                method.fit(
                    problem.rule,
                    [kernels[name] for name in names],
                    self.config.seed + turn,
                    [sweeps[turn][name] for name in names],
                )
                for names in problem.groups
            ]
            cpu[turn] = process_time() - started

        def facts() -> Row:
            errors, missed = [], []
            for turn, parts in enumerate(results):
                dense = {
                    name: one
                    for names, part in zip(problem.groups, parts, strict=True)
                    for name, one in zip(names, method.dense(part), strict=True)
                }
                by_layer = {name: relative_error(kernels[name], one) for name, one in dense.items()}
                errors.append(fmean(by_layer.values()))
                missed.append(_missed(by_layer, self.targets(problem, turn), on_average=problem.on_average))
            means = [fmean(each.values()) for each in sweeps]
            return {"cpu_seconds": cpu, "sweeps": means, "errors": errors, "missed": missed}

        return Contender(call, facts)

    def trace(self, method: Method, problem: Problem, turn: int) -> dict[str, list[float]]:
        """Layer -> the errors after each sweep; computed once for all problems with these kernels."""
        reference = method is self._peers(problem)[0]
        most = MOST if problem.error is not None else self.config.iterations * (1 if reference else MORE)
        by_layer: dict[str, list[float]] = {}
        for names in problem.groups:
            key = (method.name, problem.rule, *names, turn, most)
            if key not in self.traces:
                kernels = [problem.kernels[name] for name in names]
                self.traces[key] = method.trace(problem.rule, kernels, self.config.seed + turn, most)
            by_layer |= dict(zip(names, self.traces[key], strict=True))
        return {name: by_layer[name] for name in problem.kernels}

    def targets(self, problem: Problem, turn: int) -> dict[str, float]:
        """Layer -> the error to reach: that of the problem, or that of the reference."""
        if problem.error is not None:
            return dict.fromkeys(problem.kernels, problem.error)
        traces = self.trace(self._peers(problem)[0], problem, turn)
        return {name: errors[: self.config.iterations][-1] * (1 + problem.slack) for name, errors in traces.items()}

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """Medians; the ratios are to this library with default settings, the first line of a problem."""
        lines = []
        for row in rows:
            for name, one in row["contenders"].items():
                first = name == "tnalgebra"
                cells = [row["problem"] if first else "", name, f"{median(one['sweeps']):.3g}"]
                cells.append(f"{median(one['errors']):.4f}")
                for key in ("times", "cpu_seconds"):
                    seconds, ours = (median(each[key]) for each in (one, row["contenders"]["tnalgebra"]))
                    cells += [f"{seconds:.3f}", f"{seconds / ours:.2g}"]
                lines.append([*cells, str(sum(one["missed"]))])
        times = ["seconds", "times ours", "CPU seconds", "times ours"]
        return markdown(["problem", "method", "sweeps", "error", *times, "missed"], lines, left=2)

    def figure(self, rows: Sequence[Row]) -> Figure:
        """The seconds of each method: a bar for the median, a point for each seed, a panel for each problem."""
        panels: dict[str, list[Bar]] = {}
        for row in rows:
            bars = panels.setdefault(row["problem"], [])
            for name, one in row["contenders"].items():
                missed = f", {sum(one['missed'])} missed" if any(one["missed"]) else ""
                bars.append(Bar(name, one["seconds"], f"{one['seconds']:.3g} s{missed}", points=one["times"]))
        return bar_figure(panels, "seconds to the same error: median over the seeds, and each seed")


def random_kernel(shape: Sequence[int], seed: int) -> Tensor:
    """Normal numbers, where the k-th channel of either side has the weight k^-1/2, with channels mixed by rotations."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(*shape, dtype=torch.float64, generator=generator)
    for axis in (0, 1):
        size = shape[axis]
        square = torch.randn(size, size, dtype=torch.float64, generator=generator)
        weights = torch.arange(1, size + 1, dtype=torch.float64) ** -0.5
        kernel = torch.tensordot(kernel, torch.linalg.qr(square).Q * weights, dims=([axis], [1])).movedim(-1, axis)
    return kernel.contiguous()


def sweeps_needed(
    traces: Mapping[str, Sequence[float]], targets: Mapping[str, float], *, on_average: bool
) -> dict[str, int]:
    """Layer -> the fewest sweeps that reach the error; the length of its trace if none do."""
    if on_average:
        longest = max(map(len, traces.values()))
        means = [fmean(errors[min(sweep, len(errors) - 1)] for errors in traces.values()) for sweep in range(longest)]
        return dict.fromkeys(traces, _first_below(means, fmean(targets.values())))
    return {name: _first_below(errors, targets[name]) for name, errors in traces.items()}


def _first_below(errors: Sequence[float], target: float) -> int:
    enough = target * (1 + SLACK)
    return next((sweep for sweep, error in enumerate(errors, 1) if error <= enough), len(errors))


def _missed(errors: Mapping[str, float], targets: Mapping[str, float], *, on_average: bool) -> int:
    """The number of kernels that did not reach their errors."""
    if on_average:
        return int(fmean(errors.values()) > fmean(targets.values()) * (1 + 2 * SLACK))
    return sum(error > targets[name] * (1 + 2 * SLACK) for name, error in errors.items())


main = partial(run, Fits)


def command() -> None:
    """The command `python -m recipes.benchmarks.fits`."""
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)


if __name__ == "__main__":
    command()
