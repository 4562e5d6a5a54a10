"""The tensors that a program takes besides its inputs: dense patterns, and what is computed from weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import torch
from torch import Tensor

from ..networks import Network, Node
from ..tensors import basis_matrix, pattern
from .choose import Candidate, PlanRequest
from .computation import Leaf
from .emit import argument_names, emit
from .operations import Arrange, Diagonal, Load, Operation, Rename, Repeat
from .program import Program


def dense_patterns(candidate: Candidate, request: PlanRequest) -> dict[str, Tensor]:
    """The dense patterns and bases that a candidate takes, by name."""
    program = candidate.program
    device = "cpu" if request.device.type == "meta" else request.device
    with torch.device("cpu"):  # whatever the default device is
        return {leaf.name: _dense(leaf, program.sizes).to(device, request.dtype) for leaf in program.patterns}


def in_type(patterns: Mapping[str, Tensor], program: Program, like: Tensor) -> dict[str, Tensor]:
    """Dense patterns in the type and on the device of another tensor; bases that need more digits are made again."""
    result = {name: tensor.to(like.device, like.dtype) for name, tensor in patterns.items()}
    digits = torch.finfo(like.dtype).eps
    with torch.inference_mode(False), torch.device("cpu"):
        for leaf in program.patterns:
            if leaf.basis and digits < torch.finfo(patterns[leaf.name].dtype).eps:
                result[leaf.name] = _dense(leaf, program.sizes).to(like.device, like.dtype)
    return result


def _dense(leaf: Leaf, sizes: Mapping[str, int]) -> Tensor:
    if leaf.basis:
        return basis_matrix(leaf.basis, sizes[leaf.labels[0]])
    return pattern(leaf.node, _sized(leaf.node, sizes))


def _sized(node: Node, sizes: Mapping[str, int]) -> Network:
    """A node by itself, with the sizes of its labels."""
    return Network([node], (), {label: sizes[label] for label in node.labels})


def supplied_values(program: Program) -> dict[int, str]:
    """A name for each value that is made of weights alone and that other steps need, by its position; not for views."""
    flags, operations = program.weights_only, program.operations
    computed: list[bool] = []
    for operation in operations:
        computed.append(not _is_view(operation) or any(computed[source] for source in operation.sources))
    taken = {source for flag, one in zip(flags, operations, strict=True) if not flag for source in one.sources}
    if flags[-1]:
        taken.add(len(flags) - 1)
    places = sorted(number for number in taken if flags[number] and computed[number])
    return dict(zip(places, new_names(program, "contracted"), strict=False))


def new_names(program: Program, prefix: str) -> Iterator[str]:
    """Names with this prefix that no tensor of a program has."""
    loaded = {one.name for one in program.operations if isinstance(one, Load)}
    return (name for number in count() if (name := f"{prefix}_{number}") not in loaded)


def _is_view(operation: Operation) -> bool:
    return isinstance(operation, Load | Rename | Repeat | Diagonal) or (
        isinstance(operation, Arrange) and not operation.copies
    )


def compute_values(program: Program, places: Sequence[int], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Compute the values at these positions, which depend on weights alone; views share the memory of their tensor."""
    if not places:
        return []
    code = emit(program, wanted=places)
    taken = [tensors[name] for name in argument_names(program, wanted=places)]
    kind = taken[0].device.type if taken and not taken[0].is_meta else "cpu"
    # what is stored must not depend on autocast or inference mode of the caller
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
        return [value.detach() for value in code(*taken)]
