"""Branches of one input as one convolution: kernels placed in a common window, groups and biases joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..networks import Network, parse
from ..nn import CONVOLUTIONS
from ..tensors import value_of

TorchConvolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

_WINDOWS = ("k", "kh kw", "kd kh kw")


class UnmergeableError(Exception):
    """Why a branch cannot become part of a convolution."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A convolution with zeros or another padding outside of its input, in float64; what an affine branch computes.

    kernel: shape (out, in of one group, *window).
    bias: shape (out,).
    stride, dilation, low, high: for each axis of the window; low and high are the paddings before and after.
    mode: of the padding.
    """

    kernel: Tensor
    bias: Tensor
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    mode: str = "zeros"

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.kernel.shape[2:])

    @property
    def channels(self) -> tuple[int, int]:
        """Of the output and of the input."""
        return self.kernel.shape[0], self.kernel.shape[1] * self.groups

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """For each axis where the elements of the window lie, from the position stride * y of the input."""
        each = zip(self.window, self.dilation, self.low, strict=True)
        return tuple(tuple(d * element - low for element in range(k)) for k, d, low in each)

    @property
    def excess(self) -> tuple[int, ...]:
        """For each axis the size of an output with stride 1, less that of the input."""
        each = zip(self.window, self.dilation, self.low, self.high, strict=True)
        return tuple(low + high - d * (k - 1) for k, d, low, high in each)

    @property
    def pads(self) -> bool:
        return any(self.low) or any(self.high)

    def scaled(self, scale: Tensor, shift: Tensor) -> Branch:
        """The branch followed by scale * y + shift, each of shape (out,)."""
        kernel = self.kernel * scale.reshape(-1, *[1] * (self.kernel.ndim - 1))
        return replace(self, kernel=kernel, bias=self.bias * scale + shift)

    def followed_by(self, other: Branch) -> Branch:
        """The branch and then another one whose window has one element.

        Raises:
            UnmergeableError: the window of the other has more elements, or it moves.
        """
        if prod(other.window) > 1 or other.pads or {*other.stride} != {1}:
            raise UnmergeableError("a window follows another one, whose padding comes between them")
        if self.channels[0] != other.channels[1]:
            raise UnmergeableError("numbers of channels differ along it")
        common = gcd(self.groups, other.groups)
        first, second = regrouped(self, common), regrouped(other, common)
        matrix = second.kernel.reshape(common, -1, second.kernel.shape[1])
        kernel = torch.einsum("gom,gm...->go...", matrix, first.kernel.reshape(common, -1, *first.kernel.shape[1:]))
        kernel = kernel.flatten(0, 1)
        moved = torch.einsum("gom,gm->go", matrix, self.bias.reshape(common, -1)).flatten()
        return replace(first, kernel=kernel, bias=moved + other.bias)


def regrouped(branch: Branch, groups: int) -> Branch:
    """The same branch in fewer groups: blocks of zeros between those that it has."""
    if branch.groups == groups:
        return branch
    outputs, inputs = branch.kernel.shape[:2]
    many = branch.groups // groups
    kernel = branch.kernel.new_zeros(groups, many, outputs // branch.groups, many, inputs, *branch.window)
    blocks = branch.kernel.reshape(groups, many, -1, inputs, *branch.window)
    for place in range(many):
        kernel[:, place, :, place] = blocks[:, place]
    return replace(branch, kernel=kernel.flatten(3, 4).flatten(0, 2), groups=groups)


# From torch's modules -------------------------------------------------------------------------------------------


def branch_of(module: nn.Module, channels: int, axes: int, like: Tensor) -> Branch:
    """What a module computes as a branch.

    Args:
        module: a convolution, batch normalisation, or average pooling.
        channels: of its input.
        axes: of its window.
        like: a tensor of the device on which the kernels are made.

    Raises:
        UnmergeableError: its arguments or its mode are not those of one convolution.
    """
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _of_convolution(module)
        case _BatchNorm():
            return norm_branch(module, identity_branch(module.num_features, axes, like))
        case _:
            return _of_pooling(module, channels, axes, like)


def identity_branch(channels: int, axes: int, like: Tensor) -> Branch:
    """The branch that changes nothing."""
    kernel = torch.ones(channels, 1, *[1] * axes, dtype=torch.float64, device=like.device)
    zeros = (0,) * axes
    return Branch(kernel, kernel.new_zeros(channels), channels, (1,) * axes, (1,) * axes, zeros, zeros)


def norm_branch(norm: _BatchNorm, before: Branch) -> Branch:
    """A branch followed by a batch normalisation with the statistics that it has gathered."""
    if norm.training:
        raise UnmergeableError("its batch normalisation is in training mode")
    if norm.running_mean is None or norm.running_var is None:
        raise UnmergeableError("its batch normalisation has no running statistics")
    return scale_by_statistics(before, (norm.running_mean, norm.running_var), (norm.weight, norm.bias), norm.eps)


def scale_by_statistics(
    before: Branch, statistics: tuple[Tensor, Tensor], affine: tuple[Tensor | None, Tensor | None], eps: float
) -> Branch:
    """A branch followed by weight * (y - mean) / sqrt(variance + eps) + bias."""
    (mean, variance), (weight, bias) = statistics, affine
    scale = (variance.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    return before.scaled(scale, shift if bias is None else shift + bias.detach().double())


def _of_convolution(module: TorchConvolution) -> Branch:
    if module.weight.is_complex():
        raise UnmergeableError("its kernel is complex")
    kernel = module.weight.detach().double()
    spread = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if module.padding == "same":
        low = tuple(one // 2 for one in spread)
        high = tuple(one - one // 2 for one in spread)
    else:
        low = high = (0,) * len(spread) if isinstance(module.padding, str) else tuple(module.padding)
    bias = kernel.new_zeros(len(kernel)) if module.bias is None else module.bias.detach().double()
    mode = module.padding_mode if any(low) or any(high) else "zeros"
    return Branch(kernel, bias, module.groups, module.stride, module.dilation, low, high, mode)


def _of_pooling(module: Any, channels: int, axes: int, like: Tensor) -> Branch:
    size, stride, padding = (
        tuple(one) if isinstance(one, tuple | list) else (one,) * axes
        for one in (module.kernel_size, module.stride, module.padding)
    )
    if module.ceil_mode:
        raise UnmergeableError("its average pooling rounds the number of positions up")
    if any(padding) and not module.count_include_pad:
        raise UnmergeableError("its average pooling divides by other numbers at the border")
    count = getattr(module, "divisor_override", None) or prod(size)
    kernel = torch.full((channels, 1, *size), 1 / count, dtype=torch.float64, device=like.device)
    zeros = kernel.new_zeros(channels)
    return Branch(kernel, zeros, channels, stride, (1,) * axes, padding, padding)


# One kernel -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Merged:
    """The one convolution of several branches.

    network: its kernel as a sum of kernels, each placed in the window; of one group where groups differ.
    """

    branch: Branch
    network: Network

    def layer(self, like: Tensor, *, trained: bool) -> TorchConvolution:
        """The layer of torch's, with the type and device of a tensor."""
        branch = self.branch
        outputs, inputs = branch.channels
        kind: Any = CONVOLUTIONS[len(branch.window) - 1]
        layer: TorchConvolution = kind(
            inputs,
            outputs,
            branch.window,
            stride=branch.stride,
            padding=branch.low,
            dilation=branch.dilation,
            groups=branch.groups,
            padding_mode=branch.mode,
            dtype=like.dtype,
            device=like.device,
        )
        for name, value in (("weight", branch.kernel), ("bias", branch.bias)):
            setattr(layer, name, nn.Parameter(value.to(like.dtype, copy=True), requires_grad=trained))
        return layer.eval()


def merge(branches: Sequence[Branch]) -> Merged:
    """The sum of branches as one convolution; exact, for inputs of any size.

    Every kernel K[o i kh kw] is placed in the common window by `Conv[a y:1 kh | dilation=d padding=-first:...]`, whose
    element is 1 where a = d * kh + first: first is where the kernel begins in the window.

    Raises:
        UnmergeableError: strides, channels or sizes of the outputs differ, or two kinds of padding meet.
    """
    reason = why_apart(branches)
    if reason:
        raise UnmergeableError(reason)
    first = branches[0]
    modes = {one.mode for one in branches if one.pads}
    if len(modes) > 1:
        raise UnmergeableError(f"one pads by {' and another by '.join(sorted(modes))}")
    groups = gcd(*(one.groups for one in branches))
    together = [regrouped(one, groups) for one in branches]
    windows = [_Window.of([one.offsets[axis] for one in branches], excess) for axis, excess in enumerate(first.excess)]
    mode = next(iter(modes), "zeros")
    if mode != "zeros" and any(w.padding > max(one.low[a] for one in branches) for a, w in enumerate(windows)):
        raise UnmergeableError(f"padding by {mode} of different widths does not line up")
    terms = " + ".join(_placed(n, one, windows) for n, one in enumerate(together))
    network = parse(f"{terms} -> [out in {_WINDOWS[len(windows) - 1]}]")
    values = {f"K{n}": one.kernel for n, one in enumerate(together)}
    merged = Branch(
        value_of(network, values, dtype=torch.float64),
        torch.stack([one.bias for one in branches]).sum(0),
        groups,
        first.stride,
        tuple(one.dilation for one in windows),
        tuple(one.padding for one in windows),
        tuple(one.padding for one in windows),
        mode,
    )
    return Merged(merged, network)


def why_apart(branches: Sequence[Branch]) -> str:
    """What about branches differs that would have to be equal in one convolution; "" if nothing does."""
    differing = (text for what, text in _DIFFERENCES.items() if len({getattr(one, what) for one in branches}) > 1)
    return next(differing, "")


_DIFFERENCES = {
    "channels": "numbers of channels differ",
    "stride": "strides differ",
    "excess": "paddings do not line up: the outputs have different sizes",
}


@dataclass(frozen=True)
class _Window:
    """An axis of the common window: size elements, dilation apart, the first at -padding from stride * y."""

    size: int
    dilation: int
    padding: int

    @classmethod
    def of(cls, offsets: Sequence[Sequence[int]], excess: int) -> _Window:
        """The smallest window with equal padding on both sides that has an element at each of these offsets."""
        places = [place for each in offsets for place in each]
        padding = max(-min(places), excess + max(places), 0)
        last = padding - excess
        step = gcd(*(place + padding for place in places), last + padding) or 1
        return cls((last + padding) // step + 1, step, padding)


def _placed(number: int, branch: Branch, windows: Sequence[_Window]) -> str:
    """A kernel in the common window, in the notation."""
    axes = _WINDOWS[len(windows) - 1].split()
    nodes = []
    for axis, (label, window) in enumerate(zip(axes, windows, strict=True)):
        begin = (branch.offsets[axis][0] + window.padding) // window.dilation
        step = branch.dilation[axis] // window.dilation if branch.window[axis] > 1 else 1
        rest = window.size - 1 - begin - step * (branch.window[axis] - 1)
        options = f"dilation={step} padding={-begin}:{-rest}"
        nodes.append(f"Conv[{label}:{window.size} y{axis}:1 {label}{number}:{branch.window[axis]} | {options}]")
    inner = " ".join(f"{label}{number}" for label in axes)
    return f"K{number}[out in {inner}] {' '.join(nodes)}"
