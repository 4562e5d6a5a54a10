"""The code of a plan with the tensors that it takes at a call, and the contracted weights of a frozen module."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from .emit import argument_names, emit
from .operations import Load, labels_in
from .plan import Plan
from .weights import contract_weights, dense_patterns, supplied_values


@dataclass
class Executor:
    """The code of a plan, and the tensors that it takes besides the inputs and the tensors of a module.

    stored: dense patterns, or the contracted weights of a frozen module. They are neither parameters nor buffers, so
        nothing that is done to those reaches them.
    supplied: the name of each stored value that the program would compute itself, by its position.
    """

    plan: Plan
    stored: dict[str, Tensor]
    supplied: Mapping[int, str]

    def __post_init__(self) -> None:
        program = self.plan.chosen.program
        self.code = emit(program, supplied=self.supplied)
        self.arguments = argument_names(program, self.supplied)
        self.fixed = _fixed_axes(self.plan)
        weighted = any(isinstance(one, Load) and one.kind == "weight" for one in program.operations)
        contracts = weighted and not self.supplied and supplied_values(program)
        self.halves = _Halves(self.plan) if contracts else None

    def __getstate__(self) -> dict[str, Any]:
        """The state without the code, because torch.fx would trace it again and rename its arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def move(self, like: Tensor) -> None:
        """Put the stored tensors where the weights are; they stay where they are if the weights have no memory."""
        if not like.is_meta:
            self.stored = {name: tensor.to(like.device, like.dtype) for name, tensor in self.stored.items()}

    def run(self, module: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        """The value of the network.

        Args:
            dtype: the type of autocast, which the inputs have already. What is contracted of weights alone is computed
                in the type of the weights and rounded once, as the weight of torch's layer is.
        """
        if dtype is None:
            return self.code.forward(*inputs, *self._taken(module, self.arguments, inputs[0]))  # type: ignore[no-any-return]
        if self.halves is None:
            code, taken = self.code, self._taken(module, self.arguments, inputs[0])
        else:
            like = getattr(module, self.halves.weight)
            contracted = self.halves.first(*self._taken(module, self.halves.taken, like))
            code, taken = self.halves.second, [*self._taken(module, self.halves.left, like), *contracted]
        return code.forward(*inputs, *(lower_type(tensor, dtype) for tensor in taken))  # type: ignore[no-any-return]

    def _taken(self, module: nn.Module, names: Sequence[str], like: Tensor) -> list[Tensor]:
        """Tensors of the module by name, and stored ones, of the type and on the device of another tensor."""
        stored = self.stored
        if not stored:
            return [getattr(module, name) for name in names]
        return [stored[name].to(like.device, like.dtype) if name in stored else getattr(module, name) for name in names]


class _Halves:
    """The code of a plan in two parts: what depends on weights alone, and the rest, which takes the results."""

    def __init__(self, plan: Plan) -> None:
        program = plan.chosen.program
        supplied = supplied_values(program)
        self.first = emit(program, wanted=[*supplied])
        self.second = emit(program, supplied=supplied)
        self.taken = argument_names(program, wanted=[*supplied])
        self.left = argument_names(program, supplied)[: -len(supplied)]
        self.weight = next(one.name for one in program.operations if isinstance(one, Load) and one.kind == "weight")


@dataclass
class Frozen(Executor):
    """The code of a plan with its contracted weights, and what they were contracted from.

    tensors: name -> the tensors of the module that the plan takes, contracted or not.
    copies: name -> a copy of each tensor that was contracted. It is compared with the tensor at each call, as torch
        counts only some of the ways to change one.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_module(cls, plan: Plan, module: nn.Module, names: Sequence[str], like: Tensor) -> Frozen:
        """The weights of a module with these names, contracted for a plan."""
        tensors = {name: getattr(module, name) for name in names}
        patterns = dense_patterns(plan.chosen, plan.request)
        patterns = {name: tensor.to(like.device, like.dtype) for name, tensor in patterns.items()}
        supplied, stored = contract_weights(plan.chosen.program, tensors | patterns)
        stored |= {name: patterns[name] for name in argument_names(plan.chosen.program, supplied) if name in patterns}
        contracted = [name for name in argument_names(plan.chosen.program, wanted=[*supplied]) if name in tensors]
        with torch.inference_mode(False), torch.no_grad():
            copies = {name: tensors[name].detach().clone() for name in contracted}
        return cls(plan, stored, supplied, tensors, copies)

    def is_of(self, module: nn.Module) -> bool:
        """Whether the module has the tensors of its plan: others may stand in for them during a call."""
        for name, tensor in self.tensors.items():  # noqa: SIM110, as this is asked at every call
            if getattr(module, name) is not tensor:
                return False
        return True

    def is_current(self) -> bool:
        """Whether the tensors that were contracted have the elements that they had then."""
        return all(_is_equal(self.tensors[name], copy) for name, copy in self.copies.items())

    def _taken(self, module: nn.Module, names: Sequence[str], like: Tensor) -> list[Tensor]:
        return [tensor.detach() for tensor in super()._taken(module, names, like)]


def _is_equal(tensor: Tensor, copy: Tensor) -> bool:
    if tensor.dtype != copy.dtype or tensor.device != copy.device or tensor.shape != copy.shape:
        return False
    if type(tensor) is nn.Parameter and tensor.is_cpu and tensor.is_contiguous() and copy.is_contiguous():
        start = tensor.data_ptr()
        if start:  # bytes are compared several times as fast as numbers
            return not _compare_bytes(start, copy.data_ptr(), copy.nbytes)
    return tensor.is_meta or torch.equal(tensor, copy)


_compare_bytes = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memcmp
_compare_bytes.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def lower_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as autocast gives it to a function of lower precision: numbers of float64 stay."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _fixed_axes(plan: Plan) -> tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]:
    """For each input its name, its number of axes, and (axis, size) for each size that cannot change."""
    program = plan.chosen.program
    rows = []
    for name in plan.request.inputs:
        load = next(one for one in program.operations if isinstance(one, Load) and one.name == name)
        labels = labels_in(load.axes)  # those of the simplified network
        fixed = tuple((axis, program.sizes[label]) for axis, label in enumerate(labels) if label not in program.moving)
        rows.append((name, len(labels), fixed))
    return tuple(rows)
