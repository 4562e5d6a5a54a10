"""`Network`: nodes, output labels and the sizes that are known; and `Sum`, several of them as one network.

The functions that rename and join networks take both. A network has no arrays, and nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from math import prod
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import NetworkError, SizeError
from . import drawing
from .checks import check_nodes, check_output, only_nodes
from .joining import fresh_words, joined, local_labels_apart, merge_sizes, with_output
from .nodes import NamedTensor, Node, exact_number, node_text, relabel, rename, scaled, variables
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
    `tn.networks.isomorphic` for equality up to renaming. `a >> b` feeds the output of `a` to the input of `b`, and
    `a + b` is the `Sum` of both; `a - b`, `-a`, `2 * a` and `sum` of several work too, a factor being a `Fill` in each
    term. A network has `terms`; those of a product are the network itself.

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
        nodes = only_nodes(nodes)
        output = default_output(nodes) if output is None else tuple(output)
        check_nodes(nodes)
        check_output(nodes, output)
        self._set(nodes, output, sizes or {})

    def _set(self, nodes: tuple[Node, ...], output: tuple[str, ...], sizes: Mapping[str, int]) -> None:
        """Set the fields. The nodes and the output have been checked."""
        _check_carried(nodes, sizes)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "sizes", MappingProxyType(infer_sizes(nodes, sizes)))

    @property
    def terms(self) -> tuple[Network, ...]:
        """The products whose values are added; of a network that is not a `Sum`, the network itself."""
        return (self,)

    @property
    def parameters(self) -> int:
        """How many numbers the named tensors hold; a tied tensor counts once. Raises SizeError if a size is unknown."""
        return count_parameters(self)

    def __str__(self) -> str:
        seen: set[str] = set()
        texts = (" ".join(node_text(node, self.sizes, seen) for node in term.nodes) for term in self.terms)
        text = " + ".join(texts)
        implied = implied_output([term.nodes for term in self.terms])
        return text if self.output == implied else f"{text} -> [{' '.join(self.output)}]"

    def __repr__(self) -> str:
        return f"Network({str(self)!r})"

    def __rshift__(self, other: Network) -> Network:
        return compose(self, other) if isinstance(other, Network) else NotImplemented

    def __add__(self, other: Network) -> Network:
        return Sum([self, other]) if isinstance(other, Network) else NotImplemented

    def __radd__(self, other: int) -> Network:
        return self if other == 0 else NotImplemented  # `sum` begins with 0

    def __sub__(self, other: Network) -> Network:
        return self + -other if isinstance(other, Network) else NotImplemented

    def __neg__(self) -> Network:
        return self * -1

    def __mul__(self, factor: float | Fraction) -> Network:
        number = exact_number(factor)
        if number is None:
            return NotImplemented
        return sum_of_products([(scaled(term.nodes, number), term.sizes) for term in self.terms], self.output)

    __rmul__ = __mul__

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
            path: the file to write, .svg, .png or .pdf; it is written whole or not at all, and its folder is made if
                it does not exist. Without a path nothing is written.
            title: a line above the network.
            axes: matplotlib axes to draw into, as a part of another figure.
            places: where each node is, by its number (in a sum, counted through all terms), or by its name where only
                one node has that name: x to the right
                and y upwards, with neighbours 1 apart. A label there places the dot of its hyperedge, which is
                otherwise amid the tensors that carry it. By default the layout chooses every place.

        Returns:
            The figure. It is not a pyplot figure: it does not open a window and need not be closed.

        Raises:
            NetworkError: another suffix, more than 120 nodes, or `places` without one of the nodes.
            OSError: the file cannot be written; an older one of that name is unchanged.
        """
        terms = [term.nodes for term in self.terms]
        return drawing.draw_terms(terms, self.output, self.sizes, path, title=title, axes=axes, places=places)

    def _repr_svg_(self) -> str:
        return drawing.svg([term.nodes for term in self.terms], self.output, self.sizes)


class Sum(Network):
    """A sum of networks with the same output labels; its value is the sum of the values of its terms.

    A sum is usually written with a plus, "U[o a] V[a i] + W[o i]", or made by `a + b`. All labels but those of the
    output belong to one term: the same word in two terms is renamed apart. The same name in two terms is one tensor, as
    it is in a product. Nothing is broadcast: a term without one of the output labels gets it from a `Fill`.

    Functions of a product refuse a sum, because it has no `nodes`. `terms` has the products one by one.

    Args:
        terms: networks with the same output labels, in any order; a sum among them counts as its terms.

    Raises:
        NetworkError: fewer than two terms, or terms with other output labels; a name with two numbers of axes.
        SizeError: the sizes of the terms contradict each other.

    Example:
        >>> len((tn.parse("U[o a] V[a i]") + tn.parse("W[o i]")).terms)
        2
    """

    _terms: tuple[Network, ...]
    __dataclass_fields__ = {}  # noqa: RUF012  # code that shows the fields of any dataclass would ask for the nodes

    def __init__(self, terms: Iterable[Network]) -> None:
        products = [term for network in terms for term in network.terms]
        if len(products) < 2:
            fact = "a sum has no terms" if not products else "a sum has one term"
            raise NetworkError(fact, fix="at least two; a network by itself is the sum of one term")
        first = products[0]
        for number, term in enumerate(products, 1):
            _check_open(number, term.nodes, term.output, first.output)
        self._add_up([(term.nodes, term.sizes) for term in products], first.output)

    def _add_up(self, products: Sequence[tuple[Sequence[Node], Mapping[str, int]]], output: tuple[str, ...]) -> None:
        """Set the fields, from the nodes and the sizes of each term."""
        apart, known = local_labels_apart(products, output)
        nodes = [node for term in apart for node in term]
        check_nodes(nodes)
        sizes = infer_sizes(nodes, known)
        terms = []
        for term in apart:
            check_output(term, output)
            of_term = {label: sizes[label] for node in term for label in node.labels if label in sizes}
            one = object.__new__(Network)
            for name, value in (("nodes", term), ("output", output), ("sizes", MappingProxyType(of_term))):
                object.__setattr__(one, name, value)
            terms.append(one)
        object.__setattr__(self, "_terms", tuple(terms))
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "sizes", MappingProxyType(sizes))

    @property
    def terms(self) -> tuple[Network, ...]:
        """The products whose values are added. Only output labels occur in several of them."""
        return self._terms

    @property
    def nodes(self) -> tuple[Node, ...]:
        """A sum has no nodes of its own: whatever asks for them works on a product."""
        raise NetworkError(
            f"this network is a sum of {len(self._terms)} terms, and what was asked for takes a product",
            network=str(self),
            fix="one of network.terms",
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and self._terms == other._terms

    def __hash__(self) -> int:
        return hash(self._terms)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return Sum, (self._terms,)


def sum_of_products(products: Sequence[tuple[Sequence[Node], Mapping[str, int]]], output: Sequence[str]) -> Network:
    """The network whose terms have these nodes and sizes; a product where there is one term.

    The sizes of all terms are inferred together, so that what one term determines is known in the others.
    """
    if len(products) == 1:
        ((nodes, sizes),) = products
        return Network(nodes, output, sizes)
    for number, (nodes, _) in enumerate(products, 1):
        _check_open(number, nodes, output, output)
    network = object.__new__(Sum)
    network._add_up(products, tuple(output))
    return network


def _check_open(number: int, nodes: Sequence[Node], output: Sequence[str], common: Sequence[str]) -> None:
    """Raise NetworkError for a term of a sum whose output labels are not those that all terms have in common."""
    carried = {label for node in nodes for label in node.labels}
    text = " ".join(map(node_text, nodes))
    for label in common:
        if label not in output or label not in carried:
            fix = f"Fill[{label} | value=1] in this term, where it is the same for all values of {label!r}"
            raise NetworkError(f"term {number} of the sum lacks the output label {label!r}", term=text, fix=fix)
    for label in output:
        if label not in common:
            fact = f"term {number} of the sum has the open label {label!r}, which the output lacks"
            fix = f"'-> [{' '.join(common)}]' where {label!r} is summed, or Fill[{label} | value=1] in the other terms"
            raise NetworkError(fact, term=text, fix=fix)


def _check_carried(nodes: Sequence[Node], sizes: Mapping[str, int]) -> None:
    labels = {label for node in nodes for label in node.labels}
    for label in sizes:
        if label not in labels:
            raise SizeError(f"a size is given for {label!r}, which no node carries", labels=" ".join(sorted(labels)))


def default_output(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Every label that occurs exactly once, in the order in which they first appear."""
    count = Counter(label for node in nodes for label in node.labels)
    return tuple(label for label, times in count.items() if times == 1)


def implied_output(terms: Sequence[Sequence[Node]]) -> tuple[str, ...] | None:
    """The output of a network that is written without one; None where its terms differ in it."""
    first, *others = map(default_output, terms)
    return first if all({*first} == {*other} for other in others) else None


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


def all_nodes(network: Network) -> Iterator[Node]:
    """The nodes of all terms of a network, one term after another."""
    return (node for term in network.terms for node in term.nodes)


def only_network(network: object) -> Network:
    """A network. Raises NetworkError for anything else, such as a text, which `parse` reads."""
    if not isinstance(network, Network):
        fact = f"a {type(network).__name__} is given where a network is needed"
        raise NetworkError(fact, fix="tn.parse('A[i j] B[j k]')")
    return network


def tensors_of(network: Network) -> dict[str, NamedTensor]:
    """name -> the first node of that name, in the order of the terms and their nodes."""
    first: dict[str, NamedTensor] = {}
    for node in all_nodes(only_network(network)):
        if isinstance(node, NamedTensor):
            first.setdefault(node.name, node)
    return first


def size_of(network: Network, label: str) -> int:
    """The size of a label. Raises SizeError if it is unknown."""
    if label not in network.sizes:
        node = next((node_text(node) for node in all_nodes(network) if label in node.labels), "no node")
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
    return {name: shape_of(network, node.labels) for name, node in tensors_of(network).items()}


def count_parameters(network: Network, constants: Collection[str] = ()) -> int:
    """How many numbers the named tensors hold, but for those that are constants; a tied tensor counts once."""
    return sum(prod(shape) for name, shape in shapes(network).items() if name not in constants)


def open_variables(network: Network) -> tuple[str, ...]:
    """Names of the attributes that a rule leaves open, such as the `s` of `stride=s`. Other networks have none."""
    return tuple(dict.fromkeys(v.name for node in all_nodes(network) for v in variables(node)))


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
    return resized(network, {**network.sizes, **sizes})


def resized(network: Network, sizes: Mapping[str, int]) -> Network:
    """The same network with these sizes, and all that follow from them, in place of its own."""
    if len(network.terms) > 1:
        products = [(term.nodes, _sizes_on(term.nodes, sizes)) for term in network.terms]
        _check_carried([node for term in network.terms for node in term.nodes], sizes)
        return sum_of_products(products, network.output)
    sized = object.__new__(Network)
    sized._set(network.nodes, network.output, sizes)
    return sized


def _sizes_on(nodes: Sequence[Node], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the labels that these nodes carry."""
    return {label: sizes[label] for node in nodes for label in node.labels if label in sizes}


def renamed(
    network: Network, *, labels: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> Network:
    """The same network with other words for labels and tensors. All are replaced at once, so two can be swapped.

    Two labels of a product may become one, which takes a diagonal; labels of two terms of a sum are kept apart. Two
    names may become one, which ties the tensors.
    """
    labels, names = labels or {}, names or {}
    products = [
        (
            [rename(relabel(node, labels), names) for node in term.nodes],
            merge_sizes((labels.get(label, label), size) for label, size in term.sizes.items()),
        )
        for term in only_network(network).terms
    ]
    return sum_of_products(products, [labels.get(label, label) for label in network.output])


def input_name(network: Network) -> str:
    """The name of the tensor that `>>` feeds: X if there is one, otherwise the only tensor.

    Raises:
        NetworkError: there are several tensors, or none, and none of them is called X.
    """
    names = list(tensors_of(network))
    if "X" in names or len(names) == 1:
        return "X" if "X" in names else names[0]
    raise NetworkError(
        "it is not clear which tensor is the input",
        tensors=" ".join(names) or "none",
        where=str(network),
        fix="call the input X, or name it: tn.networks.compose(a, b, into=...)",
    )


def compose(first: Network, second: Network, *, into: str | None = None) -> Network:
    """Feed the output of `first` to a tensor of `second`: the first output label to its first axis, and so on.

    Names and labels of `second` that also occur in `first` are renamed. If the tensor occurs several times in
    `second`, a copy of `first` takes the place of each occurrence, with the same tensors (tied) and bonds of its own.
    Sums are multiplied out: the result has a term for each term of `second` and each choice of a term of `first` for
    each occurrence of the tensor in it.

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
    first, second = only_network(first), only_network(second)
    into = input_name(second) if into is None else into
    tensors = tensors_of(second)
    if into not in tensors:
        raise NetworkError(f"the network has no tensor {into!r}", where=str(second), tensors=" ".join(tensors))
    axes = len(tensors[into].labels)
    if axes != len(first.output):
        raise NetworkError(
            f"the output of the first network has {len(first.output)} labels, {into!r} has {axes} axes",
            first=str(first),
            second=str(second),
        )
    of_first = tensors_of(first)
    clashing = [name for name in tensors if name in of_first and name != into]
    names = fresh_words(clashing, {*of_first, *tensors})
    products = []
    for term in second.terms:
        places = [n for n, node in enumerate(term.nodes) if isinstance(node, NamedTensor) and node.name == into]
        for factors in product(first.terms, repeat=len(places)):
            products.append(joined(factors, term, places, names))
    output = products[0][2]
    return sum_of_products([with_output(*each, output) for each in products], output)
