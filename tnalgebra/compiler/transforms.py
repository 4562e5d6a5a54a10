"""Fourier transforms of inputs and of kernels: the functions of torch tensors that the code of a program calls.

Their last axes are those of positions or of frequencies, one for each `Points`. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Points(NamedTuple):
    """How one axis of an input is transformed, for windows along it.

    length: the number of points of a transform.
    reach: of the kernel, which takes so many neighbouring positions.
    pads: positions that are added to both ends of the input, or cut off.
    apart: the distance of the input's elements, between which zeros are put.
    stride: the distance of the elements of the result that are kept.
    is_cut: whether the input is cut into overlapping blocks, which have an axis of their own, if it is longer.
    is_circle: whether the ends of the axis are joined, and its size is the length.
    """

    length: int
    reach: int
    pads: tuple[int, int]
    apart: int = 1
    stride: int = 1
    is_cut: bool = False
    is_circle: bool = False

    @property
    def block(self) -> int:
        """The number of elements of the result that come from one block: those without wrapped elements."""
        return self.length - self.reach + 1

    def results(self, size: int) -> int:
        """The number of elements of the result, before some are left out by the stride, of an axis of this size."""
        return self.apart * size + sum(self.pads) - self.reach + 1

    def is_whole(self, size: int) -> bool:
        """Whether one transform has all elements of an axis: what is wrapped is zeros, or elements that are not kept.

        Padding at one end of a block pads the other end too, so that the longer of both is enough.
        """
        low, high = (max(end, 0) for end in self.pads)
        widest = max(low, high)
        return widest < self.reach and self.apart * size + sum(self.pads) - low - high + widest <= self.length

    def blocks(self, size: int) -> int:
        """The number of transforms along an axis of this size."""
        whole = self.is_circle or not self.is_cut or self.is_whole(size)
        return 1 if whole else ceil(self.results(size) / self.block)


def transform(tensor: Tensor, points: Sequence[Points]) -> Tensor:
    """Transforms of blocks of an input.

    Args:
        tensor: shape (..., positions ...).

    Returns:
        Shape (..., blocks ..., frequencies ...), with an axis of blocks for each axis that may be cut. The last axis
        has length // 2 + 1 frequencies, since the elements are real numbers.
    """
    count = len(points)
    sizes = tensor.shape[-count:]
    tensor = _spread(real_precision(tensor), [one.apart for one in points])
    wholes = [one.is_circle or one.is_whole(size) for one, size in zip(points, sizes, strict=True)]
    ends: list[int] = []
    for one, size, is_whole in zip(points, sizes, wholes, strict=True):
        low, high = one.pads
        if one.is_circle:
            low = high = 0
        elif is_whole:
            low, high = min(low, 0), min(high, 0)
        elif one.is_cut:  # the last block is filled up
            high = one.blocks(size) * one.block + one.reach - 1 - one.apart * size - low
        ends = [low, high, *ends]
    tensor = functional.pad(tensor, ends) if any(ends) else tensor
    for one, is_whole in zip(points, wholes, strict=True):
        # the elements of a block become the last axis, so that the next axis takes this place
        if one.is_cut and not is_whole:
            tensor = tensor.unfold(-count, one.length, one.block)
            continue
        tensor = tensor.unsqueeze(-count - 1) if one.is_cut else tensor
        tensor = tensor.movedim(-count, -1) if count > 1 else tensor
    return _forward(tensor, [one.length for one in points])


def transform_kernel(
    kernel: Tensor, lengths: Sequence[int], *, dilation: Sequence[int], shifts: Sequence[int], turned: bool
) -> Tensor:
    """The transform of a kernel.

    Args:
        kernel: shape (..., window ...).
        shifts: positions by which the kernel is moved towards the beginning, around the ends of a circle.
        turned: whether its elements are put into the reverse order.
    """
    dims = tuple(range(-len(lengths), 0))
    kernel = real_precision(kernel)
    kernel = kernel.flip(dims) if turned else kernel
    kernel = _spread(kernel, dilation)
    for dim, length, shift in zip(dims, lengths, shifts, strict=True):
        if shift or kernel.shape[dim] > length:
            rounds = ceil(kernel.shape[dim] / length)
            more = [0, 0] * (-1 - dim) + [0, rounds * length - kernel.shape[dim]]
            kernel = functional.pad(kernel, more)
            if rounds > 1:
                kernel = torch.unflatten(kernel, dim, (rounds, length)).sum(dim - 1)
            kernel = kernel.roll(-shift, dim)
    return _forward(kernel, lengths)


def inverse_transform(spectrum: Tensor, like: Tensor, points: Sequence[Points]) -> Tensor:
    """What is kept of the inverse transforms of the blocks of an input, in the type of that input.

    Args:
        spectrum: shape (..., blocks ..., frequencies ...).
        like: the input, shape (..., positions ...).

    Returns:
        Shape (..., positions of the result ...).
    """
    count = len(points)
    sizes = like.shape[-count:]
    ends: list[tuple[int, int, int]] = []
    for dim, (one, size) in enumerate(zip(points, sizes, strict=True), -count):
        spectrum = torch.fft.ifft(spectrum, dim=dim) if dim < -1 else torch.fft.irfft(spectrum, n=one.length)
        results, stride = one.results(size), one.stride
        if one.is_circle:
            spectrum = _every(spectrum.narrow(dim, 0, results), dim, stride)
        elif one.is_whole(size):
            spectrum = _every(spectrum.narrow(dim, one.reach - 1 - max(one.pads[0], 0), results), dim, stride)
        else:
            spectrum = spectrum.narrow(dim, one.reach - 1, one.block)
            ends.append((dim, results, stride))
    for dim in range(-1, -count - 1, -1):
        if points[dim].is_cut:  # the last axis of blocks comes before all positions
            spectrum = spectrum.movedim(-count - 1, dim - 1) if dim > -count else spectrum
            spectrum = spectrum.flatten(dim - 1, dim)
    for dim, results, stride in ends:
        spectrum = _every(spectrum.narrow(dim, 0, results), dim, stride)
    return spectrum if spectrum.dtype == like.dtype else spectrum.to(like.dtype)


def convolve_each(tensor: Tensor, spectrum: Tensor, points: Sequence[Points], *, tile: int) -> Tensor:
    """Windows with a kernel for each channel: the inverse transforms of an input's transforms times the kernels'.

    Args:
        tensor: the input, shape (..., positions ...).
        spectrum: of the kernel, shape (..., blocks ..., frequencies ...), with axes of one element where it is
            the same.
        tile: the number of elements of the input that are transformed at a time, as more of them do not stay in the
            cache.
    """
    shape = tensor.shape[: -len(points)]
    longest = 0
    for axis, size in enumerate(shape):  # by `max` with a key torch.compile could not follow it
        longest = axis if size > shape[longest] else longest
    if tensor.numel() <= tile or not shape or shape[longest] < 2:
        return inverse_transform(transform(tensor, points) * spectrum, tensor, points).contiguous()
    step = ceil(shape[longest] / ceil(tensor.numel() / tile))
    parts = torch.split(tensor, step, longest)
    kernels = [spectrum] * len(parts) if spectrum.shape[longest] == 1 else torch.split(spectrum, step, longest)
    pieces = [inverse_transform(transform(x, points) * k, x, points) for x, k in zip(parts, kernels, strict=True)]
    return torch.cat(pieces, longest)


def _every(tensor: Tensor, dim: int, stride: int) -> Tensor:
    """Every element of an axis whose number the stride divides."""
    index: Any = (..., slice(None, None, stride), *[slice(None)] * (-1 - dim))
    return tensor[index] if stride > 1 else tensor


def real_precision(tensor: Tensor) -> Tensor:
    """A tensor of real numbers in a type in which torch has Fourier transforms: that of half precision is float32."""
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _spread(tensor: Tensor, apart: Sequence[int]) -> Tensor:
    """Zeros after each element of the last axes."""
    for dim, distance in enumerate(apart, -len(apart)):
        if distance > 1:
            tensor = functional.pad(tensor.unsqueeze(dim), [0, 0] * (-1 - dim) + [0, distance - 1])
            tensor = tensor.flatten(dim - 1, dim)
    return tensor


def _forward(tensor: Tensor, lengths: Sequence[int]) -> Tensor:
    tensor = torch.fft.rfft(tensor, n=lengths[-1])
    for dim, length in enumerate(lengths[:-1], -len(lengths)):
        tensor = torch.fft.fft(tensor, n=length, dim=dim)
    return tensor
