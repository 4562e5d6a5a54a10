"""The gauge of a network: cores of equal norms whose value is the same.

A matrix and its inverse between two cores change both and leave the network's value as it is. Of all cores of one
value, those with the least sum of squared norms are the easiest to train and to round: along each bond, both cores have
the same Gram matrix, and all cores have the same norm (Acuaviva et al., "The minimal canonical form of a tensor
network", 2023). Because a network is linear in each core, a change of any core by a part of itself then also changes
the value by the same amount, in whatever metric it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..networks import Network, carriers, tensor_nodes
from ..tensors import truncated_svd

GAUGE_SWEEPS = 100
"""The most sweeps over all bonds."""

_TOLERANCE = 1e-6
"""The sweeps end where one takes less than this part of the sum of squared norms."""


def balanced(network: Network, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The free cores of a network in the gauge in which the sum of their squared norms is the least.

    Values of a bond between two free cores are sorted by their weight. A bond of more than two tensors, or of a tensor
    that is held fixed or occurs twice, has no gauge but the scale of each of its values, which is shared by the cores
    that are free and occur once.

    Args:
        cores: the elements of the free cores by name; the other tensors of the network are held fixed.

    Returns:
        The free cores; the value of the network stays as it is.
    """
    result = dict(cores)
    once = [name for name, places in tensor_nodes(network).items() if name in result and len(places) == 1]
    bonds: list[tuple[list[tuple[str, int]], bool]] = []
    for label, places in carriers(network).items():
        ends = [(network.nodes[position].name, axis) for position, axis in places]
        scaled = [(name, axis) for name, axis in ends if name in once]
        if len({name for name, _ in scaled}) == len(scaled) > 1:
            bonds.append((scaled, len(ends) == 2 and label not in network.output))
    size = _squares(result)
    for _ in range(GAUGE_SWEEPS if bonds else 0):
        for ends, matrix in bonds:
            (_turn if matrix else _scale)(result, ends)
        before, size = size, _squares(result)
        if before - size <= _TOLERANCE * before:
            break
    return _of_one_norm(network, result)


def _squares(cores: Mapping[str, Tensor]) -> float:
    return float(sum(core.square().sum() for core in cores.values()))


def _turn(cores: dict[str, Tensor], ends: Sequence[tuple[str, int]]) -> None:
    """Give two cores the Gram matrix of the singular values that their product has across their bond."""
    size = cores[ends[0][0]].shape[ends[0][1]]
    bases, triangles, shapes = [], [], []
    for name, axis in ends:
        moved = cores[name].movedim(axis, -1)
        basis, triangle = torch.linalg.qr(moved.reshape(-1, size))
        bases.append(basis)
        triangles.append(triangle)
        shapes.append(moved.shape[:-1])
    left, singular, right = truncated_svd(triangles[0] @ triangles[1].mT)
    # the signs are those of the cores before, as nearly as one sign for each value of the bond can be
    sign = torch.where((left * triangles[0][:, : left.shape[1]]).sum(0) < 0, -1.0, 1.0).to(left)
    for (name, axis), basis, vectors, shape in zip(ends, bases, (left, right.mT), shapes, strict=True):
        core = basis @ (vectors * (sign * singular.sqrt()))
        core = torch.nn.functional.pad(core, (0, size - core.shape[1]))  # values of the bond that nothing uses
        cores[name] = core.reshape(*shape, size).movedim(-1, axis).contiguous()


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


def _of_one_norm(network: Network, cores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale cores so that all have one norm. Those that occur several times are scaled as often."""
    times = {name: len(tensor_nodes(network)[name]) for name in cores}
    norms = {name: float(torch.linalg.vector_norm(core)) for name, core in cores.items()}
    if not all(norms.values()):
        return cores
    logs = torch.tensor([[times[name], norms[name]] for name in cores], dtype=torch.float64)
    mean = float(((logs[:, 0] * logs[:, 1].log()).sum() / logs[:, 0].sum()).exp())
    return {name: core * (mean / norms[name]) for name, core in cores.items()}
