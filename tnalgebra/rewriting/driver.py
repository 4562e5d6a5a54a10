"""Apply rules until none applies: `rewrite` with any rules, `simplify` with the ones that always end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from ..errors import RuleError, explain
from ..networks import Network
from .exact import SIMPLIFY
from .exact.tensors import contract_bond, fold_scalar
from .options import Options, Place
from .rule import Rule
from .trace import Fit, start_fit

MAX_STEPS = 10_000


def rewrite(
    network: Network,
    rules: Sequence[Rule],
    values: Mapping[str, Any] | None = None,
    *,
    max_steps: int = MAX_STEPS,
    order: Random | None = None,
) -> Fit:
    """Apply `rules` until none applies any more.

    Args:
        rules: exact rules; of those that apply, the first in the list fires, at its first place.
        values: of some or all tensors; what they determine is computed.
        max_steps: give up after this number of steps, for lists of rules that may undo each other.
        order: choose rule and place at random instead; for testing that the order does not matter.

    Raises:
        RuleError: still not done after `max_steps`; the last rules that fired are named.
    """
    fit, options = start_fit(network, values or {}), Options()
    while chosen := _next(fit.network, rules, options, order):
        if len(fit.trace.steps) == max_steps:
            last = ", ".join(dict.fromkeys(step.rule.name for step in fit.trace.steps[-10:]))
            raise RuleError(
                explain(
                    f"rules still apply after {max_steps} steps",
                    last=last,
                    network=fit.network,
                    fix="leave out a rule that undoes another, or raise max_steps",
                )
            )
        rule, place = chosen
        fit = fit.after(rule, place, options, rule.build(fit.network, place, fit.values, options))
    return fit


def _next(network: Network, rules: Sequence[Rule], options: Options, order: Random | None) -> tuple[Rule, Place] | None:
    places = ((rule, place) for rule in rules for place in rule.find(network, options))
    if order is None:
        return next(places, None)
    everything = list(places)
    return order.choice(everything) if everything else None


def simplify(network: Network, values: Mapping[str, Any] | None = None) -> Fit:
    """Apply the rules of `SIMPLIFY` until none applies: fewer windows, reshapes, copies, labels; the same value."""
    return rewrite(network, SIMPLIFY, values)


def contract_back(network: Network, values: Mapping[str, Any] | None = None) -> Fit:
    """Contract every bond between named tensors: a decomposition becomes one tensor again."""
    return rewrite(network, (contract_bond, fold_scalar), values)
