"""The terms of a sum side by side: the same words for what they share, one window for all, what all have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd
from typing import NamedTuple, TypeAlias

from .joining import labels_in_order
from .labels import fresh
from .network import Network, all_nodes, sum_of_products
from .nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node, relabel

_Windows: TypeAlias = dict[tuple[str, str], Conv]
"""(x, y) -> the only window of a term over x that makes y."""


def aligned(terms: Sequence[Network]) -> list[Network]:
    """The terms with the same words for labels that mean the same, so that common nodes are equal.

    They are the labels of a tensor that several terms have, and of windows and reshapes between such labels. As the
    labels of a term are its own, their words do not change the value of the sum. In no term do two labels become one.

    Args:
        terms: products with the same output, which have only labels of the output in common.

    Example:
        >>> [str(term) for term in aligned(tn.parse("X[n i] A[i] + X[n j] B[j]").terms)]
        ['X[n i] A[i]', 'X[n i] B[i]']
    """
    done: list[Network] = []
    for term in terms:
        earlier = [node for other in done for node in other.nodes]
        sizes = {label: size for other in done for label, size in other.sizes.items()}
        words = {label: label for label in term.output}
        changed = True
        while changed:
            changed = False
            for node in term.nodes:
                for other in earlier:
                    for label, word in _same_labels(node, other, words):
                        free = label not in words and word not in words.values()
                        if free and term.sizes.get(label) == sizes.get(word):
                            words[label] = word
                            changed = True
        others = [label for label in labels_in_order(term.nodes) if label not in words]
        taken = {*words.values(), *sizes}
        for label in others:  # a word that means something else in another term makes way
            words[label] = fresh(label, taken)
            taken.add(words[label])
        nodes = [relabel(node, words) for node in term.nodes]
        done.append(Network(nodes, term.output, {words[label]: size for label, size in term.sizes.items()}))
    return done


def _same_labels(node: Node, other: Node, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs (label of the node, label of the other node) that mean the same, given that `words` do."""
    if type(node) is not type(other) or len(node.labels) != len(other.labels):
        return
    agree = [words.get(label) == word for label, word in zip(node.labels, other.labels, strict=True)]
    match node:
        case NamedTensor():
            follows = node.name == other.name
        case Conv():
            follows = node.attributes == other.attributes and sum(agree) == 2
        case Fuse():
            follows = agree[0] or all(agree[1:])
        case _:
            return
    if follows:
        yield from zip(node.labels, other.labels, strict=True)


def collected(
    terms: Sequence[Network], name: str, *, apart: Callable[[Node], bool] = lambda node: False
) -> tuple[Network, Network] | None:
    """A sum as one product: the nodes that all terms have, and a new tensor, which is the sum of what is left of each.

        X[n i] A[i o] + X[n i] B[i r] C[r o]  =  X[n i] S[o i]  with  S = A[i o] + B[i r] C[r o] -> [o i]

    Args:
        terms: products whose common nodes are equal, see `aligned`.
        name: of the new tensor.
        apart: whether a node may not be a part of the new tensor.

    Returns:
        The product and the network of the new tensor; None if a node that must stay apart is not common, or if nothing
        is left of all terms.
    """
    counts = [Counter(term.nodes) for term in terms]
    common = counts[0]
    for count in counts[1:]:
        common = common & count
    rests = [_without(term.nodes, common) for term in terms]
    if not any(rests) or any(apart(node) for rest in rests for node in rest):
        return None
    nodes = _without(terms[0].nodes, counts[0] - common)
    output, sizes = terms[0].output, {label: size for term in terms for label, size in term.sizes.items()}
    outside = {*output, *labels_in_order(nodes)}
    labels = tuple(label for label in labels_in_order([n for rest in rests for n in rest]) if label in outside)
    whole = [*nodes, NamedTensor(name, labels)]
    known = {label: sizes[label] for label in labels_in_order(whole) if label in sizes}
    return Network(whole, output, known), sum_of_products([_summand(rest, labels, sizes) for rest in rests], labels)


def _summand(
    nodes: Sequence[Node], output: tuple[str, ...], sizes: Mapping[str, int]
) -> tuple[list[Node], dict[str, int]]:
    """Nodes as a product that has all labels of the output: it is constant along those that the nodes lack."""
    labels = labels_in_order(nodes)
    lacking = tuple(label for label in output if label not in labels)
    more = [Fill(lacking, Fraction(1))] if lacking or not nodes else []
    return [*nodes, *more], {label: sizes[label] for label in (*labels, *lacking) if label in sizes}


def _without(nodes: Sequence[Node], some: Counter[Node]) -> list[Node]:
    """The nodes without some of them, each as often as it is counted."""
    left, kept = Counter(some), []
    for node in nodes:
        if left[node] > 0:
            left[node] -= 1
        else:
            kept.append(node)
    return kept


# One window for all terms --------------------------------------------------------------------------------------


def in_one_window(terms: Sequence[Network]) -> list[Network] | None:
    """The terms with windows of one size over the same labels, in which a second window places each kernel.

        Conv[x y k | padding=p dilation=d]  =  Conv[x y m | padding=P dilation=g] Conv[m one:1 k | dilation=d/g ...]

    Position x = s*y + d*k - p is x = s*y + g*m - P for m = (d*k + P - p)/g, where g divides all d and P - p. A label
    that passes unchanged, such as that of an identity or of a 1x1 convolution, is a window of one element.

    Args:
        terms: products with known sizes, see `aligned`.

    Returns:
        Terms whose windows over one pair of labels are equal, with words that are aligned; None where they have other
        pairs, or strides or modes that have no common window.
    """
    terms = aligned(_with_identities(terms))
    windows = [each for term in terms if (each := _windows(term)) is not None]
    keys = dict.fromkeys(key for each in windows for key in each)
    if len(windows) < len(terms) or not keys:
        return None
    changed = [_Widened(term) for term in terms]
    taken = {label for term in terms for label in labels_in_order(term.nodes)}
    for key in keys:
        convs = _windows_over(key, terms, windows)
        if convs is None:
            return None
        if len({*convs}) == 1 and all(conv in term.nodes for conv, term in zip(convs, terms, strict=True)):
            continue
        sizes = [term.sizes.get(conv.k, 1) for conv, term in zip(convs, terms, strict=True)]
        common = _common_window(convs, sizes, fresh("m", taken))
        if common is None:
            return None
        taken.add(common.conv.k)
        for one, conv, place in zip(changed, convs, common.places, strict=True):
            one.put(common, conv, place, taken)
    return [one.network() for one in changed]


class _CommonWindow(NamedTuple):
    """One window that reaches what several windows reach.

    size: the number of its elements.
    places: for each of the windows (low, dilation) of the window that places its kernel in this one.
    """

    conv: Conv
    size: int
    places: list[tuple[int, int]]


@dataclass
class _Widened:
    """A term in which common windows take the place of windows, and of copies that pass a label unchanged.

    replaced: node -> those in its place.
    sizes: of the labels that these have.
    words: label of the term -> its new word.
    """

    term: Network
    replaced: dict[Node, list[Node]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def put(self, common: _CommonWindow, conv: Conv, place: tuple[int, int], taken: set[str]) -> None:
        """Replace one window, see `_windows_over`; the labels that are new are added to those that are taken."""
        outer, (low, dilation) = common.conv, place
        size = self.term.sizes.get(conv.k, 1)
        one = fresh("one", taken)
        k = conv.k or fresh("k", taken | {one})
        taken |= {one, k}
        node = conv if conv.k else _copy_of(self.term, (outer.x, outer.y))
        assert node is not None
        if conv.k and (low, dilation, size) == (0, 1, common.size):
            self.words[k] = outer.k
            self.replaced[node] = [outer]
        else:
            high = dilation * (size - 1) + 1 - common.size - low
            self.replaced[node] = [outer, Conv(outer.k, one, k, 1, low, high, dilation=dilation)]
            self.sizes |= {one: 1, k: size}
        self.sizes[outer.k] = common.size

    def network(self) -> Network:
        """The changed term."""
        nodes = [relabel(one, self.words) for node in self.term.nodes for one in self.replaced.get(node, [node])]
        sizes = {label: size for label, size in {**self.term.sizes, **self.sizes}.items() if label not in self.words}
        return Network(nodes, self.term.output, sizes)


def _with_identities(terms: Sequence[Network]) -> list[Network]:
    """The terms, where a tensor has an inner label in all: an output label becomes an inner one and a copy.

    This concerns axes on which the tensor has an output label in some terms, and an inner one in others.
    """
    inner = {
        (node.name, axis)
        for term in terms
        for node in term.nodes
        if isinstance(node, NamedTensor)
        for axis, label in enumerate(node.labels)
        if label not in term.output
    }
    taken = {label for term in terms for label in labels_in_order(term.nodes)}
    changed = []
    for term in terms:
        nodes: list[Node] = []
        sizes = dict(term.sizes)
        for node in term.nodes:
            if isinstance(node, NamedTensor):
                labels = list(node.labels)
                for axis, label in enumerate(labels):
                    if label in term.output and (node.name, axis) in inner:
                        labels[axis] = fresh(label, taken)
                        taken.add(labels[axis])
                        nodes.append(Copy((labels[axis], label)))
                        if label in sizes:
                            sizes[labels[axis]] = sizes[label]
                node = replace(node, labels=tuple(labels))
            nodes.append(node)
        changed.append(Network(nodes, term.output, sizes))
    return changed


def _windows(term: Network) -> _Windows | None:
    """The windows of a term by their labels x and y; None where two are over one pair, or a k is in the output."""
    windows: _Windows = {}
    for node in term.nodes:
        if isinstance(node, Conv):
            if (node.x, node.y) in windows or node.k in term.output:
                return None
            windows[node.x, node.y] = node
    return windows


def _windows_over(key: tuple[str, str], terms: Sequence[Network], windows: Sequence[_Windows]) -> list[Conv] | None:
    """The window of each term over a pair of labels; one of a single element, without a word for it, where it copies.

    Returns:
        None if a term has neither a window nor a copy there.
    """
    over = []
    for term, each in zip(terms, windows, strict=True):
        if key not in each and _copy_of(term, key) is None:
            return None
        over.append(each.get(key, Conv(*key, "")))
    return over


def _copy_of(term: Network, key: tuple[str, str]) -> Node | None:
    copies = (node for node in all_nodes(term) if isinstance(node, Copy) and len(node.labels) == 2)
    return next((node for node in copies if {*node.labels} == {*key}), None)


def _common_window(windows: Sequence[Conv], sizes: Sequence[int], label: str) -> _CommonWindow | None:
    """One window that reaches what all windows reach, as few elements as possible, whose k is this label.

    Returns:
        None if strides, modes of padding, or the numbers of positions that inputs of other sizes would have differ.
    """
    first = windows[0]
    spans = [
        (int(one.low), int(one.high), int(one.dilation) * (size - 1))  # type: ignore[arg-type]
        for one, size in zip(windows, sizes, strict=True)
    ]
    room = {low + high - reach for low, high, reach in spans}
    # a window that never reaches outside of x is the same in every mode
    modes = {one.mode for one, (low, high, _) in zip(windows, spans, strict=True) if low > 0 or high > 0} or {"zeros"}
    if len({one.stride for one in windows}) > 1 or len(modes) > 1 or len(room) > 1:
        return None
    low = max(one for one, _, _ in spans)
    steps = [int(one.dilation) for one, size in zip(windows, sizes, strict=True) if size > 1]  # type: ignore[arg-type]
    step = gcd(*steps, *(low - one for one, _, _ in spans)) or 1
    elements = max((low - one + reach) // step for one, _, reach in spans) + 1
    high = room.pop() - low + step * (elements - 1)
    places = [
        (-(low - one) // step, int(window.dilation) // step if size > 1 else 1)  # type: ignore[arg-type]
        for (one, _, _), window, size in zip(spans, windows, sizes, strict=True)
    ]
    conv = Conv(first.x, first.y, label, first.stride, low, high, dilation=step, mode=modes.pop())
    return _CommonWindow(conv, elements, places)
