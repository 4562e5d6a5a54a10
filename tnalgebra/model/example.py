"""Example inputs of a model: every form in which a caller may give them, read as the arguments of one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import LayerError

Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor, a shape, (shape, dtype), a sequence of arguments or a mapping of keyword arguments: see `read_example`."""


def read_example(example: Example, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read an example as the arguments of one call of a model.

    Args:
        example: a tensor; a shape, such as (1, 3, 224, 224); or a shape and a dtype, such as ((1, 128), torch.long):
            the model's only input. A sequence of such: its positional arguments, of which a mapping at the end holds
            the keyword arguments (end with an empty mapping where the last positional argument is one itself). A
            mapping: keyword arguments. Arguments may be sequences and mappings of tensors and shapes in turn;
            anything else, such as None or True, is passed as it is.
        model: determines the device, and the dtype of a shape that has none: those of its parameters.

    Returns:
        Positional and keyword arguments. A floating-point or complex tensor that is made for a shape holds normally
        distributed numbers, the same for the same example; one of integers or booleans holds ones.

    Raises:
        LayerError: the example is none of these, a shape has a negative size, or the model is on the meta device.

    Example:
        >>> read_example({"input_ids": ((2, 16), torch.long), "attention_mask": None}, model)
    """
    maker = _Maker(model)
    if isinstance(example, Mapping):
        return (), {str(name): maker.value(one) for name, one in example.items()}
    if isinstance(example, Tensor) or _is_shape(example) or _is_typed_shape(example):
        return (maker.value(example),), {}
    if not isinstance(example, Sequence) or isinstance(example, str):
        fact = f"the example is a {type(example).__name__}, which is not an input of a model"
        raise LayerError(fact, fix="a tensor, its shape (1, 3, 224, 224), or all arguments: (x, mask), {...}")
    *first, last = example or ({},)
    if isinstance(last, Mapping):
        return tuple(map(maker.value, first)), {str(name): maker.value(one) for name, one in last.items()}
    return tuple(map(maker.value, example)), {}


class _Maker:
    """Makes the tensors of an example, on the device of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.generator: torch.Generator | None = None

    def value(self, part: Any) -> Any:
        if _is_shape(part):
            return self._tensor(part, self.like.dtype)
        if _is_typed_shape(part):
            return self._tensor(*part)
        if isinstance(part, Mapping):
            return {key: self.value(one) for key, one in part.items()}
        if isinstance(part, tuple | list):
            values = [self.value(one) for one in part]
            return type(part)(*values) if hasattr(part, "_fields") else type(part)(values)
        return part

    def _tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if self.like.is_meta:
            raise LayerError("the model is on the meta device, where nothing runs", fix="a device with memory")
        if min(shape) < 0:
            raise LayerError(f"the shape {tuple(shape)} in the example has a negative size")
        device = self.like.device
        if not (dtype.is_floating_point or dtype.is_complex):
            return torch.ones(*shape, dtype=dtype, device=device)
        self.generator = self.generator or torch.Generator(device).manual_seed(0)
        return torch.randn(*shape, generator=self.generator, dtype=dtype, device=device)


def _is_shape(part: object) -> bool:
    sizes = isinstance(part, tuple | list) and all(isinstance(n, int) and not isinstance(n, bool) for n in part)
    return sizes and bool(part)


def _is_typed_shape(part: object) -> bool:
    return isinstance(part, tuple | list) and len(part) == 2 and _is_shape(part[0]) and isinstance(part[1], torch.dtype)


def tensors_in(output: object) -> Iterator[Tensor]:
    """The tensors of a model's output, which may be nested in sequences and mappings."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from tensors_in(one)
    elif isinstance(output, tuple | list):
        for one in output:
            yield from tensors_in(one)
