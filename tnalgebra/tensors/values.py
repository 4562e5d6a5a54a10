"""The values of a network in their own precision: checked, contracted and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..networks import Network, all_nodes
from .contraction import contract
from .evaluation import Values, add_up, bind, operands, values_for
from .numbers import in_precision, largest

_PLAIN = 1e-100, 1e100
"""Between these norms the squares of elements neither overflow nor vanish in float64."""

_BLOCK = 2**22
"""Elements of a tensor whose norm is computed at once, which take 32 MiB in float64."""


def bind_values(network: Network, values: Mapping[str, Any]) -> tuple[Network, dict[str, Tensor]]:
    """`evaluation.bind`, with integers as float64 and without gradients, which is what a rewrite needs."""
    network, tensors = bind(network, values)
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    return network, {n: t if t.is_floating_point() or t.is_complex() else t.double() for n, t in tensors.items()}


def relative(difference: Tensor, reference: Tensor) -> float:
    """||difference||_F / ||reference||_F. It is 0 if both are 0, and infinite if only the reference is."""
    above, below = norm(difference), norm(reference)
    return above and (above / below if below else math.inf)


def norm(tensor: Tensor) -> float:
    """||tensor||_F in float64, even where the squares of the elements would overflow or vanish.

    It is computed block by block, so that it needs little memory besides the tensor.
    """
    if not tensor.numel():
        return 0.0
    if tensor.numel() <= _BLOCK:
        plain = float(torch.linalg.vector_norm(in_precision(tensor, torch.float64)))
        if _PLAIN[0] < plain < _PLAIN[1]:
            return plain
    scale = abs(largest(tensor))
    blocks = (
        (in_precision(block, torch.float64) / scale for block in torch.split(tensor.reshape(-1), _BLOCK))
        if scale
        else ()
    )
    return scale * math.hypot(*(float(torch.linalg.vector_norm(block)) for block in blocks))


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The type to which all of the tensors can be converted without loss; float64 without any tensor."""
    dtypes = [tensor.dtype for tensor in tensors]
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float64


def target_of(network: Network, values: Values, dtype: torch.dtype) -> Tensor:
    """The value of a network as the target of a fit, in a type that has at least the digits of `dtype`.

    A tensor by itself is its own value, in its own type, so that a large kernel is not copied.
    """
    nodes = [*all_nodes(network)]
    alone = len(nodes) == 1 and sorted(nodes[0].labels) == sorted(network.output)
    own = common_dtype(values_for(network, values).values())
    return value_of(network, values, dtype=own if alone else torch.promote_types(own, dtype))


def value_of(network: Network, values: Values, *, dtype: torch.dtype | None = None) -> Tensor:
    """The value of a network in the precision of `dtype`, with dense index patterns.

    By default it is in the values' common type; it is complex where a value is.
    """
    network, tensors = bind(network, values_for(network, values))
    own = common_dtype(tensors.values())
    if dtype is not None:
        own = dtype.to_complex() if own.is_complex else dtype
    return add_up([contract(operands(term, tensors, own), term.output) for term in network.terms])
