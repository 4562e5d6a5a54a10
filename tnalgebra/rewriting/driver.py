"""Apply rules until none applies: `rewrite` with any rules, `simplify` with rules that always come to an end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from ..errors import RuleError
from ..networks import Network, read_network
from .exact import SIMPLIFY
from .exact.tensors import contract_bond, fold_scalar
from .options import Options, Place
from .rule import Rule
from .trace import Fit, start_fit

MAX_STEPS = 10_000


def rewrite(
    network: Network | str,
    rules: Sequence[Rule],
    values: Mapping[str, Any] | None = None,
    *,
    max_steps: int = MAX_STEPS,
    order: Random | None = None,
) -> Fit:
    """Apply exact rules to a network until none of them applies.

    Args:
        network: the network to begin with, or its notation.
        rules: exact rules. In each step the first rule of the list that applies is applied, at its first place.
        values: the elements of some or all tensors, by name. New tensors that they determine are computed.
        max_steps: the number of steps after which to give up, for lists of rules that may undo each other.
        order: chooses rule and place at random instead, to test that the order does not matter.

    Returns:
        The network at the end, its values, and the trace of all steps.

    Raises:
        RuleError: rules still apply after `max_steps`; the last ones are named.

    Example:
        >>> tn.rewriting.rewrite(network, tn.rewriting.EXACT_RULES[:3]).network
    """
    fit, options = start_fit(read_network(network), {} if values is None else values), Options()
    while chosen := _next(fit.network, rules, options, order):
        if len(fit.trace.steps) == max_steps:
            last = ", ".join(dict.fromkeys(step.rule.name for step in fit.trace.steps[-10:]))
            raise RuleError(
                f"rules still apply after {max_steps} steps",
                last=last,
                network=fit.network,
                fix="leave out a rule that undoes another, or raise max_steps",
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


def simplify(network: Network | str, values: Mapping[str, Any] | None = None) -> Fit:
    """Simplify a network: fewer windows, reshapes, copies and labels, and the same value.

    Args:
        network: the network to begin with, or its notation.
        values: the elements of some or all tensors, by name. New tensors that they determine are computed.

    Returns:
        The network to which no rule of `tn.rewriting.SIMPLIFY` applies, its values, and the trace of all steps.

    Raises:
        ValuesError: the values do not fit the network.

    Example:
        >>> tn.simplify(tn.parse("A[i j] Copy[j k] B[k l]")).network
        Network('A[i j] B[j l]')
    """
    return rewrite(network, SIMPLIFY, values)


def contract_back(network: Network | str, values: Mapping[str, Any] | None = None) -> Fit:
    """Contract every bond between named tensors, so that a decomposition becomes one tensor again."""
    return rewrite(network, (contract_bond, fold_scalar), values)
