"""The symbol of a linear map: one small matrix for each frequency, where its windows commute with circular shifts.

A window y = sum over k of K[k] x[s*y + d*k - low], with positions of x taken modulo N and N = s*M for M positions of
y, takes the frequencies f = e + M*j of x, for j from 0 to s-1, to the frequency e of y. So the map is a matrix (out, in
and j) for each e, and all that is known of these matrices is known of the map: its singular values, its inverse. The
same holds, with x and y exchanged, for transposed windows. A window that never reaches outside of x is one of these
whatever its padding mode is. Source: Sedghi, Gupta, Long, The Singular Values of Convolutional Layers (ICLR 2019), for
stride 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt

import torch
from torch import Tensor

from ..errors import NetworkError
from ..networks import window
from ..tensors import evaluate
from .kernel import Kernel, Moved, kernel_of
from .linear_map import LinearMap

MOST_AT_ONCE = 2**24
"""Number of elements of the matrices that are made at once."""


@dataclass(frozen=True)
class SymbolAxis:
    """A window along one axis of positions.

    before, after: the labels of the positions of the input and of the output.
    size: the number N of positions on the longer side: the input's, or the output's if it is transposed.
    places: the position of each element k of the window relative to s*y, modulo N.
    """

    before: str
    after: str
    size: int
    stride: int
    places: tuple[int, ...]
    transposed: bool

    @property
    def frequencies(self) -> int:
        """The number M of frequencies: the positions on the shorter side."""
        return self.size // self.stride


@dataclass(frozen=True)
class FourierSymbol:
    """A linear map by frequency."""

    of: LinearMap
    kernel: Kernel
    axes: tuple[SymbolAxis, ...]

    @property
    def frequencies(self) -> tuple[int, ...]:
        return tuple(axis.frequencies for axis in self.axes)

    @property
    def alias(self) -> tuple[int, int]:
        """How many frequencies of the output and of the input belong to one matrix."""
        outs, ins = (prod(axis.stride for axis in self.axes if axis.transposed is one) for one in (True, False))
        return outs, ins

    @cached_property
    def elements(self) -> Tensor:
        """The kernel, shape (k of each axis ..., groups, outs, ins), float64."""
        values = {name: value.detach() for name, value in self.of.values.items()}
        value = evaluate(self.kernel.network, values)
        channels = (
            self.kernel.count(self.kernel.groups),
            self.kernel.count(self.kernel.outs),
            self.kernel.count(self.kernel.ins),
        )
        return value.reshape(*(len(axis.places) for axis in self.axes), *channels)

    def matrices(self, *, half: bool = False) -> Iterator[Tensor]:
        """The matrices, a part of the frequencies of the first axis at a time.

        Args:
            half: whether to leave out the upper half of the frequencies of the last axis. The matrix of a frequency is
                the conjugate of that of its negative.

        Yields:
            Shape (frequencies of each axis ..., groups, rows, columns), complex128. Element [e, ..., g, o, i] takes the
            unitary Fourier transform of the input's channel i to that of the output's channel o in the group g; o or i
            includes the aliases.
        """
        elements = self.elements
        if not self.axes:
            yield elements.to(torch.complex128)
            return
        rest = prod(axis.size for axis in self.axes[1:]) * prod(elements.shape[len(self.axes) :])
        first = self.axes[0]
        kept = first.frequencies // 2 + 1 if half and len(self.axes) == 1 else first.frequencies
        rows = max(1, min(kept, MOST_AT_ONCE // (rest * first.stride)))
        last = len(self.axes) - 1
        for start in range(0, kept, rows):
            if rows == kept:
                part = _aliased(first, torch.fft.fft(_placed(first, elements, 0), dim=0), 0)[:kept]
            else:
                chosen = torch.arange(start, min(start + rows, kept), device=elements.device)
                part = _aliased(first, _some_frequencies(first, elements, chosen), 0)
            for number, axis in enumerate(self.axes[1:], start=1):
                part = _aliased(axis, torch.fft.fft(_placed(axis, part, number), dim=number), number)
                if half and number == last:
                    part = part.narrow(number, 0, axis.frequencies // 2 + 1)
            yield part / sqrt(prod(axis.stride for axis in self.axes))

    def all_matrices(self) -> Tensor:
        """The matrices of all frequencies."""
        return torch.cat(list(self.matrices())) if self.axes else next(self.matrices())

    # Tensors of the input and of the output ----------------------------------------------------------------------

    def split(self, tensor: Tensor, labels: tuple[str, ...], *, output: bool) -> Tensor:
        """A tensor with the axes `labels` in frequency space: (frequencies ..., groups, rows, alike).

        The rows are those of the columns of the matrices, or of their rows if it is one of the output.
        """
        inner, order, inside = self._order(labels, output=output)
        tensor = tensor.to(torch.float64).reshape(self._sizes(inner, tensor, labels)).permute(order)
        count = len(self.axes)
        lengths = [axis.size if axis.transposed is output else axis.frequencies for axis in self.axes]
        tensor = tensor.reshape(*lengths, self.kernel.count(self.kernel.groups), self.kernel.count(inside), -1)
        tensor = torch.fft.fftn(tensor, dim=tuple(range(count)), norm="ortho") if count else tensor.to(torch.complex128)
        for number, axis in enumerate(self.axes):
            if axis.transposed is output:
                tensor = _split_frequencies(axis, tensor, number).movedim(number, -3)
                tensor = tensor.flatten(-3, -2)
        return tensor

    def merge(self, tensor: Tensor, labels: tuple[str, ...], shape: tuple[int, ...], *, output: bool) -> Tensor:
        """The inverse of `split`: a real tensor of this shape, with the axes `labels`."""
        inner, order, _ = self._order(labels, output=output)
        count, strides = len(self.axes), [axis.stride for axis in self.axes if axis.transposed is output]
        for number, axis in reversed(list(enumerate(self.axes))):
            if axis.transposed is output:
                tensor = torch.unflatten(tensor, -2, (strides.pop(), -1)).movedim(-3, number)
                tensor = tensor.flatten(number, number + 1)
        tensor = torch.fft.ifftn(tensor, dim=tuple(range(count)), norm="ortho").real if count else tensor.real
        sizes = self._sizes(inner, torch.empty(shape, device="meta"), labels)
        tensor = tensor.reshape([sizes[place] for place in order])
        return tensor.permute([order.index(place) for place in range(len(order))]).reshape(shape)

    def _order(self, labels: tuple[str, ...], *, output: bool) -> tuple[list[str], list[int], tuple[str, ...]]:
        """The labels after reshapes, their permutation to (positions, groups, channels, alike), and the channels."""
        inner = [part for label in labels for part in self.kernel.parts.get(label, (label,))]
        inside = self.kernel.outs if output else self.kernel.ins
        positions = tuple(axis.after if output else axis.before for axis in self.axes)
        order = [inner.index(label) for label in (*positions, *self.kernel.groups, *inside, *self.kernel.alike)]
        return inner, order, inside

    def _sizes(self, inner: list[str], tensor: Tensor, labels: tuple[str, ...]) -> list[int]:
        """The size of each label after reshapes; those that have no parts are as the tensor has them."""
        sizes = dict(zip(labels, tensor.shape, strict=True))
        return [sizes[label] if label in sizes else self.kernel.network.sizes[label] for label in inner]


def symbol_of(linear: LinearMap) -> FourierSymbol:
    """The symbol of a linear map.

    Raises:
        NetworkError: it does not commute with circular shifts; the message says which window is the reason.
    """
    kernel = kernel_of(linear.network, linear.source.name)
    return FourierSymbol(linear, kernel, tuple(_axis(one, linear.network.sizes, kernel) for one in kernel.windows))


def _axis(moved: Moved, sizes: Mapping[str, int], kernel: Kernel) -> SymbolAxis:
    """One axis of the symbol. Raises NetworkError if its window is not one of circular shifts."""
    node, numbers = moved.node, window(moved.node)
    stride, dilation, low = (numbers[name] for name in ("stride", "dilation", "low"))
    size, count, width = sizes[node.x], sizes[node.y], kernel.network.sizes[node.k]
    last = stride * (count - 1) + dilation * (width - 1) - low
    if size != stride * count or not (node.mode == "circular" or (low <= 0 and last < size)):
        raise NetworkError(
            f"the window from {node.x!r} to {node.y!r} does not commute with circular shifts",
            because=f"mode {node.mode}, {size} positions of {node.x!r} and {count} of {node.y!r} with stride {stride}",
            fix=f"mode=circular, and padding with which {node.x!r} has {stride} times as many positions",
        )
    sign = 1 if moved.is_transposed else -1  # a convolution has the conjugate of its kernel's transform
    places = tuple(sign * (dilation * k - low) % size for k in range(width))
    return SymbolAxis(moved.before, moved.after, size, stride, places, transposed=moved.is_transposed)


def _some_frequencies(axis: SymbolAxis, tensor: Tensor, chosen: Tensor) -> Tensor:
    """The transform of a window along the first axis at the frequencies chosen + M*j, in the order (j, chosen)."""
    aliases = torch.arange(axis.stride, device=chosen.device)
    frequencies = (chosen + axis.frequencies * aliases[:, None]).reshape(-1)
    places = torch.tensor(axis.places, device=chosen.device)
    turns = (frequencies[:, None] * places % axis.size).to(torch.float64) / axis.size
    phases = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    return torch.unflatten(phases @ tensor.to(torch.complex128).flatten(1), 1, tensor.shape[1:])


def _placed(axis: SymbolAxis, tensor: Tensor, dim: int) -> Tensor:
    """The elements of a window at their places on an axis of N elements."""
    shape = [*tensor.shape]
    shape[dim] = axis.size
    return tensor.new_zeros(shape).index_add_(dim, torch.tensor(axis.places, device=tensor.device), tensor)


def _split_frequencies(axis: SymbolAxis, tensor: Tensor, dim: int) -> Tensor:
    """An axis of frequencies e + M*j as two axes (j, e)."""
    return torch.unflatten(tensor, dim, (axis.stride, -1))


def _aliased(axis: SymbolAxis, tensor: Tensor, dim: int) -> Tensor:
    """The transform along one axis with its aliases as the first part of the rows (transposed) or of the columns."""
    if axis.stride == 1:
        return tensor
    side = -2 if axis.transposed else -1
    return _split_frequencies(axis, tensor, dim).movedim(dim, side - 1).flatten(side - 1, side)
