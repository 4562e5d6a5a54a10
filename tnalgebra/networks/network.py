"""`Network`: nodes, output labels and known sizes; and the functions that rename, join and edit networks.

A network has no arrays, and nothing here imports torch. Where two labels become one, their sizes are compared here; what
the nodes themselves imply about sizes is in `sizes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import NetworkError, SizeError, explain
from . import drawing
from .labels import MAX_AXES, fresh
from .nodes import NamedTensor, Node, check_node, node_text, relabel, rename, variables
from .sizes import infer_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Carriers = dict[str, list[tuple[int, int]]]
"""label -> the (position of the node, axis on it) pairs at which the label stands."""


@dataclass(frozen=True, init=False, repr=False)
class Network:
    """A labelled tensor network: the product of its nodes, summed over every label that is not in the output.

    Args:
        nodes: at least one; the order has no meaning for the value.
        output: the open labels in the order of the value's axes; by default every label that occurs once on a
            node, in order of first appearance.
        sizes: label -> size. May be partial; `sizes` of the network holds everything that follows from it.

    Two networks are equal if their nodes stand in the same order with the same words; see `isomorphic` for
    equality up to renaming.

    Raises:
        NetworkError: no nodes, an output label that no node carries or that stands twice in the output, one name
            with two numbers of axes, more than 64 axes on a node, an attribute out of range.
        SizeError: contradicting sizes, or a size of a label that is not there.
    """

    nodes: tuple[Node, ...]
    output: tuple[str, ...]
    sizes: Mapping[str, int] = field(hash=False)

    def __init__(
        self,
        nodes: Iterable[Node],
        output: Iterable[str] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        nodes = tuple(nodes)
        output = default_output(nodes) if output is None else tuple(output)
        _check_nodes(nodes)
        _check_output(nodes, output)
        self._set(nodes, output, sizes or {})

    def _set(self, nodes: tuple[Node, ...], output: tuple[str, ...], sizes: Mapping[str, int]) -> None:
        """The fields, of nodes and an output that are checked."""
        labels = {label for node in nodes for label in node.labels}
        for label in sizes:
            if label not in labels:
                raise SizeError(
                    explain(
                        f"a size is given for {label!r}, which no node carries",
                        labels=" ".join(sorted(labels)),
                    )
                )
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "sizes", MappingProxyType(infer_sizes(nodes, sizes)))

    def __str__(self) -> str:
        seen: set[str] = set()
        text = " ".join(node_text(node, self.sizes, seen) for node in self.nodes)
        return text if self.output == default_output(self.nodes) else f"{text} -> [{' '.join(self.output)}]"

    def __repr__(self) -> str:
        return f"Network({str(self)!r})"

    def __rshift__(self, other: Network) -> Network:
        return compose(self, other)

    def __reduce__(self) -> tuple[type[Network], tuple[object, ...]]:
        return Network, (self.nodes, self.output, dict(self.sizes))

    def draw(
        self,
        path: str | PathLike[str] | None = None,
        *,
        title: str | None = None,
        axes: Axes | None = None,
        places: Mapping[int | str, tuple[float, float]] | None = None,
    ) -> Figure:
        """Draw the network: tensors are circles, index patterns other shapes, and every label is written.

            tn.parse("U[out a] V[a in]").draw("two.svg", places={"U": (0, 0), "V": (1, 0)})

        Args:
            path: the file to write, .svg, .png or .pdf; it is written whole or not at all. Without it, nothing is.
            title: a line above the network.
            axes: matplotlib axes to draw into, as a part of another figure.
            places: where each node is, by its number, or by its name where only one node has that name: x to the right
                and y upwards, with neighbours 1 apart. A label there places the dot of its hyperedge, which is
                otherwise amid the tensors that carry it. By default the layout chooses every place.

        Returns:
            The figure. It is not a pyplot figure: it does not open a window and need not be closed.

        Raises:
            NetworkError: another suffix, more than 120 nodes, or `places` without one of the nodes.
            OSError: the file cannot be written; an older one of that name is unchanged.
        """
        return drawing.draw_nodes(self.nodes, self.output, self.sizes, path, title=title, axes=axes, places=places)

    def _repr_svg_(self) -> str:
        return drawing.svg(self.nodes, self.output, self.sizes)


def default_output(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Every label that stands exactly once on a node, in order of first appearance."""
    count = Counter(label for node in nodes for label in node.labels)
    return tuple(label for label, times in count.items() if times == 1)


def _check_nodes(nodes: tuple[Node, ...]) -> None:
    if not nodes:
        raise NetworkError(explain("a network has no nodes", fix="at least one, for example K[out in kh kw]"))
    first: dict[str, Node] = {}
    for node in nodes:
        check_node(node)
        other = first.setdefault(node.name, node)
        if isinstance(node, NamedTensor) and len(other.labels) != len(node.labels):
            raise NetworkError(
                explain(
                    f"the tensor {node.name!r} stands with two numbers of axes",
                    first=node_text(other),
                    second=node_text(node),
                    fix="one name is one tensor: rename one of them",
                ),
                at=node,
            )


def _check_output(nodes: tuple[Node, ...], output: tuple[str, ...]) -> None:
    if len(output) > MAX_AXES:
        raise NetworkError(explain(f"the output has {len(output)} axes", fix=f"at most {MAX_AXES}"))
    labels = {label for node in nodes for label in node.labels}
    for label in output:
        if label not in labels:
            raise NetworkError(
                explain(f"no node carries the output label {label!r}", labels=" ".join(sorted(labels))),
                at=("->", label),
            )
        if output.count(label) > 1:
            raise NetworkError(
                explain(
                    f"the output names {label!r} twice",
                    where=f"-> [{' '.join(output)}]",
                    fix=f"a second label joined to it by Copy[{label} {label}_2]",
                ),
                at=("->", label),
            )


# What one asks of a network ---------------------------------------------------------------------------------


def carriers(network: Network) -> Carriers:
    """Where each label stands: label -> [(position of the node, axis on it), ...]."""
    found: Carriers = {}
    for position, node in enumerate(network.nodes):
        for axis, label in enumerate(node.labels):
            found.setdefault(label, []).append((position, axis))
    return found


def tensor_nodes(network: Network) -> dict[str, list[int]]:
    """name -> the positions at which that tensor stands (more than one: tied)."""
    found: dict[str, list[int]] = {}
    for position, node in enumerate(network.nodes):
        if isinstance(node, NamedTensor):
            found.setdefault(node.name, []).append(position)
    return found


def size_of(network: Network, label: str) -> int:
    """The size of a label.

    Raises:
        SizeError: it is not known.
    """
    if label not in network.sizes:
        node = next((node_text(node) for node in network.nodes if label in node.labels), "no node")
        known = " ".join(f"{key}={size}" for key, size in network.sizes.items())
        raise SizeError(
            explain(
                f"the size of label {label!r} is unknown",
                where=node,
                known=known or "nothing",
                fix=f"give sizes={{{label!r}: ...}} or bind a value to a tensor that carries it",
            )
        )
    return network.sizes[label]


def shape_of(network: Network, labels: Iterable[str]) -> tuple[int, ...]:
    """The sizes of `labels`, in their order. Raises SizeError if one is unknown."""
    return tuple(size_of(network, label) for label in labels)


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """name -> shape of every named tensor. Raises SizeError if a size is unknown."""
    found = {node.name: node.labels for node in network.nodes if isinstance(node, NamedTensor)}
    return {name: shape_of(network, labels) for name, labels in found.items()}


def parameters(network: Network) -> int:
    """Numbers the named tensors hold, a tied tensor counted once. Raises SizeError if a size is unknown."""
    return sum(prod(shape) for shape in shapes(network).values())


def open_variables(network: Network) -> tuple[str, ...]:
    """Names of the attributes left open; only sides of rules have any."""
    return tuple(dict.fromkeys(v.name for node in network.nodes for v in variables(node)))


# What makes a new network ------------------------------------------------------------------------------------


def with_sizes(network: Network, sizes: Mapping[str, int]) -> Network:
    """The same network with more sizes known. Raises SizeError where they contradict."""
    for label in network.sizes.keys() & sizes.keys():
        if network.sizes[label] != sizes[label]:
            raise SizeError(
                explain(
                    f"label {label!r} has two sizes",
                    first=f"{network.sizes[label]}, in {network}",
                    second=f"{sizes[label]}, as given",
                )
            )
    if sizes.items() <= network.sizes.items():
        return network
    sized = object.__new__(Network)
    sized._set(network.nodes, network.output, {**network.sizes, **sizes})
    return sized


def renamed(
    network: Network, *, labels: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> Network:
    """The same network with labels and tensor names replaced, all at once (so that a swap is possible).

    Two labels may become one (a diagonal is taken); two names may become one (they are tied).
    """
    labels, names = labels or {}, names or {}
    nodes = [rename(relabel(node, labels), names) for node in network.nodes]
    sizes = _merged((labels.get(label, label), size) for label, size in network.sizes.items())
    return Network(nodes, [labels.get(label, label) for label in network.output], sizes)


def input_name(network: Network) -> str:
    """The tensor that `>>` feeds: the one called X, else the only one there is.

    Raises:
        NetworkError: there are several and none is called X.
    """
    names = list(tensor_nodes(network))
    if "X" in names or len(names) == 1:
        return "X" if "X" in names else names[0]
    raise NetworkError(
        explain(
            "it is not clear which tensor is the input",
            tensors=" ".join(names) or "none",
            where=str(network),
            fix="call the input X, or name it: compose(a, b, into=...)",
        )
    )


def compose(first: Network, second: Network, *, into: str | None = None) -> Network:
    """Feed the output of `first` to the tensor `into` of `second`, label by label in that tensor's order.

    Names and labels of `second` that `first` has too are renamed apart. If the input stands several times in
    `second`, each occurrence becomes a copy of `first` with the same tensors (tied) and bonds of its own.

    Args:
        into: name of the tensor that is replaced; by default `input_name(second)`.

    Raises:
        NetworkError: no such tensor, or another number of axes.
        SizeError: the sizes of the joined labels differ.
    """
    into = input_name(second) if into is None else into
    places = tensor_nodes(second).get(into)
    if places is None:
        raise NetworkError(
            explain(f"the network has no tensor {into!r}", where=str(second), tensors=" ".join(tensor_nodes(second)))
        )
    axes = len(second.nodes[places[0]].labels)
    if axes != len(first.output):
        raise NetworkError(
            explain(
                f"the output of the first network has {len(first.output)} labels, {into!r} has {axes} axes",
                first=str(first),
                second=str(second),
            )
        )
    labels, names = _renamed_apart(first, second, into)
    taken = {*carriers(first), *carriers(second), *labels.values()}
    nodes: list[Node] = []
    sizes: list[tuple[str, int]] = []
    for number, place in enumerate(places):
        inner = _fresh_words(carriers(first), taken) if number else {}
        for own, label in zip(first.output, second.nodes[place].labels, strict=True):
            if label in labels:  # joined before: the input stands twice, or with one label twice
                inner[own] = labels[label]
            else:
                labels[label] = inner.get(own, own)
        nodes += [relabel(node, inner) for node in first.nodes]
        sizes += [(inner.get(label, label), size) for label, size in first.sizes.items()]
    kept = (node for position, node in enumerate(second.nodes) if position not in places)
    nodes += [rename(relabel(node, labels), names) for node in kept]
    sizes += [(labels.get(label, label), size) for label, size in second.sizes.items()]
    return Network(nodes, [labels.get(label, label) for label in second.output], _merged(sizes))


def _renamed_apart(first: Network, second: Network, into: str) -> tuple[dict[str, str], dict[str, str]]:
    """New words for the labels and names of `second` that `first` has too, but those of the input."""
    own, names = set(carriers(first)), tensor_nodes(second)
    joined = {label for place in names[into] for label in second.nodes[place].labels}
    labels = _fresh_words([label for label in carriers(second) if label in own - joined], own | set(carriers(second)))
    shared = [name for name in names if name in tensor_nodes(first) and name != into]
    return labels, _fresh_words(shared, {*tensor_nodes(first), *names})


def _fresh_words(words: Iterable[str], taken: set[str]) -> dict[str, str]:
    """word -> one that is not in `taken`, which grows."""
    new: dict[str, str] = {}
    for word in words:
        new[word] = fresh(word, taken)
        taken.add(new[word])
    return new


def _merged(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """One size a label. Raises SizeError where two labels that became one differ."""
    found: dict[str, int] = {}
    for label, size in sizes:
        if found.setdefault(label, size) != size:
            raise SizeError(
                explain(f"labels of sizes {found[label]} and {size} cannot both be {label!r}", fix="equal sizes")
            )
    return found


# What a rewrite does to a network ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a network that has not been made yet.

    remove: positions of nodes that go.
    add: nodes that come, where the first of those stood.
    replace: position -> the node that takes another's place.
    labels: old -> new, renamed on all nodes (those of `add` and `replace` too) and in the output.
    sizes: of labels that are new.
    definitions: new tensor -> the network over the old tensors whose value it is.
    """

    remove: Sequence[int] = ()
    add: Sequence[Node] = ()
    replace: Mapping[int, Node] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    definitions: Mapping[str, Network] = field(default_factory=dict)


def edited(network: Network, edit: Edit) -> Network:
    """The network after an edit. Sizes of labels that are still there stay."""
    removed = set(edit.remove)
    nodes: list[Node] = []
    for position, node in enumerate(network.nodes):
        if removed and position == min(removed):
            nodes += edit.add
        if position not in removed:
            nodes.append(edit.replace.get(position, node))
    nodes = [relabel(node, edit.labels) for node in nodes]
    known = {edit.labels.get(label, label): size for label, size in network.sizes.items()} | dict(edit.sizes)
    there = {label for node in nodes for label in node.labels}
    output = [edit.labels.get(label, label) for label in network.output]
    return Network(nodes, output, {label: size for label, size in known.items() if label in there})
