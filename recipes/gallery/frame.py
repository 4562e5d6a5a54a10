"""What every page of the gallery has: the cores of a paper, a check, what a user gains, and what lies outside."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.benchmarks.timing import time_in_turns

TOLERANCE = 1e-10
"""The largest relative difference in float64 that passes: references sum in other orders."""

NAMES = (
    "orthogonal_cnn",
    "inceptionnext",
    "wave_simulators",
    "unireplknet",
    "scaling_up_kernels",
    "snnk",
    "deep_kernel_machines",
    "wide_cnn_kernels",
    "deeprftv2",
    "fdconv",
    "qmcpy",
    "hyperzzw",
    "lie_decompositions",
    "dpp_volume_sampling",
    "online_dictionary",
    "sgconv",
    "flashbutterfly",
    "dolg",
    "semi_parametric",
    "continual_inference",
    "svd_free_dct",
    "dcls",
    "cnn_filter_db",
    "locally_connected",
    "spartan",
    "auon",
    "rpe_attention",
)
"""The papers, in the order of their pages."""

Cores: TypeAlias = Mapping[str, tn.Network]
"""What a core computes, in a few words -> its network, whose sizes are all known."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper and its cores. Texts are Markdown; the docstring of the recipe says what the paper does."""

    title: str
    """as it was published"""
    arxiv: str
    """its number on arXiv"""
    source: str
    """the public code, or the text, with which the formulas were compared"""
    cores: Cores
    check: Callable[[Cores], dict[str, float]]
    """what is compared -> the relative difference of the cores' value from a reference without the library"""
    gain: Callable[[], dict[str, float]] | None = None
    """what is measured -> the number"""
    outside: str
    """what of the paper the algebra does not have"""
    tolerance: float = TOLERANCE
    """the largest difference that passes; above the usual one where the library itself promises less"""


def paper(name: str) -> Paper:
    """The paper of a recipe."""
    result: Paper = importlib.import_module(f"recipes.gallery.{name}").PAPER
    return result


def text(name: str) -> str:
    """What the paper of a recipe does, and how the cores say it."""
    return inspect.getdoc(importlib.import_module(f"recipes.gallery.{name}")) or ""


def verify(name: str, cores: Cores | None = None) -> float:
    """The largest difference between the cores of a paper and its reference.

    Args:
        cores: other networks in their place, for instance wrong ones.

    Raises:
        StudyError: a difference is above the tolerance.
    """
    one = paper(name)
    differences = one.check(one.cores if cores is None else cores)
    for what, difference in differences.items():
        if not difference <= one.tolerance:
            raise tn.errors.StudyError(
                "a core differs from its reference",
                paper=f"{name}, {what}",
                difference=f"{difference:.3g}",
                allowed=f"{one.tolerance:g}",
            )
    return max(differences.values())


def sized(text: str, **sizes: int) -> tn.Network:
    """A network from its text and the sizes of labels, which are written wherever the labels occur."""
    nodes, arrow, output = text.partition("->")
    for label, size in sizes.items():
        nodes = re.sub(rf"(?<=[\[ ]){label}(?=[\] ])", f"{label}:{size}", nodes)
    return tn.parse(nodes + arrow + output)


def random_values(network: tn.Network, seed: int = 0) -> dict[str, Tensor]:
    """Standard normal elements in float64 for every named tensor of a network."""
    generator = torch.Generator().manual_seed(seed)
    shapes = tn.networks.shapes(network)
    return {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


def value(network: tn.Network, values: Mapping[str, Tensor | str]) -> Tensor:
    """The value of a network by its compiled program, after a comparison with the slow and obvious evaluation.

    Args:
        values: of all its tensors; the name of a basis is one.

    Raises:
        StudyError: the two differ.
    """
    inputs = {name: one for name, one in values.items() if isinstance(one, Tensor)}
    bases = {name: one for name, one in values.items() if name not in inputs}
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    program = tn.compile(network, inputs=shapes, values=bases, tune=False)
    computed: Tensor = program(**inputs)
    if difference(computed, tn.evaluate(network, values)) > TOLERANCE:
        raise tn.errors.StudyError("the compiled program differs from the evaluation", network=str(network))
    return computed


def difference(computed: Tensor, expected: Tensor) -> float:
    """||computed - expected|| / ||expected||; infinity for other shapes."""
    if computed.shape != expected.shape:
        return float("inf")
    return float((computed.detach() - expected).norm() / expected.norm())


def digits() -> tuple[Tensor, Tensor]:
    """1797 images of digits, shape (1797, 1, 8, 8), with elements from 0 to 1, and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(classes)


def times_faster(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 15) -> float:
    """How many times as long the fastest of `theirs` takes as the fastest of `ours`; the two take turns."""
    with torch.no_grad():
        calls = {"ours": lambda _: ours(), "theirs": lambda _: theirs()}
        times = time_in_turns(calls, rounds=rounds, warmup=1)
    return min(times["theirs"]) / min(times["ours"])
