"""What a program computes from weights alone, kept from call to call for as long as the weights stay as they are."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .emit import argument_names, emit
from .operations import Convolve, Load
from .packing import pack_kernel, packed_kernels
from .program import Program
from .weights import compute_values, new_names

MOST_COPIED = 2**22
"""Largest number of elements that a layer keeps in copies unless it is frozen; where more are needed, it keeps none."""

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Keeper:
    """The code of a program without the steps that depend on weights alone, and the values of these steps.

    A view of a weight shares its memory. Where elements are computed or put into another order, those of the weight are
    compared with a copy at each call, as torch counts only some of the ways to change a tensor. The kernel of a
    convolution is kept in the memory format in which torch takes it, or packed.

    packs: whether kernels may be packed; such code computes no derivatives.
    code: takes the inputs, and then `values`.
    rows: the tensors of the module that the values are computed from; empty if they are patterns.
    """

    def __init__(self, program: Program, patterns: Mapping[str, Tensor], *, prefix: str, packs: bool) -> None:
        self.program, self.patterns = program, patterns
        self._packable = packed_kernels(program) if packs else {}
        self._layouts = _layouts(program)
        self._supplied = dict(zip(self._layouts, new_names(program, prefix), strict=False))
        operations = [
            Load(self._supplied[place], one.axes, "weight") if place in self._supplied else one
            for place, one in enumerate(program.operations)
        ]
        rest = replace(program, operations=tuple(operations))
        self._rest, self._packed = rest, dict[int, Convolve]()
        self.code, self._arguments = emit(rest), argument_names(rest)
        taken = (*argument_names(program, wanted=[*self._layouts]), *self._arguments)
        weights = {one.name for one in program.operations if isinstance(one, Load)} - patterns.keys()
        self._names = [name for name in dict.fromkeys(taken) if name in weights]
        self._before: list[int] | None = None
        self._is_kept = False
        self.rows: list[_Row] = []
        self.values: list[Tensor] = []

    def is_current(self, module: nn.Module) -> bool:
        """Whether `values` are those of the tensors that the module has now."""
        parameters, buffers = module._parameters, module._buffers
        for row in self.rows:
            name, tensor = row.name, row.tensor
            if parameters.get(name) is not tensor and buffers.get(name) is not tensor:
                return False
            if not _is_as_it_was(row):
                return False
        return self._is_kept

    @property
    def is_packed(self) -> bool:
        """Whether the code takes packed kernels."""
        return bool(self._packed)

    def run(self, inputs: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        """The value of the network, computed in the type of the weights or in that of autocast."""
        values = self.values
        if not self.rows:  # patterns alone have the type of the inputs
            real = inputs[0].dtype
            values = [one.to(inputs[0].device, one.dtype if one.is_complex() else real) for one in values]
        if torch.is_grad_enabled():
            values = [value.detach() for value in values]
        if dtype is not None:
            values = [lower_type(value, dtype) for value in values]
        value: Tensor = self.code.forward(*inputs, *values)
        return value

    def keep_unchanged(self, module: nn.Module) -> bool:
        """Compute the values if the module has the same plain tensors as at the last call, or this is the first one.

        Returns whether it did.
        """
        self.forget()
        held = [module._parameters.get(name, module._buffers.get(name)) for name in self._names]
        tensors = [one for one in held if one is not None and one.is_cpu and _is_plain(one)]
        before, self._before = self._before, [n for one in tensors for n in (id(one), one._version)]
        dtypes = {tensor.dtype for tensor in (*tensors, *self.patterns.values())}
        if before in (None, self._before) and len(tensors) == len(held) and len(dtypes) == 1:
            self.keep(dict(zip(self._names, tensors, strict=True)), most=MOST_COPIED)
        return self._is_kept

    def keep(self, tensors: Mapping[str, Tensor], *, most: int | None = None) -> None:
        """Compute the values from these tensors, unless more than `most` elements would have to be copied."""
        plain = {name: tensors[name].data for name in self._names if _is_plain(tensors[name])}
        held = {name: plain.get(name, tensors[name].detach()) for name in self._names}
        values = compute_values(self.program, [*self._layouts], {**held, **self.patterns})
        fit = all(one.dtype == torch.float32 and one.is_cpu for one in held.values())
        if self._packed != (packed := self._packable if fit else {}):
            self._packed = packed
            self.code = emit(self._rest, packed=packed)
        stored = {**tensors, **self.patterns}
        views: list[int] = []
        copies: list[int] = []
        for (place, layout), value in zip(self._layouts.items(), values, strict=True):
            kept = value if layout is None else _in_layout(value, layout)
            if place in packed:
                stored[self._supplied[place]] = pack_kernel(self.program, packed[place], kept)
                copies.append(place)
                continue
            stored[self._supplied[place]] = kept
            is_view = any(_share_memory(kept, tensor) for tensor in plain.values())
            (views if is_view else copies).append(place)
        if most is not None and sum(stored[self._supplied[place]].numel() for place in copies) > most:
            return
        viewed = {*argument_names(self.program, wanted=views)}
        contracted = {*argument_names(self.program, wanted=copies)} | (held.keys() - plain.keys())
        self.rows = [
            _row(name, tensors[name], tensor, plain.get(name), viewed=name in viewed, copied=name in contracted)
            for name, tensor in held.items()
        ]
        self.values = [stored[name] for name in self._arguments]
        self._is_kept = True

    def forget(self) -> None:
        """Keep nothing."""
        self._is_kept, self.rows, self.values = False, [], []


class Snapshot:
    """Some tensors as they were, and whether they still are.

    Args:
        counted: large tensors, for which torch's count of their changes is asked.
        compared: small tensors, whose elements are compared, however they may have been changed. Those that are not on
            the CPU are counted too, as a comparison would wait for the device.
    """

    def __init__(self, counted: Sequence[Tensor], compared: Sequence[Tensor]) -> None:
        self._tensors = (*counted, *compared)
        are_counted = [not one.is_inference() for one in counted]
        are_counted += [not (one.is_cpu or one.is_inference()) for one in compared]
        pairs = [*zip(self._tensors, are_counted, strict=True)]
        self._counts = [(one, one._version, one.data_ptr()) for one, is_counted in pairs if is_counted]
        self._rows = [
            _row("", one, one.detach(), one.data if _is_plain(one) else None, viewed=False, copied=True)
            for one, is_counted in pairs
            if not is_counted
        ]

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, in the order of both arguments, and no others."""
        held = self._tensors
        return len(tensors) == len(held) and all(one is other for one, other in zip(held, tensors, strict=True))

    def is_current(self) -> bool:
        """Whether the tensors have the elements that they had."""
        counts = all(one._version == count and one.data_ptr() == start for one, count, start in self._counts)
        return counts and all(map(_is_as_it_was, self._rows))


def lower_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as autocast gives it to a function of lower precision: numbers of float64 stay."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


class _Row(NamedTuple):
    """A tensor of a module as it was.

    memory: a tensor in its memory, if a view of it is kept or its bytes are compared.
    copy: of its elements, if something was computed from them.
    start, size: where the copy begins and its bytes, if these can be compared; else 0.
    """

    name: str
    tensor: Tensor
    memory: Tensor | None
    dtype: torch.dtype
    copy: Tensor | None
    start: int
    size: int


def _row(name: str, tensor: Tensor, held: Tensor, plain: Tensor | None, *, viewed: bool, copied: bool) -> _Row:
    """How a tensor is.

    Args:
        held: the tensor without its gradient.
        plain: the same as a plain tensor, if it is one.
        viewed, copied: whether a view of it is kept, and whether something was computed from its elements.
    """
    with torch.inference_mode(False), torch.no_grad():
        copy = held.clone() if copied else None
    fast = plain is not None and held.is_cpu
    start, size = (copy.data_ptr(), copy.nbytes) if copy is not None and fast else (0, 0)
    return _Row(name, tensor, plain if viewed or fast else None, held.dtype, copy, start, size)


def _is_as_it_was(row: _Row) -> bool:
    """Whether a tensor has the memory and the elements that it had."""
    _, tensor, memory, dtype, copy, start, size = row
    if memory is not None and not (tensor.is_set_to(memory) and tensor.dtype is dtype):
        return False
    if size:  # bytes are compared several times as fast as numbers
        address = tensor.data_ptr()
        return address != 0 and _compare(address, start, size) == 0
    return copy is None or _is_equal(tensor, copy)


def _is_equal(tensor: Tensor, copy: Tensor) -> bool:
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return True  # a graph of CUDA's is a record of one call, which cannot look at elements
    if tensor.dtype != copy.dtype or tensor.device != copy.device or tensor.shape != copy.shape:
        return False
    return tensor.is_meta or torch.equal(tensor, copy)


_compare = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memcmp
_compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _in_layout(kernel: Tensor, layout: torch.memory_format) -> Tensor:
    """The kernel in a memory format; axes of one element get the strides of contiguous memory."""
    if layout == torch.contiguous_format:
        return kernel.reshape(-1).reshape(kernel.shape)
    return kernel.contiguous(memory_format=layout)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one of torch's classes, in the order of its axes, and counts its changes."""
    known = type(tensor) in (Tensor, nn.Parameter) and not (tensor.is_inference() or tensor.is_conj())
    return known and tensor.is_contiguous() and tensor.data_ptr() != 0


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _layouts(program: Program) -> dict[int, torch.memory_format | None]:
    """Positions of the values of weights alone that other steps take, and the memory format of those with one."""
    flags, operations = program.weights_only, program.operations
    layouts: dict[int, torch.memory_format | None] = {len(flags) - 1: None} if flags[-1] else {}
    for flag, operation in zip(flags, operations, strict=True):
        for source in () if flag else operation.sources:
            layout = None
            if isinstance(operation, Convolve) and source == operation.kernel:
                last = program.style.memory_format == "channels_last" and not operation.groups
                layout = _FORMATS.get(len(operations[source].axes)) if last else torch.contiguous_format
            if flags[source] and (not isinstance(operations[source], Load) or layout in _FORMATS.values()):
                layouts[source] = layout or layouts.get(source)
    return layouts
