"""Singular values of a network across a cut of its open labels, without its dense value.

An isometry from a label to other labels on the same side of the cut changes no singular value. So the labels of one
side that a tensor has are replaced by one label, no larger than what the tensor is joined with, whenever two tensors
are contracted: the triangle of a QR decomposition takes the place of the tensor. In a tree this brings all tensors
into the canonical form about the cut (Vidal 2003; Schollwoeck 2011, section 4); a loop keeps what its cores have in
common.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError, ValuesError
from ..networks import Bipartition, Network, carriers, check_covers, size_of
from .contraction import Operand, contract
from .evaluation import Values, bind, evaluate, operands, values_for
from .linalg import truncated_svd
from .numbers import largest
from .values import common_dtype

_SIDES = ("left/", "right/")
"""Labels of a side of the cut begin like this; the notation has no such labels."""


def cut_of_bond(network: Network, bond: str) -> Bipartition:
    """The cut of the open labels that a bond makes: those on either side when it is removed.

    Raises:
        NetworkError: the network is a sum, has no such bond, or does not fall in two parts without it; or a part has
            no open label.
    """
    if len(network.terms) > 1:
        raise NetworkError("a sum of networks has no bonds of its own", network=network, fix="a cut of open labels")
    first, second = _ends_of_bond(network, bond)
    reached = _reached(network, first, bond)
    if second in reached:
        fact = f"the bond {bond!r} is part of a loop: without it the network is in one part"
        raise NetworkError(fact, network=network)
    places = carriers(network)
    left = [label for label in network.output if places[label][0][0] in reached]
    right = [label for label in network.output if label not in left]
    if not left or not right:
        raise NetworkError(f"one side of the bond {bond!r} has no open label", fix="a cut of open labels")
    return Bipartition(tuple(left), tuple(right))


def _ends_of_bond(network: Network, bond: str) -> tuple[int, int]:
    """The positions of the two nodes that a bond joins. Raises NetworkError if it is not such a bond."""
    places = carriers(network).get(bond, [])
    if not places or bond in network.output:
        known = " ".join(label for label in carriers(network) if label not in network.output)
        raise NetworkError(f"the network has no bond {bond!r}", bonds=known or "none")
    ends = sorted({position for position, _ in places})
    if len(ends) != 2:
        raise NetworkError(f"the bond {bond!r} occurs on {len(ends)} nodes", fix="a bond of two nodes, or a cut")
    return ends[0], ends[1]


def _reached(network: Network, start: int, bond: str) -> set[int]:
    """The positions of the nodes that are joined with one of them by labels other than the bond."""
    places = carriers(network)
    reached, waiting = {start}, [start]
    while waiting:
        for label in network.nodes[waiting.pop()].labels:
            new = [] if label == bond else [place for place, _ in places[label] if place not in reached]
            reached.update(new)
            waiting += new
    return reached


def network_singular_values(network: Network, values: Mapping[str, Any], cut: Bipartition) -> Tensor:
    """The singular values of a network's value across a cut.

    Args:
        network: of any number of tensors and open labels. The value of a sum is computed.
        values: name -> elements, for every named tensor; real or complex.
        cut: its open labels on two sides.

    Returns:
        Shape (r,), float64, in descending order. r is the size of what joins the two sides in the end: in a tree that
        is cut at a bond, at most the size of the bond. All others of the cut's matrix are 0. Their error is about
        1e-14 of the largest.

    Raises:
        RuleError: the cut does not have exactly the open labels of the network.
        SizeError: what joins the two sides, or the value of a sum, is too large.
        ValuesError: values do not fit, or the norm of the network is beyond float64.
    """
    check_covers(cut, network.output, what="the network")
    if len(network.terms) > 1:  # no isometry is common to the terms
        return truncated_svd(_group(evaluate(network, values), network.output, cut.left, cut.right)).S
    network, tensors = bind(network, values_for(network, values))
    pieces, exponent = [], 0.0
    for operand in _with_sides(network, tensors, cut):
        piece, added = _scale(_shrink(operand))
        pieces.append(piece)
        exponent += added
    while len(pieces) > 1:
        pair = _next_pair(pieces)
        rest = [piece for place, piece in enumerate(pieces) if place not in pair]
        elsewhere = {label for _, labels in rest for label in labels}
        both = dict.fromkeys(label for place in pair for label in pieces[place][1])
        labels = tuple(label for label in both if label.startswith(_SIDES) or label in elsewhere)
        piece, added = _scale(_shrink((contract([pieces[place] for place in pair], labels), labels)))
        pieces, exponent = [*rest, piece], exponent + added
    rows, columns = (_of_side(pieces[0][1], side) for side in _SIDES)
    left_over = (*rows, *columns)
    found = truncated_svd(_group(contract(pieces, left_over), left_over, rows, columns)).S
    if not bool(found[0]):
        return found
    if abs(exponent + math.log(float(found[0]))) > math.log(torch.finfo(torch.float64).max) - 1:
        raise ValuesError("the norm of the network is beyond float64", fix="values of moderate size")
    return found * math.exp(exponent)


def _with_sides(network: Network, tensors: Values, cut: Bipartition) -> Iterator[Operand]:
    """The nodes, where each open label begins with its side and occurs once: on a node, or on an identity matrix."""
    dtype = torch.promote_types(common_dtype(tensors.values()), torch.float64)
    prefixes = {label: side for labels, side in zip((cut.left, cut.right), _SIDES, strict=True) for label in labels}
    places = carriers(network)
    once = {label: prefixes[label] + label for label in network.output if len(places[label]) == 1}
    like = next(iter(tensors.values()), torch.empty(0))
    for tensor, labels in operands(network, tensors, dtype):
        yield tensor, tuple(once.get(label, label) for label in labels)
    for label in network.output:
        if label not in once:
            size = size_of(network, label)
            yield torch.eye(size, dtype=dtype, device=like.device), (label, prefixes[label] + label)


def _of_side(labels: Sequence[str], side: str) -> list[str]:
    return [label for label in labels if label.startswith(side)]


def _shrink(operand: Operand) -> Operand:
    """Make one label of those on each side, no larger than all other labels together."""
    tensor, labels = operand
    if len(set(labels)) < len(labels):  # a label that occurs twice is contracted with others first
        return operand
    for side in _SIDES:
        rows = _of_side(labels, side)
        others = [label for label in labels if label not in rows]
        if not rows:
            continue
        sizes = [tensor.shape[labels.index(label)] for label in others]
        matrix = _group(tensor, labels, rows, others)
        if matrix.shape[0] > matrix.shape[1]:
            matrix = torch.linalg.qr(matrix, mode="r").R
        tensor, labels = matrix.reshape(len(matrix), *sizes), (rows[0], *others)
    return tensor, tuple(labels)


def _group(tensor: Tensor, labels: Sequence[str], rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """The matrix whose rows and columns are numbered by these labels, in row-major order."""
    sizes = dict(zip(labels, tensor.shape, strict=True))
    moved = tensor.permute([labels.index(label) for label in (*rows, *columns)])
    return moved.reshape(math.prod(sizes[label] for label in rows), math.prod(sizes[label] for label in columns))


def _scale(operand: Operand) -> tuple[Operand, float]:
    """The tensor over its largest element, and the logarithm of this element."""
    tensor, labels = operand
    scale = largest(tensor)
    return ((tensor / scale, labels), math.log(scale)) if scale else (operand, 0.0)


def _next_pair(pieces: Sequence[Operand]) -> tuple[int, int]:
    """The two tensors whose product adds the fewest elements to what is in memory, of those that share a label."""
    sizes = {label: size for tensor, labels in pieces for label, size in zip(labels, tensor.shape, strict=True)}
    ends: dict[str, list[int]] = {}
    for place, (_, labels) in enumerate(pieces):
        for label in dict.fromkeys(labels):
            ends.setdefault(label, []).append(place)
    pairs = {pair for places in ends.values() for pair in combinations(places, 2)} or {(0, 1)}

    def added(pair: tuple[int, int]) -> int:
        labels = {label for place in pair for label in pieces[place][1]}
        kept = [label for label in labels if label.startswith(_SIDES) or not {*ends[label]} <= {*pair}]
        return math.prod(sizes[label] for label in kept) - sum(pieces[place][0].numel() for place in pair)

    return min(sorted(pairs), key=added)
