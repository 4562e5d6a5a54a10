"""Networks to quimb and back.

quimb drops an index that is open and occurs on two tensors, and treats an index on three tensors as if it were on two.
So the quimb network has no such index: a label that is neither an ordinary bond nor an ordinary open label becomes
explicit copy tensors. Each occurrence of a tied tensor and each reserved node is a quimb tensor of its own. Tags
distinguish them on the way back, and what quimb did to them is checked against the network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import NetworkError, SizeError, ValuesError
from ..networks import (
    RESERVED,
    WORD,
    Copy,
    NamedTensor,
    Network,
    Node,
    carriers,
    fresh,
    node_text,
    only_network,
    read_network,
    shape_of,
    tensor_nodes,
)
from .evaluation import bind, pattern, values_for
from .numbers import in_precision
from .values import common_dtype

if TYPE_CHECKING:
    from quimb.tensor import Tensor as QuimbTensor
    from quimb.tensor import TensorNetwork

_ROUNDING = 256
"""By how many units in the last place of its largest element a tensor that must not change may differ."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One quimb tensor: a node of the network (`label` is None), or a copy tensor that joins the ends of `label`.

    inds: quimb's indices, in the order of the axes.
    tag: of this tensor alone.
    """

    node: Node
    label: str | None
    inds: tuple[str, ...]
    tag: str

    def __str__(self) -> str:
        return f"node {node_text(self.node)}" if self.label is None else f"a copy tensor of label {self.label!r}"


def to_quimb(network: Network | str, values: Mapping[str, Any] | None = None) -> TensorNetwork:
    """Convert a network to a quimb network of torch tensors.

    Every occurrence of a named tensor is a quimb tensor with the tags NAME and NAME#position. Every reserved node is
    one with the tags KIND and KIND#position and its dense index pattern. A label that joins two nodes, or is open and
    occurs on one node, is the index of that name. Any other label (a hyperedge, a diagonal, a label that is summed and
    occurs once) becomes copy tensors with at most three indices and the tags hyperedge:LABEL and
    hyperedge:LABEL#number. They join its ends, whose indices are LABEL#number.

    Args:
        network: a product, or its notation.
        values: name -> elements, for every named tensor. They are not copied unless they have to be converted.

    Returns:
        A quimb network in which every index occurs on at most two tensors. Its `outer_inds()` are the output labels in
        their order. Its arrays have the common dtype of the values, or float64 if they are all integers.

    Raises:
        NetworkError: the network is a sum, which quimb does not have; its terms are converted one by one.
        ValuesError: a value is missing or not finite, or its shape does not fit.
        SizeError: the size of a label is unknown, or a dense pattern would be too large.

    Example:
        >>> tn.tensors.to_quimb(fit.network, fit.values).contract()
    """
    network = read_network(network)
    if len(network.terms) > 1:
        fact = f"quimb has no sums, and the network is one of {len(network.terms)} terms"
        fix = (
            "[to_quimb(term, {name: values[name] for name in tn.networks.tensors_of(term)}) for term in network.terms]"
        )
        raise NetworkError(fact, network=network, fix=fix)
    qtn: Any = import_module("quimb.tensor")  # takes seconds, so it is imported only here
    network, tensors = bind(network, values or {})
    tensors = values_for(network, tensors)
    common = common_dtype(tensors.values())
    like = next(iter(tensors.values()), torch.empty(0)).new_empty(
        0, dtype=common if common.is_floating_point or common.is_complex else torch.float64
    )
    # quimb lists outer indices in the order in which they became outer; deleting this tensor makes all of them outer
    shape = shape_of(network, network.output)
    placeholder = qtn.Tensor(like.new_zeros(()).expand(shape), network.output, tags={"#output"})
    arrays = [
        qtn.Tensor(_array(piece, network, tensors).to(like), piece.inds, tags=(piece.tag.rpartition("#")[0], piece.tag))
        for piece in _pieces(network)
    ]
    tn = qtn.TensorNetwork([placeholder, *arrays])
    tn.delete("#output")
    return cast("TensorNetwork", tn)


def from_quimb(tn: TensorNetwork | QuimbTensor, like: Network | None = None) -> tuple[Network, dict[str, Tensor]]:
    """Convert a quimb network to a network and its values.

    Args:
        tn: any quimb network, or a quimb tensor, which is a network of one; with `like`, what quimb's operations made
            of `to_quimb(like, values)`.
        like: the network that was converted. Its output order, reserved nodes, hyperedges and ties are restored. Bonds
            may have other sizes than before. Of parallel bonds that quimb fused, the first has their whole size and
            the others have size 1, as have bonds that quimb squeezed. Without `like`, every quimb tensor becomes a
            tensor. Its name is its first tag that is a word and that no other tensor has, or T1, T2, ...

    Returns:
        The network with its sizes, and name -> elements.

    Raises:
        NetworkError: `tn` is not the network `like` with other values: a tensor was contracted, split, added or
            removed; an index pattern or a copy tensor has other elements, as after canonizing or compressing its
            bonds; occurrences of a tied tensor differ; or an open label is lost.
        ValuesError: an array is not finite or empty, or `tn` is not from quimb.

    Example:
        >>> network, values = tn.tensors.from_quimb(quimb_network, like=fit.network)
    """
    qtn: Any = import_module("quimb.tensor")
    if isinstance(tn, qtn.Tensor):
        tn = cast("TensorNetwork", qtn.TensorNetwork([tn]))
    if not isinstance(tn, qtn.TensorNetwork):
        fact = f"a {type(tn).__name__} is given where a network of quimb is needed"
        raise ValuesError(fact, fix="a quimb.tensor.TensorNetwork or a quimb.tensor.Tensor")
    return _foreign(tn) if like is None else _restored(tn, only_network(like))


# To quimb -------------------------------------------------------------------------------------------------------


def _pieces(network: Network) -> list[_Piece]:
    """The quimb tensors of a network: one for each node, in their order, then the copy tensors."""
    ends: dict[tuple[int, int], str] = {}
    copies: list[_Piece] = []
    for label, places in carriers(network).items():
        open_ends = [label] if label in network.output else []
        ordinary = len(places) + len(open_ends) == 2 and len({position for position, _ in places}) == len(places)
        for number, place in enumerate(places):
            ends[place] = label if ordinary else f"{label}#{number}"
        if not ordinary:
            copies += _copies(label, [ends[place] for place in places] + open_ends)
    nodes = [
        _Piece(node, None, tuple(ends[position, axis] for axis in range(len(node.labels))), f"{node.name}#{position}")
        for position, node in enumerate(network.nodes)
    ]
    return nodes + copies


def _copies(label: str, inds: list[str]) -> Iterator[_Piece]:
    """A chain of copy tensors with at most three indices. Each has d^3 elements; a single one would have d^ends."""
    number = 0
    while inds:
        joined, inds = (inds, []) if len(inds) <= 3 else (inds[:2], inds[2:])
        if inds:
            inds.insert(0, f"{label}#copies{number}")
            joined = [*joined, inds[0]]
        node = Copy((label,) * len(joined))
        yield _Piece(node, label, tuple(joined), f"hyperedge:{label}#{number}")
        number += 1


def _array(piece: _Piece, network: Network, values: Mapping[str, Tensor]) -> Tensor:
    node = piece.node
    return values[node.name] if isinstance(node, NamedTensor) else pattern(node, network)


# From quimb -------------------------------------------------------------------------------------------------------


def _refuse(fact: str, **context: Any) -> NoReturn:
    raise NetworkError(fact, **context, fix="from_quimb(tn) without like=, which takes each quimb tensor as it is")


def _restored(tn: TensorNetwork, like: Network) -> tuple[Network, dict[str, Tensor]]:
    pieces = _pieces(like)
    arrays = _in_order(pieces, _located(tn, pieces))
    sizes: dict[str, int] = {}
    for piece, array in zip(pieces, arrays, strict=True):
        for label, size in zip(piece.node.labels, array.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                _refuse(f"label {label!r} has sizes {sizes[label]} and {size} in quimb", second=piece)
    fixed = {*like.output}.union(*(node.labels for node in like.nodes if not isinstance(node, NamedTensor)))
    for label in sizes:
        if label in fixed and sizes[label] != like.sizes.get(label, sizes[label]):
            _refuse(f"label {label!r} had size {like.sizes[label]} and has {sizes[label]} in quimb", network=like)
    values = _named_values(tn, like, arrays)
    try:
        network = Network(like.nodes, like.output, sizes)
    except SizeError as error:
        _refuse("the sizes in quimb contradict the network", because=error)
    for piece, array in zip(pieces, arrays, strict=True):
        if not isinstance(piece.node, NamedTensor) and not _close(array, pattern(piece.node, network)):
            _refuse(
                f"{piece} has other elements in quimb than before",
                tag=piece.tag,
                because="quimb changed it, as it does when it canonizes or compresses its bonds",
            )
    return bind(network, values)


def _located(tn: TensorNetwork, pieces: Sequence[_Piece]) -> list[Any]:
    """The quimb tensor of each piece."""
    by_tag = {piece.tag: number for number, piece in enumerate(pieces)}
    tensors: dict[int, Any] = {}
    for tensor in tn.tensors:
        numbers = [by_tag[tag] for tag in tensor.tags if tag in by_tag]
        if not numbers:
            fact = "a quimb tensor does not belong to a node of the network"
            _refuse(fact, tags=" ".join(tensor.tags), inds=tensor.inds)
        if len(numbers) > 1:
            joined = " and ".join(str(pieces[number]) for number in numbers)
            _refuse(f"{joined} are one tensor in quimb", inds=tensor.inds)
        if numbers[0] in tensors:
            _refuse(f"{pieces[numbers[0]]} is several tensors in quimb", tag=pieces[numbers[0]].tag)
        tensors[numbers[0]] = tensor
    for number, piece in enumerate(pieces):
        if number not in tensors:
            _refuse(f"{piece} is not in the quimb network", tag=piece.tag)
    return [tensors[number] for number in range(len(pieces))]


def _in_order(pieces: Sequence[_Piece], tensors: Sequence[Any]) -> list[Tensor]:
    """The array of each piece, with the axes in the piece's order. A bond that quimb squeezed is an axis of size 1."""
    names = _corresponding(pieces, tensors)
    arrays = []
    for piece, tensor in zip(pieces, tensors, strict=True):
        kept = [ind for ind in piece.inds if ind in names]
        array = _torch(tensor.data).permute([tensor.inds.index(names[ind]) for ind in kept])
        for axis, ind in enumerate(piece.inds):
            if ind not in names:
                array = array.unsqueeze(axis)
        arrays.append(array)
    return arrays


def _corresponding(pieces: Sequence[_Piece], tensors: Sequence[Any]) -> dict[str, str]:
    """Index of a piece -> index in quimb, without the bonds that quimb squeezed."""
    ours, theirs = _ends([piece.inds for piece in pieces]), _ends([tensor.inds for tensor in tensors])
    names = {ind: ind for ind in ours if theirs.get(ind) == ours[ind]}
    known = set(names)
    for ind, places in ours.items():
        if ind in names:
            continue
        if len(places) != 2:
            _refuse(f"the open label {ind!r} is lost", where=f"{pieces[places[0]]}")
        # quimb may have renamed a bond; bonds between the same two tensors are interchangeable
        other = next((other for other in theirs if theirs[other] == places and other not in known), None)
        if other is not None:
            names[ind] = other
            known.add(other)
    for ind in theirs:
        if ind not in known:
            where = " and ".join(dict.fromkeys(str(pieces[number]) for number in theirs[ind]))
            _refuse(f"quimb's index {ind!r} is not a label of the network", where=where)
    return names


def _ends(inds: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """index -> the numbers of the tensors on which it occurs."""
    numbers: dict[str, tuple[int, ...]] = {}
    for number, inds_of_tensor in enumerate(inds):
        for ind in inds_of_tensor:
            numbers[ind] = (*numbers.get(ind, ()), number)
    return numbers


def _named_values(tn: TensorNetwork, like: Network, arrays: Sequence[Tensor]) -> dict[str, Tensor]:
    """The value of every tensor, whose occurrences must agree. quimb's common factor is spread over the tensors."""
    values: dict[str, Tensor] = {}
    occurrences = tensor_nodes(like)
    for name, places in occurrences.items():
        first, *others = (arrays[place] for place in places)
        for place, other in zip(places[1:], others, strict=True):
            if not _close(other, first):
                _refuse(
                    f"two occurrences of the tied tensor {name!r} differ in quimb",
                    first=f"{node_text(like.nodes[places[0]])}, tag {name}#{places[0]}",
                    second=f"{node_text(like.nodes[place])}, tag {name}#{place}",
                )
        values[name] = first
    exponent = float(tn.exponent)
    if exponent and not values:
        _refuse(f"the quimb network has a factor 10^{exponent}, and no tensor that could take it")
    factor = 10 ** (exponent / max(1, sum(map(len, occurrences.values()))))
    return {name: value * factor for name, value in values.items()} if exponent else values


def _close(array: Tensor, expected: Tensor) -> bool:
    """Whether the elements are the expected ones, up to rounding in the array's dtype."""
    if array.shape != expected.shape:
        return False
    dtype = array.dtype if array.is_floating_point() or array.is_complex() else torch.float64
    difference = (
        (in_precision(array, torch.float64) - in_precision(expected.to(array.device), torch.float64)).abs().max()
    )
    return bool(difference <= _ROUNDING * torch.finfo(dtype).eps * expected.abs().max())


def _foreign(tn: Any) -> tuple[Network, dict[str, Tensor]]:
    tn = tn.copy()
    if tn.exponent:
        tn.distribute_exponent()
    times = Counter(ind for tensor in tn.tensors for ind in tensor.inds)
    labels = _labels_for(times)
    tags = [tag for tag, tids in tn.tag_map.items() if len(tids) == 1 and WORD.fullmatch(tag) and tag not in RESERVED]
    names = (name for number in count(1) if (name := f"T{number}") not in tags)
    nodes: list[Node] = []
    values: dict[str, Tensor] = {}
    for tensor in tn.tensors:
        name = next((tag for tag in tags if tag in tensor.tags), None) or next(names)
        nodes.append(NamedTensor(name, tuple(labels[ind] for ind in tensor.inds)))
        values[name] = _torch(tensor.data)
    return bind(Network(nodes, [labels[ind] for ind in tn.outer_inds() if times[ind] == 1]), values)


def _labels_for(inds: Iterable[object]) -> dict[object, str]:
    """Index in quimb -> label. The random names that quimb gives to bonds become b1, b2, ..."""
    labels: dict[object, str] = {}
    # the random names come last, so that b1, b2, ... avoid the words that are taken
    for ind in sorted(inds, key=_is_random):
        taken = set(labels.values())
        if _is_random(ind):
            labels[ind] = next(word for number in count(1) if (word := f"b{number}") not in taken)
        else:
            word = re.sub(r"\W", "_", str(ind), flags=re.ASCII)
            labels[ind] = fresh(word if WORD.fullmatch(word) else f"i{word}", taken)
    return labels


def _is_random(ind: object) -> bool:
    return str(ind).startswith("_")


def _torch(data: Any) -> Tensor:
    """The array of a quimb tensor, of whatever library, as a torch tensor."""
    to_numpy = import_module("autoray").to_numpy
    return data if isinstance(data, Tensor) else torch.as_tensor(np.array(to_numpy(data)))
