"""The two sides of a rule: which sizes they share, whether they are equal, and constants and parts for any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from functools import cache
from math import isqrt, prod
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..errors import RuleError, SizeError, ValuesError
from ..networks import (
    MODES,
    Conv,
    Fuse,
    NamedTensor,
    Network,
    Node,
    Variable,
    all_nodes,
    carriers,
    shapes,
    sum_of_products,
    with_sizes,
)
from ..tensors import evaluate, magnitude, values_for

TRIALS = 20
"""How often two sides that should be equal are compared, each time at other sizes."""

TRIAL_ELEMENTS = 2**20
"""The most elements of an array in such a comparison."""


def fill_attributes(nodes: Sequence[Node], attributes: Mapping[str, object]) -> list[Node]:
    """Replace the variables among the attributes of nodes by what they stand for."""
    filled = []
    for node in nodes:
        values = {field.name: getattr(node, field.name) for field in fields(node)}
        bound: dict[str, Any] = {key: attributes[v.name] for key, v in values.items() if isinstance(v, Variable)}
        filled.append(replace(node, **bound) if bound else node)
    return filled


def filled(side: Network, attributes: Mapping[str, object]) -> Network:
    """A side of a rule, the variables among its attributes replaced by what they stand for."""
    products = [(fill_attributes(term.nodes, attributes), term.sizes) for term in side.terms]
    return sum_of_products(products, side.output)


def shared_sizes(left: Network, right: Network, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of labels of the right side that follow from those of the left side.

    Open labels keep their sizes, and so do the axes of a tensor that occurs on both sides.

    Args:
        sizes: of labels of the left side.

    Raises:
        SizeError: a label would have two sizes.
    """
    axes = {node.name: node.labels for node in left.nodes if isinstance(node, NamedTensor)}
    pairs = [(label, label) for label in left.output]
    for node in all_nodes(right):
        if isinstance(node, NamedTensor) and node.name in axes:
            pairs += zip(node.labels, axes[node.name], strict=True)
    shared: dict[str, int] = {}
    for label, partner in pairs:
        if partner in sizes and shared.setdefault(label, sizes[partner]) != sizes[partner]:
            raise SizeError(f"label {label!r} would have the sizes {shared[label]} and {sizes[partner]}")
    return shared


def equal_for_all_sizes(left: Network, right: Network, text: str) -> bool:
    """Compare two sides that should be equal, on small random tensors of sizes that fit both.

    Args:
        text: of the rule.

    Returns:
        Whether all sizes that fit the left side also fit the right side, so that the rule holds for all sizes.

    Raises:
        RuleError: the sides differ, or no sizes were found at which they could be compared.
    """
    random = Random(text)
    compared, unfit = 0, 0
    for _ in range(10 * TRIALS):
        attributes = _random_attributes(left, random)
        try:
            before, after = (filled(side, attributes) for side in (left, right))
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
            raise RuleError("the two sides have values of different shapes", because=error, rule=text) from error
        worst = float((new - old).abs().max())
        if worst > 1e-9 * float(scale.max()):
            raise RuleError(f"the two sides are not equal: they differ by {worst:.3g}", where=before, rule=text)
        compared += 1
        if compared == TRIALS:
            break
    if not compared:
        fact = "no small sizes were found at which the two sides could be compared"
        raise RuleError(fact, rule=text, fix="other sizes")
    return not unfit


def _random_attributes(side: Network, random: Random) -> dict[str, object]:
    """A small random value for each variable."""
    attributes: dict[str, object] = {}
    for node in side.nodes:
        for field in fields(node):
            variable = getattr(node, field.name)
            if isinstance(variable, Variable):
                values = {"mode": MODES, "value": (Fraction(1, 2), Fraction(-3))}.get(field.name, (1, 2, 3))
                attributes.setdefault(variable.name, random.choice(values))
    return attributes


def _random_sizes(network: Network, random: Random) -> Network:
    """Small sizes for all labels, at last for those that follow from others. Raises SizeError where they do not fit."""
    follow = {
        node.y if isinstance(node, Conv) else node.whole for node in network.nodes if isinstance(node, Conv | Fuse)
    }
    for label in sorted(carriers(network), key=lambda label: label in follow):
        if label not in network.sizes:
            network = with_sizes(network, {label: random.randint(1, 5)})
    return network


def _random_values(network: Network, random: Random) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    largest = max(map(prod, shapes(network).values()), default=0)
    if largest > TRIAL_ELEMENTS:
        raise SizeError(f"a tensor has {largest} elements")
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes(network).items()
    }


# Parts and constants for any size -----------------------------------------------------------------------------


def balanced_factors(size: int, count: int) -> tuple[int, ...]:
    """Split a size into factors that are as equal as possible, the largest first.

    Of all ways to write the size as a product of `count` numbers, these are the ones with the smallest largest number,
    and among them with the smallest second largest number, and so on. The parts of a prime are the prime and ones.

    Args:
        size: of the whole label.
        count: of the parts. In a `Fuse`, which is row-major, the first of them runs slowest.

    >>> balanced_factors(64, 2), balanced_factors(72, 3), balanced_factors(7, 2)
    ((8, 8), (6, 4, 3), (7, 1))
    """
    low = [divisor for divisor in range(1, isqrt(size) + 1) if size % divisor == 0]
    divisors = sorted({*low, *(size // divisor for divisor in low)})

    @cache
    def best(rest: int, left: int, most: int) -> tuple[int, ...] | None:
        if rest == 1:
            return (1,) * left
        if left == 0:
            return None
        for largest in divisors:
            if largest > most:
                break
            if rest % largest == 0 and largest**left >= rest:
                smaller = best(rest // largest, left - 1, largest)
                if smaller is not None:
                    return (largest, *smaller)
        return None

    factors = best(size, count, size)
    assert factors is not None
    return factors
