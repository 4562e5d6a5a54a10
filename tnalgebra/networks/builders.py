"""Builders of networks: convolutions, their patches and the dense layer.

An activation has the labels `n` (batch), `in` (channels) and `x`, `y`, `z` (positions). A window turns x into u, y
into v and z into w; its own labels are those of torch's kernels: `k`, `kh kw` or `kd kh kw`. In a grouped layer and in
a pooling the channels of the activation are `c`. With groups, c = (g, in) and out = (g, m), where `g` is the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeGuard

from ..errors import NetworkError
from .labels import KERNEL_LABELS, MAX_SIZE, integer
from .network import Network
from .nodes import MODES, Conv, Fuse, NamedTensor, Node
from .sizes import window

Numbers: TypeAlias = int | Sequence[int]
"""One integer for all axes, or one integer for each axis."""

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]
"""'same' or 'valid'; one integer for both ends of all axes; or for each axis an integer or a pair (low, high)."""


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
    """The convolution of an input X with a kernel K, as in `torch.nn.functional.conv2d`.

        tn.networks.convolution((3, 3), padding=1)

    In two dimensions, and in two dimensions with groups (where `in` are the channels of one group), the network is

        X[n in x y] Conv[x u kh] Conv[y v kw] K[out in kh kw] -> [n out u v]
        X[n c x y] Fuse[c g in] Conv[x u kh] Conv[y v kw] K[out in kh kw] Fuse[out g m] -> [n out u v]

    Args:
        kernel_size: one, two or three integers, one for each dimension.
        stride, dilation: one integer, or one for each axis.
        padding: one integer, or for each axis an integer or a pair (low, high), where negative numbers crop; or 'valid'
            (no padding); or 'same' (u has the size of x: low = t//2 and high = t - low with t = dilation*(k - 1)).
        groups: the number of groups of channels; with `groups == in_channels` the convolution is depthwise.
        padding_mode: how the input continues beyond its ends: 'zeros', 'reflect', 'replicate' or 'circular'.
        in_channels, out_channels: the sizes of the channels of all groups together, if they are known.

    Raises:
        NetworkError: an argument is out of range, padding is 'same' with a stride, or groups do not divide the
            channels.
    """
    kernel = kernel_numbers(kernel_size)
    windows = _padded_windows(kernel, stride=stride, padding=padding, dilation=dilation, mode=padding_mode)
    return _layer(kernel, windows, ("out", "in"), _channels(groups, in_channels, out_channels))


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
    """The transposed convolution, as in `torch.nn.functional.conv_transpose2d`.

        tn.networks.transposed_convolution((3, 3), stride=2, padding=1, output_padding=1)

    Its windows are those of the convolution from its output x, y back to its input u, v. In two dimensions, and in two
    dimensions with groups (where `m` are the output channels of one group), the network is

        X[n in u v] Conv[x u kh] Conv[y v kw] K[in out kh kw] -> [n out x y]
        X[n c u v] Fuse[c g in] Conv[x u kh] Conv[y v kw] K[c m kh kw] Fuse[out g m] -> [n out x y]

    Args:
        padding: positions cut off at the ends of x: one integer, or for each axis an integer or a pair (low, high),
            where negative numbers add positions.
        output_padding: positions added at the high end of x afterwards; less than the stride or the dilation.
        padding_mode: 'zeros', the only mode that torch has here.
        stride, dilation, groups, in_channels, out_channels: as for `convolution`.

    Raises:
        NetworkError: an argument is out of range, or groups do not divide the channels.
    """
    kernel = kernel_numbers(kernel_size)
    if isinstance(padding, str):
        raise NetworkError(f"padding of a transposed convolution is {padding!r}", fix="integers, as in torch")
    if padding_mode != "zeros":
        raise NetworkError(f"padding_mode of a transposed convolution is {padding_mode!r}", fix="'zeros'")
    added = axis_numbers("output_padding", output_padding, len(kernel), least=0)
    windows = []
    for node, o in zip(_padded_windows(kernel, stride=stride, padding=padding, dilation=dilation), added, strict=True):
        numbers = window(node)
        s, d = numbers["stride"], numbers["dilation"]
        if o >= max(s, d):
            fact = f"output_padding is {o}, which is neither less than the stride {s} nor than the dilation {d}"
            raise NetworkError(fact, fix=f"at most {max(s, d) - 1}")
        windows.append(replace(node, high=numbers["high"] - o))
    sizes = _channels(groups, in_channels, out_channels)
    return _layer(kernel, windows, ("c", "m") if groups > 1 else ("in", "out"), sizes, turned=True)


def _layer(
    kernel: Sequence[int],
    windows: Sequence[Conv],
    channels: Sequence[str],
    sizes: dict[str, int],
    *,
    turned: bool = False,
) -> Network:
    """A layer with a kernel of these channels, from x to u, or from u to x if `turned`; in groups if `g` has a size."""
    x, u, k = axis_labels(kernel)
    before, after = (u, x) if turned else (x, u)
    image = ("n", "c" if "g" in sizes else "in", *before)
    nodes: list[Node] = [NamedTensor("X", image), *windows, NamedTensor("K", (*channels, *k))]
    if "g" in sizes:
        nodes = [nodes[0], Fuse("c", ("g", "in")), *nodes[1:], Fuse("out", ("g", "m"))]
    return Network(nodes, ("n", "out", *after), sizes | dict(zip(k, kernel, strict=True)))


def patch_tensor(
    kernel_size: Sequence[int],
    *,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    padding_mode: str = "zeros",
    flatten: bool = False,
) -> Network:
    """The patches of the input that a convolution multiplies with its kernel (im2col).

        tn.networks.patch_tensor((3, 3), padding=1)     # X[n in x y] Conv[x u kh] Conv[y v kw] -> [n in kh kw u v]

    Element [n, in, kh, kw, u, v] is the element of X at position (kh, kw) of the window at (u, v).

    Args:
        flatten: whether to fuse the output to [n feature position], with feature = (in, kh, kw) and position = (u, v),
            as `torch.nn.functional.unfold` does.
        kernel_size, stride, padding, dilation, padding_mode: as for `convolution`.

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

        tn.networks.linear(in_features=64)

    Args:
        in_features, out_features: the sizes of `in` and `out`, if they are known.

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
    """The labels of the positions before and after a window, and of the window itself, for as many axes as `axes`."""
    count = len(axes)
    return ("x", "y", "z")[:count], ("u", "v", "w")[:count], KERNEL_LABELS[count + 2][2:]


def window_nodes(
    strides: Sequence[int], padding: Iterable[tuple[int, int]], dilations: Iterable[int], *, mode: str = "zeros"
) -> list[Conv]:
    """One window for each axis."""
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
    number = integer(value)
    if number is None or not least <= number <= MAX_SIZE:
        raise NetworkError(f"{name} is {value!r}", fix=f"an integer from {least} to {MAX_SIZE}")
    return number


def is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    """Whether a value is a sequence, and not a text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def kernel_numbers(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """The argument `kernel_size`. Raises NetworkError unless it is one, two or three integers of at least 1."""
    if not is_sequence(kernel_size) or not 1 <= len(kernel_size) <= 3:
        raise NetworkError(
            f"kernel_size is {kernel_size!r}", fix="1, 2 or 3 integers, one for each axis: (3,), (3, 3) or (3, 3, 3)"
        )
    return tuple(checked_integer("kernel_size", size, least=1) for size in kernel_size)


def _each_axis(name: str, value: object, axes: int) -> tuple[object, ...]:
    entries = tuple(value) if is_sequence(value) else (value,) * axes
    if len(entries) != axes:
        raise NetworkError(
            f"{name} has {len(entries)} entries, the window has {axes} axes",
            given=repr(value),
            fix="one integer, or one entry for each axis",
        )
    return entries


def axis_numbers(name: str, value: Numbers, axes: int, *, least: int = 1) -> tuple[int, ...]:
    """One integer for each axis.

    Raises:
        NetworkError: there is another number of integers, or one is below `least`; the message has the argument's name.
    """
    return tuple(checked_integer(name, number, least=least) for number in _each_axis(name, value, axes))


def _padding(
    padding: Padding, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(low, high) of each axis."""
    if padding == "same":
        if any(stride > 1 for stride in strides):
            raise NetworkError("padding is 'same' with a stride", stride=tuple(strides), fix="stride 1, or integers")
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str) and padding != "valid":
        raise NetworkError(f"padding is {padding!r}", fix="integers, 'same' or 'valid'")
    entries = _each_axis("padding", 0 if padding == "valid" else padding, len(kernel))
    return tuple(_ends(entry) for entry in entries)


def _ends(entry: object) -> tuple[int, int]:
    """(low, high) of one axis, from an integer or a pair."""
    if not is_sequence(entry):
        return (checked_integer("padding", entry, least=0),) * 2
    if len(entry) != 2:
        raise NetworkError(f"padding has {len(entry)} numbers on one axis: {entry!r}", fix="a pair (low, high)")
    low, high = (checked_integer("padding", end, least=-MAX_SIZE) for end in entry)
    return low, high


def _channels(groups: int, in_channels: int | None, out_channels: int | None) -> dict[str, int]:
    """The known sizes of the labels of channels, and of `g` if there are several groups."""
    sizes = {} if checked_integer("groups", groups, least=1) == 1 else {"g": groups}
    inside = "c" if sizes else "in"
    for label, name, size in ((inside, "in_channels", in_channels), ("out", "out_channels", out_channels)):
        if size is not None:
            sizes[label] = checked_integer(name, size, least=1)
            if size % groups:
                raise NetworkError(f"groups is {groups}, which does not divide {name}={size}", fix="a divisor")
    return sizes
