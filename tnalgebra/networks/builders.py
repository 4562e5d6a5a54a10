"""Builders: the convolutions, their patches, and the dense layer, as networks.

Labels. An activation is `n` (batch), `in` (channels) and x, y, z (positions); a window takes x to u, y to v, z to w
and runs over the labels of torch's kernels (`k`; `kh kw`; `kd kh kw`). A grouped layer and a pooling call the
channels of the activation `c`; a grouped layer writes c = (g, in) and out = (g, m), g the group.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeGuard

from ..errors import NetworkError
from .labels import KERNEL_LABELS, MAX_SIZE
from .network import Network
from .nodes import MODES, Conv, Fuse, NamedTensor, Node
from .sizes import window

Numbers: TypeAlias = int | Sequence[int]
"""One integer for all axes, or one for each."""

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]
"""'same', 'valid', or for all axes or each: one integer for both ends. For each axis also a pair (low, high)."""


def convolution(
    kernel_size: Sequence[int],
    *,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    in_channels: int | None = None,
    out_channels: int | None = None,
) -> Network:
    """The convolution of an input X with a kernel K: in two dimensions

        X[n in x y] Conv[x u kh] Conv[y v kw] K[out in kh kw] -> [n out u v]

    and with groups, where the kernel's `in` counts the channels of one group,

        X[n c x y] Fuse[c g in] Conv[x u kh] Conv[y v kw] K[out in kh kw] Fuse[out g m] -> [n out u v]

    Args:
        kernel_size: one, two or three integers; their number is the dimension.
        stride, dilation: one integer, or one for each axis.
        padding: one integer; or for each axis an integer or a pair (low, high), of which a negative one crops;
            or 'valid' (none), or 'same' (u has the size of x: low = t//2 and high = t - low, t = dilation*(k - 1)).
        groups: parts into which the channels fall; `groups == in_channels` is a depthwise convolution.
        padding_mode: what stands beyond the ends of x: 'zeros', 'reflect', 'replicate' or 'circular'.
        in_channels, out_channels: sizes of the channels (of all groups together), where they are known.

    Raises:
        NetworkError: an argument is out of range; 'same' with a stride; groups that do not divide the channels.
    """
    kernel = kernel_numbers(kernel_size)
    windows = _padded_windows(kernel, stride=stride, padding=padding, dilation=dilation, mode=padding_mode)
    channels = _channels(groups, in_channels, out_channels)
    x, u, k = axis_labels(kernel)
    weight = NamedTensor("K", ("out", "in", *k))
    nodes: list[Node] = [NamedTensor("X", ("n", "in", *x)), *windows, weight]
    if groups > 1:
        nodes = [NamedTensor("X", ("n", "c", *x)), Fuse("c", ("g", "in")), *windows, weight, Fuse("out", ("g", "m"))]
    return Network(nodes, ("n", "out", *u), {**channels, **dict(zip(k, kernel, strict=True))})


def transposed_convolution(
    kernel_size: Sequence[int],
    *,
    stride: Numbers = 1,
    padding: Padding = 0,
    output_padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    in_channels: int | None = None,
    out_channels: int | None = None,
) -> Network:
    """The transposed convolution: the windows are those of the convolution that takes its output back to its input.

        X[n in u v] Conv[x u kh] Conv[y v kw] K[in out kh kw] -> [n out x y]

    and with groups, where the kernel counts the output channels of one group (`m`),

        X[n c u v] Fuse[c g in] Conv[x u kh] Conv[y v kw] K[c m kh kw] Fuse[out g m] -> [n out x y]

    Args:
        padding: positions cut off at the ends of x: one integer; or for each axis an integer or a pair (low, high),
            of which a negative one adds positions.
        output_padding: positions added at the high end of x after that; less than stride or dilation.
        padding_mode: 'zeros', the only one that torch has here.
        The others are those of `convolution`.

    Raises:
        NetworkError: an argument is out of range; padding in words; groups that do not divide the channels.
    """
    kernel = kernel_numbers(kernel_size)
    if isinstance(padding, str):
        raise NetworkError(f"padding of a transposed convolution is {padding!r}", fix="integers, as torch asks for")
    if padding_mode != "zeros":
        raise NetworkError(
            f"padding_mode of a transposed convolution is {padding_mode!r}", fix="zeros, the only one in torch"
        )
    added = axis_numbers("output_padding", output_padding, len(kernel), least=0)
    windows = []
    for node, o in zip(_padded_windows(kernel, stride=stride, padding=padding, dilation=dilation), added, strict=True):
        numbers = window(node)
        s, d = numbers["stride"], numbers["dilation"]
        if o >= max(s, d):
            raise NetworkError(
                f"output_padding is {o}, with stride {s} and dilation {d}", fix="less than one of the two"
            )
        windows.append(replace(node, high=numbers["high"] - o))
    channels = _channels(groups, in_channels, out_channels)
    x, u, k = axis_labels(kernel)
    nodes: list[Node] = [NamedTensor("X", ("n", "in", *u)), *windows, NamedTensor("K", ("in", "out", *k))]
    if groups > 1:
        weight = NamedTensor("K", ("c", "m", *k))
        nodes = [NamedTensor("X", ("n", "c", *u)), Fuse("c", ("g", "in")), *windows, weight, Fuse("out", ("g", "m"))]
    return Network(nodes, ("n", "out", *x), {**channels, **dict(zip(k, kernel, strict=True))})


def patch_tensor(
    kernel_size: Sequence[int],
    *,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    padding_mode: str = "zeros",
    flatten: bool = False,
) -> Network:
    """The patches a convolution sees (im2col): element [n, in, kh, kw, u, v] is X at the kh, kw of window u, v.

        X[n in x y] Conv[x u kh] Conv[y v kw] -> [n in kh kw u v]

    Args:
        flatten: fuse the output to [n feature position], feature = (in, kh, kw) and position = (u, v): with zeros
            beyond the ends, what torch.nn.functional.unfold returns.
        The others are those of `convolution`.

    Raises:
        NetworkError: an argument is out of range.
    """
    kernel = kernel_numbers(kernel_size)
    x, u, k = axis_labels(kernel)
    windows = _padded_windows(kernel, stride=stride, padding=padding, dilation=dilation, mode=padding_mode)
    nodes: list[Node] = [NamedTensor("X", ("n", "in", *x)), *windows]
    output = ("n", "in", *k, *u)
    if flatten:
        nodes += [Fuse("feature", ("in", *k)), Fuse("position", u)]
        output = ("n", "feature", "position")
    return Network(nodes, output, dict(zip(k, kernel, strict=True)))


def linear(*, in_features: int | None = None, out_features: int | None = None) -> Network:
    """The dense layer: X[n in] W[out in] -> [n out].

    Args:
        in_features, out_features: the sizes of `in` and `out`, where they are known.

    Raises:
        NetworkError: one of them is out of range.
    """
    features = {"in": ("in_features", in_features), "out": ("out_features", out_features)}
    sizes = {
        label: checked_integer(name, size, least=1) for label, (name, size) in features.items() if size is not None
    }
    return Network([NamedTensor("X", ("n", "in")), NamedTensor("W", ("out", "in"))], ("n", "out"), sizes)


# Windows along the axes ---------------------------------------------------------------------------------------


def axis_labels(axes: Sequence[object]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The labels of the positions before and after a window and of the window, one for each entry of `axes`."""
    count = len(axes)
    return ("x", "y", "z")[:count], ("u", "v", "w")[:count], KERNEL_LABELS[count + 2][2:]


def window_nodes(
    strides: Sequence[int], padding: Iterable[tuple[int, int]], dilations: Iterable[int], *, mode: str = "zeros"
) -> list[Conv]:
    """One window along each axis."""
    return [
        Conv(x, u, k, stride=s, low=low, high=high, dilation=d, mode=mode)
        for x, u, k, s, (low, high), d in zip(*axis_labels(strides), strides, padding, dilations, strict=True)
    ]


def _padded_windows(
    kernel: Sequence[int], *, stride: Numbers, padding: Padding, dilation: Numbers, mode: str = "zeros"
) -> list[Conv]:
    """The windows of a convolution. Raises NetworkError if an argument is out of range."""
    if mode not in MODES:
        raise NetworkError(f"padding_mode is {mode!r}", fix="one of " + ", ".join(MODES))
    strides, dilations = (
        axis_numbers(name, value, len(kernel)) for name, value in (("stride", stride), ("dilation", dilation))
    )
    return window_nodes(strides, _padding(padding, kernel, strides, dilations), dilations, mode=mode)


# Arguments ----------------------------------------------------------------------------------------------------


def checked_integer(name: str, value: object, *, least: int) -> int:
    """The value of the argument `name`. Raises NetworkError unless it is an integer from `least` to MAX_SIZE."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # anything that is not an integer raises
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= MAX_SIZE:
        raise NetworkError(f"{name} is {value!r}", fix=f"an integer from {least} to {MAX_SIZE}")
    return number


def is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def kernel_numbers(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """The argument `kernel_size`. Raises NetworkError unless it is one, two or three integers of at least 1."""
    if not is_sequence(kernel_size) or not 1 <= len(kernel_size) <= 3:
        raise NetworkError(
            f"kernel_size is {kernel_size!r}", fix="1, 2 or 3 integers, one for each axis: (3,), (3, 3) or (3, 3, 3)"
        )
    return tuple(checked_integer("kernel_size", size, least=1) for size in kernel_size)


def _each_axis(name: str, value: object, axes: int) -> tuple[object, ...]:
    given = tuple(value) if is_sequence(value) else (value,) * axes
    if len(given) != axes:
        raise NetworkError(
            f"{name} has {len(given)} entries, the window has {axes} axes",
            given=repr(value),
            fix="one integer, or one entry for each axis",
        )
    return given


def axis_numbers(name: str, value: Numbers, axes: int, *, least: int = 1) -> tuple[int, ...]:
    """One integer for each axis. Raises NetworkError, with the argument's `name`: another number of them, or one
    below `least`."""
    return tuple(checked_integer(name, number, least=least) for number in _each_axis(name, value, axes))


def _padding(
    padding: Padding, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(low, high) of each axis."""
    if padding == "same":
        if any(stride > 1 for stride in strides):
            raise NetworkError(
                "padding is 'same', with a stride", stride=tuple(strides), fix="stride 1, or padding in integers"
            )
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str) and padding != "valid":
        raise NetworkError(f"padding is {padding!r}", fix="integers, 'same' or 'valid'")
    ends: list[tuple[int, int]] = []
    for entry in _each_axis("padding", 0 if padding == "valid" else padding, len(kernel)):
        if is_sequence(entry):
            if len(entry) != 2:
                raise NetworkError(
                    f"padding has {len(entry)} numbers on one axis", given=repr(padding), fix="a pair (low, high)"
                )
            low, high = (checked_integer("padding", end, least=-MAX_SIZE) for end in entry)
        else:
            low = high = checked_integer("padding", entry, least=0)
        ends.append((low, high))
    return tuple(ends)


def _channels(groups: int, in_channels: int | None, out_channels: int | None) -> dict[str, int]:
    """Sizes of the channel labels that are known."""
    groups = checked_integer("groups", groups, least=1)
    given: Mapping[str, int | None] = {"in_channels": in_channels, "out_channels": out_channels}
    known = {name: checked_integer(name, size, least=1) for name, size in given.items() if size is not None}
    for name, size in known.items():
        if size % groups:
            raise NetworkError(
                f"groups is {groups}, which does not divide {name}", given=f"{name}={size}", fix="groups that do"
            )
    labels = {"in_channels": "in" if groups == 1 else "c", "out_channels": "out"}
    sizes = {labels[name]: size for name, size in known.items()}
    return sizes if groups == 1 else {**sizes, "g": groups}
