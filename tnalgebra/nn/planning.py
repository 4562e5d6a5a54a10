"""What the plan of a layer is chosen for, and the keyword arguments of the layers' constructors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import nn as torch_nn

from ..compiler import Candidates
from ..errors import LayerError
from ..networks import Numbers, axis_numbers
from ..rewriting import Choices, Place, check_choice
from .torch_layers import AnyLayer

_NOMINAL_BATCH = 16
"""Images, or other things with positions, for which a plan is chosen by default."""

_NOMINAL_ROWS = 256
"""Rows of a linear layer and tokens of an embedding for which a plan is chosen by default."""

_NOMINAL_POSITIONS = {1: 256, 2: 32, 3: 16}
"""Positions along each axis by default, for each number of axes; at least as many as a window reaches."""


class Planning(TypedDict, total=False):
    """What a layer's plan is chosen for. The layer computes inputs of every other size as well.

    input_size: positions of the input, one integer for all axes or one for each; by default 256 (1-d), 32 (2-d) or
        16 (3-d), or the window's reach where that is more. A linear layer and an embedding have no positions.
    batch_size: by default 16; of a linear layer the rows, all leading axes together, and of an embedding the tokens,
        both by default 256.
    candidates: "all", or "factored" for plans in which the input never meets the whole kernel, unless no other plan
        takes inputs of every size.
    tune: measure the plans whose predicted times are close (the default), or go by the predictions.
    backward: choose by the time of forward and backward together.
    memory_format: of inputs and outputs; by default that of the weight.
    """

    input_size: Numbers | None
    batch_size: int | None
    candidates: Candidates
    tune: bool
    backward: bool
    memory_format: torch.memory_format | None


class LayerChoices(Choices, Planning, total=False):
    """Choices of the fit and of the plan."""


class Shaping(Planning, total=False):
    """Choices of the plan and, of `Choices`, those that determine the tensors of a layer with random values."""

    at: int | Place | None
    bind: Mapping[str, str] | None
    sizes: Mapping[str, int] | None
    fixed: Mapping[str, Any] | None


def split_choices(choices: LayerChoices | Shaping) -> tuple[Planning, Choices]:
    """Separate the choices of the plan from those of the fit. Raises TypeError for a choice that does not exist."""
    for name in choices:
        check_choice(name, LayerChoices.__annotations__)
    planning: Any = {name: value for name, value in choices.items() if name in Planning.__annotations__}
    fitting: Any = {name: value for name, value in choices.items() if name not in planning}
    return planning, fitting


def nominal_shape(module: AnyLayer, planning: Planning) -> tuple[int, ...]:
    """Shape of the input that the plan of a layer is chosen for; of an embedding, the number of tokens."""
    positions, batch = planning.get("input_size"), planning.get("batch_size")
    if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
        raise LayerError(f"batch_size is {batch!r}", fix="an integer of at least 1")
    if isinstance(module, torch_nn.Linear | torch_nn.Embedding):
        if positions is not None:
            raise LayerError("input_size is given to a layer without positions", fix="batch_size")
        rows = batch or _NOMINAL_ROWS
        return (rows, module.in_features) if isinstance(module, torch_nn.Linear) else (rows,)
    axes = len(module.kernel_size)
    if positions is not None:
        positions = axis_numbers("input_size", positions, axes)
    else:
        pads = (0,) * axes if isinstance(module.padding, str) else module.padding
        reach = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        positions = tuple(max(_NOMINAL_POSITIONS[axes], r, 2 * p + 1) for r, p in zip(reach, pads, strict=True))
    return (batch or _NOMINAL_BATCH, module.in_channels, *positions)


def checked_format(layout: torch.memory_format | None, axes: int) -> torch.memory_format | None:
    """The memory format that is asked for. Raises LayerError if inputs have another number of axes."""
    formats = {torch.channels_last: 4, torch.channels_last_3d: 5}
    if layout is not None and formats.get(layout, axes) != axes:
        fact = f"memory_format is {layout}, of {formats[layout]} axes"
        raise LayerError(fact, input=f"{axes} axes")
    return layout
