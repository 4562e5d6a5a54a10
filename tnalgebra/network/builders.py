"""Builders: the layers that slide a window, and the dense one, as networks.

Labels. An activation is `n` (batch), `in` (channels) and x, y, z (positions); a window takes x to u, y to v, z to w
and runs over the labels of torch's kernels (`k`; `kh kw`; `kd kh kw`). A grouped layer and a pooling call the
channels of the activation `c`; a grouped layer writes c = (g, in) and out = (g, m), g the group.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import NetworkError, SizeError, explain
from .labels import KERNEL_LABELS, MAX_SIZE
from .network import Network
from .nodes import MODES, Conv, Copy, Fill, Fuse, NamedTensor, Node
from .sizes import output_size

Numbers: TypeAlias = int | Sequence[int]
"""One integer for all axes, or one for each."""

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]
"""'same', 'valid', or for all axes or each: one integer for both ends. For each axis also a pair (low, high)."""

X_LABELS = ("x", "y", "z")
U_LABELS = ("u", "v", "w")


class Pooling(NamedTuple):
    """A pooling and the tensors in it whose values are fixed."""

    network: Network
    constants: dict[str, NDArray[np.float64]]
    """name -> elements, for every named tensor but the input X; empty where one number divides every window."""


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
    kernel = _kernel_size(kernel_size)
    axes = len(kernel)
    strides, dilations = axis_numbers("stride", stride, axes), axis_numbers("dilation", dilation, axes)
    windows = _windows(strides, _padding(padding, kernel, strides, dilations), dilations, _mode(padding_mode))
    channels = _channels(groups, in_channels, out_channels)
    weight = NamedTensor("K", ("out", "in", *_k_labels(axes)))
    x, u = X_LABELS[:axes], U_LABELS[:axes]
    nodes: list[Node] = [NamedTensor("X", ("n", "in", *x)), *windows, weight]
    if groups > 1:
        nodes = [NamedTensor("X", ("n", "c", *x)), Fuse("c", ("g", "in")), *windows, weight, Fuse("out", ("g", "m"))]
    return Network(nodes, ("n", "out", *u), {**channels, **_window_sizes(kernel)})


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
    kernel = _kernel_size(kernel_size)
    axes = len(kernel)
    strides, dilations = axis_numbers("stride", stride, axes), axis_numbers("dilation", dilation, axes)
    added = axis_numbers("output_padding", output_padding, axes, least=0)
    for o, s, d in zip(added, strides, dilations, strict=True):
        if o >= max(s, d):
            raise NetworkError(
                explain(f"output_padding is {o}, with stride {s} and dilation {d}", fix="less than one of the two")
            )
    if isinstance(padding, str):
        raise NetworkError(
            explain(f"padding of a transposed convolution is {padding!r}", fix="integers, as torch asks for")
        )
    if _mode(padding_mode) != "zeros":
        raise NetworkError(
            explain(f"padding_mode of a transposed convolution is {padding_mode!r}", fix="zeros, the only one in torch")
        )
    ends = _padding(padding, kernel, strides, dilations)
    ends = tuple((low, high - o) for (low, high), o in zip(ends, added, strict=True))
    windows = _windows(strides, ends, dilations, "zeros")
    channels = _channels(groups, in_channels, out_channels)
    k, x, u = _k_labels(axes), X_LABELS[:axes], U_LABELS[:axes]
    nodes: list[Node] = [NamedTensor("X", ("n", "in", *u)), *windows, NamedTensor("K", ("in", "out", *k))]
    if groups > 1:
        weight = NamedTensor("K", ("c", "m", *k))
        nodes = [NamedTensor("X", ("n", "c", *u)), Fuse("c", ("g", "in")), *windows, weight, Fuse("out", ("g", "m"))]
    return Network(nodes, ("n", "out", *x), {**channels, **_window_sizes(kernel)})


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
    kernel = _kernel_size(kernel_size)
    axes = len(kernel)
    strides, dilations = axis_numbers("stride", stride, axes), axis_numbers("dilation", dilation, axes)
    windows = _windows(strides, _padding(padding, kernel, strides, dilations), dilations, _mode(padding_mode))
    k, u = _k_labels(axes), U_LABELS[:axes]
    nodes: list[Node] = [NamedTensor("X", ("n", "in", *X_LABELS[:axes])), *windows]
    output = ("n", "in", *k, *u)
    if flatten:
        nodes += [Fuse("feature", ("in", *k)), Fuse("position", u)]
        output = ("n", "feature", "position")
    return Network(nodes, output, _window_sizes(kernel))


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
    kernel = _kernel_size(kernel_size)
    axes = len(kernel)
    strides = kernel if stride is None else axis_numbers("stride", stride, axes)
    pads = axis_numbers("padding", padding, axes, least=0)
    for k, p in zip(kernel, pads, strict=True):
        if p > k // 2:
            raise NetworkError(explain(f"padding is {p}, the window has {k} elements", fix=f"at most half: {k // 2}"))
    counted = count_include_pad or not any(pads) or divisor_override is not None
    sizes: Sequence[int | None] = (None,) * axes
    if input_size is not None:
        sizes = axis_numbers("input_size", input_size, axes)
    elif (ceil_mode and any(s > 1 for s in strides)) or not counted:
        reason = "a window beyond the end" if counted else "how many elements of a window are no padding"
        raise SizeError(
            explain("average pooling needs input_size", because=f"{reason} depends on it", fix="input_size=(...)")
        )
    clipped = [
        (p, [k])
        if x is None
        else _clipped_windows(x, k, s, p, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
        for x, k, s, p in zip(sizes, kernel, strides, pads, strict=True)
    ]
    ends = [(p, high) for p, (high, _) in zip(pads, clipped, strict=True)]
    nodes: list[Node] = [NamedTensor("X", ("n", "c", *X_LABELS[:axes])), *_windows(strides, ends, (1,) * axes, "zeros")]
    constants: dict[str, NDArray[np.float64]] = {}
    if divisor_override is not None:
        nodes.append(Fill(_k_labels(axes), Fraction(1, _divisor_override(divisor_override))))
    else:
        for u, k_label, (_, counts) in zip(U_LABELS, _k_labels(axes), clipped, strict=False):
            if len(set(counts)) == 1:
                nodes.append(Fill((k_label,), Fraction(1, counts[0])))
            else:
                nodes.append(NamedTensor(f"D{u}", (u,)))
                constants[f"D{u}"] = 1 / np.array(counts, dtype=np.float64)
    known = {label: size for label, size in zip(X_LABELS, sizes, strict=False) if size is not None}
    return Pooling(Network(nodes, ("n", "c", *U_LABELS[:axes]), {**_window_sizes(kernel), **known}), constants)


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
    if not _is_sequence(output_size) or not 1 <= len(output_size) <= 3:
        raise NetworkError(
            explain(
                f"output_size is {output_size!r}", fix="1, 2 or 3 integers or None, one for each axis: (7,) or (7, 7)"
            )
        )
    axes = len(output_size)
    outputs = [None if size is None else _integer("output_size", size, least=1) for size in output_size]
    inputs: Sequence[int | None] = (None,) * axes
    if input_size is not None:
        inputs = axis_numbers("input_size", input_size, axes)
    elif any(size not in (1, None) for size in outputs):
        raise SizeError(
            explain(
                "adaptive average pooling needs input_size",
                because=f"the windows of output_size {tuple(output_size)} depend on it",
                fix="input_size=(...)",
            )
        )
    nodes: list[Node] = [NamedTensor("X", ("n", "c", *X_LABELS[:axes]))]
    constants: dict[str, NDArray[np.float64]] = {}
    known: dict[str, int] = {}
    for axis, (output, size) in enumerate(zip(outputs, inputs, strict=True)):
        x, u, k = X_LABELS[axis], U_LABELS[axis], _k_labels(axes)[axis]
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
    return Pooling(Network(nodes, ("n", "c", *U_LABELS[:axes]), known), constants)


def global_average_pooling(dimensions: int) -> Network:
    """The mean over all positions: X[n c x y] Fill[x | value=mean] Fill[y | value=mean] -> [n c].

    Args:
        dimensions: axes of positions: 1, 2 or 3.

    Raises:
        NetworkError: another number.
    """
    axes = _integer("dimensions", dimensions, least=1)
    if axes > 3:
        raise NetworkError(explain(f"dimensions is {axes}", fix="1, 2 or 3"))
    x = X_LABELS[:axes]
    return Network([NamedTensor("X", ("n", "c", *x)), *(Fill((label,), "mean") for label in x)], ("n", "c"))


def linear(*, in_features: int | None = None, out_features: int | None = None) -> Network:
    """The dense layer: X[n in] W[out in] -> [n out].

    Args:
        in_features, out_features: the sizes of `in` and `out`, where they are known.

    Raises:
        NetworkError: one of them is out of range.
    """
    features = {"in": ("in_features", in_features), "out": ("out_features", out_features)}
    sizes = {label: _integer(name, size, least=1) for label, (name, size) in features.items() if size is not None}
    return Network([NamedTensor("X", ("n", "in")), NamedTensor("W", ("out", "in"))], ("n", "out"), sizes)


# Windows along the axes ---------------------------------------------------------------------------------------


def _k_labels(axes: int) -> tuple[str, ...]:
    return KERNEL_LABELS[axes + 2][2:]


def _window_sizes(kernel: Sequence[int]) -> dict[str, int]:
    return dict(zip(_k_labels(len(kernel)), kernel, strict=True))


def _windows(
    strides: Iterable[int], padding: Iterable[tuple[int, int]], dilations: Iterable[int], mode: str
) -> list[Conv]:
    numbers = list(zip(strides, padding, dilations, strict=True))
    return [
        Conv(X_LABELS[axis], U_LABELS[axis], k, stride=s, low=low, high=high, dilation=d, mode=mode)
        for axis, (k, (s, (low, high), d)) in enumerate(zip(_k_labels(len(numbers)), numbers, strict=True))
    ]


def _clipped_windows(
    x: int, k: int, s: int, p: int, *, ceil_mode: bool, count_include_pad: bool
) -> tuple[int, list[int]]:
    """The high padding that gives torch's number of windows, and how many elements torch counts in each."""
    if ceil_mode:
        windows = -((k - x - 2 * p) // s) + 1
        windows -= (windows - 1) * s >= x + p  # the last one must start inside the input or its low padding
    else:
        windows = output_size(x, k, stride=s, low=p, high=p, dilation=1)
    if windows < 1:
        raise SizeError(
            explain(
                f"input_size is {x}, the window has {k} elements",
                padding=p,
                fix="a larger input_size or a smaller kernel_size",
            )
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


# Arguments ----------------------------------------------------------------------------------------------------


def _integer(name: str, value: object, *, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # whatever is no integer raises
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= MAX_SIZE:
        raise NetworkError(explain(f"{name} is {value!r}", fix=f"an integer from {least} to {MAX_SIZE}"))
    return number


def _is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _kernel_size(kernel_size: Sequence[int]) -> tuple[int, ...]:
    if not _is_sequence(kernel_size) or not 1 <= len(kernel_size) <= 3:
        raise NetworkError(
            explain(
                f"kernel_size is {kernel_size!r}",
                fix="1, 2 or 3 integers, one for each axis: (3,), (3, 3) or (3, 3, 3)",
            )
        )
    return tuple(_integer("kernel_size", size, least=1) for size in kernel_size)


def _each_axis(name: str, value: object, axes: int) -> tuple[object, ...]:
    given = tuple(value) if _is_sequence(value) else (value,) * axes
    if len(given) != axes:
        raise NetworkError(
            explain(
                f"{name} has {len(given)} entries, the window has {axes} axes",
                given=repr(value),
                fix="one integer, or one entry for each axis",
            )
        )
    return given


def axis_numbers(name: str, value: Numbers, axes: int, *, least: int = 1) -> tuple[int, ...]:
    """One integer for each axis. Raises NetworkError, with the argument's `name`: another number of them, or one
    below `least`."""
    return tuple(_integer(name, number, least=least) for number in _each_axis(name, value, axes))


def _padding(
    padding: Padding, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(low, high) of each axis."""
    if padding == "same":
        if any(stride > 1 for stride in strides):
            raise NetworkError(
                explain(
                    "padding is 'same', with a stride", stride=tuple(strides), fix="stride 1, or padding in integers"
                )
            )
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str) and padding != "valid":
        raise NetworkError(explain(f"padding is {padding!r}", fix="integers, 'same' or 'valid'"))
    ends: list[tuple[int, int]] = []
    for entry in _each_axis("padding", 0 if padding == "valid" else padding, len(kernel)):
        if _is_sequence(entry):
            if len(entry) != 2:
                raise NetworkError(
                    explain(
                        f"padding has {len(entry)} numbers on one axis", given=repr(padding), fix="a pair (low, high)"
                    )
                )
            low, high = (_integer("padding", end, least=-MAX_SIZE) for end in entry)
        else:
            low = high = _integer("padding", entry, least=0)
        ends.append((low, high))
    return tuple(ends)


def _mode(mode: str) -> str:
    if mode not in MODES:
        raise NetworkError(explain(f"padding_mode is {mode!r}", fix="one of " + ", ".join(MODES)))
    return mode


def _divisor_override(divisor: int) -> int:
    if divisor == 0:
        raise NetworkError(explain("divisor_override is 0", fix="another integer"))
    return _integer("divisor_override", divisor, least=-MAX_SIZE)


def _channels(groups: int, in_channels: int | None, out_channels: int | None) -> dict[str, int]:
    """Sizes of the channel labels that are known."""
    groups = _integer("groups", groups, least=1)
    given: Mapping[str, int | None] = {"in_channels": in_channels, "out_channels": out_channels}
    known = {name: _integer(name, size, least=1) for name, size in given.items() if size is not None}
    for name, size in known.items():
        if size % groups:
            raise NetworkError(
                explain(
                    f"groups is {groups}, which does not divide {name}", given=f"{name}={size}", fix="groups that do"
                )
            )
    labels = {"in_channels": "in" if groups == 1 else "c", "out_channels": "out"}
    sizes = {labels[name]: size for name, size in known.items()}
    return sizes if groups == 1 else {**sizes, "g": groups}
