"""Kernels in the order of elements in which oneDNN computes, so that a call of a convolution need not reorder them.

torch's own convolution reorders its kernel at each call: for one image with few positions that is a large part of the
time. The calls are those of torch's compiler for frozen models; they have no derivative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from .operations import Convolve, shape_in
from .program import Program
from .tracing import is_watched


def may_pack(inputs: Sequence[Tensor]) -> bool:
    """Whether a call needs no derivatives, and nothing but torch itself sees what it calls."""
    return not torch.is_grad_enabled() and all(type(one) is Tensor for one in inputs) and not is_watched()


def packed_kernels(program: Program) -> dict[int, Convolve]:
    """Positions of kernels of weights alone that can be packed, with their convolutions.

    The output of a packed call is in channels_last. Kernels without a window are not reordered by torch either.
    """
    if program.style.memory_format != "channels_last" or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return {}
    taken = Counter(source for one in program.operations for source in one.sources)
    return {
        one.kernel: one
        for one in program.operations
        if isinstance(one, Convolve) and taken[one.kernel] == 1 and _is_reordered(program, one)
    }


def _is_reordered(program: Program, operation: Convolve) -> bool:
    """Whether the kernel is of weights alone, and torch would have oneDNN reorder it at the nominal sizes."""
    kernel = shape_in(program.operations[operation.kernel].axes, program.sizes)
    if operation.groups or operation.transposed or len(kernel) != 4 or prod(kernel[2:]) == 1:
        return False
    if not program.weights_only[operation.kernel]:
        return False
    empty = torch.empty(0, dtype=torch.float32)
    image, weight = (empty.new_empty(shape) for shape in (_image_shape(program, operation), kernel))
    numbers = (operation.stride, operation.padding, operation.dilation)
    backend = torch._C._select_conv_backend(image, weight, None, *map(list, numbers), False, [0, 0], 1)
    return str(backend).endswith(".Mkldnn")


def _image_shape(program: Program, operation: Convolve) -> tuple[int, ...]:
    return shape_in(program.operations[operation.source].axes, program.sizes)


def pack_kernel(program: Program, operation: Convolve, kernel: Tensor) -> Tensor:
    """The kernel in oneDNN's order for inputs of the nominal sizes; with others a call is right, but reorders it."""
    numbers = map(list, (operation.padding, operation.stride, operation.dilation))
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        kernel, *numbers, 1, list(_image_shape(program, operation))
    )
    return packed


def packed_call(
    operation: Convolve, image: fx.Node, kernel: fx.Node, bias: fx.Node | None = None
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of torch that takes a packed kernel, and its arguments."""
    numbers = map(list, (operation.padding, operation.stride, operation.dilation))
    function: Callable[..., Any] = torch.ops.mkldnn._convolution_pointwise
    return function, (image, kernel, bias, *numbers, 1, "none", [], "")
