"""The two sides of a rule: what sizes they share, whether they are equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from math import prod
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..errors import RuleError, SizeError, ValuesError, explain
from ..evaluation import evaluate, magnitude
from ..network import Network, carriers, shapes, with_sizes
from ..nodes import MODES, Conv, Fuse, NamedTensor, Node, Variable
from ..valuation import values_for

TRIALS = 20
"""Comparisons of two sides that should be equal, each at other sizes."""

TRIAL_ELEMENTS = 2**20
"""Largest array such a comparison makes."""


def filled(node: Node, attributes: Mapping[str, object]) -> Node:
    """The node with its variables replaced by what they stand for."""
    found = {field.name: getattr(node, field.name) for field in fields(node)}
    bound: dict[str, Any] = {key: attributes[value.name] for key, value in found.items() if isinstance(value, Variable)}
    return replace(node, **bound) if bound else node


def shared_sizes(left: Network, right: Network, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the right side's labels, given those of the left side's: of open labels, and where a tensor stays.

    Raises:
        SizeError: a label would have two sizes.
    """
    axes = {node.name: node.labels for node in left.nodes if isinstance(node, NamedTensor)}
    pairs = [(label, label) for label in left.output]
    for node in right.nodes:
        if isinstance(node, NamedTensor) and node.name in axes:
            pairs += zip(node.labels, axes[node.name], strict=True)
    found: dict[str, int] = {}
    for label, partner in pairs:
        if partner in sizes and found.setdefault(label, sizes[partner]) != sizes[partner]:
            raise SizeError(f"label {label!r} would have sizes {found[label]} and {sizes[partner]}")
    return found


def equal_for_all_sizes(left: Network, right: Network, text: str) -> bool:
    """Compare two sides that should be equal on small random tensors, wherever sizes fit both.

    Returns:
        Whether all sizes that fit the left side fit the right one, so that the rule holds whatever they are.

    Raises:
        RuleError: they differ, or no sizes were found at which they could be compared.
    """
    random = Random(text)
    compared, unfit = 0, 0
    for _ in range(10 * TRIALS):
        attributes = _random_attributes(left, random)
        try:
            before, after = (
                Network([filled(node, attributes) for node in side.nodes], side.output, side.sizes)
                for side in (left, right)
            )
            before = _random_sizes(before, random)
        except SizeError:
            continue
        try:
            after = with_sizes(after, shared_sizes(left, right, before.sizes))
            values = _random_values(before, random)
            old, scale = (f(before, values, max_elements=TRIAL_ELEMENTS) for f in (evaluate, magnitude))
            new = evaluate(after, values_for(after, values), max_elements=TRIAL_ELEMENTS)
        except SizeError:
            unfit += 1
            continue
        except ValuesError as error:
            raise RuleError(explain("the two sides are not equal: shapes differ", because=error, rule=text)) from error
        worst = float((new - old).abs().max())
        if worst > 1e-9 * float(scale.max()):
            raise RuleError(explain(f"the two sides are not equal: they differ by {worst:.3g}", at=before, rule=text))
        compared += 1
        if compared == TRIALS:
            break
    if not compared:
        raise RuleError(
            explain("no small sizes were found at which the two sides could be compared", rule=text, fix="other sizes")
        )
    return not unfit


def _random_attributes(side: Network, random: Random) -> dict[str, object]:
    """A small random value for each variable."""
    found: dict[str, object] = {}
    for node in side.nodes:
        for field in fields(node):
            variable = getattr(node, field.name)
            if isinstance(variable, Variable):
                values = {"mode": MODES, "value": (Fraction(1, 2), Fraction(-3))}.get(field.name, (1, 2, 3))
                found.setdefault(variable.name, random.choice(values))
    return found


def _random_sizes(network: Network, random: Random) -> Network:
    """Small sizes for all labels, those last that follow from others. Raises SizeError where they do not fit."""
    follow = {
        node.y if isinstance(node, Conv) else node.whole for node in network.nodes if isinstance(node, Conv | Fuse)
    }
    for label in sorted(carriers(network), key=lambda label: label in follow):
        if label not in network.sizes:
            network = with_sizes(network, {label: random.randint(1, 5)})
    return network


def _random_values(network: Network, random: Random) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    found = {}
    for name, shape in shapes(network).items():
        if prod(shape) > TRIAL_ELEMENTS:
            raise SizeError(f"{name!r} has {prod(shape)} elements")
        found[name] = torch.randn(shape, dtype=torch.float64, generator=generator)
    return found
