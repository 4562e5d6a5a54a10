"""Decompositions over parts of labels: trains, rings, Monarch matrices, and any decomposition for each group.

The left side is `K[labels]`; `Fuse` nodes on the right split labels row-major. The sizes of the parts are given where
a rule is applied, `sizes={"o1": 8, "o2": 4}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import index

from ..errors import RuleError, explain
from ..networks import MAX_AXES, Fuse, NamedTensor, Network, Node, carriers, relabel, tensor_nodes
from ..rewriting import Rule, read_pattern, rule
from .families import LabelWords, among, channels_of, distinct, node, row_of_cores, rule_for, take


def reshaped_train(labels: LabelWords, factors: Mapping[str, int] | None = None) -> Rule:
    """A train over labels that are split into parts first (Garipov et al. 2016).

        K[out in kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw]

    Core number j carries the j-th part of every split label; the other labels occur together on the last core.

    Args:
        labels: of K, in the order of its axes.
        factors: label -> number of its parts, at least 2; by default the channels (`out` and `in`, else the first
            two) in two parts each. The sizes of the parts are given where the rule is applied. A part is called by
            the label's first letter and its number, by the whole label where two of them begin alike.

    Raises:
        RuleError: also for a label that is none of `labels`, or with fewer than 2 parts.
    """
    return _split_channels(labels, factors, "reshaped_train")


def reshaped_ring(labels: LabelWords, factors: Mapping[str, int] | None = None) -> Rule:
    """A ring over labels that are split into parts first (Wang et al. 2018).

        K[out in kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[z o1 i1 p] B[p o2 i2 q] C[q kh kw z]

    Arguments are those of `reshaped_train`. A ring has at least three cores, so two labels alone are split into three
    parts each by default.
    """
    return _split_channels(labels, factors, "reshaped_ring", closed=True)


def matrix_product_operator(labels: LabelWords = "out in", factors: int = 2) -> Rule:
    """A linear layer as a train over pairs of parts of its two labels (Novikov et al. 2015).

        K[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]

    Args:
        labels: two.
        factors: the parts each is split into, which is the number of cores; at least 2.
    """
    labels = distinct(labels)
    if len(labels) != 2:
        raise RuleError(
            explain(
                "a matrix product operator has two labels, no window",
                labels=" ".join(labels),
                fix="reshaped_train, which splits the channels of a kernel",
            )
        )
    name = "mpo" if factors == 2 else f"mpo {factors}"
    return _split(labels, dict.fromkeys(labels, factors), name)


def monarch(labels: LabelWords = "out in") -> Rule:
    """A linear layer as two block-diagonal matrices with a transposition between them (Dao et al. 2022).

        K[out in] => Fuse[in a i] R[a j i] L[j b a] Fuse[out b j]

    R maps, in each block a of the input, i to j; L maps, for each j, the blocks a to b. Nothing is left to choose
    but the sizes of the parts.

    Args:
        labels: two; the first is the output.
    """
    labels = distinct(labels)
    if len(labels) != 2:
        raise RuleError(
            explain(
                "a Monarch matrix has two labels, no window",
                labels=" ".join(labels),
                fix="a decomposition of kernels",
            )
        )
    taken = set(labels)
    a, i, j, b = (take(word, taken) for word in "aijb")
    out, into = channels_of(labels)
    nodes = [node("Fuse", (into, a, i)), node("R", (a, j, i)), node("L", (j, b, a)), node("Fuse", (out, b, j))]
    return rule_for(labels, nodes, "monarch")


def per_group(given: Rule | str, *, label: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """The same decomposition for each group of a grouped convolution, as one rule.

        K[out in kh kw] => U[out a] G[a b kh kw] V[b in]                                becomes
        K[out in kh kw] => Fuse[out g m] U[g m a] G[g a b kh kw] V[g b in]

    torch stores the kernel of a grouped convolution with the output channels group by group, and `in` counts the
    channels of one group. `out` is split into groups g of m channels and every core gets the label g, so nothing is
    shared between groups; the rule as it is given makes cores that all groups share, which on the whole `out` take
    fewer parameters and fit worse. Applied with sizes={"g": conv.groups}; a rank is that of each group.

    Args:
        given: a rule in the notation, or its text; its left side is one tensor, all tensors on the right are new.
        label: that is split into groups; by default `out` if there is one, else the first label.
        fixed: the names of constants on the right, as for `rule`: these are the same for every group.

    Raises:
        RuleError: the rule has no such label, or it is not of this kind.
    """
    text = given if isinstance(given, str) else given.spec.get("notation")
    if text is None:
        raise RuleError(
            explain(f"the rule {given} is not in the notation", fix="a rule made by tn.rule, or K[...] => ...")
        )
    pattern = read_pattern(text)
    left, right = pattern.left, pattern.right
    kept = [name for name in tensor_nodes(right) if name in tensor_nodes(left)]
    if len(left.nodes) != 1 or not isinstance(left.nodes[0], NamedTensor) or kept:
        reason = f"{kept[0]!r} occurs on both sides" if kept else "its left side is not one tensor"
        raise RuleError(explain("the rule cannot be made one for each group", because=reason, rule=text))
    fixed = fixed or (given.fixed if isinstance(given, Rule) else {})
    whole = label or ("out" if "out" in left.output else left.output[0])
    if whole not in left.output or whole in pattern.stars.values():
        raise RuleError(explain(f"the rule has no label {whole!r} to split into groups", rule=text))
    taken = {*carriers(left), *carriers(right)}
    group, part = take("g", taken), take("m", taken)
    nodes = [_in_group(entry, whole, group, part, fixed=fixed) for entry in right.nodes]
    if not any(isinstance(entry, Fuse) and entry.whole == whole for entry in right.nodes):
        nodes = [Fuse(whole, (group, part)), *nodes]
    grouped = pattern.starred(f"{left} => {Network(nodes, right.output)}")
    name = None if isinstance(given, str) else f"{given.name} per group"
    return replace(rule(grouped, name=name, fixed=fixed), stated=(group,))


def _in_group(entry: Node, whole: str, group: str, part: str, *, fixed: Mapping[str, str]) -> Node:
    """A node of the right side as it is for each group."""
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
    """A row of cores, the j-th with the j-th part of each split label, a last one with the labels that are whole."""
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
        found = index(number)  # type: ignore[arg-type]
    except TypeError:
        found = 0
    if not 2 <= found <= MAX_AXES:
        fact = f"the number of parts of {label!r} is {number!r}"
        raise RuleError(explain(fact, fix=f"an integer from 2 to {MAX_AXES}"))
    return found
