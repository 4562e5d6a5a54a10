"""How long this library and its peers take to fit the same kernels to the same error.

    python -m recipes.benchmark_fits
    python -m recipes.benchmark_fits --smoke
    python -m recipes.benchmark_fits --weights W.pth --error 0.785 --output runs/fits

The kernels are the 3x3 ones of a ResNet-20, without the first layer's; in float64, on as many
threads for all. Three questions:
- CP of one kernel (64x64x3x3, rank 32) to a given relative error.
- CP of all 18 kernels, rank half their channels: to the error that tensorly, or without it quimb,
  reaches on each after --iterations sweeps from one start. This library takes kernels of one
  shape together (`apply_many`), its peers one after the other. Once every kernel must come as
  near; once their mean error must.
- A tensor ring (ranks 6) and Tucker-2 (ranks 32) of one kernel: to the error that tensorly, or
  without it quimb, reaches after --iterations sweeps, and a thousandth of it more.

How it is measured:
- Beforehand, untimed: the fewest sweeps in which a method comes as near, for each seed.
- Then the methods take turns, once a seed; what is timed is the whole public call with that
  number of sweeps, from a kernel in the library's own kind of array to its own kind of result.
  The error is taken afterwards, from the result made dense.
- The median over the seeds counts. CPU seconds are given too: where the machine has other work,
  they change less.

Methods:
- tnalgebra: `apply` or `apply_many` with default settings, which is the best of 8 starts; and
  with one start. What a call does after its `sweeps` counts too (Gauss-Newton steps).
- tensorly: `parafac(init="random")`, `tensor_ring_als`, `partial_tucker`, one start, on the torch
  backend, which took half the time of numpy's; no test for convergence. And with line search.
- quimb: `fit(method="als")` on numpy arrays from one normal start, no test for convergence,
  greedy paths, which are found sooner than "auto-hq" ones and no worse here. By default it solves for
  larger cores by four steps of conjugate gradients; `dense_solve=True` solves exactly.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

import tnalgebra as tn
from models.registry import build_model
from models.weights import load_weights
from recipes.command import run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = tn.network.KERNEL_LABELS[4]

RULES = {
    "cp": "K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]",
    "tensor ring": "K[out in kh kw] => A[z out p] B[p in q] C[q kh s] D[s kw z]",
    "Tucker-2": "K[out in kh kw] => G[a b kh kw] U[out a] V[in b]",
}

MORE = 2
"""Times the sweeps of the reference that a method may take at most to come as near."""

MOST = 200
"""Sweeps that a method may take at most to come to an error that is given."""

NEAR = 1e-3
"""Part by which an error may lie above the reference's where several methods come to the same in the end."""

SLACK = 1e-9
"""Part of an error that is rounding: the same fit, once traced and once timed."""

COLOURS = {"tnalgebra": "#1f77b4", "tensorly": "#ff7f0e", "quimb": "#2ca02c"}

Ranks = Mapping[str, int]
Known = dict[tuple[str, str, tuple[str, ...], int, int], list[list[float]]]
"""Method, rule, layers, seed, most sweeps -> the errors of each layer after each sweep."""


@dataclass(frozen=True)
class Config:
    """Time fits to the same error: this library, tensorly, quimb."""

    weights: str | None = None
    """A ResNet-20's, as `models.weights.load_weights` reads it. None: random kernels with decaying spectra."""
    layer: str = "layer3.1.conv1"
    """The one kernel that is fitted alone."""
    layers: str = "*.conv?"
    """Glob of the layers that are fitted together; the first has no dot, and stays out."""
    error: float | None = None
    """Relative error of the CP of one kernel. None: as of the tensor ring."""
    iterations: int = 50
    """Sweeps of the reference, whose errors are to be reached."""
    seeds: int = 5
    """How many; the median counts."""
    threads: int = 1
    """Of torch and of numpy's BLAS. Matrices this small gain little from more."""
    smoke: bool = False
    """Two small kernels, three sweeps, one seed: whether all of it runs; its numbers mean nothing."""
    output: Path = Path("runs/fits")
    """Folder of the numbers (fits.json), the table (fits.md) and the figure."""


class Problem(NamedTuple):
    """What is fitted to what error.

    kernels: layer -> kernel. error: for all kernels; None: the reference's, see `errors_wanted`.
    """

    title: str
    rule: str
    kernels: Mapping[str, Tensor]
    error: float | None = None
    slack: float = SLACK
    """Part by which an error may be above the one wanted."""
    on_average: bool = False
    """Whether the mean over the kernels is to be reached, else the error of each."""


class Method(ABC):
    """A library with its settings. Kernels of one call have one shape."""

    name: str

    def suits(self, rule: str) -> bool:
        return True

    @abstractmethod
    def traced(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        """Relative error after each sweep, for each kernel; fewer than `most` where it stands still before."""

    @abstractmethod
    def prepared(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Callable[[], Any]:
        """The call that is timed. sweeps: for each kernel."""

    @abstractmethod
    def dense(self, result: Any) -> list[Tensor]:
        """The kernels that a call found."""


class Tnalgebra(Method):
    def __init__(self, name: str, **choices: int) -> None:
        self.name = name
        self.choices: Any = choices

    def suits(self, rule: str) -> bool:
        return rule != "Tucker-2" or not self.choices  # a tree starts from SVDs, once

    def traced(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        fits = self.prepared(rule, kernels, seed, [most])()
        return [list(fit.report.errors) for fit in fits]

    def prepared(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Callable[[], Any]:
        ranks = ranks_of(rule, kernels[0])
        right = tn.rule(RULES[rule])
        choices = {**self.choices, "ranks": ranks, "seed": seed, "sweeps": max(sweeps)}
        if len(kernels) == 1:
            return lambda: [right.apply({"K": kernels[0]}, **choices)]
        return lambda: right.apply_many([{"K": kernel} for kernel in kernels], **choices)

    def dense(self, result: Any) -> list[Tensor]:
        return [fit.dense() for fit in result]


class Tensorly(Method):
    def __init__(self, name: str, **choices: bool) -> None:
        self.name = name
        self.choices = choices
        self.library = import_module("tensorly")
        self.decomposition = import_module("tensorly.decomposition")
        self.library.set_backend("pytorch")

    def suits(self, rule: str) -> bool:
        if rule == "tensor ring" and not hasattr(self.decomposition, "tensor_ring_als"):
            return False
        return rule == "cp" or not self.choices

    def traced(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        return [self._traced(rule, kernel, seed, most) for kernel in kernels]

    def _traced(self, rule: str, kernel: Tensor, seed: int, most: int) -> list[float]:
        if rule == "Tucker-2":
            return [float(error) for error in self._fitted(rule, kernel, seed, most)[1]]
        errors: list[float] = []

        def note(found: Any, _: object) -> None:
            errors.append(relative_error(kernel, self._dense(found)))

        # its callback needs the errors that it makes for a test of convergence, and that test never passes
        self._fitted(rule, kernel, seed, most, callback=note, tol=1e-300)
        return errors[1:]  # the first is that of the start

    def _fitted(self, rule: str, kernel: Tensor, seed: int, sweeps: int, **more: Any) -> Any:
        ranks = ranks_of(rule, kernel)
        choices = {"n_iter_max": sweeps, "random_state": seed, "tol": 0, **more}
        if rule == "cp":
            choices |= {"tol": 1e-300, **self.choices} if self.choices else {}  # its line search needs the errors
            return self.decomposition.parafac(kernel, ranks["r"], init="random", **choices)
        if rule == "tensor ring":
            around = [ranks[bond] for bond in "zpqsz"]
            return self.decomposition.tensor_ring_als(kernel, around, ls_solve="normal_eq", **choices)
        return self.decomposition.partial_tucker(kernel, [ranks["a"], ranks["b"]], modes=[0, 1], **choices)

    def prepared(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Callable[[], Any]:
        return lambda: [self._fitted(rule, kernel, seed, count) for kernel, count in zip(kernels, sweeps, strict=True)]

    def dense(self, result: Any) -> list[Tensor]:
        return [self._dense(found) for found in result]

    def _dense(self, found: Any) -> Tensor:
        if hasattr(found, "to_tensor"):
            whole: Tensor = found.to_tensor()
            return whole
        (core, (U, V)), _ = found
        return torch.einsum("abhw,oa,ib->oihw", core, U, V)


class Quimb(Method):
    def __init__(self, name: str, **choices: bool) -> None:
        self.name = name
        self.choices = choices
        self.library = import_module("quimb.tensor")

    def traced(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        found = []
        for kernel in kernels:
            network = self._start(rule, kernel, seed)
            errors: list[float] = []
            for _ in range(most):  # a sweep knows nothing of those before it but their cores
                network = self._fitted(network, kernel, 1)
                errors.append(relative_error(kernel, self.dense([network])[0]))
            found.append(errors)
        return found

    def prepared(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Callable[[], Any]:
        return lambda: [
            self._fitted(self._start(rule, kernel, seed), kernel, count)
            for kernel, count in zip(kernels, sweeps, strict=True)
        ]

    def _start(self, rule: str, kernel: Tensor, seed: int) -> Any:
        generator = np.random.default_rng(seed)
        sizes = {**dict(zip(LABELS, kernel.shape, strict=True)), **ranks_of(rule, kernel)}
        _, right = tn.network.parse_rule(RULES[rule])
        return self.library.TensorNetwork(
            [
                self.library.Tensor(generator.standard_normal([sizes[label] for label in node.labels]), node.labels)
                for node in right.nodes
                if isinstance(node, tn.network.NamedTensor)
            ]
        )

    def _fitted(self, start: Any, kernel: Tensor, sweeps: int) -> Any:
        target = self.library.TensorNetwork([self.library.Tensor(kernel.numpy(), LABELS)])
        return start.fit(
            target,
            method="als",
            steps=sweeps,
            tol=0.0,
            output_inds=LABELS,
            contract_optimize="greedy",
            **self.choices,
        )

    def dense(self, result: Any) -> list[Tensor]:
        return [torch.from_numpy(network.contract(output_inds=LABELS).data) for network in result]


class Measured(NamedTuple):
    """One method on one problem; each list holds a number for each seed."""

    problem: str
    method: str
    seconds: list[float]
    cpu_seconds: list[float]
    sweeps: list[float]
    """Mean over the kernels."""
    errors: list[float]
    """Mean over the kernels."""
    missed: list[int]
    """Kernels that did not come as near as they had to."""


SMOKE: dict[str, Any] = {"layer": "layer1.0.conv1", "layers": "layer1.0.conv[12]", "iterations": 3, "seeds": 1}


def main(config: Config) -> list[Measured]:
    for name in ("iterations", "seeds", "threads"):
        if getattr(config, name) < 1:
            raise tn.errors.StudyError(tn.errors.explain(f"{name} is {getattr(config, name)}", fix="at least 1"))
    if config.smoke:
        config = replace(config, **SMOKE)
    for field in fields(config):
        print(f"{field.name:<16}{getattr(config, field.name)}")
    problems = chosen_problems(config)
    methods = chosen_methods()
    used = torch.get_num_threads()
    known: Known = {}
    torch.set_num_threads(config.threads)
    try:
        with _blas_threads(config.threads):
            measured = [row for problem in problems for row in compared(problem, methods, config, known)]
    finally:
        torch.set_num_threads(used)
    text = table(measured)
    print(text)
    packages = {name: version(name) for name in ("torch", "quimb", "numpy")} | {"tnalgebra": tn.__version__}
    if any(isinstance(method, Tensorly) for method in methods):
        packages["tensorly"] = version("tensorly")
    content = {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "versions": packages,
        "rows": [row._asdict() for row in measured],
    }
    tn.studies.write_text(config.output / "fits.json", json.dumps(content, indent=2) + "\n")
    listed = ", ".join(f"{name} {number}" for name, number in packages.items())
    tn.studies.write_text(
        config.output / "fits.md", f"{text}\n\n{config.seeds} seeds, {config.threads} thread(s); {listed}.\n"
    )
    drawing = figure(measured)
    for suffix in (".png", ".svg"):
        tn.studies.write_whole(config.output / f"fits{suffix}", lambda path: drawing.savefig(path, dpi=150))
    print(f"numbers, table and figure: {config.output}/")
    return measured


def chosen_problems(config: Config) -> list[Problem]:
    """What is asked; kernels in float64.

    Raises:
        StudyError: no layer has such a name, or it has no 3x3 kernel.
    """
    torch.manual_seed(0)
    model = build_model("resnet20", classes=10, channels=3)
    if config.weights is not None:
        load_weights(model, config.weights)
    kernels = {
        name: layer.weight.detach().double().contiguous()
        if config.weights is not None
        else random_kernel(layer.weight.shape, number)
        for number, (name, layer) in enumerate(tn.nn.kernel_layers(model).items())
        if layer.weight.shape[2:] == (3, 3)
    }
    several = {name: kernel for name, kernel in kernels.items() if fnmatchcase(name, config.layers)}
    for pattern, there in ((config.layers, bool(several)), (config.layer, config.layer in kernels)):
        if not there:
            raise tn.errors.StudyError(
                tn.errors.explain(f"no layer with a 3x3 kernel is called {pattern!r}", layers=" ".join(kernels))
            )
    one = {config.layer: kernels[config.layer]}
    shape = "x".join(map(str, kernels[config.layer].shape))
    ranks = {rule: "/".join(map(str, set(ranks_of(rule, kernels[config.layer]).values()))) for rule in RULES}
    many = f"CP of {len(several)} kernels"
    return [
        Problem(
            f"CP of one kernel, {shape}, rank {ranks['cp']}",
            "cp",
            one,
            error=config.error,
            slack=NEAR if config.error is None else SLACK,
        ),
        Problem(f"{many}, each as near", "cp", several),
        Problem(f"{many}, as near in the mean", "cp", several, on_average=True),
        Problem(f"tensor ring of one kernel, ranks {ranks['tensor ring']}", "tensor ring", one, slack=NEAR),
        Problem(f"Tucker-2 of one kernel, ranks {ranks['Tucker-2']}", "Tucker-2", one, slack=NEAR),
    ]


def random_kernel(shape: Sequence[int], seed: int) -> Tensor:
    """Normal numbers, the k-th channel of either side weighted with k^-1/2, and the channels mixed by rotations."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(*shape, dtype=torch.float64, generator=generator)
    for axis in (0, 1):
        size = shape[axis]
        square = torch.randn(size, size, dtype=torch.float64, generator=generator)
        weights = torch.arange(1, size + 1, dtype=torch.float64) ** -0.5
        kernel = torch.tensordot(kernel, torch.linalg.qr(square).Q * weights, dims=([axis], [1])).movedim(-1, axis)
    return kernel.contiguous()


def ranks_of(rule: str, kernel: Tensor) -> Ranks:
    """Bond -> rank: half the channels, and for a ring, whose cores have two bonds, about as many parameters as CP."""
    half = min(kernel.shape[:2]) // 2
    if rule == "tensor ring":
        return dict.fromkeys("zpqs", max(2, round(half**0.5)))
    return dict.fromkeys("r" if rule == "cp" else "ab", half)


def chosen_methods() -> list[Method]:
    """All methods; without those of a peer that is not installed, which is said."""
    methods: list[Method] = [Tnalgebra("tnalgebra"), Tnalgebra("tnalgebra, 1 start", starts=1)]
    try:
        methods += [Tensorly("tensorly"), Tensorly("tensorly, line search", linesearch=True)]
    except ModuleNotFoundError as error:
        print(f"without tensorly ({error}); it comes with the extra: pip install 'tnalgebra[bench]'")
    return [*methods, Quimb("quimb, dense_solve", dense_solve=True), Quimb("quimb")]


def compared(problem: Problem, methods: Sequence[Method], config: Config, known: Known) -> list[Measured]:
    """Find how many sweeps each method needs, then let them take turns. known: traces, for other problems too."""
    methods = [method for method in methods if method.suits(problem.rule)]
    rows = {method: Measured(problem.title, method.name, [], [], [], [], []) for method in methods}
    turns = tqdm(total=config.seeds * len(methods), desc=problem.title, unit="fit", disable=None)
    for seed in range(config.seeds):
        traces = _traces(problem, methods, seed, config.iterations, known)
        wanted = errors_wanted(problem, traces, config.iterations)
        for method, row in rows.items():
            sweeps = sweeps_needed(traces[method], wanted, on_average=problem.on_average)
            errors = _turn(problem, method, seed, sweeps, row)
            row.sweeps.append(fmean(sweeps.values()))
            row.errors.append(fmean(errors.values()))
            row.missed.append(_missed(errors, wanted, on_average=problem.on_average))
            turns.update()
    turns.close()
    return list(rows.values())


def _traces(
    problem: Problem, methods: Sequence[Method], seed: int, iterations: int, known: Known
) -> dict[Method, dict[str, list[float]]]:
    """Method -> layer -> errors after each sweep."""
    reference = _reference(methods)
    found: dict[Method, dict[str, list[float]]] = {}
    for method in methods:
        found[method] = {}
        most = MOST if problem.error is not None else iterations * (1 if method is reference else MORE)
        for names in _alike(problem.kernels):
            key = (method.name, problem.rule, tuple(names), seed, most)
            if key not in known:
                known[key] = method.traced(problem.rule, [problem.kernels[name] for name in names], seed, most)
            found[method] |= dict(zip(names, known[key], strict=True))
    return found


def _reference(methods: Iterable[Method]) -> Method:
    """Whose errors are to be reached: the first peer."""
    return next(method for method in methods if not isinstance(method, Tnalgebra))


def errors_wanted(
    problem: Problem, traces: Mapping[Method, Mapping[str, Sequence[float]]], iterations: int
) -> dict[str, float]:
    """Layer -> the error to be reached: one that is given, or the reference's."""
    if problem.error is not None:
        return dict.fromkeys(problem.kernels, problem.error)
    errors = traces[_reference(traces)]
    return {name: errors[name][:iterations][-1] * (1 + problem.slack) for name in problem.kernels}


def sweeps_needed(
    traces: Mapping[str, Sequence[float]], wanted: Mapping[str, float], *, on_average: bool
) -> dict[str, int]:
    """Layer -> the fewest sweeps; where no number of them is enough, all there are."""
    longest = max(map(len, traces.values()))
    if on_average:
        enough = fmean(wanted.values()) * (1 + SLACK)
        means = (fmean(errors[min(sweep, len(errors) - 1)] for errors in traces.values()) for sweep in range(longest))
        sweeps = next((sweep for sweep, mean in enumerate(means, 1) if mean <= enough), longest)
        return dict.fromkeys(traces, sweeps)
    return {
        name: next((sweep for sweep, error in enumerate(errors, 1) if error <= wanted[name] * (1 + SLACK)), len(errors))
        for name, errors in traces.items()
    }


def _turn(problem: Problem, method: Method, seed: int, sweeps: Mapping[str, int], row: Measured) -> dict[str, float]:
    """Time the fit of all kernels; layer -> its error."""
    errors: dict[str, float] = {}
    seconds = cpu = 0.0
    for names in _alike(problem.kernels):
        kernels = [problem.kernels[name] for name in names]
        call = method.prepared(problem.rule, kernels, seed, [sweeps[name] for name in names])
        started, cpu_started = perf_counter(), process_time()
        result = call()
        seconds += perf_counter() - started
        cpu += process_time() - cpu_started
        for name, kernel, dense in zip(names, kernels, method.dense(result), strict=True):
            errors[name] = relative_error(kernel, dense)
    row.seconds.append(seconds)
    row.cpu_seconds.append(cpu)
    return errors


def _missed(errors: Mapping[str, float], wanted: Mapping[str, float], *, on_average: bool) -> int:
    if on_average:
        return int(fmean(errors.values()) > fmean(wanted.values()) * (1 + 2 * SLACK))
    return sum(error > wanted[name] * (1 + 2 * SLACK) for name, error in errors.items())


def _alike(kernels: Mapping[str, Tensor]) -> list[list[str]]:
    """Layers in groups of one shape."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, kernel in kernels.items():
        groups.setdefault(tuple(kernel.shape), []).append(name)
    return list(groups.values())


def relative_error(kernel: Tensor, dense: Tensor) -> float:
    """||kernel - dense|| / ||kernel||."""
    return float(torch.linalg.vector_norm(kernel - dense) / torch.linalg.vector_norm(kernel))


def _blas_threads(threads: int) -> AbstractContextManager[object]:
    """Limit numpy's BLAS; torch is told by itself."""
    limits: AbstractContextManager[object] = threadpool_limits(threads, user_api="blas")
    return limits


def table(measured: Sequence[Measured]) -> str:
    """Medians as a table in Markdown; ratios are to this library's default settings, the first line of a problem."""
    lines = [
        "| problem | method | sweeps | error | seconds | times ours | CPU seconds | times ours | missed |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours: Measured | None = None
    for row in measured:
        first = ours is None or ours.problem != row.problem
        if first:
            ours = row
        assert ours is not None
        seconds, cpu = median(row.seconds), median(row.cpu_seconds)
        cells = [
            row.problem if first else "",
            row.method,
            f"{median(row.sweeps):.3g}",
            f"{median(row.errors):.4f}",
            f"{seconds:.3f}",
            f"{seconds / median(ours.seconds):.2g}",
            f"{cpu:.3f}",
            f"{cpu / median(ours.cpu_seconds):.2g}",
            str(sum(row.missed)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(measured: Sequence[Measured]) -> Figure:
    """Seconds of every method: a bar for the median, a point for each seed, one panel a problem."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row.problem for row in measured))
    rows_of = {panel: [row for row in measured if row.problem == panel] for panel in panels}
    heights = [len(rows) + 1.5 for rows in rows_of.values()]
    drawing = Figure(figsize=(7.5, 0.3 * sum(heights) + 0.6), layout="constrained")
    axes = drawing.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (panel, rows) in zip(axes, rows_of.items(), strict=True):
        medians = [median(row.seconds) for row in rows]
        colours = [COLOURS[row.method.partition(",")[0]] for row in rows]
        axis.barh(range(len(rows)), medians, color=colours, alpha=0.75)
        for place, row in enumerate(rows):
            axis.plot(row.seconds, [place] * len(row.seconds), ".", color="black", markersize=3)
        highest = max(max(row.seconds) for row in rows)
        axis.set_xlim(0, highest * 1.25)
        for place, (row, seconds) in enumerate(zip(rows, medians, strict=True)):
            axis.annotate(
                f"{seconds:.3g} s" + (f", {sum(row.missed)} missed" if any(row.missed) else ""),
                (max(row.seconds), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(panel, fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds to the same error: median over the seeds, and each seed", fontsize=9)
    return drawing


if __name__ == "__main__":
    run_command(Config, main, description=__doc__)
