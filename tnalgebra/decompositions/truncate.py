"""Truncate bonds: those of trees in canonical form, all others by a fit that starts from the values that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple, TypeAlias

import networkx
import torch
from torch import Tensor

from ..errors import RuleError
from ..fitting import FitReport, Growth, ParameterBudget, degeneracy_of, follow_starts, kept, plain_rank, rank_of
from ..networks import NamedTensor, Network, carriers, check_word, tensor_nodes
from ..rewriting import Change, Options, Place, Rule
from ..tensors import SVD, Values, in_precision, relative, truncated_svd
from .components import (
    check_bonds,
    check_values,
    component_gram,
    connected_part,
    part,
    resize,
    select_values,
    with_new_sizes,
)
from .degeneracy import in_type_of, own_value

Forest: TypeAlias = "networkx.Graph[int]"
"""Nodes are positions of tensors; the edge of two has their bond."""


def truncate(bonds: str) -> Rule:
    """Make the rule that gives bonds of a network fewer values. The tensors keep their names and labels.

    The part of the network that is connected with the bonds is one of two things:

    - A tree of named tensors that each occur once: every closed label is on two tensors and every open label on one,
      no two bonds are parallel, and there is no loop. Then one bond after another becomes the orthogonality centre,
      all other tensors become isometries towards it, and the bond keeps its largest singular values. For one bond
      this is the best approximation, and its error is the norm of the dropped values (Schollwoeck 2011, eq. 48); for
      n bonds the error is at most sqrt(n) times the best one (Oseledets 2011, thm. 2.2).
    - Anything else, with loops, hyperedges, batch labels, parallel bonds, tied tensors or reserved nodes. Then all its
      tensors are fitted to the value that the network has. There are two starts: each bond keeps the components of
      the largest norms, in its present basis and in the basis of the singular values of its two tensors. The better
      result is kept, and it is never worse than its start.

    A `ParameterBudget` is a fraction of the parameters of this part. A bond of a tree takes a size of any kind, which
    counts the singular values that the bond has before any bond is truncated; other bonds take integers or a budget.

    Args:
        bonds: one label, or several: "p q s".

    Raises:
        RuleError: no bond is named, or one twice. On application: the network does not have a bond, or it is an open
            label, or its size is tied to that of something else.
        RankError: on application: a bond has no size, or one that it cannot have.

    Example:
        >>> smaller = fit.then(tn.decompositions.truncate("p q"), {"p": 4, "q": 4})
    """
    words = tuple(check_word(word, what="bond") for word in (bonds.split() if isinstance(bonds, str) else [bonds]))
    if len(set(words)) < max(len(words), 1):
        raise RuleError(f"{bonds!r} does not name bonds, or names one twice", fix="'p q', each label once")

    def find(network: Network, options: Options) -> Iterator[Place]:
        check_bonds(network, words)
        yield Place(connected_part(network, words), words)

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        before = part(network, place)
        check_values(before, values, what="truncation")
        forest = _forest(before)
        if isinstance(forest, str):
            tensors, error, report = _refit(before, words, values, options, because=forest)
        else:
            tensors, error, report = _truncate_tree(before, words, values, options, forest=forest)
        after = resize(network, tensors)
        sizes = {bond: after.sizes[bond] for bond in words}
        pieces = (before, part(after, place))
        return Change(after, values=tensors, relative_error=error, ranks=sizes, report=report, pieces=pieces)

    listed = " ".join(words)
    equation = f"A[.. {words[0]}] B[{words[0]} ..] .. => A[.. {words[0]}] B[{words[0]} ..] .., {listed} smaller"
    return Rule(f"truncate {listed}", "approximate", equation, find, build, ranks=words, spec={"truncate": listed})


_Truncated: TypeAlias = tuple[dict[str, Tensor], float, FitReport | None]
"""Tensors in their own type, the relative error of these in the Frobenius norm, and how a fit went."""


def _ranks_under(budget: ParameterBudget, network: Network, spectra: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Ranks under a budget of this network's parameters."""

    def count(trial: Mapping[str, int]) -> int:
        return with_new_sizes(network, trial).parameters

    largest = max((values[0] for values in spectra.values()), default=0.0) or 1.0  # squares must not overflow
    squares = {bond: [(value / largest) ** 2 for value in values] for bond, values in spectra.items()}
    return Growth(squares, count).ranks(budget, network.parameters)


# Trees -------------------------------------------------------------------------------------------------------


def _forest(network: Network) -> Forest | str:
    """The tensors as trees whose edges are the bonds; or the reason why they are not trees."""
    graph: networkx.MultiGraph[int] = networkx.MultiGraph()
    graph.add_nodes_from(range(len(network.nodes)))
    for node in network.nodes:
        if not isinstance(node, NamedTensor):
            return f"{node.name!r} is not a named tensor"
    for name, positions in tensor_nodes(network).items():
        if len(positions) > 1:
            return f"{name!r} occurs several times"
    for label, places in carriers(network).items():
        if len(places) != (1 if label in network.output else 2):
            kind = "open" if label in network.output else "closed"
            return f"the {kind} label {label!r} occurs {len(places)} times"
        if len(places) == 2:
            graph.add_edge(places[0][0], places[1][0], bond=label)
    if not networkx.is_forest(graph):
        return "the bonds close a loop"
    return networkx.Graph(graph)


def _truncate_tree(
    network: Network, bonds: Sequence[str], values: Values, options: Options, *, forest: Forest
) -> _Truncated:
    tensors = _in_dtype(network, values, options.settings.dtype)
    before = dict(tensors)
    if len(bonds) == 1 and not isinstance(options.size, ParameterBudget):
        joint = _centre(network, bonds[0], tensors, forest)
        spectrum = joint.svd.S
        rank = kept(rank_of(options.size, bonds[0]), len(spectrum), bond=bonds[0], singular_values=spectrum.tolist)
        joint.close(tensors, rank)
        held = in_type_of(values, tensors)
        if all(held[name] is tensor for name, tensor in tensors.items()):
            return held, relative(spectrum[rank:], spectrum), None
        return held, _distance(network, forest, before, held), None
    spectra = {bond: _centre(network, bond, dict(tensors), forest).svd.S.tolist() for bond in bonds}
    if isinstance(options.size, ParameterBudget):
        ranks = _ranks_under(options.size, network, spectra)
    else:
        ranks = {
            bond: kept(rank_of(options.size, bond), len(all_of_it), bond=bond, singular_values=all_of_it.copy)
            for bond, all_of_it in spectra.items()
        }
    for bond in bonds:
        joint = _centre(network, bond, tensors, forest)
        joint.close(tensors, min(ranks[bond], len(joint.svd.S)))
    held = in_type_of(values, tensors)
    return held, _distance(network, forest, before, held), None


def _in_dtype(network: Network, values: Values, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: in_precision(values[name], dtype) for name in tensor_nodes(network)}


class _Joint(NamedTuple):
    """Two tensors whose bond was opened: each is orthonormal in it, and the matrix between them is decomposed.

    ends: their names, and the axes of the bond.
    """

    ends: tuple[tuple[str, int], tuple[str, int]]
    svd: SVD

    def close(self, tensors: dict[str, Tensor], rank: int) -> None:
        """Keep the largest singular values; both tensors take their square roots."""
        root = self.svd.S[:rank].sqrt()[:, None]
        for (name, axis), vectors in zip(self.ends, (self.svd.U[:, :rank].mT, self.svd.V[:rank]), strict=True):
            tensors[name] = _apply_matrix(root * vectors, tensors[name], axis)


def _open(network: Network, bond: str, tensors: dict[str, Tensor]) -> _Joint:
    """Open the bond of two tensors, each of which occurs once."""
    (one, axis), (other, other_axis) = carriers(network)[bond]
    ends = ((network.nodes[one].name, axis), (network.nodes[other].name, other_axis))
    triangles = []
    for name, at in ends:
        tensors[name], triangle = _orthogonalise(tensors[name], at)
        triangles.append(triangle)
    return _Joint(ends, truncated_svd(triangles[0] @ triangles[1].mT, dtype=triangles[0].dtype))


def _centre(network: Network, bond: str, tensors: dict[str, Tensor], forest: Forest) -> _Joint:
    """Open a bond of a tree, all other tensors brought to be isometries towards it."""
    graph = networkx.Graph(forest)
    ends = [position for position, _ in carriers(network)[bond]]
    graph.remove_edge(*ends)
    for centre in ends:
        for parent, child in reversed(list(networkx.dfs_edges(graph, centre))):
            label = graph.edges[child, parent]["bond"]
            node, above = network.nodes[child], network.nodes[parent]
            tensors[node.name], triangle = _orthogonalise(tensors[node.name], node.labels.index(label))
            tensors[above.name] = _apply_matrix(triangle, tensors[above.name], above.labels.index(label))
    return _open(network, bond, tensors)


def _orthogonalise(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """tensor = sum_q triangle[q, axis] basis[.., q, ..]; the basis is orthonormal in q over all other axes."""
    moved = tensor.movedim(axis, -1)
    basis, triangle = torch.linalg.qr(moved.reshape(-1, moved.shape[-1]))
    return basis.reshape([*moved.shape[:-1], basis.shape[1]]).movedim(-1, axis), triangle


def _apply_matrix(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Element [.., q, ..] is sum_p matrix[q, p] tensor[.., p, ..]."""
    product: Tensor = torch.tensordot(tensor, matrix, dims=([axis], [1]))
    return product.movedim(-1, axis).contiguous()


def _distance(network: Network, forest: Forest, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """||one - other|| / ||one|| for two sets of tensors of the same trees, without contracting the trees.

    From the leaves to the roots, what both sets have below a bond is written in one orthonormal basis. At the roots
    the difference is a difference of two tensors. Nothing is squared, so all digits are kept.
    """
    whole = whole_other = torch.ones(1, dtype=torch.float64)
    for tree in networkx.connected_components(forest):
        root = min(tree)
        names = [network.nodes[position].name for position in tree]
        here, there = ({name: in_precision(tensors[name], torch.float64) for name in names} for tensors in (one, other))
        for parent, child in reversed(list(networkx.dfs_edges(forest, root))):
            label = forest.edges[child, parent]["bond"]
            node, above = network.nodes[child], network.nodes[parent]
            axis, axis_above = node.labels.index(label), above.labels.index(label)
            size = here[node.name].shape[axis]
            _, both = _orthogonalise(torch.cat([here[node.name], there[node.name]], axis), axis)
            here[above.name] = _apply_matrix(both[:, :size], here[above.name], axis_above)
            there[above.name] = _apply_matrix(both[:, size:], there[above.name], axis_above)
        name = network.nodes[root].name
        both = torch.linalg.qr(torch.stack([here[name].flatten(), there[name].flatten()], 1)).R
        whole = torch.outer(whole.to(both), both[:, 0]).flatten()
        whole_other = torch.outer(whole_other.to(both), both[:, 1]).flatten()
    return relative(whole - whole_other, whole)


# Everything else ---------------------------------------------------------------------------------------------


def _refit(network: Network, bonds: Sequence[str], values: Values, options: Options, *, because: str) -> _Truncated:
    """Smaller tensors, fitted to the network's own value."""
    if not network.output:
        raise RuleError(
            f"the network around the bond {bonds[0]!r} has no open label: its value is one number",
            network=network,
            fix="contract it",
        )
    settings = options.settings
    tensors = _in_dtype(network, values, settings.dtype)
    own = own_value(network, tensors)
    if isinstance(options.size, ParameterBudget):
        ranks = _ranks_under(options.size, network, {bond: _norms(network, bond, tensors) for bond in bonds})
    else:
        ranks = {
            bond: plain_rank(rank_of(options.size, bond), bond, full=_full_rank(network, bond), because=because)
            for bond in bonds
        }
    turned = _cut_down(network, tensors, ranks, turned=True)
    smaller = resize(network, turned)  # where other bonds leave a bond less to do, it became smaller still
    plain = _cut_down(network, tensors, {bond: smaller.sizes[bond] for bond in bonds}, turned=False)
    objective = own.objective(smaller)
    begun = {name: torch.stack([plain[name], turned[name]])[None] / own.share for name in tensors}
    cores, report = follow_starts(objective, begun, settings)[0]
    held = in_type_of(values, {name: core * own.share for name, core in cores.items()})
    error = own.error(smaller, held)
    degeneracy = degeneracy_of(objective, {name: core[None, None] for name, core in cores.items()})
    return held, error, replace(report, degeneracy=degeneracy, relative_error=error)


def _joins_two(network: Network, bond: str) -> bool:
    """Whether the bond occurs on two tensors, each occurring once."""
    names = [network.nodes[position].name for position, _ in carriers(network)[bond]]
    return len(names) == 2 and all(len(tensor_nodes(network)[name]) == 1 for name in names) and len(set(names)) == 2


def _full_rank(network: Network, bond: str) -> int:
    """The smallest size at which a bond loses nothing, whatever the tensors are."""
    size = network.sizes[bond]
    if not _joins_two(network, bond):
        return size
    ends = [network.nodes[position].labels for position, _ in carriers(network)[bond]]
    return min(size, *(prod(network.sizes[label] for label in labels if label != bond) for labels in ends))


def _turn(network: Network, bond: str, tensors: dict[str, Tensor]) -> None:
    """Write a bond of two tensors in the basis of the singular values of these two, as if nothing else joined them."""
    if _joins_two(network, bond):
        joint = _open(network, bond, tensors)
        joint.close(tensors, len(joint.svd.S))


def _norms(network: Network, bond: str, tensors: Mapping[str, Tensor]) -> list[float]:
    """The norms of the bond's components in the basis of its two tensors, descending: the spectrum for a budget."""
    tensors = dict(tensors)
    _turn(network, bond, tensors)
    squares = component_gram(resize(network, tensors), tensors, bond).diagonal()
    norms: list[float] = squares.clamp(min=0).sqrt().sort(descending=True).values.tolist()
    return norms


def _cut_down(
    network: Network, tensors: Mapping[str, Tensor], ranks: Mapping[str, int], *, turned: bool
) -> dict[str, Tensor]:
    """Keep the components of the largest norms, on one bond after another."""
    tensors = dict(tensors)
    for bond, rank in ranks.items():
        if turned:
            _turn(network, bond, tensors)
        here = resize(network, tensors)
        if rank < here.sizes[bond]:
            squares = component_gram(here, tensors, bond).diagonal()
            largest = squares.argsort(descending=True, stable=True)[:rank].sort().values
            tensors = select_values(here, tensors, {bond: largest})
    return tensors
