"""What is to be compiled: a network with every size known, its inputs, weights, windows and reshapes apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Literal, TypeAlias

from ..errors import CompileError, SizeError
from ..networks import (
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

LeafKind: TypeAlias = Literal["input", "weight", "pattern"]


@dataclass(frozen=True)
class Leaf:
    """A tensor that a plan starts from: an input, a weight, or the dense 0/1 array of a reserved node."""

    name: str
    labels: tuple[str, ...]
    kind: LeafKind
    node: Node


@dataclass(frozen=True)
class Computation:
    """A network to be computed, its nodes sorted by what they are to a plan.

    inputs: names, in the order of the call.
    leaves: in the order of their nodes; a tied tensor occurs more than once.
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
        """Open labels that no node carries: axes of one element."""
        carried = {label for node in (*self.leaves, *self.views) for label in node.labels}
        return tuple(label for label in self.output if label not in carried)


def computations(network: Network, inputs: Sequence[str], sizes: Mapping[str, int]) -> list[Computation]:
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
    return [sort_nodes(one, inputs) for one in found]


def sort_nodes(network: Network, inputs: Sequence[str]) -> Computation:
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
                leaves.append(_pattern_leaf(node, taken))
    return Computation(network, tuple(inputs), tuple(leaves), tuple(views), factor, tuple(sized))


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


def _pattern_leaf(node: Node, taken: set[str]) -> Leaf:
    """The dense array of a reserved node as a leaf, under a name that nothing else has."""
    name = next(name for number in count() if (name := f"pattern_{number}") not in taken)
    taken.add(name)
    return Leaf(name, node.labels, "pattern", node)


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


def moving_labels(computation: Computation, patterns: Iterable[Leaf] = ()) -> frozenset[str]:
    """Labels whose size the inputs alone decide: it may differ from call to call.

    Every other size is that of a weight, of a window or of a dense pattern, or follows from those.
    """
    views = computation.views
    fixed = {label for leaf in (*computation.leaves, *patterns) if leaf.kind != "input" for label in leaf.labels}
    fixed |= {view.k for view in views if isinstance(view, Conv)}
    known = labels_from_inputs(computation, splits=False)
    tied: dict[tuple[str, int], set[str]] = {}
    for leaf in computation.leaves:
        for axis, label in enumerate(leaf.labels):
            tied.setdefault((leaf.name, axis), set()).add(label)
    before = -1
    while len(fixed) != before:
        before = len(fixed)
        for labels in tied.values():
            if labels & fixed:
                fixed |= labels
        for view in views:
            fixed |= _fixed_by(view, fixed, known)
    reached = {label for leaf in computation.leaves if leaf.kind == "input" for label in leaf.labels}
    return frozenset((reached | {label for view in views for label in view.labels}) - fixed)


def _fixed_by(view: Conv | Fuse, fixed: Set[str], known: Set[str]) -> set[str]:
    """Labels of a view whose size follows from fixed ones, or from nothing; `known` are those the inputs decide."""
    if isinstance(view, Conv):
        return {view.x, view.y} if {view.x, view.y} & fixed else set()
    if view.whole in fixed:
        return {*view.parts}
    is_open = len({*view.parts} - fixed) != 1 and not {*view.parts} <= known
    return {view.whole, *view.parts} if is_open else set()


def labels_from_inputs(computation: Computation, *, splits: bool) -> frozenset[str]:
    """Labels whose size follows from the inputs alone: through windows from x to y, and through reshapes.

    Args:
        splits: also the parts of a whole, of which the inputs alone do not say how large each is.
    """
    found = {label for leaf in computation.leaves if leaf.kind == "input" for label in leaf.labels}
    before = -1
    while len(found) != before:
        before = len(found)
        for view in computation.views:
            if isinstance(view, Conv):
                found |= {view.y} if view.x in found else set()
            elif splits and view.whole in found:
                found |= {*view.parts}
            elif found.issuperset(view.parts):
                found.add(view.whole)
    return frozenset(found)


def check_inputs(network: Network, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """label -> size, from the shapes of the inputs.

    Raises:
        CompileError: no such tensor, or another number of axes.
        SizeError: sizes that contradict each other.
    """
    names = tensor_nodes(network)
    sizes: dict[str, int] = {}
    if not isinstance(inputs, Mapping):
        raise CompileError(f"inputs is {inputs!r}", fix="name -> shape, such as {'X': (16, 64, 56, 56)}")
    for name, shape in inputs.items():
        if not isinstance(shape, Sequence) or not all(isinstance(number, int) for number in shape):
            raise CompileError(f"the shape of the input {name!r} is {shape!r}", fix="a tuple of integers")
        if name not in names:
            fact = f"the input {name!r} is not a tensor of the network"
            raise CompileError(fact, tensors=" ".join(names), network=network)
        for position in names[name]:
            node = network.nodes[position]
            if len(shape) != len(node.labels):
                fact = f"the input {name!r} has {len(shape)} axes, its node has {len(node.labels)}"
                raise CompileError(fact, shape=tuple(shape), node=node_text(node))
            for label, number in zip(node.labels, shape, strict=True):
                if sizes.setdefault(label, number) != number:
                    fact = f"label {label!r} has sizes {sizes[label]} and {number}"
                    raise SizeError(fact, where=node_text(node))
    return sizes
