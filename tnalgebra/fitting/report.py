"""How cores are searched for, and what is reported of a search."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import SupportsIndex, TypeAlias

import torch

from ..errors import ValuesError
from .als import Cores


@dataclass(frozen=True)
class Settings:
    """How cores are searched for.

    Attributes:
        seed: of the first guesses, from 0 to 2^63 - 1.
        starts: how many first guesses are fitted side by side, from 1 to 4096; the best end is kept. A tree is fitted
            by SVDs and needs none. Above 8 million elements a kernel has fewer, so that they fit into memory.
        sweeps: the most sweeps over all cores. With 0, the result is the best first guess, or the SVDs of a tree.
        dtype: of the computation, torch.float64 or torch.float32.
        stability: how much small cores are worth, from 0 to 1. The search minimises ||K - K~||^2 * (1 + B)^stability,
            where B is the product of the squared norms of the cores over ||K||^2, for a CP one product for each
            component (see `Objective.merit`). So terms do not cancel each other, and the cores can be trained and
            rounded. With 0, the error alone is minimised, as that of a tree always is, because its best approximation
            has no terms that cancel.

    Raises:
        ValuesError: a setting is out of its range.
    """

    seed: int = 0
    starts: int = 16
    sweeps: int = 200
    dtype: torch.dtype = torch.float64
    stability: float = 0.01

    def __post_init__(self) -> None:
        for name, least, most in (("seed", 0, 2**63 - 1), ("starts", 1, 4096), ("sweeps", 0, 2**31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not least <= index(value) <= most:
                fact = f"{name}={value!r} is not an integer from {least} to {most}"
                raise ValuesError(fact, fix=f"{name}={getattr(Settings, name)}")
            object.__setattr__(self, name, index(value))  # JSON cannot hold a NumPy integer
        stability = self.stability
        if isinstance(stability, bool) or not isinstance(stability, int | float) or not 0 <= stability <= 1:
            raise ValuesError(f"stability={stability!r} is not a number from 0 to 1", fix="stability=0.01")
        if self.dtype not in (torch.float32, torch.float64):
            fact = f"a fit cannot be computed in {self.dtype}"
            raise ValuesError(fact, fix="dtype=torch.float64 or torch.float32")


@dataclass(frozen=True)
class FitReport:
    """How a fit went.

    Attributes:
        method: the methods that found the cores, in order.
        errors: the relative error after each sweep or step, in the norm that was minimised.
        starts: the relative error of each start that was followed to the end, with the one that was kept first.
        converged: whether the fit came to a stop before its sweeps were used up.
        degeneracy: sqrt(sum of ||component||^2) / ||K||, where a component is the term at one value of every bond. Far
            above 1, large components cancel each other (de Silva and Lim 2008), and this is by how much rounding and
            noise in the cores are amplified.
        relative_error: ||K - K~|| / ||K|| in the Frobenius norm.
        output_error: the relative error of the layer's output, for a fit in a metric.
        price: what stability costs: the part of the error that ten more sweeps for the error alone take away.
    """

    method: str
    errors: tuple[float, ...]
    starts: tuple[float, ...]
    converged: bool
    degeneracy: float = 0.0
    relative_error: float = 0.0
    output_error: float | None = None
    price: float = 0.0

    def __str__(self) -> str:
        state = "converged" if self.converged else "not converged,"
        starts = " ".join(f"{error:.3g}" for error in self.starts)
        return (
            f"{self.method}: {len(self.errors)} sweeps, {state} at {self.errors[-1]:.4g} "
            f"(starts {starts}), degeneracy {self.degeneracy:.3g} for {self.price:.2%} of the error"
        )

    __repr__ = __str__


SearchResult: TypeAlias = tuple[Cores, FitReport]
"""The cores of one kernel by name, and the report, at first without the degeneracy and the errors of the result."""
