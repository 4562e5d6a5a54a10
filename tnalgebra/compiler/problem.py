"""What is to be compiled: a network with every size known, its inputs, weights, windows and reshapes apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal, TypeAlias

from ..errors import CompileError, SizeError, explain
from ..network import (
    Conv,
    Copy,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    carriers,
    fresh,
    node_text,
    relabel,
    size_of,
    tensor_nodes,
    with_sizes,
)
from ..rewriting import SIMPLIFY, drop_size_one, merge_windows, rewrite, window_to_fuse

RULES = tuple(rule for rule in SIMPLIFY if rule not in (drop_size_one, window_to_fuse))
"""Of `SIMPLIFY` what holds for inputs of every size, and leaves each tensor its axes."""

MAX_MERGED = 8
"""Networks with windows merged or not that are looked at."""

Kind: TypeAlias = Literal["input", "weight", "pattern"]


@dataclass(frozen=True)
class Leaf:
    """A tensor that a plan starts from: an input, a weight, or the dense 0/1 array of a reserved node."""

    name: str
    labels: tuple[str, ...]
    kind: Kind
    node: Node


@dataclass(frozen=True)
class Problem:
    """A network to be computed.

    inputs: names, in the order of the call.
    leaves: in the order of their nodes; a tied tensor stands more than once.
    views: windows and reshapes, which are steps of a plan and no tensors.
    factor: of the whole value, from flat nodes.
    sized: labels whose size multiplies (+1) or divides (-1) the value.
    """

    network: Network
    inputs: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    views: tuple[Conv | Fuse, ...]
    factor: float
    sized: tuple[tuple[str, int], ...]

    @property
    def output(self) -> tuple[str, ...]:
        return self.network.output

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.network.sizes

    @property
    def units(self) -> tuple[str, ...]:
        """Open labels that nothing carries: axes of one element."""
        standing = {label for node in (*self.leaves, *self.views) for label in node.labels}
        return tuple(label for label in self.output if label not in standing)


def problems(network: Network, inputs: Sequence[str], sizes: Mapping[str, int]) -> list[Problem]:
    """The network simplified, and the same with windows that follow one another merged, where that is exact.

    Raises:
        SizeError: a size is not known.
    """
    network = with_sizes(network, sizes)
    for label in carriers(network):
        size_of(network, label)
    simplified = rewrite(network, RULES).network
    found = [simplified]
    for one in found:
        for place in merge_windows.places(one):
            if len(found) < MAX_MERGED:
                merged = rewrite(merge_windows.apply(one, at=place).network, RULES).network
                if str(merged) not in {str(other) for other in found}:
                    found.append(merged)
    return [problem_of(one, inputs) for one in found]


def problem_of(network: Network, inputs: Sequence[str]) -> Problem:
    """Sort the nodes of a network by what they are to a plan."""
    network = _split_apart(network)
    factor, sized, nodes = _without_fills(network)
    leaves, views = [], []
    taken = set(tensor_nodes(network))
    for node in nodes:
        match node:
            case NamedTensor():
                leaves.append(Leaf(node.name, node.labels, "input" if node.name in inputs else "weight", node))
            case Conv() | Fuse() if len(set(node.labels)) == len(node.labels):
                views.append(node)
            case _:
                leaves.append(pattern_leaf(node, taken))
    return Problem(network, tuple(inputs), tuple(leaves), tuple(views), factor, tuple(sized))


def _split_apart(network: Network) -> Network:
    """Each carrier of the whole of a reshape with a label and a reshape of its own.

        K[out in] Fuse[out g m] -> [out in]  =  K[out_2 in] Fuse[out_2 g m] Fuse[out g m] -> [out in]

    A step reshapes one tensor: so each can be split before it meets the others, and the value put together after.
    """
    nodes, sizes = list(network.nodes), dict(network.sizes)
    for position in range(len(network.nodes)):
        fuse = nodes[position]
        if not isinstance(fuse, Fuse) or fuse.whole in fuse.parts:
            continue
        others = [n for n, node in enumerate(nodes) if n != position and fuse.whole in node.labels]
        for other in others if fuse.whole in network.output else others[1:]:
            label = fresh(fuse.whole, sizes)
            sizes[label] = sizes[fuse.whole]
            nodes[other] = relabel(nodes[other], {fuse.whole: label})
            nodes.append(Fuse(label, fuse.parts))
    return Network(nodes, network.output, sizes)


def pattern_leaf(node: Node, taken: set[str]) -> Leaf:
    """The dense array of a reserved node as a leaf, under a name that nothing else has."""
    number = 0
    while f"pattern_{number}" in taken:
        number += 1
    taken.add(f"pattern_{number}")
    return Leaf(f"pattern_{number}", node.labels, "pattern", node)


def _without_fills(network: Network) -> tuple[float, list[tuple[str, int]], list[Node]]:
    """Flat nodes as one factor. Where no other node carries an open label it stays, as ones, unless its size is 1."""
    nodes: list[Node] = [node for node in network.nodes if not isinstance(node, Fill)]
    standing = {label for node in nodes for label in node.labels}
    factor, sized = Fraction(1), []
    for fill in network.nodes:
        if not isinstance(fill, Fill):
            continue
        labels = tuple(dict.fromkeys(fill.labels))
        if fill.value == "mean":
            sized += [(label, -1) for label in fill.labels]
        else:
            factor *= Fraction(str(fill.value))
        for label in labels:
            if label in standing:
                continue
            standing.add(label)
            if label in network.output:
                if network.sizes[label] != 1 or not nodes:
                    nodes.append(Copy((label,)))
            else:
                sized.append((label, 1))
    return float(factor), sized, nodes


def moving_labels(problem: Problem, patterns: Iterable[Leaf] = ()) -> frozenset[str]:
    """Labels whose size the inputs alone decide: it may differ from call to call.

    Every other size is that of a weight, of a window or of a dense pattern, or follows from those.
    """
    fixed = {label for leaf in (*problem.leaves, *patterns) if leaf.kind != "input" for label in leaf.labels}
    fixed |= {view.k for view in problem.views if isinstance(view, Conv)}
    on_inputs = {label for leaf in problem.leaves if leaf.kind == "input" for label in leaf.labels}
    known = labels_from_inputs(problem, splits=False)
    tied: dict[tuple[str, int], set[str]] = {}
    for leaf in problem.leaves:
        for axis, label in enumerate(leaf.labels):
            tied.setdefault((leaf.name, axis), set()).add(label)
    while True:
        before = len(fixed)
        for labels in tied.values():
            if labels & fixed:
                fixed |= labels
        for view in problem.views:
            if isinstance(view, Conv):
                if view.x in fixed or view.y in fixed:
                    fixed |= {view.x, view.y}
            elif view.whole in fixed:
                fixed |= {*view.parts}
            elif not known.issuperset(view.parts):
                open_parts = [part for part in view.parts if part not in fixed]
                if len(open_parts) != 1:
                    fixed |= {view.whole, *view.parts}
        if len(fixed) == before:
            break
    reached = on_inputs | {label for view in problem.views for label in view.labels}
    return frozenset(reached - fixed)


def labels_from_inputs(problem: Problem, *, splits: bool) -> frozenset[str]:
    """Labels whose size follows from the inputs alone: through windows from x to y, and through reshapes.

    Args:
        splits: also the parts of a whole, of which the inputs alone do not say how large each is.
    """
    found = {label for leaf in problem.leaves if leaf.kind == "input" for label in leaf.labels}
    while True:
        before = len(found)
        for view in problem.views:
            if isinstance(view, Conv):
                found |= {view.y} if view.x in found else set()
            elif splits and view.whole in found:
                found |= {*view.parts}
            elif found.issuperset(view.parts):
                found.add(view.whole)
        if len(found) == before:
            return frozenset(found)


def size(sizes: Mapping[str, int], labels: Collection[str]) -> int:
    """Elements of a tensor with these labels."""
    return prod(sizes[label] for label in labels)


def check_inputs(network: Network, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """label -> size, from the shapes of the inputs.

    Raises:
        CompileError: no such tensor, or another number of axes.
        SizeError: sizes that contradict each other.
    """
    names = tensor_nodes(network)
    sizes: dict[str, int] = {}
    if not isinstance(inputs, Mapping):
        raise CompileError(explain(f"inputs is {inputs!r}", fix="name -> shape, such as {'X': (16, 64, 56, 56)}"))
    for name, shape in inputs.items():
        if not isinstance(shape, Sequence) or not all(isinstance(number, int) for number in shape):
            raise CompileError(explain(f"the shape of the input {name!r} is {shape!r}", fix="a tuple of integers"))
        if name not in names:
            raise CompileError(
                explain(f"there is no tensor {name!r} to be the input", tensors=" ".join(names), network=network)
            )
        for position in names[name]:
            labels = network.nodes[position].labels
            if len(shape) != len(labels):
                raise CompileError(
                    explain(
                        f"the input {name!r} has {len(shape)} axes, its node has {len(labels)}",
                        shape=tuple(shape),
                        node=node_text(network.nodes[position]),
                    )
                )
            for label, number in zip(labels, shape, strict=True):
                if sizes.setdefault(label, number) != number:
                    raise SizeError(
                        explain(
                            f"label {label!r} has sizes {sizes[label]} and {number}",
                            where=node_text(network.nodes[position]),
                        )
                    )
    return sizes
