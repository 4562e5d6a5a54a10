"""The values of a network in their own precision: checked, contracted and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..networks import Network
from .contraction import contract
from .evaluation import Values, bind, operands, values_for


def bind_values(network: Network, values: Mapping[str, Any]) -> tuple[Network, dict[str, Tensor]]:
    """`evaluation.bind`, with integers as float64 and without gradients, which is what a rewrite needs."""
    network, tensors = bind(network, values)
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    return network, {n: t if t.is_floating_point() else t.double() for n, t in tensors.items()}


def relative(difference: Tensor, reference: Tensor) -> float:
    """||difference||_F / ||reference||_F. It is 0 if both are 0, and infinite if only the reference is."""
    above, below = norm(difference), norm(reference)
    return above and (above / below if below else math.inf)


def norm(tensor: Tensor) -> float:
    """||tensor||_F in float64, even where the squares of the elements would overflow or vanish."""
    tensor = tensor.double()
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return largest and largest * float(torch.linalg.vector_norm(tensor / largest))


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The type to which all of the tensors can be converted without loss; float64 without any tensor."""
    dtypes = [tensor.dtype for tensor in tensors]
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float64


def value_of(network: Network, values: Values, *, dtype: torch.dtype | None = None) -> Tensor:
    """The value of a network in `dtype`, with dense index patterns. By default it is the values' common type."""
    network, tensors = bind(network, values_for(network, values))
    return contract(operands(network, tensors, dtype or common_dtype(tensors.values())), network.output)
