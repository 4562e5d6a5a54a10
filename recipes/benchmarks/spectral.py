"""Time long windows and bases by the plans of `tn.compile`, and the singular values of whole layers.

    pip install torch-fftconv
    python -m recipes.benchmarks.spectral
    python -m recipes.benchmarks.spectral --smoke

For a long depthwise window four calls take turns, and medians are compared:
- `dense` (twice): torch's own convolution, which pads two axes itself, and whose input is padded on one;
- `ours`: the module that `tn.compile` makes, measured as it is by default;
- `torch-fftconv`: the same convolution by the package of that name.

For a product with an orthonormal basis, forward:
- `dense` (twice): `torch.nn.functional.linear` with its matrix, which is ready;
- `fast`: the plan that may not make a tensor of so many elements as the matrix, and so applies a fast transform;
- `ours`: the module that `tn.compile` makes, measured as it is by default.

For a layer as a map of whole inputs, whose windows are circular:
- `dense` (twice): `torch.linalg.svdvals` of the map's matrix, which is ready in float64;
- `ours`: `tn.operator_spectra`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import tnalgebra as tn
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned, check_known

WINDOWS = {
    **{f"causal, n=k={n}": ((n,), (n,)) for n in (1024, 4096, 16384)},
    **{f"causal, n=16384, k={k}": ((16384,), (k,)) for k in (5, 63, 127, 255, 1023)},
    **{f"56x56, {k}x{k}": ((56, 56), (k, k)) for k in (3, 7, 13, 31, 51)},
}
"""name -> the positions of the input and the size of the window."""

TRANSFORMS = {f"{basis}, n={n}": (basis, n) for basis in tn.tensors.BASES for n in (64, 256, 1024, 4096)}
"""name -> a basis and its size."""

MAPS = {
    "4 -> 4, 8x8": (4, 4, 1, 8),
    "8 -> 8, 16x16": (8, 8, 1, 16),
    "16 -> 16, 16x16": (16, 16, 1, 16),
    "8 -> 16, 32x32, stride 2": (8, 16, 2, 32),
}
"""name -> channels in and out, stride and positions of a 3x3 layer."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time long windows, products with bases and the singular values of whole layers."""

    layers: tuple[str, ...] = (*WINDOWS, *TRANSFORMS, *MAPS)
    """long windows, bases, and layers whose singular values are computed"""
    channels: int = 16
    """channels of the depthwise windows; one image"""
    rounds: int = 15
    """turns of each contender"""
    output: Path = Path("runs/benchmark-spectral")
    """folder for the rows (results.jsonl) and the table"""


class Problem(NamedTuple):
    calls: dict[str, Callable[[int], Any]]
    error: float


class SpectralBenchmark(Benchmark[Config, str, Problem]):
    name = "spectral"
    warmup = 2

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(
            config, layers=("causal, n=k=1024", "haar, n=64", "4 -> 4, 8x8"), rounds=1, channels=2
        )

    def cells(self) -> list[str]:
        check_known("layer", self.config.layers, (*WINDOWS, *TRANSFORMS, *MAPS))
        return list(self.config.layers)

    def facts(self, cell: str) -> Row:
        return {"cell": cell, "channels": self.config.channels}

    def contenders(self, cell: str) -> list[str]:
        peers = ["torch-fftconv"] if cell in WINDOWS and find_spec("torch_fftconv") else []
        peers += ["fast"] * (cell in TRANSFORMS)
        return ["dense", f"dense{AGAIN}", "ours", *peers]

    def problem(self, cell: str) -> Problem:
        torch.manual_seed(self.config.seed)
        if cell in TRANSFORMS:
            return transform(*TRANSFORMS[cell])
        return long_window(*WINDOWS[cell], self.config.channels) if cell in WINDOWS else operator(*MAPS[cell])

    def about(self, problem: Problem) -> Row:
        return {"error": problem.error}

    def contender(self, name: str, problem: Problem) -> Contender:
        return Contender(problem.calls[name.removesuffix(AGAIN)])

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each cell: the ratios of dense to ours and to the peer, and of dense to itself."""
        lines = [["cell", "dense ms", "ours ms", "dense / ours", "dense / peer", "peer", "dense / dense", "error"]]
        for row in rows:
            times = {name: one["seconds"] for name, one in row["contenders"].items()}
            ours, dense = times["ours"], times["dense"]
            name = next((one for one in times if one in ("torch-fftconv", "fast")), "")
            ratios = [
                f"{dense / ours:.2f}",
                f"{dense / times[name]:.2f}" if name else "",
                name,
                f"{dense / times[f'dense{AGAIN}']:.2f}",
            ]
            lines.append([row["cell"], f"{1e3 * dense:.3f}", f"{1e3 * ours:.3f}", *ratios, f"{row['error']:.0e}"])
        return aligned(lines, ruled=False)


def long_window(size: Sequence[int], window: Sequence[int], channels: int) -> Problem:
    """A depthwise convolution: causal on one axis, centred on two."""
    x, kernel = torch.randn(1, channels, *size), torch.randn(channels, *window) / prod(window)
    axes = len(size)
    pads = [(k - 1, 0) if axes == 1 else (k // 2, k // 2) for k in window]
    flat = [end for pair in reversed(pads) for end in pair]
    windows = " ".join(
        f"Conv[{'xy'[axis]} {'uv'[axis]} {'kh'[axis]} | padding={low}:{high}]" for axis, (low, high) in enumerate(pads)
    )
    text = f"X[n c {' '.join('xy'[:axes])}] {windows} K[c {' '.join('kh'[:axes])}] -> [n c {' '.join('uv'[:axes])}]"
    module = tn.compile(text, inputs={"X": tuple(x.shape)}, values={"K": kernel})
    direct: Any = (functional.conv1d, functional.conv2d)[axes - 1]
    by_call = {"padding": tuple(k // 2 for k in window)} if axes == 2 else {}

    def padded() -> Tensor:
        return x if by_call else functional.pad(x, flat)

    calls: dict[str, Callable[[int], Any]] = {
        "dense": lambda _: direct(padded(), kernel[:, None], groups=channels, **by_call),
        "ours": lambda _: module(x),
    }
    if find_spec("torch_fftconv"):
        peer = getattr(import_module("torch_fftconv"), f"fft_conv{axes}d")
        calls["torch-fftconv"] = lambda _: peer(padded(), kernel[:, None], groups=channels, **by_call)
    calls = {name: _without_gradients(call) for name, call in calls.items()}
    expected = calls["dense"](0)
    error = max(float((call(0) - expected).abs().max() / expected.abs().max()) for call in calls.values())
    if error > 1e-4:
        raise tn.errors.StudyError(f"the values differ by {error:.1e} of the largest", window=tuple(window))
    return Problem(calls, error)


def transform(basis: str, size: int) -> Problem:
    """A product of rows, of which there are at most 256, with the matrix of a basis."""
    rows = min(256, size // 2)
    x, matrix = torch.randn(rows, size), tn.evaluate(f"P[a:{size} i]", {"P": basis}).float()
    make = partial(tn.compile, "X[n i] P[a i] -> [n a]", inputs={"X": (rows, size)}, values={"P": basis})
    ours, fast = make(), make(tune=False, max_elements=size**2 - 1)
    calls: dict[str, Callable[[int], Any]] = {
        "dense": lambda _: functional.linear(x, matrix),
        "ours": lambda _: ours(x),
        "fast": lambda _: fast(x),
    }
    calls = {name: _without_gradients(call) for name, call in calls.items()}
    expected = calls["dense"](0)
    error = max(float((call(0) - expected).abs().max() / expected.abs().max()) for call in calls.values())
    if error > 1e-4:
        raise tn.errors.StudyError(f"the values differ by {error:.1e} of the largest", basis=basis)
    return Problem(calls, error)


def operator(inside: int, outside: int, stride: int, size: int) -> Problem:
    """A circular 3x3 layer, and the matrix of its map."""
    layer = torch.nn.Conv2d(inside, outside, 3, stride, 1, padding_mode="circular", bias=False, dtype=torch.float64)
    unit = torch.eye(inside * size**2, dtype=torch.float64).reshape(-1, inside, size, size)
    with torch.no_grad():
        matrix = layer(unit).flatten(1)
    calls: dict[str, Callable[[int], Any]] = {
        "dense": lambda _: torch.linalg.svdvals(matrix),
        "ours": lambda _: tn.operator_spectra(layer, size).singular_values,
    }
    expected: Tensor = calls["dense"](0)
    return Problem(calls, float((calls["ours"](0) - expected).abs().max() / expected[0]))


def _without_gradients(call: Callable[[int], Any]) -> Callable[[int], Any]:
    return torch.no_grad()(call)


main = partial(run, SpectralBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
