"""Networks to quimb and back.

quimb drops an index that occurs on two tensors and is open, and gauges one that occurs on three as if on two.
So a network goes over without any: a label that is not an ordinary bond or an ordinary open label becomes explicit copy
tensors, and each occurrence of a tied tensor and each reserved node becomes a tensor of its own. Tags tell them apart
on the way back, where what quimb did to them is checked against the network.
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

from ..errors import NetworkError, SizeError, ValuesError, explain
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
    shape_of,
    tensor_nodes,
)
from .evaluation import bind, pattern, values_for
from .values import common_dtype

if TYPE_CHECKING:
    from quimb.tensor import TensorNetwork

_ROUNDING = 256
"""Units in the last place of the largest element by which a tensor that has to stay may have changed."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One quimb tensor: a node of the network (`label` is None) or a copy tensor that joins the ends of `label`.

    `inds` are quimb's indices, in the order of the axes; `tag` is carried by no other tensor.
    """

    node: Node
    label: str | None
    inds: tuple[str, ...]
    tag: str

    def __str__(self) -> str:
        return f"node {node_text(self.node)}" if self.label is None else f"a copy tensor of label {self.label!r}"


def to_quimb(network: Network, values: Mapping[str, Any] | None = None) -> TensorNetwork:
    """The network as quimb's, with torch tensors.

    Every occurrence of a named tensor is a quimb tensor with the tags NAME and NAME#position, every reserved node one
    with the tags KIND and KIND#position and its dense index pattern. A label that joins two nodes, or is open and
    occurs on one, is the index of that name. Any other label (a hyperedge, a diagonal, one that is summed alone) is
    copy tensors of at most three indices, tags hyperedge:LABEL and hyperedge:LABEL#number, that join its ends, the
    indices LABEL#number.

    Args:
        values: name -> elements, for every named tensor; they are shared, not copied, where no conversion is needed.

    Returns:
        A network in which every index occurs on at most two tensors and `outer_inds()` are the output labels, in
        their order. Its arrays have the common dtype of the values (float64 if that is not a floating one).

    Raises:
        ValuesError: a value is missing, not finite, or does not fit.
        SizeError: a size is not known, or a dense pattern would be too large.
    """
    qtn: Any = import_module("quimb.tensor")  # takes seconds, and only here is it needed
    network, tensors = bind(network, values or {})
    tensors = values_for(network, tensors)
    common = common_dtype(tensors.values())
    like = next(iter(tensors.values()), torch.empty(0)).new_empty(
        0, dtype=common if common.is_floating_point else torch.float64
    )
    # quimb lists the outer indices in the order in which they became outer: all at once when this one goes
    shape = shape_of(network, network.output)
    placeholder = qtn.Tensor(like.new_zeros(()).expand(shape), network.output, tags={"#output"})
    arrays = [
        qtn.Tensor(_array(piece, network, tensors).to(like), piece.inds, tags=(piece.tag.rpartition("#")[0], piece.tag))
        for piece in _pieces(network)
    ]
    tn = qtn.TensorNetwork([placeholder, *arrays])
    tn.delete("#output")
    return cast("TensorNetwork", tn)


def from_quimb(tn: TensorNetwork, like: Network | None = None) -> tuple[Network, dict[str, Tensor]]:
    """A quimb network as a network and its values.

    Args:
        tn: with `like`, what became of `to_quimb(like, values)` under quimb's operations.
        like: the network that went over. Its output order, reserved nodes, hyperedges and ties are restored. Bonds may
            have other sizes than before; parallel bonds that quimb fused come back as the first of them, the others
            (and bonds that it squeezed) with size 1. By default every quimb tensor is a tensor of its own, with the
            first tag that is a name and that no other tensor carries, or T1, T2, ..., as its name.

    Returns:
        The network with its sizes, and name -> elements.

    Raises:
        NetworkError: `tn` no longer is the network `like` with other values: a tensor was contracted, split, added or
            lost; an index pattern or a copy tensor has other elements (canonizing and compressing across it does
            that); occurrences of a tied tensor differ; an open label is lost.
        ValuesError: an array is complex, not finite or empty.
    """
    return _foreign(tn) if like is None else _restored(tn, like)


# Over -------------------------------------------------------------------------------------------------------


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
    """A chain of copy tensors with at most three indices: d^3 elements each, where a single one has d^ends."""
    number = 0
    while inds:
        here, inds = (inds, []) if len(inds) <= 3 else (inds[:2], inds[2:])
        if inds:
            inds.insert(0, f"{label}#copies{number}")
            here = [*here, inds[0]]
        node = Copy((label,) * len(here))
        yield _Piece(node, label, tuple(here), f"hyperedge:{label}#{number}")
        number += 1


def _array(piece: _Piece, network: Network, values: Mapping[str, Tensor]) -> Tensor:
    node = piece.node
    return values[node.name] if isinstance(node, NamedTensor) else pattern(node, network)


# Back -------------------------------------------------------------------------------------------------------


def _refuse(fact: str, **context: object) -> NoReturn:
    raise NetworkError(explain(fact, **context, fix="from_quimb(tn) without like= takes each quimb tensor as it is"))


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
                f"{piece} has other elements in quimb than it must",
                tag=piece.tag,
                because="something was absorbed into it, as canonizing or compressing its bonds does",
            )
    return bind(network, values)


def _located(tn: TensorNetwork, pieces: Sequence[_Piece]) -> list[Any]:
    """The quimb tensor of each piece."""
    by_tag = {piece.tag: number for number, piece in enumerate(pieces)}
    found: dict[int, Any] = {}
    for tensor in tn.tensors:
        own = [by_tag[tag] for tag in tensor.tags if tag in by_tag]
        if not own:
            _refuse("a quimb tensor stands for no node of the network", tags=" ".join(tensor.tags), inds=tensor.inds)
        if len(own) > 1:
            _refuse(f"{' and '.join(str(pieces[number]) for number in own)} are one tensor in quimb", inds=tensor.inds)
        if own[0] in found:
            _refuse(f"{pieces[own[0]]} is several tensors in quimb", tag=pieces[own[0]].tag)
        found[own[0]] = tensor
    for number, piece in enumerate(pieces):
        if number not in found:
            _refuse(f"{piece} is not in the quimb network", tag=piece.tag)
    return [found[number] for number in range(len(pieces))]


def _in_order(pieces: Sequence[_Piece], tensors: Sequence[Any]) -> list[Tensor]:
    """The array of each piece, its axes in the piece's order; a bond that quimb squeezed is an axis of size 1."""
    names = _corresponding(pieces, tensors)
    arrays = []
    for piece, tensor in zip(pieces, tensors, strict=True):
        kept = [ind for ind in piece.inds if ind in names]
        array = _torch(tensor.data, str(piece)).permute([tensor.inds.index(names[ind]) for ind in kept])
        for axis, ind in enumerate(piece.inds):
            if ind not in names:
                array = array.unsqueeze(axis)
        arrays.append(array)
    return arrays


def _corresponding(pieces: Sequence[_Piece], tensors: Sequence[Any]) -> dict[str, str]:
    """The index of a piece -> quimb's, without the bonds that quimb squeezed."""
    ours, theirs = _ends([piece.inds for piece in pieces]), _ends([tensor.inds for tensor in tensors])
    names = {ind: ind for ind in ours if theirs.get(ind) == ours[ind]}
    known = set(names)
    for ind, places in ours.items():
        if ind in names:
            continue
        if len(places) != 2:
            _refuse(f"the open label {ind!r} is lost", where=f"{pieces[places[0]]}")
        # bonds between the same two tensors are interchangeable, and quimb may have chosen another name
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
    """index -> numbers of the tensors on which it occurs."""
    found: dict[str, tuple[int, ...]] = {}
    for number, own in enumerate(inds):
        for ind in own:
            found[ind] = (*found.get(ind, ()), number)
    return found


def _named_values(tn: TensorNetwork, like: Network, arrays: Sequence[Tensor]) -> dict[str, Tensor]:
    """The value of every tensor, all occurrences of which agree; quimb's common factor is spread over them."""
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
        _refuse(f"the quimb network carries a factor 10^{exponent}, and has no tensor that could take it")
    factor = 10 ** (exponent / max(1, sum(map(len, occurrences.values()))))
    return {name: value * factor for name, value in values.items()} if exponent else values


def _close(array: Tensor, expected: Tensor) -> bool:
    """Whether the elements are as expected, up to rounding in the array's dtype."""
    if array.shape != expected.shape:
        return False
    dtype = array.dtype if array.is_floating_point() else torch.float64
    difference = (array.double() - expected.to(array.device).double()).abs().max()
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
        values[name] = _torch(tensor.data, f"tensor {name!r}")
    return bind(Network(nodes, [labels[ind] for ind in tn.outer_inds() if times[ind] == 1]), values)


def _labels_for(inds: Iterable[object]) -> dict[object, str]:
    """quimb's index -> a label; the random names that quimb gives to bonds become b1, b2, ..."""
    labels: dict[object, str] = {}
    # the random names last, so that b1, b2, ... pass by those that are taken
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


def _torch(data: Any, what: str) -> Tensor:
    """A quimb array of any library as a torch tensor."""
    to_numpy = import_module("autoray").to_numpy
    tensor = data if isinstance(data, Tensor) else torch.as_tensor(np.array(to_numpy(data)))
    if tensor.is_complex():
        raise ValuesError(explain(f"{what} is complex in quimb", fix="real numbers"))
    return tensor
