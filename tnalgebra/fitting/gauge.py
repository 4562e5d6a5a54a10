"""The gauge of a network: cores of equal norms whose value is the same.

A matrix and its inverse between two cores change both and leave the network's value as it is. Of all cores of one
value, those with the least sum of squared norms are the easiest to train and to round: along each bond, both cores have
the same Gram matrix, and all cores have the same norm (Acuaviva et al., "The minimal canonical form of a tensor
network", 2023). Because a network is linear in each core, a change of any core by a part of itself then also changes
the value by the same amount, in whatever metric it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..networks import Network, carriers, tensor_nodes
from ..tensors import gram_matrix, phases, truncated_svd

GAUGE_SWEEPS = 100
"""The most sweeps over all bonds."""

_TOLERANCE = 5e-7
"""The sweeps end where one takes, or the next one will take, less than this part of the sum of squared norms."""

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
    for ends, _ in bonds * 2:
        _scale(result, ends)
    size, gain = _to_one_norm(result, times), 0.0
    for _ in range(GAUGE_SWEEPS if bonds else 0):
        for ends, matrix in bonds:
            (_turn if matrix else _scale)(result, ends)
        before, size, gain_before = size, _to_one_norm(result, times), gain
        gain = before - size
        # gains fall by one factor, so that the next one is about the square of this one over the one before
        if gain <= _TOLERANCE * before or gain**2 <= _TOLERANCE * before * gain_before:
            break
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


def _turn(cores: dict[str, Tensor], ends: Sequence[tuple[str, int]]) -> None:
    """Give two cores the Gram matrix of the singular values that their product has across their bond."""
    moved = [cores[name].movedim(axis, -1) for name, axis in ends]
    one, other = (core.reshape(-1, core.shape[-1]) for core in moved)
    turned = _turned_by_grams(one, other) or _turned_by_svd(one, other)
    for (name, axis), matrix, core in zip(ends, turned, moved, strict=True):
        cores[name] = matrix.reshape(core.shape).movedim(-1, axis)


def _turned_by_grams(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two sides of a bond, each with the bond as its columns; None where the Gram matrices are too inexact.

    With one^H one = L L^H and the eigenvectors W and eigenvalues D of L^H conj(other^H other) L, they are multiplied
    with L^-H W D^(1/4) and with the inverse of its transpose, so that the product one @ other^T stays as it is.
    """
    gram = gram_matrix(one.mH)
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal().real
    if bool(failed) or not bool(pivots.min() > _SMALL_PIVOT * pivots.max()):
        return None
    squares, vectors = torch.linalg.eigh(factor.mH @ gram_matrix(other.mH).conj() @ factor)
    steps = torch.cat([squares[:1], squares.diff()])
    if not bool((steps > _SMALL_SQUARE * squares[-1]).all()):
        return None
    vectors, roots = vectors.flip(1), squares.flip(0) ** 0.25
    turn = torch.linalg.solve_triangular(factor.mH, vectors * roots, upper=True)
    # the signs are those of the cores before, as nearly as one sign for each value of the bond can be
    sign = phases((gram.mT * turn).sum(0)).conj()
    return one @ (turn * sign), other @ (factor @ (vectors * (sign / roots))).conj()


def _turned_by_svd(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The same for any matrices; values of the bond that nothing uses become 0."""
    (basis, triangle), (other_basis, other_triangle) = torch.linalg.qr(one), torch.linalg.qr(other)
    left, singular, right = truncated_svd(triangle @ other_triangle.mT)
    sign = phases((left * triangle[:, : left.shape[1]].conj()).sum(0)).conj()
    pair = basis @ (left * (sign * singular.sqrt())), other_basis @ (right.mT * (sign.conj() * singular.sqrt()))
    size = one.shape[1]
    first, second = (torch.nn.functional.pad(matrix, (0, size - matrix.shape[1])) for matrix in pair)
    return first, second


def _scale(cores: dict[str, Tensor], ends: Sequence[tuple[str, int]]) -> None:
    """Give all cores of a bond the same norm at each of its values."""
    norms = torch.stack([_norms(cores[name], axis) for name, axis in ends])
    mean = norms.log().mean(0).exp()
    for (name, axis), norm in zip(ends, norms, strict=True):
        factor = torch.where(mean > 0, mean / torch.where(norm > 0, norm, 1.0), 1.0)
        cores[name] = cores[name] * factor.reshape([-1 if other == axis else 1 for other in range(cores[name].ndim)])


def _norms(core: Tensor, axis: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(core.movedim(axis, 0).reshape(core.shape[axis], -1), dim=1)
    return norms


def _to_one_norm(cores: dict[str, Tensor], times: Mapping[str, int]) -> float:
    """Scale cores so that all have one norm, those that occur several times as often. Returns the sum of squares."""
    norms = {name: float(torch.linalg.vector_norm(core)) for name, core in cores.items()}
    if not norms or not all(norms.values()):
        return sum(norm**2 for norm in norms.values())
    mean = math.exp(sum(times[name] * math.log(norm) for name, norm in norms.items()) / sum(times.values()))
    for name, norm in norms.items():
        cores[name] = cores[name] * (mean / norm)
    return len(cores) * mean**2
