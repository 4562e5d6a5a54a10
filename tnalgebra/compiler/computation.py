"""The network to be computed, simplified, with its nodes sorted into inputs, weights, windows and reshapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from math import prod
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
    all_nodes,
    carriers,
    fresh,
    integer,
    node_text,
    relabel,
    size_of,
    tensor_nodes,
    tensors_of,
)
from ..rewriting import SIMPLIFY, drop_size_one, merge_windows, rewrite, window_to_fuse

RULES = tuple(rule for rule in SIMPLIFY if rule not in (drop_size_one, window_to_fuse))
"""The rules of `SIMPLIFY` that hold for inputs of every size and do not remove axes of tensors."""

MAX_MERGED = 8
"""Number of networks, with some windows merged, that are considered."""

LeafKind: TypeAlias = Literal["input", "weight", "pattern"]


@dataclass(frozen=True)
class Leaf:
    """A tensor that a plan starts from: an input, a weight, or a pattern: what a reserved node or a basis is densely.

    basis: the name of the basis whose matrix this is, or "".
    """

    name: str
    labels: tuple[str, ...]
    kind: LeafKind
    node: Node
    basis: str = ""


@dataclass(frozen=True)
class Computation:
    """A network to be computed, with its nodes sorted by their role in a plan.

    inputs: names, in the order of the call.
    leaves: the tensors, in the order of their nodes; a tied tensor occurs more than once.
    views: the windows and reshapes, which a plan applies as steps.
    factor: the number that multiplies the whole value, from `Fill` nodes.
    sized: labels whose size multiplies (+1) or divides (-1) the value.
    repeated: output labels along which the value is the same, so that an axis of one element is enough for them.
    """

    network: Network
    inputs: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    views: tuple[Conv | Fuse, ...]
    factor: float
    sized: tuple[tuple[str, int], ...]
    repeated: frozenset[str] = frozenset()

    @property
    def output(self) -> tuple[str, ...]:
        return self.network.output

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.network.sizes

    @property
    def units(self) -> tuple[str, ...]:
        """Output labels that do not occur on a leaf or a view: axes of one element."""
        carried = {label for node in (*self.leaves, *self.views) for label in node.labels}
        return tuple(label for label in self.output if label not in carried)


def variants(network: Network) -> list[Network]:
    """The simplified product, and its variants with consecutive windows merged where that is exact.

    After them come those with sums over windows, again with the sums as products with vectors of ones, so that a plan
    can also apply them by whatever applies a kernel.

    Raises:
        SizeError: a size is not known.
    """
    for label in carriers(network):
        size_of(network, label)
    simplified = rewrite(network, RULES).network
    merged_ones = [simplified]
    for one in merged_ones:
        for place in merge_windows.places(one):
            if len(merged_ones) < MAX_MERGED:
                merged = rewrite(merge_windows.apply(one, at=place).network, RULES).network
                if str(merged) not in {str(other) for other in merged_ones}:
                    merged_ones.append(merged)
    return merged_ones + [_with_ones(one) for one in merged_ones if _summed_windows(one)]


def _summed_windows(network: Network) -> list[Conv]:
    """The windows whose elements are added up, because no other node and not the output has their label k."""
    labels = [label for node in network.nodes if not isinstance(node, Fill) for label in node.labels]
    windows = [node for node in network.nodes if isinstance(node, Conv)]
    return [
        node
        for node in windows
        if labels.count(node.k) == 1 and node.k not in network.output and network.sizes[node.k] > 1
    ]


def _with_ones(network: Network) -> Network:
    """The same product with ones along the windows whose elements are added up.

    The windows along the axes of one node get one array of ones, which is a vector that is reshaped: torch's depthwise
    convolutions take less time for a window along two axes than for two windows along one axis each.
    """
    windows = _summed_windows(network)
    groups: dict[int, list[str]] = {}
    for window in windows:
        others = (n for n, node in enumerate(network.nodes) if node is not window and window.x in node.labels)
        place = next(others, -1)  # x may be a label of the output alone
        groups.setdefault(place, []).append(window.k)
    nodes, sizes = list(network.nodes), dict(network.sizes)
    for ks in groups.values():
        whole = ks[0]
        if len(ks) > 1:
            whole = fresh("ones", sizes)
            sizes[whole] = prod(sizes[k] for k in ks)
            nodes.append(Fuse(whole, tuple(ks)))
        nodes.append(Copy((whole,)))
    return Network(nodes, network.output, sizes)


def sort_nodes(
    network: Network, inputs: Sequence[str], others: Iterable[str] = (), *, bases: Mapping[str, str] = {}
) -> Computation:
    """Sort the nodes of a network by their role in a plan.

    Args:
        bases: name of a tensor -> name of its basis.
        others: output labels that another term of a sum has, to which the value is added, with all their elements.
    """
    network = _split_apart(network, inputs)
    repeated = frozenset({*others} & {*network.output} - labels_with_elements(network))
    factor, sized, nodes = _without_fills(network, repeated)
    leaves, views = [], []
    taken = set(tensor_nodes(network))
    for node in nodes:
        match node:
            case NamedTensor() if node.name in bases:
                leaves.append(Leaf(node.name, node.labels, "pattern", node, bases[node.name]))
            case NamedTensor():
                leaves.append(Leaf(node.name, node.labels, "input" if node.name in inputs else "weight", node))
            case Conv() | Fuse() if len(set(node.labels)) == len(node.labels):
                views.append(node)
            case _:
                leaves.append(_pattern_leaf(node, taken))
    if not leaves:  # a term of a sum may be a number
        leaves.append(_pattern_leaf(Copy(()), taken))
    return Computation(network, tuple(inputs), tuple(leaves), tuple(views), factor, tuple(sized), repeated)


def labels_with_elements(network: Network) -> set[str]:
    """The labels of a product that occur on more than `Fill`, so that its value may differ along them."""
    return {label for node in network.nodes if not isinstance(node, Fill) for label in node.labels}


def _split_apart(network: Network, inputs: Sequence[str]) -> Network:
    """Give every node that carries the whole of a reshape its own copy of that label and of the reshape.

        K[out in] Fuse[out g m] -> [out in]  =  K[out_2 in] Fuse[out_2 g m] Fuse[out g m] -> [out in]

    A step reshapes one tensor. With its own label each tensor can be split before it is joined with others. Of two
    reshapes of one label of the output, the one that makes it is that with parts which an input has too.
    """
    nodes, sizes = list(network.nodes), dict(network.sizes)
    weights = [node for node in nodes if isinstance(node, NamedTensor) and node.name not in inputs]

    def is_of_weights(position: int) -> bool:
        fuse = nodes[position]
        parts = {*fuse.parts} if isinstance(fuse, Fuse) else set()
        others = [node for node in nodes if node is not fuse and parts & {*node.labels}]
        return all(node in weights for node in others)

    for position in sorted(range(len(network.nodes)), key=is_of_weights):
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
    """The dense array of a reserved node as a leaf, under a new name."""
    name = next(name for number in count() if (name := f"pattern_{number}") not in taken)
    taken.add(name)
    return Leaf(name, node.labels, "pattern", node)


def _without_fills(network: Network, repeated: Set[str]) -> tuple[float, list[tuple[str, int]], list[Node]]:
    """The nodes without `Fill`, and its values as one factor.

    An output label of more than one element that occurs only on `Fill` gets a vector of ones, as a `Copy`, unless it is
    one of those that need no more than one element.
    """
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
                if label not in repeated and (network.sizes[label] != 1 or not nodes):
                    nodes.append(Copy((label,)))
            else:
                sized.append((label, 1))
    return float(factor), sized, nodes


def moving_labels(computation: Computation, patterns: Iterable[Leaf] = ()) -> frozenset[str]:
    """Labels whose size the inputs alone determine, so that it may differ from call to call.

    Every other size is that of a weight, a window or a dense pattern, or follows from those.
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
    """Labels of a view whose size fixed labels determine, or nothing does; `known`: those that the inputs determine."""
    if isinstance(view, Conv):
        return {view.x, view.y} if {view.x, view.y} & fixed else set()
    if view.whole in fixed:
        return {*view.parts}
    is_open = len({*view.parts} - fixed) != 1 and not {*view.parts} <= known
    return {view.whole, *view.parts} if is_open else set()


def labels_from_inputs(computation: Computation, *, splits: bool) -> frozenset[str]:
    """Labels whose size follows from the inputs alone: through windows from x to y, and through reshapes.

    Args:
        splits: whether to include the parts of a whole, though the inputs determine only their product.
    """
    reached = {label for leaf in computation.leaves if leaf.kind == "input" for label in leaf.labels}
    before = -1
    while len(reached) != before:
        before = len(reached)
        for view in computation.views:
            if isinstance(view, Conv):
                reached |= {view.y} if view.x in reached else set()
            elif splits and view.whole in reached:
                reached |= {*view.parts}
            elif reached.issuperset(view.parts):
                reached.add(view.whole)
    return frozenset(reached)


def check_inputs(network: Network, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The size of every label on the inputs, from their shapes.

    Raises:
        CompileError: an input is not a tensor of the network, or has another number of axes.
        SizeError: two axes with one label have different sizes.
    """
    names = tensors_of(network)
    sizes: dict[str, int] = {}
    if not isinstance(inputs, Mapping):
        raise CompileError(f"inputs is {inputs!r}", fix="shapes by name, such as {'X': (16, 64, 56, 56)}")
    for name, shape in inputs.items():
        numbers = [integer(number) for number in shape] if isinstance(shape, Sequence) else [None]
        axes = [number for number in numbers if number is not None]
        if len(axes) < len(numbers):
            raise CompileError(f"the shape of the input {name!r} is {shape!r}", fix="a tuple of integers")
        if name not in names:
            fact = f"the input {name!r} is not a tensor of the network"
            raise CompileError(fact, tensors=" ".join(names), network=network)
        for node in all_nodes(network):
            if not isinstance(node, NamedTensor) or node.name != name:
                continue
            if len(axes) != len(node.labels):
                fact = f"the input {name!r} has {len(axes)} axes, its node has {len(node.labels)}"
                raise CompileError(fact, shape=tuple(shape), node=node_text(node))
            for label, number in zip(node.labels, axes, strict=True):
                if sizes.setdefault(label, number) != number:
                    fact = f"label {label!r} has sizes {sizes[label]} and {number}"
                    raise SizeError(fact, where=node_text(node))
    return sizes
