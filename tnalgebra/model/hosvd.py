"""The higher-order singular value decomposition (HOSVD) of a tensor: an orthonormal basis for every label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..networks import KERNEL_LABELS, Bipartition, labels_of
from ..tensors import Operand, as_tensor, check_axes, contract, in_precision, matricise, scaled, truncated_svd


@dataclass(frozen=True, eq=False)
class HOSVD:
    """tensor[i, j, ...] = sum core[a, b, ...] factor[i, a] factor'[j, b] ...: one factor a label.

    The core's slices along a label are orthogonal to each other, and their norms are that label's singular values
    (De Lathauwer, De Moor, Vandewalle, A multilinear singular value decomposition, 2000, theorem 2).
    """

    core: Tensor
    """One axis a label, in their order; element [a, b, ...] is the weight of the mode vectors a, b, ... together."""
    factors: Mapping[str, Tensor]
    """label -> shape (size, r), orthonormal columns; element [i, a] is element i of the a-th mode vector."""
    singular_values: Mapping[str, Tensor]
    """label -> shape (r,), descending: the spectrum of the cut of this label from all others."""


def hosvd(tensor: Tensor | NDArray[Any], labels: str | Sequence[str] | None = None) -> HOSVD:
    """The higher-order singular value decomposition: an orthonormal basis for every label, and the core.

    Args:
        tensor: one axis a label, of any real or complex type.
        labels: at least two, all different: "out in kh kw" or a sequence; by default those of a kernel with as many
            axes.

    Raises:
        ValuesError: another number of axes, a label that occurs twice, empty, or NaN or infinity inside.
        RuleError: only one label.
    """
    tensor = as_tensor(tensor)
    labels = labels_of(KERNEL_LABELS.get(tensor.ndim, ()) if labels is None else labels)
    check_axes(tensor, labels)
    scaled(tensor)
    factors: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for label in labels:
        cut = Bipartition((label,), tuple(other for other in labels if other != label))
        factors[label], values[label] = truncated_svd(matricise(tensor, labels, cut))[:2]
    mode = {label: f"{label} mode" for label in labels}
    operands: list[Operand] = [(factors[label].conj(), (label, mode[label])) for label in labels]
    numbers = in_precision(tensor.detach(), torch.float64)
    core = contract([(numbers, tuple(labels)), *operands], [mode[label] for label in labels])
    return HOSVD(core, factors, values)
