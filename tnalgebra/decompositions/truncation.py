"""Truncating a bond of a tree: canonical form towards the bond, then the singular values across it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx
import torch
from torch import Tensor

from ..errors import RuleError, explain
from ..evaluation import Values
from ..labels import check_word
from ..linalg import truncated_svd
from ..network import Network, carriers, tensor_nodes
from ..nodes import NamedTensor
from ..options import Options, Place
from ..ranks import kept, rank_of
from ..rewriting import Change, Rule
from ..valuation import relative


def truncate(bond: str) -> Rule:
    """The rule that cuts a bond of a tree down to fewer values, in the best way there is.

    The tensors keep their names and labels. With the bond as orthogonality centre all other tensors are isometries
    towards it, so the error is the norm of the singular values dropped there (Schollwoeck 2011, eq. 48). The rank
    goes by the bond's label.

    The part of the network that hangs together with the bond must be a tree of named tensors, each standing once:
    closed labels on two of them, open ones on one, no two bonds parallel, no loop.
    """
    check_word(bond, what="bond")

    def find(network: Network, options: Options) -> Iterator[Place]:
        component = _tree(network, bond)
        yield Place(tuple(sorted(component.nodes)), (bond,))

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        nodes = {position: network.nodes[position] for position in place.nodes}
        tensors: dict[int, Tensor] = {}
        for position, node in nodes.items():
            if node.name not in values:
                raise RuleError(explain(f"truncation needs the value of {node.name!r}", fix="apply(network, values)"))
            tensors[position] = values[node.name].to(torch.float64)
        rank, error = _truncate(network, bond, tensors, options)
        after = _resized(network, tensors)
        new = {node.name: tensors[position].to(values[node.name].dtype) for position, node in nodes.items()}
        pieces = (_part(network, place), _part(after, place))
        return Change(after, values=new, relative_error=error, ranks={bond: rank}, pieces=pieces)

    equation = f"A[.. {bond}] B[{bond} ..] => A[.. {bond}] B[{bond} ..], {bond} smaller"
    return Rule(f"truncate {bond}", "approximate", equation, find, build, ranks=(bond,), spec={"truncate": bond})


def _tree(network: Network, bond: str) -> networkx.Graph[int]:
    """The connected part that holds the bond, as a graph of node positions whose edges are bonds."""
    standing = carriers(network)
    if bond not in standing:
        raise RuleError(explain(f"there is no bond {bond!r}", labels=" ".join(standing), network=network))
    graph: networkx.MultiGraph[int] = networkx.MultiGraph()
    graph.add_nodes_from(range(len(network.nodes)))
    for label, places in standing.items():
        ends = [position for position, _ in places]
        graph.add_edges_from((ends[0], other, {"bond": label}) for other in ends[1:])
    component = graph.subgraph(networkx.node_connected_component(graph, standing[bond][0][0]))
    tied = {position for places in tensor_nodes(network).values() if len(places) > 1 for position in places}
    for position in component:
        if not isinstance(network.nodes[position], NamedTensor) or position in tied:
            kind = "stands several times" if position in tied else "is no named tensor"
            raise RuleError(explain(f"the node {network.nodes[position].name!r} {kind}", network=network, bond=bond))
    labels = {label for position in component for label in network.nodes[position].labels}
    for label in sorted(labels):
        wanted = 1 if label in network.output else 2
        if len(standing[label]) != wanted:
            kind = "open label" if wanted == 1 else "closed label"
            raise RuleError(
                explain(f"the {kind} {label!r} stands {len(standing[label])} times", network=network, bond=bond)
            )
    if bond in network.output:
        raise RuleError(explain(f"{bond!r} is open, not a bond", network=network))
    if component.number_of_edges() != component.number_of_nodes() - 1:
        raise RuleError(
            explain("the bonds close a loop, so no bond is an orthogonality centre", network=network, bond=bond)
        )
    return networkx.Graph(component)


def _truncate(network: Network, bond: str, tensors: dict[int, Tensor], options: Options) -> tuple[int, float]:
    """Replace `tensors` by those after truncation; return the rank and the relative error."""
    graph = _tree(network, bond)
    first, second = (position for position, _ in carriers(network)[bond])
    graph.remove_edge(first, second)
    edge_matrices = []
    for centre in (first, second):
        towards = {child: parent for parent, child in networkx.dfs_edges(graph, centre)}
        for node in networkx.dfs_postorder_nodes(graph, centre):
            label = bond if node == centre else graph.edges[node, towards[node]]["bond"]
            tensors[node], triangle = _orthogonal(tensors[node], network.nodes[node].labels.index(label))
            if node == centre:
                edge_matrices.append(triangle)
            else:
                parent = towards[node]
                tensors[parent] = _applied(triangle, tensors[parent], network.nodes[parent].labels.index(label))
    svd = truncated_svd(edge_matrices[0] @ edge_matrices[1].mT)
    rank = kept(rank_of(options.ranks, bond), len(svd.S), bond=bond, singular_values=svd.S.tolist)
    root = svd.S[:rank].sqrt()
    for centre, factor in ((first, root[:, None] * svd.U[:, :rank].mT), (second, root[:, None] * svd.V[:rank])):
        tensors[centre] = _applied(factor, tensors[centre], network.nodes[centre].labels.index(bond))
    return rank, relative(svd.S[rank:], svd.S)


def _orthogonal(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """tensor = sum_q triangle[q, axis] basis[.., q, ..]; the basis is orthonormal in q over all other axes."""
    moved = tensor.movedim(axis, -1)
    basis, triangle = torch.linalg.qr(moved.reshape(-1, moved.shape[-1]))
    return basis.reshape([*moved.shape[:-1], basis.shape[1]]).movedim(-1, axis), triangle


def _applied(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Element [.., q, ..] is sum_p matrix[q, p] tensor[.., p, ..]."""
    product: Tensor = torch.tensordot(tensor, matrix, dims=([axis], [1]))
    return product.movedim(-1, axis).contiguous()


def _resized(network: Network, tensors: Mapping[int, Tensor]) -> Network:
    """The network with the sizes its tensors have now."""
    sizes = dict(network.sizes)
    for position, tensor in tensors.items():
        sizes |= dict(zip(network.nodes[position].labels, tensor.shape, strict=True))
    return Network(network.nodes, network.output, sizes)


def _part(network: Network, place: Place) -> Network:
    """The nodes at a place as a network of their own."""
    nodes = [network.nodes[position] for position in place.nodes]
    labels = {label for node in nodes for label in node.labels}
    sizes = {label: size for label, size in network.sizes.items() if label in labels}
    return Network(nodes, [label for label in network.output if label in labels], sizes)
