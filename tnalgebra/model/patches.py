"""The input patches of a layer as the rows of matrices, and their second moments, gathered block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import LayerError, ValuesError
from ..fitting import Metric
from ..nn import TRANSPOSED, DenseLayer, kernel_labels_of
from ..tensors import MAX_ELEMENTS

PATCH_BLOCK = 2**21
"""Default bound of the elements of a block of patches: 16 MiB in float64, about a cache."""

_FLOAT64_UP_TO = 2048
"""Rows of the largest covariance that is gathered in float64 by default. A patch costs the square of the rows, and
float32 half of that and half the memory; its rounding, about 1e-6 of the diagonal, is far below the usual ridge."""

_STRIP = 256
"""Rows of a covariance that are computed at once, from the diagonal on: the other half is their mirror image."""


@dataclass(frozen=True, eq=False)
class Window:
    """How a layer looks at its input: every output is a sum over a patch, of a padded and stuffed input.

    A transposed convolution is the convolution of its input, stuffed with stride - 1 zeros between neighbours, with
    the kernel turned around; a linear layer is one with a window of no axes.
    """

    labels: tuple[str, ...]
    """The coupled labels of the kernel: the input's, then those of the window."""
    channels: int
    """Of the input."""
    outputs: int
    groups: int
    size: tuple[int, ...]
    """Of the window on each axis."""
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Before and behind each axis; of a transposed convolution, how much of its whole output is cut off."""
    mode: str
    transposed: bool

    @property
    def coupled(self) -> int:
        """Number of the values of a patch that meet one kernel: the rows of a covariance."""
        return self.channels // self.groups * prod(self.size)

    @property
    def elements(self) -> int:
        """Of the covariance that a `Metric` of the layer holds."""
        matrices = 1 if self.groups == 1 else self.outputs
        return (self.groups * self.coupled) ** 2 if self.transposed else matrices * self.coupled**2

    def parts(self, x: Tensor, extent: tuple[int, ...], dtype: torch.dtype, block: int) -> Iterator[PatchPart]:
        """The patches of an input, part by part.

        Args:
            x: shape (n, channels, *positions).
            extent: sizes of the output's positions.
            dtype: of the patches.
            block: the most elements of a part, unless one line of outputs of one image needs more.
        """
        line = prod(extent[1:]) * self.channels * prod(self.size)
        lines = max(1, min(extent[0], block // line)) if extent else 1
        images = max(1, block // (line * lines)) if not extent or lines == extent[0] else 1
        for first in range(0, len(x), images):
            some = slice(first, first + images)
            views = self._views(self._padded(x[some].to(dtype), extent))
            for top in range(0, extent[0] if extent else 1, lines):
                top_lines = (slice(top, top + lines),) if extent else ()
                yield PatchPart(self._rows(views[:, :, :, *top_lines]), (some, *top_lines))

    def outputs_at(self, part: PatchPart, y: Tensor) -> Tensor:
        """The outputs of a part's patches: shape (groups, patches, outputs of a group)."""
        images, *lines = part.where
        values = y[images, :, *lines].to(part.rows.dtype)
        values = values.reshape(len(values), self.groups, -1, *values.shape[2:])
        return values.permute(1, 0, *range(3, values.ndim), 2).reshape(self.groups, part.rows.shape[1], -1)

    def _padded(self, x: Tensor, extent: tuple[int, ...]) -> Tensor:
        padding = self.padding
        if self.transposed:
            lengths = [(length - 1) * step + 1 for length, step in zip(x.shape[2:], self.stride, strict=True)]
            stuffed = x.new_zeros(*x.shape[:2], *lengths)
            stuffed[:, :, *(slice(None, None, step) for step in self.stride)] = x
            x = stuffed
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True)]
            # behind, as far as the output reaches: the size of the input alone does not determine it
            padding = tuple(
                (r - before, o + before - length)
                for r, (before, _), o, length in zip(reach, padding, extent, lengths, strict=True)
            )
        amounts = [amount for pair in reversed(padding) for amount in pair]
        if not any(amounts):
            return x
        return functional.pad(x, amounts, "constant" if self.mode == "zeros" else self.mode)

    def _views(self, x: Tensor) -> Tensor:
        """Shape (n, groups, channels of a group, *positions, *window), in the memory of `x`."""
        for axis, (k, d, s) in enumerate(zip(self.size, self.dilation, self.stride, strict=True), start=2):
            x = x.unfold(axis, d * (k - 1) + 1, 1 if self.transposed else s)
        taps: tuple[slice, ...] = tuple(slice(None, None, d) for d in self.dilation)
        x = x[(slice(None),) * (2 + len(taps)) + taps]
        return x.reshape(len(x), self.groups, -1, *x.shape[2:])

    def _rows(self, views: Tensor) -> Tensor:
        axes = len(self.size)
        positions, window = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
        if self.transposed:
            views = views.flip(tuple(window))
        return views.permute(1, 0, *positions, 2, *window).reshape(self.groups, -1, self.coupled)


@dataclass(frozen=True, eq=False)
class PatchPart:
    """Some patches of an input."""

    rows: Tensor
    """Shape (groups, patches, coupled); element [g, p, i] meets K[out, i] for the outputs of group g."""
    where: tuple[slice, ...]
    """The images, and the first axis of the output's positions."""


def window_of(module: DenseLayer) -> Window:
    """How a layer looks at its input. `layer_network` refuses layers that are not what their class says."""
    labels = tuple(label for label in kernel_labels_of(module) if label != "out")
    if isinstance(module, nn.Linear):
        return Window(labels, module.in_features, module.out_features, 1, (), (), (), (), "zeros", transposed=False)
    axes = len(labels) - 1

    def each(name: str) -> tuple[int, ...]:
        given = getattr(module, name)
        return (given,) * axes if isinstance(given, int) else tuple(given) * (axes // len(given))

    size, dilation = each("kernel_size"), each("dilation")
    if module.padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        padding = tuple((r // 2, r - r // 2) for r in reach)
    else:
        padding = tuple((p, p) for p in (each("padding") if module.padding != "valid" else (0,) * axes))
    return Window(
        labels,
        module.in_channels,
        module.out_channels,
        module.groups,
        size,
        each("stride"),
        dilation,
        padding,
        module.padding_mode,
        transposed=isinstance(module, TRANSPOSED),
    )


class Moments:
    """E[x x^T] of a layer's patches, and E[y x^T] and E||y||^2 of the outputs wanted for them, being gathered.

    Args:
        module: the layer.
        dtype: of sums and products; float64 or float32.
        device: where they are.
        block: see `Window.parts`.
        cross: are there outputs, too?

    Raises:
        LayerError: the covariances would be too large.
    """

    def __init__(
        self, module: DenseLayer, *, dtype: torch.dtype | None, device: torch.device | str, block: int, cross: bool
    ) -> None:
        self.window = window = window_of(module)
        if window.elements > MAX_ELEMENTS:
            raise LayerError(
                f"the covariances of a {type(module).__name__} would have {window.elements} elements",
                layer=module,
                limit=MAX_ELEMENTS,
                why="each output channel has a covariance of its own" if window.groups > 1 else None,
                fix="leave it out of layers=",
            )
        self.dtype = dtype or (torch.float64 if window.coupled <= _FLOAT64_UP_TO else torch.float32)
        self.block = block
        shape = (window.groups, window.coupled, window.coupled)
        self._products = torch.zeros(shape, dtype=self.dtype, device=device)
        outputs = (window.groups, window.outputs // window.groups, window.coupled)
        self._cross = torch.zeros(outputs, dtype=self.dtype, device=device) if cross else None
        self._power = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the patches of some images.

        Args:
            x: the layer's input, as torch takes it.
            y: its output without the bias; only its shape counts without `cross`.

        Raises:
            ValuesError: NaN or infinity.
        """
        for name, tensor in (("inputs", x), ("outputs", y)):
            if not bool(tensor.isfinite().all()):
                raise ValuesError(f"its {name} hold NaN or infinity", shape=tuple(tensor.shape))
        axes = len(self.window.size)
        if not axes:
            x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        elif x.ndim == axes + 1:  # one image, without an axis for it
            x, y = x[None], y[None]
        for part in self.window.parts(x, tuple(y.shape[2:]), self.dtype, self.block):
            for start in range(0, self.window.coupled, _STRIP):
                strip = part.rows[:, :, start : start + _STRIP].mT
                self._products[:, start : start + _STRIP, start:].baddbmm_(strip, part.rows[:, :, start:])
            if self._cross is not None:
                outputs = self.window.outputs_at(part, y)
                self._cross.baddbmm_(outputs.mT, part.rows)
                self._power += outputs.square().sum(dtype=torch.float64)

    def metric(self, images: int, *, ridge: float, weight: Tensor) -> Metric:
        """The means over `images` as a metric with a relative `ridge`. The sums are used up.

        Raises:
            ValuesError: see `Metric.with_ridge`.
        """
        window, sums = self.window, self._products
        for start in range(0, window.coupled, _STRIP):
            stop = start + _STRIP
            sums[:, stop:, start:stop] = sums[:, start:stop, stop:].mT
        sums /= images
        sizes = (window.channels // window.groups, *window.size)
        batch: tuple[str, ...] = ()
        if window.transposed and window.groups > 1:
            # the kernel counts the inputs of all groups; those of two groups never meet
            blocks = sums.new_zeros(window.groups, window.coupled, window.groups, window.coupled)
            for group, own in enumerate(sums):
                blocks[group, :, group] = own
            sums = blocks
            sizes = (window.channels, *window.size)
        elif window.groups > 1:
            sums = sums.repeat_interleave(window.outputs // window.groups, dim=0)
            batch = ("out",)
        covariance = sums.reshape(*((window.outputs,) if batch else ()), *sizes, *sizes)
        cross = power = None
        if self._cross is not None:
            # (group, outputs of it, coupled): a transposed kernel's outputs are those of one group
            ordered = self._cross.transpose(0, 1) if window.transposed else self._cross
            cross = ordered.reshape(-1, *sizes) / images
            power = float(self._power) / images
        kernel = weight.transpose(0, 1) if window.transposed else weight
        return Metric.with_ridge(
            window.labels, covariance, ridge=ridge, batch=batch, cross=cross, power=power, kernel=kernel
        )
