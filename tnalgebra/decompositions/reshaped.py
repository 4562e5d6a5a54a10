"""Decompositions over parts of labels: trains, rings, Monarch matrices, and any decomposition for each group.

The left side of these rules is `K[labels]`. `Fuse` nodes on the right side split labels into parts, in row-major order.
The caller gives the sizes of the parts where a rule is applied: `sizes={"o1": 8, "o2": 4}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import index

from ..errors import RuleError
from ..networks import MAX_AXES, Fuse, NamedTensor, Network, Node, carriers, relabel, tensor_nodes
from ..rewriting import Rule, read_pattern, rule
from .families import LabelWords, among, channels_of, distinct, node, row_of_cores, rule_for, take


def reshaped_train(labels: LabelWords, factors: Mapping[str, int] | None = None) -> Rule:
    """Make the rule of a train over labels that are split into parts first (Garipov et al. 2016).

        K[out in kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw]

    The j-th core carries the j-th part of every label that is split. The last core carries all other labels.

    Args:
        labels: the labels of K, in the order of its axes.
        factors: the number of parts of each label that is split, at least 2; by default both channels are split into
            two parts. A part is named by the first letter of its label and its number, or by the whole label where
            two labels begin with the same letter. The sizes of the parts are given where the rule is applied.

    Raises:
        RuleError: a label is not one of `labels`, or it has fewer than 2 parts.

    Example:
        >>> rule = tn.decompositions.reshaped_train("out in kh kw")
        >>> rule.apply(conv.weight, {"p": 16, "q": 16}, sizes={"o1": 8, "i1": 8})
    """
    return _split_channels(labels, factors, "reshaped_train")


def reshaped_ring(labels: LabelWords, factors: Mapping[str, int] | None = None) -> Rule:
    """Make the rule of a ring over labels that are split into parts first (Wang et al. 2018).

        K[out in kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[z o1 i1 p] B[p o2 i2 q] C[q kh kw z]

    The arguments are those of `reshaped_train`. A ring needs at least three cores; a tensor of two labels is therefore
    split into three parts each by default.
    """
    return _split_channels(labels, factors, "reshaped_ring", closed=True)


def matrix_product_operator(labels: LabelWords = "out in", factors: int = 2) -> Rule:
    """Make the rule of a linear layer as a train over pairs of parts of its two labels (Novikov et al. 2015).

        K[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]

    Args:
        labels: the two labels of K.
        factors: the number of parts of each label, which is the number of cores; at least 2.
    """
    labels = distinct(labels)
    if len(labels) != 2:
        raise RuleError(
            "a matrix product operator is a decomposition of two labels, and this tensor has others",
            labels=" ".join(labels),
            fix="reshaped_train, which splits the channels of a kernel",
        )
    name = "mpo" if factors == 2 else f"mpo {factors}"
    return _split(labels, dict.fromkeys(labels, factors), name)


def monarch(labels: LabelWords = "out in") -> Rule:
    """Make the rule of a linear layer as two block-diagonal matrices around a transposition (Dao et al. 2022).

        K[out in] => Fuse[in a i] R[a j i] L[j b a] Fuse[out b j]

    R maps i to j within each block a of the input, and L maps the blocks a to b for each j. The caller chooses the
    sizes of the parts and nothing else.

    Args:
        labels: the two labels of K, the output first.
    """
    labels = distinct(labels)
    if len(labels) != 2:
        raise RuleError(
            "a Monarch matrix is a decomposition of two labels, and this tensor has others",
            labels=" ".join(labels),
            fix="a decomposition of kernels",
        )
    taken = set(labels)
    a, i, j, b = (take(word, taken) for word in "aijb")
    out, into = channels_of(labels)
    nodes = [node("Fuse", (into, a, i)), node("R", (a, j, i)), node("L", (j, b, a)), node("Fuse", (out, b, j))]
    return rule_for(labels, nodes, "monarch")


def per_group(given: Rule | str, *, label: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """Make the rule that decomposes the kernel of a grouped convolution group by group.

        K[out in kh kw] => U[out a] G[a b kh kw] V[b in]                                becomes
        K[out in kh kw] => Fuse[out g m] U[g m a] G[g a b kh kw] V[g b in]

    torch stores the output channels of a grouped convolution one group after the other, and `in` counts the channels
    of one group. The new rule splits `out` into groups g of m channels, and every core carries the label g, so that
    no core is shared between groups. The original rule makes cores that all groups share, which have fewer parameters
    and a larger error. A rank of the new rule is that of each group.

    Args:
        given: a rule in the notation, or its text. Its left side is one tensor, and all tensors on its right side
            are new.
        label: the label that is split into groups; by default `out`, or the first label where `out` does not occur.
        fixed: the constants of the right side, as for `rule`; they are the same for every group.

    Raises:
        RuleError: the rule does not have this label, or its sides are of another kind.

    Example:
        >>> tn.decompositions.per_group("K[out in *k] => U[out a] G[a in *k]").apply(
        ...     conv.weight, 4, sizes={"g": conv.groups}
        ... )
    """
    text = given if isinstance(given, str) else given.spec.get("notation")
    if text is None:
        raise RuleError(f"the rule {given} is not in the notation", fix="a rule made by tn.rule, or K[...] => ...")
    pattern = read_pattern(text)
    left, right = pattern.left, pattern.right
    kept = [name for name in tensor_nodes(right) if name in tensor_nodes(left)]
    if len(left.nodes) != 1 or not isinstance(left.nodes[0], NamedTensor) or kept:
        reason = f"{kept[0]!r} occurs on both sides" if kept else "its left side is not one tensor"
        raise RuleError("the rule cannot be made one for each group", because=reason, rule=text)
    fixed = fixed or (given.fixed if isinstance(given, Rule) else {})
    whole = label or ("out" if "out" in left.output else left.output[0])
    if whole not in left.output or whole in pattern.stars.values():
        raise RuleError(f"the rule has no label {whole!r} to split into groups", rule=text)
    taken = {*carriers(left), *carriers(right)}
    group, part = take("g", taken), take("m", taken)
    nodes = [_in_group(entry, whole, group, part, fixed=fixed) for entry in right.nodes]
    if not any(isinstance(entry, Fuse) and entry.whole == whole for entry in right.nodes):
        nodes = [Fuse(whole, (group, part)), *nodes]
    grouped = pattern.starred(f"{left} => {Network(nodes, right.output)}")
    name = None if isinstance(given, str) else f"{given.name} per group"
    return replace(rule(grouped, name=name, fixed=fixed), stated=(group,))


def _in_group(entry: Node, whole: str, group: str, part: str, *, fixed: Mapping[str, str]) -> Node:
    """A node of the right side with the label of the group."""
    if isinstance(entry, Fuse) and entry.whole == whole:
        return Fuse(whole, (group, *entry.parts))
    entry = relabel(entry, {whole: part})
    if isinstance(entry, NamedTensor) and entry.name not in fixed:
        return NamedTensor(entry.name, (group, *entry.labels))
    return entry


def _split_channels(labels: LabelWords, factors: Mapping[str, int] | None, name: str, *, closed: bool = False) -> Rule:
    labels = distinct(labels)
    if factors is None:
        count = 3 if closed and len(labels) == 2 else 2
        return _split(labels, dict.fromkeys(channels_of(labels), count), name, closed=closed)
    written = " ".join(f"{label}={count}" for label, count in factors.items())
    return _split(labels, factors, f"{name} {written}", closed=closed)


def _split(labels: tuple[str, ...], factors: Mapping[str, int], name: str, *, closed: bool = False) -> Rule:
    """A row of cores: the j-th carries the j-th part of each split label, a last one the labels that stay whole."""
    split = among(labels, factors, what="label")
    counts = {label: _number_of_parts(factors[label], label) for label in split}
    taken = set(labels)
    parts: dict[str, list[str]] = {}
    for label in split:
        alike = [other for other in split if other[0] == label[0]]
        stem = label if len(alike) > 1 else label[0]
        parts[label] = [take(f"{stem}{number}", taken) for number in range(1, counts[label] + 1)]
    groups = [
        tuple(parts[label][number] for label in split if number < len(parts[label]))
        for number in range(max(counts.values()))
    ]
    rest = tuple(label for label in labels if label not in split)
    fuses = [node("Fuse", (label, *parts[label])) for label in split]
    cores = row_of_cores([*groups, *([rest] if rest else [])], taken, closed=closed)
    return rule_for(labels, [*fuses, *cores], name)


def _number_of_parts(number: object, label: str) -> int:
    try:
        count = index(number)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if not 2 <= count <= MAX_AXES:
        fact = f"the number of parts of {label!r} is {number!r}"
        raise RuleError(fact, fix=f"an integer from 2 to {MAX_AXES}")
    return count
