"""The gauge of a network: cores of equal norms whose value is the same.

A matrix and its inverse between two cores change both and leave the network's value as it is. Of all cores of one
value, those with the least sum of squared norms are the easiest to train and to round: along each bond, both cores have
the same Gram matrix, and all cores have the same norm (Acuaviva et al., "The minimal canonical form of a tensor
network", 2023). Because a network is linear in each core, a change of any core by a part of itself then also changes
the value by the same amount, in whatever metric it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from operator import sub

import torch
from torch import Tensor

from ..networks import Network, carriers, tensor_nodes
from ..tensors import gram_matrix, phases, squares, truncated_svd

GAUGE_SWEEPS = 100
"""The most turns of each bond."""

_TOLERANCE = 1e-6
"""The turns of bonds end where all further ones together would take less than this part of the sum of squared norms."""

_SMALL_PIVOT, _SMALL_SQUARE = 1e-3, 1e-10
"""Gram matrices determine the gauge of a bond where the pivots of one of them are above this part of the largest pivot,
and where the squared singular values, and the differences between them, are above this part of the largest square."""


def balanced(network: Network, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The free cores of a network in the gauge in which the sum of their squared norms is the least.

    Values of a bond between two free cores are sorted by their weight. A bond of more than two tensors, or of a tensor
    that is held fixed or occurs twice, has no gauge but the scale of each of its values, which is shared by the cores
    that are free and occur once.

    Args:
        cores: the elements of the free cores by name; the other tensors of the network are held fixed.

    Returns:
        The free cores; the value of the network stays as it is. Each term of a sum has a gauge of its own.
    """
    if len(network.terms) > 1:
        return _balanced_terms(network, cores)
    result = dict(cores)
    once = [name for name, places in tensor_nodes(network).items() if name in result and len(places) == 1]
    bonds = _bonds(network, once)
    # all scales at once: from one bond to the next they would take a sweep for each bond of the network
    times = {name: len(tensor_nodes(network)[name]) for name in result}
    # in the basis of a fit the Gram matrices are nearly diagonal, so that scales are most of what is to be changed
    for ends, _ in bonds:
        _scale(result, ends)
    enough = _TOLERANCE * _to_one_norm(result, times)
    gains: list[float] = []
    for ends, matrix in bonds * (GAUGE_SWEEPS if len(bonds) > 1 else 1):
        gains.append((_turn if matrix else _scale)(result, ends))
        # what each bond gained last and, from sweep to sweep, falls by about one factor
        last, before = sum(gains[-len(bonds) :]), sum(gains[-2 * len(bonds) : -len(bonds)])
        if len(gains) >= len(bonds) and (last <= enough or last**2 <= enough * (before - last)):
            break
    _to_one_norm(result, times)
    return {name: core.contiguous() for name, core in result.items()}


def _bonds(network: Network, once: Sequence[str]) -> list[tuple[list[tuple[str, int]], bool]]:
    """For each label of several of the cores `once`: their names and its axes; whether it is a bond of two alone."""
    bonds = []
    for label, places in carriers(network).items():
        ends = [(network.nodes[position].name, axis) for position, axis in places]
        free = [(name, axis) for name, axis in ends if name in once]
        if len({name for name, _ in free}) == len(free) > 1:
            bonds.append((free, len(ends) == 2 and label not in network.output))
    return bonds


def _balanced_terms(network: Network, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The cores of a sum: those that only one term has are balanced in it, and the value of every term stays."""
    result = dict(cores)
    names = [{*tensor_nodes(term)} for term in network.terms]
    for number, term in enumerate(network.terms):
        elsewhere = set().union(*(other for place, other in enumerate(names) if place != number))
        alone = {name: cores[name] for name in names[number] - elsewhere if name in cores}
        result |= balanced(term, alone) if alone else {}
    return {name: result[name] for name in cores}


def _turn(cores: dict[str, Tensor], ends: Sequence[tuple[str, int]]) -> float:
    """Give two cores the Gram matrix of the singular values that their product has across their bond.

    Returns:
        By how much the sum of their squared norms fell.
    """
    moved = [cores[name].movedim(axis, -1) for name, axis in ends]
    one, other = (core.reshape(-1, core.shape[-1]) for core in moved)
    *turned, gain = _turned_by_grams(one, other) or _turned_by_svd(one, other)
    for (name, axis), matrix, core in zip(ends, turned, moved, strict=True):
        cores[name] = matrix.reshape(core.shape).movedim(-1, axis)
    return gain


def _turned_by_grams(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """The two sides of a bond, each with the bond as its columns, and the gain; None where Gram matrices are inexact.

    With one^H one = L L^H and the eigenvectors W and eigenvalues D of L^H conj(other^H other) L, they are multiplied
    with L^-H W D^(1/4) and with the inverse of its transpose, so that the product one @ other^T stays as it is.
    """
    gram, other_gram = gram_matrix(one.mH), gram_matrix(other.mH).conj()
    factor, failed = torch.linalg.cholesky_ex(gram)
    least, largest = torch.aminmax(factor.diagonal().real)
    if not bool((failed == 0) & (least > _SMALL_PIVOT * largest)):
        return None
    eigenvalues, vectors = torch.linalg.eigh(factor.mH @ other_gram @ factor)
    rising = [0.0, *eigenvalues.tolist()]
    if not min(map(sub, rising[1:], rising)) > _SMALL_SQUARE * rising[-1]:
        return None
    gain = float((gram + other_gram).trace().real) - 2 * sum(map(sqrt, rising))
    vectors, roots = vectors.flip(1), eigenvalues.flip(0) ** 0.25
    turn = torch.linalg.solve_triangular(factor.mH, vectors * roots, upper=True)
    # the signs are those of the cores before, as nearly as one sign for each value of the bond can be
    sign = phases((gram.mT * turn).sum(0)).conj()
    return one @ (turn * sign), other @ (factor @ (vectors * (sign / roots))).conj(), gain


def _turned_by_svd(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, float]:
    """The same for any matrices; values of the bond that nothing uses become 0."""
    (basis, triangle), (other_basis, other_triangle) = torch.linalg.qr(one), torch.linalg.qr(other)
    left, singular, right = truncated_svd(triangle @ other_triangle.mT)
    sign = phases((left * triangle[:, : left.shape[1]].conj()).sum(0)).conj()
    pair = basis @ (left * (sign * singular.sqrt())), other_basis @ (right.mT * (sign.conj() * singular.sqrt()))
    size = one.shape[1]
    first, second = (torch.nn.functional.pad(matrix, (0, size - matrix.shape[1])) for matrix in pair)
    return first, second, float(squares(one).sum() + squares(other).sum() - 2 * singular.sum())


def _scale(cores: dict[str, Tensor], ends: Sequence[tuple[str, int]]) -> float:
    """Give all cores of a bond the same norm at each of its values. Returns by how much the squared norms fell."""
    norms = torch.stack([_norms(cores[name], axis) for name, axis in ends])
    mean = norms.log().mean(0).exp()
    for (name, axis), norm in zip(ends, norms, strict=True):
        factor = torch.where(mean > 0, mean / torch.where(norm > 0, norm, 1.0), 1.0)
        cores[name] = cores[name] * factor.reshape([-1 if other == axis else 1 for other in range(cores[name].ndim)])
    return float((norms.square() - mean.square()).sum())


def _norms(core: Tensor, axis: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(core.movedim(axis, 0).reshape(core.shape[axis], -1), dim=1)
    return norms


def _to_one_norm(cores: dict[str, Tensor], times: Mapping[str, int]) -> float:
    """Scale cores so that all have one norm, those that occur several times as often. Returns the sum of squares."""
    norms = {name: float(torch.linalg.vector_norm(core)) for name, core in cores.items()}
    if not norms or not all(norms.values()):
        return sum(norm**2 for norm in norms.values())
    mean = exp(sum(times[name] * log(norm) for name, norm in norms.items()) / sum(times.values()))
    for name, norm in norms.items():
        cores[name] = cores[name] * (mean / norm)
    return len(cores) * mean**2
