"""Inputs of a model, an example or batches: every form in which a caller may give them, as arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from ..errors import DataError, LayerError, TnalgebraError
from .images import Images

Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor, a shape, (shape, dtype), a sequence of arguments or a mapping of keyword arguments: see `read_example`."""

Batch: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor, all arguments in a mapping, or (inputs, labels), the inputs in any form of an example: see `inputs_of`."""

BATCH_FIX = "what the model takes: x, ((x, mask), labels) or {'x': x, ...}"
"""What a batch of inputs may be, for messages."""

CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a model raises that is called with the wrong inputs, or whose layer has no weight."""


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
    if isinstance(example, Tensor) or _is_shape(example) or _is_typed_shape(example):
        return (maker.value(example),), {}
    if not isinstance(example, Sequence | Mapping) or isinstance(example, str):
        fact = f"the example is a {type(example).__name__}, which is not an input of a model"
        raise LayerError(fact, fix="a tensor, its shape (1, 3, 224, 224), or all arguments: (x, mask), {...}")
    args, kwargs = _split(example)
    return tuple(map(maker.value, args)), {name: maker.value(one) for name, one in kwargs.items()}


def _split(arguments: Sequence[Any] | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: of a sequence, a mapping at the end holds the latter."""
    *first, last = (arguments,) if isinstance(arguments, Mapping) else (*arguments,) or ({},)
    if isinstance(last, Mapping):
        return tuple(first), {str(name): one for name, one in last.items()}
    return (*first, last), {}


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


# Batches ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch of a model's inputs, as the arguments of one call; its length is that of the first tensor's first axis.

    name: of the batch, for errors.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str = "these inputs"

    def __len__(self) -> int:
        return len(next(self.tensors()))

    def tensors(self) -> Iterator[Tensor]:
        return tensors_in((*self.args, self.kwargs))

    @property
    def only(self) -> Tensor | None:
        """The input, where there is one, and it is a tensor."""
        x = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return x if isinstance(x, Tensor) else None

    @property
    def example(self) -> Example:
        """An example of the same form; of the only input the first entry alone."""
        return (*self.args, dict(self.kwargs)) if self.only is None else self.only[:1]

    def to(self, device: torch.device | str) -> Inputs:
        args, kwargs = _moved(self.args, device), _moved(self.kwargs, device)
        return Inputs(args, kwargs, self.name)

    def run(self, model: nn.Module) -> Any:
        """What the model gives. Raises LayerError if it does not run on these inputs."""
        try:
            return model(*self.args, **self.kwargs)
        except (TnalgebraError, torch.OutOfMemoryError):
            raise
        except CALL_ERRORS as error:
            fact = f"{type(model).__name__} does not run on {self.name}"
            shapes = ", ".join(str(tuple(one.shape)) for one in self.tensors())
            raise LayerError(fact, shapes=shapes, because=f"{type(error).__name__}: {error}", fix=BATCH_FIX) from error


def inputs_of(
    batches: Images | Iterable[Batch | Inputs], model: nn.Module, example: Example | None = None
) -> Iterator[Inputs]:
    """The inputs in batches of data, without labels.

    A batch is a tensor, the only input; a mapping of keyword arguments; or a sequence (inputs, labels, ...), of which
    the first entry is the inputs: a tensor, a mapping, or a sequence of all arguments. Where the model needs several
    inputs, or the example has several, a sequence that begins with a tensor has no labels: it is all arguments.

    Args:
        batches: the data.
        model: what it needs is seen in the signature of its `forward`.
        example: see `read_example`.

    Raises:
        DataError: the data have no batch, a batch holds no inputs, or others than the example, or `batches` is a
            single batch or Images.
    """
    if isinstance(batches, Tensor | Mapping):  # its entries would pass for batches
        kind = "tensor" if isinstance(batches, Tensor) else "mapping"
        raise DataError(f"batches of inputs are needed, and one {kind} is given", fix=f"a list of {kind}s: [x]")
    if isinstance(batches, Images):
        raise DataError("Images are given without batch_size", source=batches.source, fix="images.batches(64)")
    if not isinstance(batches, Iterable):  # as untyped callers may
        raise DataError(f"batches of inputs are needed, and a {type(batches).__name__} is given", fix="[x]")
    number = 0
    for number, batch in enumerate(batches, start=1):
        yield batch if isinstance(batch, Inputs) else _read_batch(batch, model, example, name=f"batch {number}")
    if not number:
        raise DataError("the data have no batches of inputs")


def _read_batch(batch: object, model: nn.Module, example: Example | None, *, name: str) -> Inputs:
    given = batch
    if _is_sequence(batch):
        several = len(batch) > 1 and isinstance(batch[0], Tensor) and _has_several(model, example)
        given = batch if several or not batch else batch[0]
        if several and isinstance(example, Sequence | Mapping):
            _check_form(batch, example, name)
    args, kwargs = _split(given) if _is_sequence(given) or isinstance(given, Mapping) else ((given,), {})
    inputs = Inputs(args, kwargs, name)
    first = next(inputs.tensors(), None)
    if first is None or first.ndim == 0 or not first.numel():
        what = type(given).__name__ if first is None else f"shape {tuple(first.shape)}"
        needed = "a tensor (n, ...), n >= 1, all arguments in a mapping, or a pair of inputs and labels"
        raise DataError(f"{name} holds no inputs", given=what, needed=needed)
    return inputs


def _has_several(model: nn.Module, example: Example | None) -> bool:
    """Whether an example has several inputs, or without one, whether the model's forward needs several."""
    if example is not None:
        args, kwargs = read_example(example, model)
        return sum(next(tensors_in(one), None) is not None for one in (*args, *kwargs.values())) > 1
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of code that is not Python's
        return False
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(one.default is one.empty and one.kind not in various for one in parameters) > 1


def _check_form(batch: Sequence[Any], example: Sequence[Any] | Mapping[str, Any], name: str) -> None:
    """Raise DataError unless a sequence of all arguments has those of the example, which has several."""
    (args, kwargs), (needed, named) = _split(batch), _split(example)
    if len(args) != len(needed) or kwargs.keys() != named.keys():
        fact = f"{name} is a sequence of {len(batch)}, and not all inputs that the example has"
        inputs = ", ".join((*(f"argument {n}" for n in range(1, len(needed) + 1)), *map(repr, named)))
        fix = "((x, mask), labels) or {'x': x, 'mask': mask}: the inputs in one tuple or mapping"
        raise DataError(fact, example=inputs, fix=fix)


def _is_sequence(part: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(part, Sequence) and not isinstance(part, str)


def _moved(part: Any, device: torch.device | str) -> Any:
    """The same nesting, with its tensors on a device."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, Mapping):
        return {key: _moved(one, device) for key, one in part.items()}
    if isinstance(part, tuple | list):
        values = [_moved(one, device) for one in part]
        return type(part)(*values) if hasattr(part, "_fields") else type(part)(values)
    return part
