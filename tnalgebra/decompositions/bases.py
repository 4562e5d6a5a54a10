"""Orthonormal bases that a rule can name, made for any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import RuleError, explain


def dct(size: int) -> Tensor:
    """The orthonormal discrete cosine transform of type 2.

    Returns:
        Shape (size, size), float64; element [c, x] is sqrt(2 / size) cos(pi (x + 1/2) c / size), the row c = 0 divided
        by sqrt(2) (Ahmed, Natarajan, Rao 1974).
    """
    rows, columns = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = math.sqrt(2 / size) * torch.cos(math.pi * (columns + 0.5) * rows / size)
    basis[0] /= math.sqrt(2)
    return basis


BASES: Mapping[str, Callable[[int], Tensor]] = {"dct": dct}
"""Name -> the square matrix of a size, with orthonormal rows."""


def check_basis(name: object) -> None:
    """Raises RuleError if there is no basis of that name."""
    if name not in BASES:
        raise RuleError(explain(f"there is no basis {name!r}", known=", ".join(BASES)))
