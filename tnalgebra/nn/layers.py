"""Decomposed layers: torch's convolutions, transposed convolutions and linear layers, their kernels tensor networks.

    layer = nn.Conv2d.from_conv(conv, "tucker2", {"a": 32, "b": 32})
    layer = nn.Conv2d(64, 128, 3, padding=1, rewrite="tucker2", size={"a": 32, "b": 32})

Arguments, inputs and outputs are those of torch's layer of that name. A layer with groups decomposes the kernel that
torch stores, `out in kh kw` with `in` the channels of one group; `per_group` makes rules with cores for each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, TypeVar, Unpack

import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.functional import pad

from ..compiler import is_channels_last, is_symbolic, leaf_call
from ..errors import CompileError, LayerError
from ..networks import Numbers
from ..networks import input_size as positions_reached
from ..rewriting import Rule
from .base import KernelLayer, LayerRewrite, check_dense
from .embedding import Embedding
from .planning import LayerChoices, Shaping

_M = TypeVar("_M", bound=torch_nn.Module)


class _Windowed(KernelLayer):
    """A layer with positions."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def from_conv(
        cls, conv: torch_nn.Module, rewrite: LayerRewrite, size: object = None, **choices: Unpack[LayerChoices]
    ) -> Self:
        """Make the layer that does what one of torch's does, with its weight decomposed.

            layer = tn.nn.Conv2d.from_conv(conv, "tucker2", {"a": 32, "b": 32}, input_size=56)

        Args:
            conv: torch's layer of the same name. It stays as it is; the new layer has its dtype, device, memory
                format, `requires_grad` and training mode.
            rewrite: a decomposition's name, a cut such as "out kh | in kw", a rule or its notation; or a `Fit` of this
                weight, which needs neither a size nor choices of the fit.
            size: of the bonds, as `tn.fitting.read_size` reads it: 8, {"a": 32, "b": 16}, "a=32 b=16", "keep 0.5",
                "error 0.01", "parameters 0.3".
            choices: of `Rule.apply`: sizes (of parts of a label), fixed, metric, starts, seed, ...; and of the plan,
                see `Planning`: input_size, batch_size, candidates, tune, backward, memory_format.

        Raises:
            LayerError: another layer, one whose weight is computed from others, or with hooks; a fit of another
                weight; a tensor named like an attribute of the layer; a memory format of another number of axes;
                `batch_size` below 1.
            NetworkError: `input_size` does not fit.
            RuleError, RankError, ValuesError, SizeError: as of `Rule.apply`.
            CompileError: no plan keeps within memory.
        """
        return cls._of_dense(conv, rewrite, size, choices)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the layer's output.

        Args:
            input: shape (n, in_channels, *positions), or without n.

        Returns:
            Shape (n, out_channels, *positions), or without n.

        Raises:
            CompileError: another number of axes or channels, another dtype, fewer positions than a window needs.
        """
        if (value := self._at_once((input,))) is not None:
            return value
        if is_symbolic(input):
            return leaf_call(self, (input,), {})
        self._check_tensor(input)
        axes = len(self.kernel_size)
        if input.ndim == axes + 1:
            return self._compute(input.unsqueeze(0), self.in_channels, -axes - 1).squeeze(0)
        return self._compute(input, self.in_channels, -axes - 1)


_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")


class _Conv(_Windowed):
    argument_names = (*_CONV, "padding_mode")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: str | Numbers = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rewrite: str | Rule,
        size: object = None,
        **choices: Unpack[Shaping],
    ) -> None:
        """Make a layer with random values, see `reset_parameters`.

            layer = tn.nn.Conv2d(64, 128, 3, padding=1, rewrite="tucker2", size="a=32 b=32")

        Args:
            in_channels, ..., dtype: as of torch's layer.
            rewrite, size: as of `from_conv`; ranks that depend on singular values are those of a random kernel.
            choices: those of `Planning`, and sizes, fixed, bind and at of `Rule.apply`.

        Raises:
            LayerError: torch's layer does not take these arguments; or as of `from_conv`.
        """
        window = (in_channels, out_channels, kernel_size, stride, padding, dilation)
        values = (*window, groups, bias, padding_mode, device, dtype)
        arguments = dict(zip((*self.argument_names, "device", "dtype"), values, strict=True))
        self._start(arguments, rewrite, size, choices)


class _ConvTranspose(_Windowed):
    argument_names = (*_CONV, "output_padding", "padding_mode")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: str | Numbers = 0,
        output_padding: Numbers = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Numbers = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rewrite: str | Rule,
        size: object = None,
        **choices: Unpack[Shaping],
    ) -> None:
        """Make a layer with random values; arguments and errors as of `Conv2d`, in the order of torch's layer."""
        if isinstance(padding, str):  # torch would take its letters
            fact = f"padding of a transposed convolution is {padding!r}"
            raise LayerError(fact, fix="integers, as torch asks for")
        window = (in_channels, out_channels, kernel_size, stride, padding, dilation)
        values = (*window, groups, bias, output_padding, padding_mode, device, dtype)
        arguments = dict(zip((*self.argument_names, "device", "dtype"), values, strict=True))
        self._start(arguments, rewrite, size, choices)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # type: ignore[override]
        """Compute the layer's output.

        Args:
            input: shape (n, in_channels, *positions), or without n.
            output_size: the sizes of the output, with the first two or without; the positions are as many as with some
                `output_padding` below the stride, which takes the place of the layer's own.

        Returns:
            Shape (n, out_channels, *positions), or without n.

        Raises:
            CompileError: as of any input that does not fit; an output_size that no such output padding makes.
        """
        if output_size is None:
            return super().forward(input)
        if is_symbolic(input):
            return leaf_call(self, (input,), {"output_size": output_size})
        self._check_tensor(input)
        axes = len(self.kernel_size)
        if input.ndim not in (axes + 1, axes + 2):
            return super().forward(input)  # which refuses it
        padding = self._output_padding_of(input, output_size)
        pairs = [*zip(padding, self.output_padding, self.stride, strict=True)]
        if all(type(own) is int and own == usual for own, usual, _ in pairs):
            return super().forward(input)
        # a position of zeros behind the others adds nothing to the output, and makes it longer by the stride
        longer = [usual < stride - 1 and not (type(own) is int and own <= usual) for own, usual, stride in pairs]
        value = super().forward(pad(input, [number for one in reversed(longer) for number in (0, int(one))]))
        for axis, size in enumerate(output_size[-axes:], -axes):
            value = value.narrow(axis, 0, size)
        return value.clone()

    def _output_padding_of(self, input: Tensor, output_size: Sequence[int]) -> list[int]:
        """The output padding of each axis with which the output has a size."""
        axes = len(self.kernel_size)
        numbers = zip(self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        sizes = zip(input.shape[-axes:], numbers, strict=True)
        least = tuple(positions_reached(u, k, stride=s, low=p, high=p, dilation=d) for u, (k, s, p, d) in sizes)
        padding = [size - one for size, one in zip(output_size[-axes:], least, strict=False)]
        fits = len(output_size) in (axes, input.ndim)
        if not fits or not all(0 <= one < stride for one, stride in zip(padding, self.stride, strict=True)):
            most = tuple(one + stride - 1 for one, stride in zip(least, self.stride, strict=True))
            fact = f"output_size is {tuple(output_size)}, which no output padding below the stride makes"
            fix = f"{least}" if least == most else f"from {least} to {most}, along each axis"
            raise CompileError(fact, shape=tuple(input.shape), layer=self._title(), fix=fix)
        return padding


class Conv1d(_Conv):
    """`torch.nn.Conv1d` with a decomposed kernel `out in k`."""

    dense_class = torch_nn.Conv1d


class Conv2d(_Conv):
    """`torch.nn.Conv2d` with a decomposed kernel `out in kh kw`."""

    dense_class = torch_nn.Conv2d


class Conv3d(_Conv):
    """`torch.nn.Conv3d` with a decomposed kernel `out in kd kh kw`."""

    dense_class = torch_nn.Conv3d


class ConvTranspose1d(_ConvTranspose):
    """`torch.nn.ConvTranspose1d` with a decomposed kernel `in out k`."""

    dense_class = torch_nn.ConvTranspose1d


class ConvTranspose2d(_ConvTranspose):
    """`torch.nn.ConvTranspose2d` with a decomposed kernel `in out kh kw`."""

    dense_class = torch_nn.ConvTranspose2d


class ConvTranspose3d(_ConvTranspose):
    """`torch.nn.ConvTranspose3d` with a decomposed kernel `in out kd kh kw`."""

    dense_class = torch_nn.ConvTranspose3d


class Linear(KernelLayer):
    """`torch.nn.Linear` with a decomposed matrix `out in`."""

    dense_class = torch_nn.Linear
    argument_names: ClassVar[tuple[str, ...]] = ("in_features", "out_features", "bias")
    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rewrite: str | Rule,
        size: object = None,
        **choices: Unpack[Shaping],
    ) -> None:
        """Make a layer with random values; arguments and errors as of `Conv2d`.

        layer = tn.nn.Linear(1024, 4096, rewrite="monarch", sizes={"a": 32, "b": 64})
        """
        values = (in_features, out_features, bias, device, dtype)
        arguments = dict(zip((*self.argument_names, "device", "dtype"), values, strict=True))
        self._start(arguments, rewrite, size, choices)

    @classmethod
    def from_linear(
        cls, linear: torch_nn.Module, rewrite: LayerRewrite, size: object = None, **choices: Unpack[LayerChoices]
    ) -> Self:
        """Make the layer that does what a linear layer does, with its matrix decomposed: see `Conv2d.from_conv`.

        layer = tn.nn.Linear.from_linear(linear, "out | in", "keep 0.25")
        """
        return cls._of_dense(linear, rewrite, size, choices)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the layer's output.

        Args:
            input: shape (*, in_features), with any leading axes or none.

        Returns:
            Shape (*, out_features).

        Raises:
            CompileError: another number of features, another dtype.
        """
        if (value := self._at_once((input,))) is not None:
            return value
        if is_symbolic(input):
            return leaf_call(self, (input,), {})
        self._check_tensor(input)
        if input.ndim == 2:
            return self._compute(input, self.in_features, -1)
        if input.ndim < 2:
            return self._compute(input.unsqueeze(0), self.in_features, -1).squeeze(0)
        rows = self._compute(input.flatten(0, -2), self.in_features, -1)
        return rows.reshape(*input.shape[:-1], self.out_features)


LAYERS: tuple[type[KernelLayer], ...] = (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    Embedding,
)
"""The decomposed layers, each of torch's class of that name."""


def decomposed(
    module: torch_nn.Module, rewrite: LayerRewrite, size: object = None, **choices: Unpack[LayerChoices]
) -> KernelLayer:
    """Make the decomposed layer of one of torch's layers with a kernel, of whichever class it is.

        layer = tn.nn.decomposed(model.fc, "out | in", "parameters 0.3")

    Arguments and errors are those of `Conv2d.from_conv`; a linear layer and an embedding have no `input_size`.
    """
    return layer_class(module)._of_dense(module, rewrite, size, choices)


def layer_class(module: torch_nn.Module) -> type[KernelLayer]:
    """The class of the decomposed layer of one of torch's. Raises LayerError: it has no kernel."""
    for kind in LAYERS:
        if isinstance(module, kind.dense_class):
            return kind
    check_dense(module)
    known = ", ".join(kind.__name__ for kind in LAYERS)
    raise LayerError(f"{type(module).__name__} has no kernel to decompose", fix=f"one of {known}")


def in_memory_format(model: _M, memory_format: torch.memory_format) -> _M:
    """Put a model's kernels into a memory format, and plan its decomposed layers for inputs that come in it.

    `model.to(memory_format=...)` does the first alone, and fails on cores of five axes.

    Args:
        model: dense layers, decomposed ones, or both; parameters stay the same objects.
        memory_format: torch.channels_last, channels_last_3d or contiguous_format; what has another number of axes
            stays as it is.

    Returns:
        The model itself.

    Raises:
        CompileError: it is another format.
    """
    last = is_channels_last(memory_format)
    axes = {torch.channels_last: (4,), torch.channels_last_3d: (5,)}.get(memory_format, (4, 5))
    for module in model.modules():
        if isinstance(module, KernelLayer):
            request = module.plan.request
            if len(module.kernel.output) in axes and request.channels_last != last:
                module.replan(module.planned_for, memory_format=memory_format)
        else:
            for parameter in module.parameters(recurse=False):
                if parameter.ndim in axes:
                    parameter.data = parameter.data.clone(memory_format=memory_format)
    return model
