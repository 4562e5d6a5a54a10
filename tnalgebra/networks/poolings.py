"""Builders: the poolings that take means, as networks, with the labels of `builders`."""

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
    """A pooling and the tensors in it whose values are fixed."""

    network: Network
    constants: dict[str, NDArray[np.float64]]
    """name -> elements, for every named tensor but the input X; empty where one number divides every window."""


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
    """The mean over each window.

        X[n c x y] Conv[x u kh] Conv[y v kw] Fill[kh | value=1/3] Fill[kw | value=1/3] -> [n c u v]

    An axis on which not every window has the same number of elements has, in place of its Fill, a constant `Du[u]`
    (`Dv`, `Dw`): one over the number of elements that torch counts in window u.

    Args:
        kernel_size: one, two or three integers; their number is the dimension.
        stride: one integer, or one for each axis; by default the kernel size.
        padding: zeros at both ends of each axis; at most half of the kernel, torch's rule.
        ceil_mode: take a last window that reaches beyond the padded input too, if it starts inside the input or
            its low padding. It counts only elements within the padded input.
        count_include_pad: count the padding too.
        divisor_override: divide by this instead.
        input_size: sizes of x, y, z; needed where windows are clipped: by ceil_mode with a stride, or by
            count_include_pad=False with padding.

    Raises:
        NetworkError: an argument is out of range.
        SizeError: `input_size` is needed, or too small for the window.
    """
    kernel = kernel_numbers(kernel_size)
    axes = len(kernel)
    strides = kernel if stride is None else axis_numbers("stride", stride, axes)
    pads = axis_numbers("padding", padding, axes, least=0)
    for k, p in zip(kernel, pads, strict=True):
        if p > k // 2:
            raise NetworkError(f"padding is {p}, the window has {k} elements", fix=f"at most half: {k // 2}")
    counted = count_include_pad or not any(pads) or divisor_override is not None
    because = None
    if (ceil_mode and any(stride > 1 for stride in strides)) or not counted:
        because = "a window beyond the end" if counted else "how many elements of a window are no padding"
    sizes = _input_sizes(input_size, axes, "average pooling", because=because and f"{because} depends on it")
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
    """The means over windows laid out so that there are `output_size` of them: window u covers the x from
    floor(u*X/U) to ceil((u+1)*X/U) - 1, X and U the sizes of x and u.

    On each axis: `Conv[x u kh | stride=X/U]` with a Fill where U divides X; else a constant `Pu[x u]` (`Pv`, `Pw`) of
    one over the number of elements in window u, 0 outside of it; `Fill[x | value=mean]` where U is 1 and `Copy[x u]`
    where U is None, whatever X is.

    Args:
        output_size: for each of one, two or three axes the number of windows, or None: as many as the input has.
        input_size: sizes of x, y, z; needed unless every output size is 1 or None.

    Raises:
        NetworkError: an argument is out of range.
        SizeError: `input_size` is needed.
    """
    if not is_sequence(output_size) or not 1 <= len(output_size) <= 3:
        raise NetworkError(
            f"output_size is {output_size!r}", fix="1, 2 or 3 integers or None, one for each axis: (7,) or (7, 7)"
        )
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


def global_average_pooling(dimensions: int) -> Network:
    """The mean over all positions: X[n c x y] Fill[x | value=mean] Fill[y | value=mean] -> [n c].

    Args:
        dimensions: axes of positions: 1, 2 or 3.

    Raises:
        NetworkError: another number.
    """
    if checked_integer("dimensions", dimensions, least=1) > 3:
        raise NetworkError(f"dimensions is {dimensions}", fix="1, 2 or 3")
    x = ("x", "y", "z")[:dimensions]
    return Network([NamedTensor("X", ("n", "c", *x)), *(Fill((label,), "mean") for label in x)], ("n", "c"))


def _input_sizes(input_size: Numbers | None, axes: int, pooling: str, *, because: str | None) -> Sequence[int | None]:
    """The size of each axis, where known. Raises SizeError if they are not and `because` says why they are needed."""
    if input_size is None and because is not None:
        raise SizeError(f"{pooling} needs input_size", because=because, fix="input_size=(...)")
    return (None,) * axes if input_size is None else axis_numbers("input_size", input_size, axes)


def _divisor(divisor: int) -> int:
    if divisor == 0:
        raise NetworkError("divisor_override is 0", fix="another integer")
    return checked_integer("divisor_override", divisor, least=-MAX_SIZE)


def _clipped_windows(
    x: int, k: int, s: int, p: int, *, ceil_mode: bool, count_include_pad: bool
) -> tuple[int, list[int]]:
    """The high padding that gives torch's number of windows, and how many elements torch counts in each."""
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
