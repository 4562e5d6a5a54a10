"""Hypothesis strategies that every test shares: random networks, with values, and the same network in other words.

Sizes come first: a label is made with its size, and the sizes that follow from others (a window's output, the whole
of a Fuse) are computed before their labels are made. So nothing is filtered, and every draw is a valid network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import isqrt, prod
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from tnalgebra.networks.network import Network, Sum, renamed, shapes, sum_of_products, tensors_of
from tnalgebra.networks.nodes import MODES, Conv, Copy, Fill, Fuse, NamedTensor, Node
from tnalgebra.networks.sizes import output_size

MAX_TOTAL = 20_000
"""Product of the sizes of all labels of a network: no array that any evaluation makes is larger."""

SIZES = (2, 3, 4, 5, 7)
"""Sizes of new labels, each used once while they last, so that a swapped axis cannot hide."""

KINDS = ("tensor", "Copy", "Fill", "Fuse", "Conv")

VALUES = (Fraction(1), Fraction(1, 2), Fraction(-2, 3), Fraction(0), Fraction(7, 5))


@dataclass
class _Drawing:
    """What has been drawn of a network so far."""

    draw: st.DrawFn
    sizes: dict[str, int] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def room(self) -> int:
        """Largest size a new label may have."""
        return MAX_TOTAL // prod(self.sizes.values())

    def chance(self, one_in: int) -> bool:
        """True once in `one_in` draws; shrinks to False."""
        return self.draw(st.integers(0, one_in - 1)) == one_in - 1

    def new(self, size: int) -> str:
        """A new label. Only a size within `room()` is ever asked for."""
        label = f"{'abcdefghijklmnopqrstuvwxyz'[len(self.sizes) % 26]}{len(self.sizes) // 26 or ''}"
        self.sizes[label] = size
        return label

    def label(self, *, at_most: int = MAX_TOTAL) -> str:
        """A new label or, more often the more there are, one that stands already; of at most that size."""
        known = [label for label, size in self.sizes.items() if size <= at_most]
        if known and self.draw(st.integers(0, len(known) + 1)) > 1:
            return self.draw(st.sampled_from(known))
        limit = min(self.room(), at_most)
        fitting = [size for size in SIZES if size <= limit]
        unused = [size for size in fitting if size not in self.sizes.values()]
        if self.chance(6) or not fitting:
            return self.new(1)
        return self.new(self.draw(st.sampled_from(unused or fitting)))

    def label_of_size(self, size: int) -> str:
        """A label of exactly this size, new if there is room and the draw wants it; there is room, or one stands."""
        known = [label for label, other in self.sizes.items() if other == size]
        if known and (size > self.room() or self.chance(3)):
            return self.draw(st.sampled_from(known))
        return self.new(size)

    def tensor(self) -> Node:
        tensors = [node for node in self.nodes if isinstance(node, NamedTensor)]
        if tensors and self.chance(4):  # tied: the same shape
            first = self.draw(st.sampled_from(tensors))
            return NamedTensor(first.name, tuple(self.label_of_size(self.sizes[label]) for label in first.labels))
        name = f"T{len({node.name for node in tensors})}"
        return NamedTensor(name, tuple(self.label() for _ in range(self.draw(st.sampled_from((1, 2, 3, 4, 0))))))

    def copy(self) -> Node:
        count = self.draw(st.sampled_from((2, 3, 1, 4, 0)))
        if not count:
            return Copy(())
        first = self.label()
        return Copy((first, *(self.label_of_size(self.sizes[first]) for _ in range(count - 1))))

    def fill(self) -> Node:
        value: Fraction | Literal["mean"] = self.draw(st.sampled_from((*VALUES, "mean")))
        return Fill(tuple(self.label() for _ in range(self.draw(st.sampled_from((1, 2, 0, 3))))), value)

    def fuse(self) -> Node:
        if self.sizes and self.chance(3):  # split a label that stands
            whole = self.draw(st.sampled_from(list(self.sizes)))
            rest, parts = self.sizes[whole], []
            while rest > 1 and len(parts) < 2 and self.room() >= rest:
                divisors = [size for size in range(2, rest + 1) if rest % size == 0]
                parts.append(self.label_of_size(self.draw(st.sampled_from(divisors))))
                rest //= self.sizes[parts[-1]]
            return Fuse(whole, (*parts, self.label_of_size(rest)) if rest > 1 or not parts else tuple(parts))
        parts = [self.label()]
        for _ in range(self.draw(st.sampled_from((1, 2, 0)))):
            # room for the part itself and for the whole that grows by it
            limit = isqrt(self.room() // prod(self.sizes[part] for part in parts))
            if limit:
                parts.append(self.label(at_most=min(limit, 4)))
        return Fuse(self.label_of_size(prod(self.sizes[part] for part in parts)), tuple(parts))

    def conv(self) -> Node:
        draw = self.draw
        x = self.new(draw(st.integers(4, 11))) if self.room() > 400 and not self.chance(3) else self.label()
        k = self.label(at_most=min(self.sizes[x], 4))
        mode = draw(st.sampled_from(MODES))
        width, window = self.sizes[x], self.sizes[k]
        most = {"reflect": min(2, width - 1), "circular": min(2, width)}.get(mode, 2)  # padding that the mode can fold
        dilation = draw(st.sampled_from([d for d in (1, 2, 3) if d * (window - 1) < width + 2 * most]))
        need = dilation * (window - 1) + 1 - width  # low + high is at least this
        low = draw(st.integers(max(-1, need - most), most))
        high = max(low, need - low) if draw(st.booleans()) else draw(st.integers(max(-1, need - low), most))
        stride = draw(st.sampled_from((1, 2, 3)))
        if output_size(width, window, stride=stride, low=low, high=high, dilation=dilation) > self.room():
            stride = width + 4  # one position, for which there is always room
        size = output_size(width, window, stride=stride, low=low, high=high, dilation=dilation)
        return Conv(x, self.label_of_size(size), k, stride=stride, low=low, high=high, dilation=dilation, mode=mode)


@st.composite
def networks(draw: st.DrawFn, *, min_nodes: int = 1, max_nodes: int = 6, kinds: Sequence[str] = KINDS) -> Network:
    """A random network, every size known.

    Has, in many draws: every kind of node with every attribute, hyperedges (open ones too), labels twice on a node,
    labels summed alone, ties, size 1, scalars, disconnected parts, and outputs in any order.

    Args:
        kinds: of the nodes, the simplest first.
    """
    drawing = _Drawing(draw)
    makers = {
        "tensor": drawing.tensor,
        "Copy": drawing.copy,
        "Fill": drawing.fill,
        "Fuse": drawing.fuse,
        "Conv": drawing.conv,
    }
    for _ in range(draw(st.integers(min_nodes, max_nodes))):
        # half of the nodes are tensors
        kind = kinds[0] if draw(st.booleans()) else draw(st.sampled_from(kinds))
        drawing.nodes.append(makers[kind]())
    nodes = draw(st.permutations(drawing.nodes))
    if draw(st.booleans()):
        labels = draw(st.permutations(list(drawing.sizes)))
        return Network(nodes, labels[: draw(st.integers(0, len(labels)))], drawing.sizes)
    return Network(nodes, sizes=drawing.sizes)


def random_values(network: Network, seed: int) -> dict[str, Tensor]:
    """name -> standard normal float64 elements."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes(network).items()
    }


@st.composite
def valued_networks(
    draw: st.DrawFn, *, min_nodes: int = 1, max_nodes: int = 6, kinds: Sequence[str] = KINDS
) -> tuple[Network, dict[str, Tensor]]:
    """A random network and values for its tensors."""
    network = draw(networks(min_nodes=min_nodes, max_nodes=max_nodes, kinds=kinds))
    return network, random_values(network, draw(st.integers(0, 2**32 - 1)))


@st.composite
def sums(draw: st.DrawFn, *, max_terms: int = 3, max_nodes: int = 4, kinds: Sequence[str] = KINDS) -> Network:
    """A random sum of networks, every size known.

    Its terms have the same words for other labels, as they are read apart; a tensor may occur in several terms. What a
    term lacks of the output is on a tensor or a fill of its own.
    """
    first = draw(networks(max_nodes=max_nodes, kinds=kinds))
    terms, known = [first], shapes(first)
    for number in range(1, draw(st.integers(2, max_terms))):
        term = draw(networks(max_nodes=max_nodes, kinds=kinds))
        words, spare = {}, draw(st.permutations(first.output))
        for label in draw(st.permutations(sorted(term.sizes))):
            fits = [word for word in spare if word not in words.values() and first.sizes[word] == term.sizes[label]]
            words[label] = fits[0] if fits else f"{label}_{number}"
        names = {}
        for name, shape in shapes(term).items():
            same = [other for other, size in known.items() if size == shape and other not in names.values()]
            names[name] = same[0] if same and draw(st.booleans()) else f"{name}_{number}"
        term = renamed(term, labels=words, names=names)
        lacking = tuple(label for label in first.output if label not in term.sizes)
        more: list[Node] = [NamedTensor(f"S{number}", lacking) if draw(st.booleans()) else Fill(lacking, Fraction(2))]
        sizes = {**term.sizes, **{label: first.sizes[label] for label in lacking}}
        term = Network([*term.nodes, *more][: None if lacking else -1], draw(st.permutations(first.output)), sizes)
        known = {**known, **shapes(term)}
        terms.append(term)
    return Sum(terms)


@st.composite
def valued_sums(
    draw: st.DrawFn, *, max_terms: int = 3, max_nodes: int = 4, kinds: Sequence[str] = KINDS
) -> tuple[Network, dict[str, Tensor]]:
    """A random sum and values for its tensors."""
    network = draw(sums(max_terms=max_terms, max_nodes=max_nodes, kinds=kinds))
    return network, random_values(network, draw(st.integers(0, 2**32 - 1)))


@st.composite
def in_other_words(draw: st.DrawFn, network: Network) -> tuple[Network, dict[str, str]]:
    """The network with its nodes in another order and other labels and names, and old name -> new name.

    New words may be old words of something else.
    """
    labels = sorted({label for term in network.terms for node in term.nodes for label in node.labels})
    names = list(tensors_of(network))
    new_labels = draw(st.permutations([*labels, "left", "right", "out"]))
    new_names = dict(zip(names, draw(st.permutations([*names, "K", "X"])), strict=False))
    other = renamed(network, labels=dict(zip(labels, new_labels, strict=False)), names=new_names)
    terms = draw(st.permutations(other.terms))
    return sum_of_products([(draw(st.permutations(term.nodes)), term.sizes) for term in terms], other.output), new_names
