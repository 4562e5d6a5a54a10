"""`Network`: nodes, output labels and the sizes that are known; and the functions that rename and join networks.

A network has no arrays, and nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import NetworkError, SizeError
from . import drawing
from .checks import check_nodes, check_output
from .labels import fresh
from .nodes import NamedTensor, Node, node_text, relabel, rename, variables
from .sizes import infer_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Carriers = dict[str, list[tuple[int, int]]]
"""label -> the (position of the node, axis on it) pairs at which the label occurs."""


@dataclass(frozen=True, init=False, repr=False)
class Network:
    """A labelled tensor network: the product of its nodes, summed over every label that is not in the output.

    A network is usually written in the notation and read by `tn.parse`. `str(network)` is that text again, and a
    notebook shows a network as its drawing. Networks are values: they cannot be changed, and can be keys of
    dictionaries. Two networks are equal if they have the same nodes in the same order with the same words; see
    `tn.networks.isomorphic` for equality up to renaming. `a >> b` feeds the output of `a` to the input of `b`.

    Args:
        nodes: at least one node. Their order does not affect the value.
        output: the open labels, in the order of the value's axes. By default these are the labels that occur exactly
            once, in the order in which they first appear.
        sizes: label -> size, for some labels or all. The network's own `sizes` hold all that follow from them.

    Raises:
        NetworkError: the network has no nodes; no node carries an output label, or it is twice in the output; a name
            has two different numbers of axes; a node has more than 64 axes; an attribute of a node is out of range.
        SizeError: the sizes contradict each other, or belong to a label that no node carries.

    Example:
        >>> tn.parse("U[out:64 a:16] V[a in:32] -> [out in]").parameters
        1536
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
        check_nodes(nodes)
        check_output(nodes, output)
        self._set(nodes, output, sizes or {})

    def _set(self, nodes: tuple[Node, ...], output: tuple[str, ...], sizes: Mapping[str, int]) -> None:
        """Set the fields. The nodes and the output have been checked."""
        labels = {label for node in nodes for label in node.labels}
        for label in sizes:
            if label not in labels:
                raise SizeError(
                    f"a size is given for {label!r}, which no node carries", labels=" ".join(sorted(labels))
                )
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "sizes", MappingProxyType(infer_sizes(nodes, sizes)))

    @property
    def parameters(self) -> int:
        """How many numbers the named tensors hold; a tied tensor counts once. Raises SizeError if a size is unknown."""
        return sum(prod(shape) for shape in shapes(self).values())

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
    """Every label that occurs exactly once, in the order in which they first appear."""
    count = Counter(label for node in nodes for label in node.labels)
    return tuple(label for label, times in count.items() if times == 1)


# Questions about a network -----------------------------------------------------------------------------------


def carriers(network: Network) -> Carriers:
    """Where each label occurs: label -> [(position of the node, axis on it), ...]."""
    places: Carriers = {}
    for position, node in enumerate(network.nodes):
        for axis, label in enumerate(node.labels):
            places.setdefault(label, []).append((position, axis))
    return places


def tensor_nodes(network: Network) -> dict[str, list[int]]:
    """name -> the positions of the nodes with that name. A tensor with more than one position is tied."""
    positions: dict[str, list[int]] = {}
    for position, node in enumerate(network.nodes):
        if isinstance(node, NamedTensor):
            positions.setdefault(node.name, []).append(position)
    return positions


def size_of(network: Network, label: str) -> int:
    """The size of a label. Raises SizeError if it is unknown."""
    if label not in network.sizes:
        node = next((node_text(node) for node in network.nodes if label in node.labels), "no node")
        known = " ".join(f"{key}={size}" for key, size in network.sizes.items())
        raise SizeError(
            f"the size of label {label!r} is unknown",
            where=node,
            known=known or "nothing",
            fix=f"write {label}:SIZE in the notation, or give a value to a tensor that carries it",
        )
    return network.sizes[label]


def shape_of(network: Network, labels: Iterable[str]) -> tuple[int, ...]:
    """The sizes of `labels`, in their order. Raises SizeError if one is unknown."""
    return tuple(size_of(network, label) for label in labels)


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """name -> shape of that tensor. Raises SizeError if a size is unknown."""
    labels_of_tensor = {node.name: node.labels for node in network.nodes if isinstance(node, NamedTensor)}
    return {name: shape_of(network, labels) for name, labels in labels_of_tensor.items()}


def open_variables(network: Network) -> tuple[str, ...]:
    """Names of the attributes that a rule leaves open, such as the `s` of `stride=s`. Other networks have none."""
    return tuple(dict.fromkeys(v.name for node in network.nodes for v in variables(node)))


# New networks from old ones ----------------------------------------------------------------------------------


def with_sizes(network: Network, sizes: Mapping[str, int]) -> Network:
    """The same network with more sizes. Raises SizeError where they contradict those that it has."""
    for label in network.sizes.keys() & sizes.keys():
        if network.sizes[label] != sizes[label]:
            raise SizeError(
                f"label {label!r} has two sizes",
                first=f"{network.sizes[label]}, in {network}",
                second=f"{sizes[label]}, as given",
            )
    if sizes.items() <= network.sizes.items():
        return network
    sized = object.__new__(Network)
    sized._set(network.nodes, network.output, {**network.sizes, **sizes})
    return sized


def renamed(
    network: Network, *, labels: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> Network:
    """The same network with other words for labels and tensors. All are replaced at once, so two can be swapped.

    Two labels may become one, which takes a diagonal. Two names may become one, which ties the tensors.
    """
    labels, names = labels or {}, names or {}
    nodes = [rename(relabel(node, labels), names) for node in network.nodes]
    sizes = _merged((labels.get(label, label), size) for label, size in network.sizes.items())
    return Network(nodes, [labels.get(label, label) for label in network.output], sizes)


def input_name(network: Network) -> str:
    """The name of the tensor that `>>` feeds: X if there is one, otherwise the only tensor.

    Raises:
        NetworkError: there are several tensors, or none, and none of them is called X.
    """
    names = list(tensor_nodes(network))
    if "X" in names or len(names) == 1:
        return "X" if "X" in names else names[0]
    raise NetworkError(
        "it is not clear which tensor is the input",
        tensors=" ".join(names) or "none",
        where=str(network),
        fix="call the input X, or name it: compose(a, b, into=...)",
    )


def compose(first: Network, second: Network, *, into: str | None = None) -> Network:
    """Feed the output of `first` to a tensor of `second`: the first output label to its first axis, and so on.

    Names and labels of `second` that also occur in `first` are renamed. If the tensor occurs several times in
    `second`, a copy of `first` takes the place of each occurrence, with the same tensors (tied) and bonds of its own.

    Args:
        first: its output has as many labels as the tensor has axes.
        second: its output becomes the output of the result.
        into: the name of the tensor. By default it is X, or the only tensor of `second`; `first >> second` is this.

    Raises:
        NetworkError: `second` has no such tensor, or its number of axes differs from that of the output of `first`.
        SizeError: the sizes of two labels that are joined differ.

    Example:
        >>> str(tn.networks.compose(tn.parse("A[i j]"), tn.parse("X[a b] B[b c]")))
        'A[a b] B[b c]'
    """
    into = input_name(second) if into is None else into
    places = tensor_nodes(second).get(into)
    if places is None:
        raise NetworkError(
            f"the network has no tensor {into!r}", where=str(second), tensors=" ".join(tensor_nodes(second))
        )
    axes = len(second.nodes[places[0]].labels)
    if axes != len(first.output):
        raise NetworkError(
            f"the output of the first network has {len(first.output)} labels, {into!r} has {axes} axes",
            first=str(first),
            second=str(second),
        )
    labels, names = _renamed_apart(first, second, into)
    taken = {*carriers(first), *carriers(second), *labels.values()}
    nodes: list[Node] = []
    sizes: list[tuple[str, int]] = []
    for number, place in enumerate(places):
        inner = _fresh_words(carriers(first), taken) if number else {}
        for open_label, label in zip(first.output, second.nodes[place].labels, strict=True):
            if label in labels:  # joined before: the input occurs twice, or has one label twice
                inner[open_label] = labels[label]
            else:
                labels[label] = inner.get(open_label, open_label)
        nodes += [relabel(node, inner) for node in first.nodes]
        sizes += [(inner.get(label, label), size) for label, size in first.sizes.items()]
    kept = (node for position, node in enumerate(second.nodes) if position not in places)
    nodes += [rename(relabel(node, labels), names) for node in kept]
    sizes += [(labels.get(label, label), size) for label, size in second.sizes.items()]
    return Network(nodes, [labels.get(label, label) for label in second.output], _merged(sizes))


def _renamed_apart(first: Network, second: Network, into: str) -> tuple[dict[str, str], dict[str, str]]:
    """New words for the labels and names of `second` that also occur in `first`, except those of the input."""
    first_labels, names = set(carriers(first)), tensor_nodes(second)
    joined = {label for place in names[into] for label in second.nodes[place].labels}
    clashing = [label for label in carriers(second) if label in first_labels - joined]
    labels = _fresh_words(clashing, first_labels | set(carriers(second)))
    shared = [name for name in names if name in tensor_nodes(first) and name != into]
    return labels, _fresh_words(shared, {*tensor_nodes(first), *names})


def _fresh_words(words: Iterable[str], taken: set[str]) -> dict[str, str]:
    """word -> a word that is not in `taken`, to which it is added."""
    new: dict[str, str] = {}
    for word in words:
        new[word] = fresh(word, taken)
        taken.add(new[word])
    return new


def _merged(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """label -> size. Raises SizeError where two labels that become one have different sizes."""
    merged: dict[str, int] = {}
    for label, size in sizes:
        if merged.setdefault(label, size) != size:
            raise SizeError(f"labels of sizes {merged[label]} and {size} cannot both be {label!r}", fix="equal sizes")
    return merged
