"""How much faster the spectra of all cuts are than `torch.linalg.svdvals`, and how accurate.

    python -m recipes.benchmark_spectra
    python -m recipes.benchmark_spectra --smoke
    python -m recipes.benchmark_spectra --layers "layer1.*" --rounds 5

The kernels are ResNet-50's. For every layer are compared, in medians over the rounds:
- the time of `tnalgebra.spectra` on its weight (float32, all cuts, everything included);
- the time that `torch.linalg.svdvals` takes on the same matricisations, ready in float64.
  The two take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from statistics import median
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

import tnalgebra as tn
from models.registry import build_model
from models.weights import load_weights
from recipes.command import run_command

FLOOR = 1e-6  # singular values above this part of the largest are compared; a Gram matrix cannot see far below it

Result = TypeVar("Result")


@dataclass(frozen=True)
class Config:
    """Time the spectra of ResNet-50's kernels against svdvals."""

    layers: str = "*"
    """Glob of layer names, to measure fewer: "layer4.*" holds the largest kernels, "*.conv2" the 3x3 ones."""
    rounds: int = 1
    """Turns each side takes on a layer; the median counts. One is enough for a total over 54 layers."""
    weights: str | None = None
    """A checkpoint, as `models.weights.load_weights` reads it. None: random ones, which cost the same time."""
    seed: int = 0
    """Of the random weights."""
    threads: int | None = None
    """torch's threads for both sides. None: as many as torch takes by itself."""
    smoke: bool = False
    """Two small kernels only: whether all of it runs."""
    device: str = "cpu"
    """Where both sides compute: cpu, cuda, cuda:1."""


class Measured(NamedTuple):
    """One layer."""

    ours: float
    """Seconds, median."""
    svdvals: float
    """Seconds, median."""
    worst: float
    """Largest difference of two singular values over the largest value of their cut."""


SMOKE = "layer1.0.conv[12]"


def main(config: Config) -> None:
    if config.smoke:
        config = replace(config, layers=SMOKE, rounds=1)
    for field in fields(config):
        print(f"{field.name:<16}{getattr(config, field.name)}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    weights = chosen_weights(config)
    _measure(torch.eye(8, device=config.device), 1)  # the first calls load libraries
    measured: dict[str, Measured] = {}
    bar = tqdm(weights.items(), desc="kernels", unit="kernel")
    for name, weight in bar:
        bar.set_postfix_str(name)
        measured[name] = _measure(weight, config.rounds)
    print(table(measured, {name: tuple(weight.shape) for name, weight in weights.items()}))


def chosen_weights(config: Config) -> dict[str, Tensor]:
    """name -> weight of every layer that the config asks for, float32.

    Raises:
        StudyError: no layer has such a name, or fewer than one round is asked for.
    """
    if config.rounds < 1:
        raise tn.errors.StudyError(tn.errors.explain(f"rounds is {config.rounds}", fix="at least 1"))
    torch.manual_seed(config.seed)
    model = build_model("resnet50", classes=1000, channels=3)
    if config.weights is not None:
        load_weights(model, config.weights)
    found = {
        name: layer.weight.detach().to(config.device)
        for name, layer in tn.nn.kernel_layers(model).items()
        if fnmatchcase(name, config.layers)
    }
    if not found:
        names = " ".join(tn.nn.kernel_layers(model))
        raise tn.errors.StudyError(tn.errors.explain(f"no layer is called {config.layers!r}", layers=names))
    return found


def table(measured: Mapping[str, Measured], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The layers in lines, then the totals over all of them."""
    width = max(map(len, measured))
    lines = [f"{'layer':<{width}}  {'shape':>18}  {'ours s':>9}  {'svdvals s':>9}  {'ratio':>6}  worst difference"]
    for name, (ours, svdvals, worst) in measured.items():
        shape = "x".join(map(str, shapes[name]))
        lines.append(f"{name:<{width}}  {shape:>18}  {ours:9.4f}  {svdvals:9.4f}  {svdvals / ours:6.1f}  {worst:.1e}")
    ours = sum(layer.ours for layer in measured.values())
    svdvals = sum(layer.svdvals for layer in measured.values())
    worst = max(layer.worst for layer in measured.values())
    lines += [
        f"total ratio: {svdvals / ours:.2f} ({svdvals:.2f} s of svdvals over {ours:.2f} s of ours)",
        f"worst difference: {worst:.1e} of the largest value, over values above {FLOOR:g} of it",
    ]
    return "\n".join(lines)


def _measure(weight: Tensor, rounds: int) -> Measured:
    cuts = [item.cut for item in tn.spectra(weight)]
    matrices = [
        tn.tensors.matricise(weight.double(), tn.network.KERNEL_LABELS[weight.ndim], cut).contiguous() for cut in cuts
    ]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        found, seconds = _timed(lambda: tn.spectra(weight), weight.device)
        ours.append(seconds)
        expected, seconds = _timed(lambda: [torch.linalg.svdvals(matrix) for matrix in matrices], weight.device)
        theirs.append(seconds)
    return Measured(median(ours), median(theirs), _worst_difference(found, [values.cpu() for values in expected]))


def _timed(compute: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = perf_counter()
    result = compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, perf_counter() - start


def _worst_difference(found: tn.model.Spectra, expected: list[Tensor]) -> float:
    worst = 0.0
    for spectrum, values in zip(found, expected, strict=True):
        counted = values > FLOOR * values[0]
        difference = (spectrum.singular_values - values).abs()[counted]
        worst = max(worst, float(difference.max() / values[0]))
    return worst


if __name__ == "__main__":
    run_command(Config, main, description=__doc__)
