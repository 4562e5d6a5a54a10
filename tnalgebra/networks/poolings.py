"""Builders of networks: average poolings, with the labels of `builders`."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import NetworkError, SizeError
from .builders import Numbers, axis_labels, axis_numbers, checked_integer, is_sequence, kernel_numbers, window_nodes
from .labels import MAX_SIZE
from .network import Network
from .nodes import Conv, Copy, Fill, NamedTensor, Node
from .sizes import output_size as window_count


class Pooling(NamedTuple):
    """A pooling as a network, and the values of its constant tensors.

    constants: the elements of every named tensor except the input X, by name. It is empty if the sums over all
        windows are divided by one number.
    """

    network: Network
    constants: dict[str, NDArray[np.float64]]


def average_pooling(
    kernel_size: Sequence[int],
    *,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    input_size: Numbers | None = None,
) -> Pooling:
    """The mean over each window, as in `torch.nn.functional.avg_pool2d`.

        tn.networks.average_pooling((3, 3)).network
        # X[n c x y] Conv[x u kh:3 | stride=3] Conv[y v kw:3 | stride=3] Fill[kh | value=1/3] Fill[kw | value=1/3]
        #     -> [n c u v]

    If the windows along an axis have different numbers of elements, the axis has a constant `Du[u]` (`Dv`, `Dw`)
    instead of a Fill. Its element [u] is one over the number of elements that torch counts in window u.

    Args:
        kernel_size: one, two or three integers, one for each dimension.
        stride: one integer, or one for each axis; by default the kernel size.
        padding: zeros at both ends of each axis, at most half of the kernel size, as in torch.
        ceil_mode: whether to add a last window that reaches beyond the padded input, if it starts inside the input or
            its low padding. Only its elements within the padded input are counted.
        count_include_pad: whether padding is counted.
        divisor_override: a number to divide by instead.
        input_size: the sizes of x, y, z. They are needed if windows are clipped: by ceil_mode with a stride, or by
            count_include_pad=False with padding.

    Raises:
        NetworkError: an argument is out of range.
        SizeError: `input_size` is needed, or it is too small for the window.
    """
    kernel = kernel_numbers(kernel_size)
    axes = len(kernel)
    strides = kernel if stride is None else axis_numbers("stride", stride, axes)
    pads = axis_numbers("padding", padding, axes, least=0)
    for k, p in zip(kernel, pads, strict=True):
        if p > k // 2:
            raise NetworkError(f"padding is {p}, more than half of the window of {k} elements", fix=f"at most {k // 2}")
    counted = count_include_pad or not any(pads) or divisor_override is not None
    because = None
    if (ceil_mode and any(stride > 1 for stride in strides)) or not counted:
        because = f"the number of {'windows' if counted else 'elements in a window'} depends on it"
    sizes = _input_sizes(input_size, axes, "average pooling", because=because)
    clipped = [
        (p, [k])
        if x is None
        else _clipped_windows(x, k, s, p, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
        for x, k, s, p in zip(sizes, kernel, strides, pads, strict=True)
    ]
    ends = [(p, high) for p, (high, _) in zip(pads, clipped, strict=True)]
    x_labels, u_labels, k_labels = axis_labels(kernel)
    nodes: list[Node] = [NamedTensor("X", ("n", "c", *x_labels)), *window_nodes(strides, ends, (1,) * axes)]
    constants: dict[str, NDArray[np.float64]] = {}
    if divisor_override is not None:
        nodes.append(Fill(k_labels, Fraction(1, _divisor(divisor_override))))
        clipped = []
    for u, k_label, (_, counts) in zip(u_labels, k_labels, clipped, strict=False):
        if len(set(counts)) == 1:
            nodes.append(Fill((k_label,), Fraction(1, counts[0])))
        else:
            nodes.append(NamedTensor(f"D{u}", (u,)))
            constants[f"D{u}"] = 1 / np.array(counts, dtype=np.float64)
    known = {label: size for label, size in zip(x_labels, sizes, strict=True) if size is not None}
    known |= zip(k_labels, kernel, strict=True)
    return Pooling(Network(nodes, ("n", "c", *u_labels), known), constants)


def adaptive_average_pooling(output_size: Sequence[int | None], *, input_size: Numbers | None = None) -> Pooling:
    """The means over a given number of windows, as in `torch.nn.functional.adaptive_avg_pool2d`.

        tn.networks.adaptive_average_pooling((7, 7), input_size=(14, 14))

    With sizes X of x and U of u, window u covers the positions floor(u*X/U) to ceil((u+1)*X/U) - 1. An axis is
    `Conv[x u kh | stride=X/U]` with a Fill if U divides X, `Fill[x | value=mean]` if U is 1, and `Copy[x u]` if U is
    None. Else it has a constant `Pu[x u]` (`Pv`, `Pw`): one over the number of elements in window u if x is one of
    them, else 0.

    Args:
        output_size: the number of windows for each of one, two or three axes, or None for the size of the input.
        input_size: the sizes of x, y, z; needed unless every output size is 1 or None.

    Raises:
        NetworkError: an argument is out of range.
        SizeError: `input_size` is needed.
    """
    if not is_sequence(output_size) or not 1 <= len(output_size) <= 3:
        fix = "1, 2 or 3 integers or None, one for each axis: (7,) or (7, 7)"
        raise NetworkError(f"output_size is {output_size!r}", fix=fix)
    axes = len(output_size)
    outputs = [None if size is None else checked_integer("output_size", size, least=1) for size in output_size]
    because = f"the windows of output_size {tuple(output_size)} depend on it" if {*outputs} - {1, None} else None
    inputs = _input_sizes(input_size, axes, "adaptive average pooling", because=because)
    labels = axis_labels(outputs)
    nodes: list[Node] = [NamedTensor("X", ("n", "c", *labels[0]))]
    constants: dict[str, NDArray[np.float64]] = {}
    known: dict[str, int] = {}
    for output, size, x, u, k in zip(outputs, inputs, *labels, strict=True):
        if size is not None:
            known[x] = size
        if output is None:
            nodes.append(Copy((x, u)))
        elif output == 1:
            nodes += [Fill((x,), "mean"), Fill((u,), Fraction(1))]
            known[u] = 1
        elif size is not None and size % output == 0:
            known[k] = size // output
            nodes += [Conv(x, u, k, stride=known[k]), Fill((k,), Fraction(1, known[k]))]
        elif size is not None:
            nodes.append(NamedTensor(f"P{u}", (x, u)))
            constants[f"P{u}"] = _adaptive_means(size, output)
    return Pooling(Network(nodes, ("n", "c", *labels[1]), known), constants)


def _input_sizes(input_size: Numbers | None, axes: int, pooling: str, *, because: str | None) -> Sequence[int | None]:
    """The size of each axis, or None. Raises SizeError if `input_size` is None and `because` says why it is needed."""
    if input_size is None and because is not None:
        raise SizeError(f"{pooling} needs input_size", because=because, fix="input_size=(...)")
    return (None,) * axes if input_size is None else axis_numbers("input_size", input_size, axes)


def _divisor(divisor: int) -> int:
    if divisor == 0:
        raise NetworkError("divisor_override is 0", fix="an integer other than 0")
    return checked_integer("divisor_override", divisor, least=-MAX_SIZE)


def _clipped_windows(
    x: int, k: int, s: int, p: int, *, ceil_mode: bool, count_include_pad: bool
) -> tuple[int, list[int]]:
    """The high padding for which there are as many windows as in torch, and the number of elements counted in each."""
    if ceil_mode:
        windows = -((k - x - 2 * p) // s) + 1
        windows -= (windows - 1) * s >= x + p  # the last one must start inside the input or its low padding
    else:
        windows = window_count(x, k, stride=s, low=p, high=p, dilation=1)
    if windows < 1:
        raise SizeError(
            f"input_size is {x}, the window has {k} elements",
            padding=p,
            fix="a larger input_size or a smaller kernel_size",
        )
    high = max(p, (windows - 1) * s + k - x - p)
    first, last = (-p, x + p) if count_include_pad else (0, x)
    starts = [window * s - p for window in range(windows)]
    return high, [min(start + k, last) - max(start, first) for start in starts]


def _adaptive_means(size: int, windows: int) -> NDArray[np.float64]:
    """Element [x, u]: one over the number of elements in window u if x is one of them, else 0."""
    x, u = np.arange(size)[:, None], np.arange(windows)[None, :]
    first, last = u * size // windows, -(-(u + 1) * size // windows)
    return np.where((first <= x) & (x < last), 1 / (last - first), 0.0)
