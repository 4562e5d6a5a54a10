"""Rules of the notation without stars, `left => right`: found by matching, applied by substitution or by a fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from ..errors import RuleError, SizeError, TnalgebraError
from ..fitting import bonds_of
from ..networks import (
    NamedTensor,
    Network,
    all_nodes,
    carriers,
    isomorphic,
    open_variables,
    parse_rule,
    tensor_nodes,
    tensors_of,
)
from .apply_text import build_exact, build_fitted, build_fitted_many, outline_fitted
from .matching import matches, whole_tensors
from .options import Options, Place, check_basis_name
from .reading import read_at
from .rule import Rule
from .sides import equal_for_all_sizes
from .step import RuleKind


def plain_rule(text: str, *, name: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """Make a rule of one line of notation without stars. Arguments and errors are those of `text.rule`."""
    left, right = _read_sides(text)
    new = [name for name in tensors_of(right) if name not in tensors_of(left)]
    constants = dict(fixed or {})
    _check_constants(constants, right, new, text)
    kind: RuleKind = "exact" if not new or (_contracts(left, right) and not constants) else "approximate"
    if kind == "approximate":
        _check_cores(right, new, text)
    sized = not new and not equal_for_all_sizes(left, right, text)

    def find(network: Network, options: Options) -> Iterator[Place]:
        return _places(left, right, network, options, fixed=constants, sized=sized)

    exact = kind == "exact"
    bonds = () if exact else bonds_of(right)
    return Rule(
        name or text,
        kind,
        f"{left} => {right}",
        find,
        build_exact if exact else build_fitted,
        start=None if open_variables(left) else lambda values: left,
        ranks=tuple(bond for bond in bonds if bond not in right.sizes),
        sized=tuple(bond for bond in bonds if bond in right.sizes),
        variables=(*tensor_nodes(left), *carriers(left)),
        labels=tuple(dict.fromkeys(label for node in all_nodes(right) for label in node.labels)),
        takes=() if exact else ("fixed", "constraints", "metric", "start"),
        fixed=constants,
        build_many=None if exact else build_fitted_many,
        build_outline=None if exact else outline_fitted,
        spec={"notation": text, "name": name or text, **({"fixed": json.dumps(constants)} if constants else {})},
    )


def _read_sides(text: str) -> tuple[Network, Network]:
    left, right = parse_rule(text)
    if len(left.terms) > 1:
        fact = "the left side of a rule is a product, and this one is a sum"
        raise RuleError(fact, rule=text, fix="a rule for a term; a + b adds networks")
    _check_sides(left, right, text)
    return left, right


def _check_cores(right: Network, new: Sequence[str], text: str) -> None:
    for node in all_nodes(right):
        twice = next((label for label in node.labels if node.labels.count(label) > 1), None)
        if isinstance(node, NamedTensor) and node.name in new and twice is not None:
            fact = f"the new tensor {node.name!r} has the label {twice!r} twice, so that only its diagonal would matter"
            raise RuleError(fact, rule=text, fix=f"{twice!r} once")


def _check_constants(constants: Mapping[str, str], right: Network, new: Sequence[str], text: str) -> None:
    for constant, basis in constants.items():
        check_basis_name(basis)
        if constant not in new:
            fact = f"fixed= names {constant!r}, which is not a new tensor of the right side"
            raise RuleError(fact, rule=text, new=" ".join(new))
        if len(tensors_of(right)[constant].labels) != 2:
            fix = "two labels: that of its rows, then that of its columns"
            raise RuleError(f"the basis {constant!r} is not a matrix", rule=text, fix=fix)


def _contracts(left: Network, right: Network) -> bool:
    """Whether the right side is one new tensor, which is the left side contracted."""
    node, *others = all_nodes(right)
    new = isinstance(node, NamedTensor) and node.name not in tensor_nodes(left)
    return not others and new and sorted(node.labels) == sorted(right.output)


def _check_sides(left: Network, right: Network, text: str) -> None:
    if left.output != right.output:
        kind = "in different orders" if set(left.output) == set(right.output) else "that are not the same"
        outputs = (" ".join(side.output) or "none" for side in (left, right))
        fact = f"the two sides have open labels {kind}"
        raise RuleError(fact, **dict(zip(("left", "right"), outputs, strict=True)), rule=text)
    for name in open_variables(right):
        if name not in open_variables(left):
            raise RuleError(f"the attribute {name!r} occurs only on the right side", rule=text)
    for name in [name for name in tensors_of(right) if name in tensors_of(left)]:
        before, after = (len(tensors_of(side)[name].labels) for side in (left, right))
        if before != after:
            raise RuleError(f"{name!r} has {before} axes on the left side and {after} on the right", rule=text)


# Where it applies --------------------------------------------------------------------------------------------


def _places(
    left: Network, right: Network, network: Network, options: Options, *, fixed: Mapping[str, str], sized: bool
) -> Iterator[Place]:
    """The places, each a group of matches that has its tensors at all their occurrences.

    Of places with equal results, only the first is yielded. With `sized`, all sizes must be known.
    """
    readings = [
        match
        for match in matches(left, network)
        if all({**match.labels, **match.names}.get(variable) == thing for variable, thing in options.bind.items())
        and not (sized and match.labels.values() - network.sizes.keys())
    ]
    results: list[tuple[set[int], Network]] = []
    for group in whole_tensors(readings, network):
        try:
            reading = read_at((left, right), network, group, options, fixed=fixed)
        except TnalgebraError as error:  # sizes or labels outside of the match forbid it
            if options.refusals is not None and isinstance(error, SizeError):
                options.refusals.append(str(error))
            continue
        nodes = tuple([position for match in group for position in match.nodes])
        # one new tensor is the same contraction for every reading, up to the order of its axes
        equal = (
            set(nodes) == other and (_contracts(left, right) or isomorphic(reading.after, same))
            for other, same in results
        )
        if not any(equal):
            results.append((set(nodes), reading.after))
            yield Place(nodes, tuple([label for match in group for label in match.labels.values()]), reading)
