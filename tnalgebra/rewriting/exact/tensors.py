"""Rules that make new tensors of old ones. A tied tensor stays, unless the rule changes all its occurrences."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from ...networks import MAX_AXES, Copy, Edit, Fill, Fuse, NamedTensor, Network, Node, carriers, fresh, tensor_nodes
from ..options import Place
from .shared import dead_outside, exact, of_type, once, untied


def _absorb(network: Network, positions: tuple[int, ...], name: str) -> Edit | None:
    """Make one new tensor of some nodes, and sum the labels that only they have; None above 64 axes."""
    nodes = [network.nodes[position] for position in positions]
    dead = dead_outside(network, positions)
    labels = once(label for node in nodes for label in node.labels if label not in dead)
    if len(labels) > MAX_AXES:
        return None
    new = NamedTensor(fresh(name, tensor_nodes(network)), labels)
    sizes = {label: network.sizes[label] for node in nodes for label in node.labels if label in network.sizes}
    definition = Network(nodes, labels, sizes)
    return Edit(remove=positions, add=[new], definitions={new.name: definition})


@exact("A[i b] B[b j] => T[i j]")
def contract_bond(network: Network) -> Iterator[tuple[Place, Edit]]:
    """Two tensors that share a closed label become one. Labels that only they have are summed; a hyperedge stays.

    Neither tensor may occur elsewhere, though both nodes may be the same tensor. The rule does not fire if the result
    had more than 64 axes. Ends: there is one node fewer.
    """
    tensors = tensor_nodes(network)
    for (i, a), (j, b) in combinations(of_type(network, NamedTensor).items(), 2):
        everywhere = {*tensors[a.name], *tensors[b.name]} == {i, j}
        shared = set(a.labels) & set(b.labels) - set(network.output)
        if everywhere and shared and (edit := _absorb(network, (i, j), "T")):
            yield Place((i, j)), edit


@exact("T[i k] Fill[k | value=v] => T2[i]")
def absorb_fill(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A flat factor is multiplied into a tensor that has all labels of the factor; a scalar into any tensor.

    The tensor may not be tied, because it would be multiplied once for each occurrence. The size of a mean must be
    known. Ends: there is one node fewer.
    """
    for i, fill in of_type(network, Fill).items():
        for j, tensor in untied(network).items():
            known = fill.value != "mean" or all(label in network.sizes for label in fill.labels)
            if known and set(fill.labels) <= set(tensor.labels) and (edit := _absorb(network, (j, i), tensor.name)):
                yield Place((i, j)), edit


@exact("s[] T[i j] => T2[i j]")
def fold_scalar(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A scalar is multiplied into any other tensor. Neither may be tied. Ends: there is one node fewer."""
    once_only = untied(network)
    for i, scalar in once_only.items():
        for j, tensor in once_only.items():
            if i != j and not scalar.labels and (edit := _absorb(network, (j, i), tensor.name)):
                yield Place((i, j)), edit


@exact("T[i j] -> [i] => T2[i]")
def sum_label(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A closed label that only one tensor has is summed there; one that the tensor has twice, along the diagonal.

    The tensor may not be tied. Ends: tensors have fewer axes.
    """
    standing = carriers(network)
    for position, node in untied(network).items():
        if dead_outside(network, (position,), standing) and (edit := _absorb(network, (position,), node.name)):
            yield Place((position,)), edit


@exact("T[i i j] => T2[i j]")
def take_diagonal(network: Network) -> Iterator[tuple[Place, Edit]]:
    """Of a tensor with one label twice, only that diagonal matters. It may not be tied. Ends: there are fewer axes."""
    for position, node in untied(network).items():
        repeated = len(set(node.labels)) < len(node.labels)
        if repeated and (edit := _absorb(network, (position,), node.name)):
            yield Place((position,)), edit


@exact("A[i b:1] B[b j] => A2[i] B2[j]")
def drop_size_one(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A closed label of size 1 has one value, so that the sum over it is its only term.

    It is removed from copies, fills, the parts of a `Fuse` and tensors; from a tied tensor at every occurrence,
    together with the labels at the same axis. The rule does not fire for labels of a window and for the whole of a
    `Fuse`, nor if a `Fuse` would have no part, or if no node would be left. Ends: there are fewer axes.
    """
    standing = carriers(network)
    seen: set[str] = set()
    for label in standing:
        if network.sizes.get(label) != 1 or label in seen:
            continue
        group = _same_axis(network, label)
        seen |= group
        if group & set(network.output):
            continue
        positions = sorted({position for other in group for position, _ in standing[other]})
        edit = _without(network, group, positions)
        if edit is not None:
            yield Place(tuple(positions), tuple(sorted(group))), edit


def _same_axis(network: Network, label: str) -> set[str]:
    """`label` and every label that has to be removed with it, because a tied tensor has both at one axis."""
    standing, tensors = carriers(network), tensor_nodes(network)
    group, pending = {label}, [label]
    while pending:
        for position, axis in standing[pending.pop()]:
            node = network.nodes[position]
            if isinstance(node, NamedTensor):
                partners = {network.nodes[place].labels[axis] for place in tensors[node.name]}
                pending += partners - group
                group |= partners
    return group


def _without(network: Network, group: set[str], positions: list[int]) -> Edit | None:
    replaced: dict[int, Node] = {}
    removed: list[int] = []
    names: dict[str, str] = {}
    definitions: dict[str, Network] = {}
    for position in positions:
        node = network.nodes[position]
        kept = tuple(label for label in node.labels if label not in group)
        match node:
            case NamedTensor():
                if node.name not in names:
                    names[node.name] = fresh(node.name, {*tensor_nodes(network), *names.values()})
                    definitions[names[node.name]] = _dropped_axes(node, group)
                replaced[position] = NamedTensor(names[node.name], kept)
            case Copy() if kept:
                replaced[position] = Copy(kept)
            case Copy():
                removed.append(position)
            case Fill():
                replaced[position] = Fill(kept, node.value)
            case Fuse() if node.whole not in group and len(kept) > 1:
                replaced[position] = Fuse(kept[0], kept[1:])
            case _:
                return None
    if len(removed) == len(network.nodes):
        return None
    return Edit(remove=removed, replace=replaced, definitions=definitions)


def _dropped_axes(node: NamedTensor, group: set[str]) -> Network:
    """The tensor without the axes in `group`. Its axes have new labels, since two of them may have the same one."""
    axes = [f"axis_{axis}" for axis in range(len(node.labels))]
    kept = [axis for axis, label in zip(axes, node.labels, strict=True) if label not in group]
    return Network([NamedTensor(node.name, tuple(axes))], kept)
