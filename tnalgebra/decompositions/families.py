"""Decompositions as rules, made for given labels: kernels of any number of axes, linear layers, any tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import RuleError, explain
from ..networks import fresh, labels_of
from ..rewriting import Rule, rule

LabelWords: TypeAlias = str | Iterable[str]

FACTORS = "UVPQRSTWXYZ"
"""Names of the factors that belong to one label each: of the first label, of the second, ..."""

CORES = "ABCDEFGHIJLMNOPQRSTUVWXYZ"
"""Names of cores that occur in a row; K is the left side."""

FACTOR_BONDS = "abcdefghijklmnopqrsuvwxyz"
"""Bonds of the factors; t counts terms."""

ROW_BONDS = "pqstuvwxyabcdefghijklmno"
"""Bonds along a row of cores; r is the bond of CP and cuts, z closes a ring."""


def tucker(labels: LabelWords, modes: LabelWords | None = None) -> Rule:
    """A core, and a factor for each mode (Tucker 1966; De Lathauwer, De Moor and Vandewalle 2000).

        K[out in kh kw] => G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]

    Factors and bonds go by the label's place among all labels: U and a with the first, V and b with the second.
    With one or two modes the factors stand around the core, as matrices do: U[out a] G[a b kh kw] V[b in].

    Args:
        labels: of K, in the order of its axes.
        modes: the labels that get a factor; by default all.

    Raises:
        RuleError: fewer than two labels, one twice, a mode that is none of them.
    """
    labels = distinct(labels)
    chosen = labels if modes is None else among(labels, modes, what="mode")
    name = "tucker" if modes is None else f"tucker {' '.join(chosen)}"
    return rule_for(labels, _factored(labels, chosen), name)


def tucker2(labels: LabelWords) -> Rule:
    """Tucker of the two channels alone: the window stays whole (Kim et al. 2016).

        K[out in kh kw] => U[out a] G[a b kh kw] V[b in]

    The channels are `out` and `in`; without these, the first two labels.
    """
    labels = distinct(labels)
    return rule_for(labels, _factored(labels, channels_of(labels)), "tucker2")


def cp(labels: LabelWords) -> Rule:
    """A sum of r outer products of vectors (Hitchcock 1927; kernels: Lebedev et al. 2015).

    K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]
    """
    labels = distinct(labels)
    bond = fresh("r", labels)
    return rule_for(labels, [node(nth(CORES, n), (label, bond)) for n, label in enumerate(labels)], "cp")


def tensor_train(labels: LabelWords, *, order: LabelWords | None = None) -> Rule:
    """A row of cores, each joined to the next (Oseledets 2011).

        K[out in kh kw] => A[out p] B[p in q] C[q kh s] D[s kw]

    Args:
        labels: of K, in the order of its axes.
        order: along the train; by default that of `labels`.
    """
    return _row(labels, order, "tensor_train")


def tensor_ring(labels: LabelWords, *, order: LabelWords | None = None) -> Rule:
    """A train whose ends are joined (Zhao et al. 2016).

        K[out in kh kw] => A[z out p] B[p in q] C[q kh s] D[s kw z]

    Args:
        labels: of K, in the order of its axes; at least three: a ring of two cores is a cut whose bond is two.
        order: around the ring; by default that of `labels`.
    """
    return _row(labels, order, "tensor_ring", closed=True)


def hierarchical_tucker(labels: LabelWords, tree: Any = None) -> Rule:
    """A factor for each label, joined two by two by a tree of cores (Hackbusch and Kuehn 2009; Grasedyck 2010).

        K[out in kh kw] => G[p q] G1[p a b] G2[q c d] U[out a] V[in b] P[kh c] Q[kw d]

    Factors and their bonds are those of `tucker`. G is the root; G1, G2, ... the inner cores, from the root down.

    Args:
        labels: of K, in the order of its axes.
        tree: nested tuples whose leaves are the labels, such as (("out", "kh"), ("in", "kw")); a tuple joins two
            or more. By default halves, halves of halves, ..., the later half the larger one.

    Raises:
        RuleError: also where a leaf is not a label, or a label is not exactly one leaf.
    """
    labels = distinct(labels)
    tree = _balanced(labels) if tree is None else tree
    leaves = _leaves(tree, labels)
    if sorted(leaves) != sorted(labels):
        wrong = next(label for label in (*leaves, *labels) if leaves.count(label) != labels.count(label))
        raise RuleError(
            explain(
                f"{wrong!r} occurs {leaves.count(wrong)} times in the tree", labels=" ".join(labels), fix="each once"
            )
        )
    taken = set(labels)
    bonds: dict[Any, str] = {label: take(nth(FACTOR_BONDS, n), taken) for n, label in enumerate(labels)}
    nodes: list[str] = []
    inner, names = 0, {tree: "G"}
    level = [tree]
    while level:
        for branch in level:
            for child in branch:
                if not isinstance(child, str):
                    names[child] = f"G{len(names)}"
                    bonds[child] = take(nth(ROW_BONDS, inner), taken)
                    inner += 1
            above = [bonds[branch]] if branch in bonds else []
            nodes.append(node(names[branch], [*above, *(bonds[child] for child in branch)]))
        level = [child for branch in level for child in branch if not isinstance(child, str)]
    nodes += [node(nth(FACTORS, n), (label, bonds[label])) for n, label in enumerate(labels)]
    name = "hierarchical_tucker" if tree == _balanced(labels) else f"hierarchical_tucker {_tree_text(tree)}"
    return rule_for(labels, nodes, name)


def block_term(labels: LabelWords, modes: LabelWords | None = None) -> Rule:
    """A sum of t Tucker decompositions, each with factors for the same modes (De Lathauwer 2008).

        K[out in kh kw] => U[out a t] G[a b kh kw t] V[b in t]

    Args:
        labels: of K, in the order of its axes.
        modes: the labels that get a factor; by default the channels (`out` and `in`, else the first two).
    """
    labels = distinct(labels)
    chosen = channels_of(labels) if modes is None else among(labels, modes, what="mode")
    name = "block_term" if modes is None else f"block_term {' '.join(chosen)}"
    return rule_for(labels, _factored(labels, chosen, term="t"), name)


def spatially_separable(labels: LabelWords) -> Rule:
    """Each filter as an outer product of vectors, one for each label of the window (Rigamonti et al. 2013).

        K[out in kh kw] => A[out in kh] B[out in kw]

    The channels are `out` and `in`, else the first two labels; the window is the rest, two labels or more. Filters
    that share separable ones between channels (Jaderberg et al. 2014) are the cut "out kw | in kh".
    """
    labels = distinct(labels)
    channels = channels_of(labels)
    window = [label for label in labels if label not in channels]
    if len(window) < 2:
        raise RuleError(
            explain(
                "a window of fewer than two labels cannot be separated",
                labels=" ".join(labels),
                fix="at least four labels, as of a Conv2d: out in kh kw",
            )
        )
    nodes = [node(nth(CORES, n), (*channels, label)) for n, label in enumerate(window)]
    return rule_for(labels, nodes, "spatially_separable")


def depthwise_separable(labels: LabelWords) -> Rule:
    """A filter for each input channel, then a matrix that mixes the channels (Howard et al. 2017; He et al. 2019).

        K[out in kh kw] => D[in kh kw] P[out in]

    The channels are `out` and `in`, else the first two labels; the window is the rest, at least one label.
    """
    labels = distinct(labels)
    out, into = channels_of(labels)
    if len(labels) < 3:
        raise RuleError(
            explain("a linear layer has no window to be separated from its channels", labels=" ".join(labels))
        )
    filters = node("D", [label for label in labels if label != out])
    return rule_for(labels, [filters, node("P", (out, into))], "depthwise_separable")


def projection(labels: LabelWords, onto: Mapping[str, str] | None = None) -> Rule:
    """The projection of some labels onto bases that are fixed, not fitted (kernels: Chen et al. 2016).

        K[out in kh kw] => G[out in c d] P[c kh] Q[d kw], where P and Q are constants: dct

    Element [c, x] of a basis "dct" is the c-th vector of the orthonormal discrete cosine transform (DCT-II) at x.
    Factors and bonds go by the label's place, as for `tucker`. A rank below the label's size keeps that many of the
    basis' vectors.

    Args:
        labels: of K, in the order of its axes.
        onto: label -> basis; by default the window (all but `out` and `in`, else all but the first two) onto "dct".

    Raises:
        RuleError: also where nothing is to be projected, or a basis is not known.
    """
    labels = distinct(labels)
    if onto is None:
        onto = {label: "dct" for label in labels if label not in channels_of(labels)}
        name = "dct"
    else:
        name = f"projection {' '.join(f'{label}={basis}' for label, basis in onto.items())}"
    if not onto:
        raise RuleError(
            explain("no label is projected", labels=" ".join(labels), fix="onto={label: basis}; the window of a kernel")
        )
    chosen = among(labels, onto, what="label")
    taken = set(labels)
    bonds = {label: take(nth(FACTOR_BONDS, labels.index(label)), taken) for label in chosen}
    names = {label: nth(FACTORS, labels.index(label)) for label in chosen}
    nodes = [node("G", [bonds.get(label, label) for label in labels])]
    nodes += [node(names[label], (bonds[label], label)) for label in chosen]
    return rule_for(labels, nodes, name, fixed={names[label]: onto[label] for label in chosen})


# Parts of them -----------------------------------------------------------------------------------------------


def rule_for(labels: Sequence[str], nodes: Iterable[str], name: str, fixed: Mapping[str, str] | None = None) -> Rule:
    return rule(f"{node('K', labels)} => {' '.join(nodes)}", name=name, fixed=fixed)


def node(name: str, labels: Iterable[str]) -> str:
    return f"{name}[{' '.join(labels)}]"


def nth(alphabet: str, number: int) -> str:
    """The word at that place of the alphabet, counted from 0; after its end it begins again, as A_2, B_2, ..."""
    times, place = divmod(number, len(alphabet))
    return f"{alphabet[place]}_{times + 1}" if times else alphabet[place]


def take(word: str, taken: set[str]) -> str:
    """`word`, or the next like it that is free; it is taken from then on."""
    found = fresh(word, taken)
    taken.add(found)
    return found


def distinct(labels: LabelWords) -> tuple[str, ...]:
    found = labels_of(labels)
    if len(found) < 2:
        raise RuleError(
            explain(
                f"a tensor of {len(found)} labels has no decomposition",
                labels=" ".join(found) or "none",
                fix="at least two, for example 'out in kh kw'",
            )
        )
    for label in found:
        if found.count(label) > 1:
            raise RuleError(explain(f"the label {label!r} occurs twice", labels=" ".join(found), fix="each label once"))
    return found


def among(labels: tuple[str, ...], chosen: LabelWords, *, what: str) -> tuple[str, ...]:
    """The chosen labels in the order of all."""
    found = labels_of(chosen)
    for label in found:
        if label not in labels:
            raise RuleError(explain(f"the {what} {label!r} is none of the labels", labels=" ".join(labels)))
        if found.count(label) > 1:
            raise RuleError(explain(f"the {what} {label!r} occurs twice", given=" ".join(found), fix="each once"))
    if not found:
        raise RuleError(explain(f"no {what} is given", labels=" ".join(labels), fix="one of these, or more"))
    return tuple(label for label in labels if label in found)


def channels_of(labels: tuple[str, ...]) -> tuple[str, str]:
    """The labels of the output's and the input's channels."""
    return ("out", "in") if {"out", "in"} <= set(labels) else (labels[0], labels[1])


def row_of_cores(groups: Sequence[tuple[str, ...]], taken: Iterable[str], *, closed: bool) -> list[str]:
    """A row of cores that carry these labels, each joined to the next, the last to the first if it is closed."""
    taken = set(taken)
    if closed and len(groups) < 3:
        raise RuleError(
            explain(
                f"a ring of {len(groups)} cores is a cut whose bond is two bonds",
                cores=" and ".join(" ".join(group) for group in groups),
                fix="at least three cores, or a cut",
            )
        )
    ends = (take("z", taken),) if closed else ()
    bonds = [take(nth(ROW_BONDS, number), taken) for number in range(len(groups) - 1)]
    before = [ends, *((bond,) for bond in bonds)]
    after = [*((bond,) for bond in bonds), ends]
    return [node(nth(CORES, n), (*before[n], *group, *after[n])) for n, group in enumerate(groups)]


def _factored(labels: tuple[str, ...], modes: tuple[str, ...], *, term: str | None = None) -> list[str]:
    """A core and a factor for each mode; all of them with the label `term`, if one is given."""
    taken = set(labels)
    terms = (take(term, taken),) if term else ()
    bonds = {label: take(nth(FACTOR_BONDS, labels.index(label)), taken) for label in modes}
    names = {label: nth(FACTORS, labels.index(label)) for label in modes}
    core = node("G", (*(bonds.get(label, label) for label in labels), *terms))
    factors = [node(names[label], (label, bonds[label], *terms)) for label in modes]
    if len(modes) > 2:
        return [core, *factors]
    behind = [node(names[label], (bonds[label], label, *terms)) for label in modes[1:]]
    return [factors[0], core, *behind]


def _row(labels: LabelWords, order: LabelWords | None, name: str, *, closed: bool = False) -> Rule:
    labels = distinct(labels)
    along = labels if order is None else labels_of(order)
    if sorted(along) != sorted(labels):
        raise RuleError(
            explain("the order holds other labels", labels=" ".join(labels), order=" ".join(along), fix="each once")
        )
    full_name = name if along == labels else f"{name} {' '.join(along)}"
    return rule_for(labels, row_of_cores([(label,) for label in along], labels, closed=closed), full_name)


def _balanced(labels: tuple[str, ...]) -> Any:
    if len(labels) == 1:
        return labels[0]
    half = len(labels) // 2
    return (_balanced(labels[:half]), _balanced(labels[half:]))


def _leaves(tree: Any, labels: tuple[str, ...]) -> list[str]:
    """The leaves from left to right, of a tree no deeper than its labels allow."""
    found, waiting = [], [(tree, 0)]
    while waiting:
        branch, depth = waiting.pop()
        if isinstance(branch, str):
            found.append(branch)
            continue
        if not isinstance(branch, tuple) or len(branch) < 2 or depth >= len(labels):
            raise RuleError(
                explain(
                    f"{branch!r} is not a branch of a tree"
                    if depth < len(labels)
                    else "the tree is deeper than its labels",
                    labels=" ".join(labels),
                    fix="nested tuples of two or more, for example (('out', 'in'), ('kh', 'kw'))",
                )
            )
        waiting += [(child, depth + 1) for child in reversed(branch)]
    return found


def _tree_text(tree: Any) -> str:
    return tree if isinstance(tree, str) else f"({' '.join(map(_tree_text, tree))})"
