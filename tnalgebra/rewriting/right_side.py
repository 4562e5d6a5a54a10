"""The right side of a rule for a tensor of some shape: its network with all sizes, before anything is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import NotationError, RankError, RuleError
from ..fitting import KeepFraction, RelativeError, chosen_ranks, select_rows, with_open_axes
from ..networks import Network, tensors_of, with_sizes
from .options import Choices, Options
from .reading import Reading
from .rule import Rule
from .text import rule as read_text


def right_side(rule: Rule, shape: Sequence[int], size: object, choices: Choices) -> tuple[Network, dict[str, Tensor]]:
    """What a rule of the notation makes of one tensor, whose elements need not exist.

    Args:
        shape: of the tensor.
        size: of the bonds, an integer, a mapping of integers or a budget of parameters.
        choices: of `Rule.apply`: sizes, fixed, bind and at.

    Returns:
        The network, and the tensors in it that are constants, in float64.

    Raises:
        RuleError: the rule is not one of the notation, does not apply, or keeps a tensor of its left side.
        RankError: the size depends on singular values, or a bond cannot have it.
        SizeError, ValuesError: sizes or constants do not fit.
    """
    options = Options.of(size, choices)
    for rank in options.size.values() if isinstance(options.size, Mapping) else (options.size,):
        if isinstance(rank, KeepFraction | RelativeError):
            fact = f"the size {str(rank)!r} depends on singular values, which a shape does not have"
            raise RankError(fact, fix="8, 'r=8 s=4' or 'parameters 0.1'")
    reading = _read(rule, shape, options, choices)
    if reading is None:  # a rule made by functions, such as a cut, which its equation says too
        try:
            reading = _read(read_text(rule.equation, name=rule.name), shape, options, choices)
        except NotationError as error:
            fact = f"the rule {rule.name!r} has no right side in the notation"
            raise RuleError(fact, rule=rule.equation, because=error) from error
    assert reading is not None
    if len(reading.new) < len(tensors_of(reading.right)):
        kept = next(name for name in tensors_of(reading.right) if name not in reading.new)
        raise RuleError(f"the right side has {kept!r} of the left side, which is not new", rule=rule.equation)
    right, constants = reading.sized, reading.constants
    target = with_open_axes(torch.empty(reading.target.shape, device="meta"), right)
    ranks = chosen_ranks(
        target, right, options.size, spectra=None, constants=constants, before=reading.before.parameters
    )
    if constants:
        zeros = with_open_axes(torch.zeros(reading.target.shape, dtype=torch.float64), right)
        constants = select_rows(constants, right, ranks, zeros)
    return with_sizes(right, ranks), constants


def _read(rule: Rule, shape: Sequence[int], options: Options, choices: Choices) -> Reading | None:
    """The rule at its place in a tensor of zeros; None if it does not come from the notation."""
    rule._check_options(options)
    start = rule._start_fit(torch.zeros(()).expand(tuple(shape)), None)
    match = rule._choose(start.network, choices.get("at"), options).match
    return replace(match, values=start.values, options=options) if isinstance(match, Reading) else None
