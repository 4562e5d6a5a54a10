"""The families of decompositions as rules, for any labels: kernels with any number of axes, linear layers, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import RuleError
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
    """Make the rule of Tucker: a core, and a factor for each mode.

        K[out in kh kw] => G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]

    The names of a factor and its bond follow from the place of its label: U and a for the first label, V and b for
    the second. With one or two modes the factors are written around the core, as matrices are: U[out a] G[a b kh kw]
    V[b in]. Sources: Tucker 1966; De Lathauwer, De Moor and Vandewalle 2000.

    Args:
        labels: the labels of K, in the order of its axes.
        modes: the labels that get a factor; by default all of them.

    Raises:
        RuleError: there are fewer than two labels, a label occurs twice, or a mode is not one of the labels.

    Example:
        >>> tn.decompositions.tucker("out in kh kw").apply(conv.weight, "parameters 0.3")
    """
    labels = distinct(labels)
    chosen = labels if modes is None else among(labels, modes, what="mode")
    name = "tucker" if modes is None else f"tucker {' '.join(chosen)}"
    return rule_for(labels, _factored(labels, chosen), name)


def tucker2(labels: LabelWords) -> Rule:
    """Make the rule of Tucker for the two channels alone, which leaves the window whole (Kim et al. 2016).

        K[out in kh kw] => U[out a] G[a b kh kw] V[b in]

    The channels are the labels `out` and `in`; where these do not both occur, the first two labels.
    """
    labels = distinct(labels)
    return rule_for(labels, _factored(labels, channels_of(labels)), "tucker2")


def cp(labels: LabelWords) -> Rule:
    """Make the rule of CP, a sum of r outer products of vectors (Hitchcock 1927; for kernels Lebedev et al. 2015).

    K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]
    """
    labels = distinct(labels)
    bond = fresh("r", labels)
    return rule_for(labels, [node(nth(CORES, n), (label, bond)) for n, label in enumerate(labels)], "cp")


def tensor_train(labels: LabelWords, *, order: LabelWords | None = None) -> Rule:
    """Make the rule of the tensor train, a row of cores of which each is joined to the next (Oseledets 2011).

        K[out in kh kw] => A[out p] B[p in q] C[q kh s] D[s kw]

    Args:
        labels: the labels of K, in the order of its axes.
        order: the labels in their order along the train; by default the order of `labels`.

    Example:
        >>> tn.decompositions.tensor_train("out in kh kw", order="kh out in kw").apply(conv.weight, 8)
    """
    return _row(labels, order, "tensor_train")


def tensor_ring(labels: LabelWords, *, order: LabelWords | None = None) -> Rule:
    """Make the rule of the tensor ring, a train whose ends are joined (Zhao et al. 2016).

        K[out in kh kw] => A[z out p] B[p in q] C[q kh s] D[s kw z]

    Args:
        labels: the labels of K, in the order of its axes. There must be at least three, because a ring of two cores
            is a cut whose bond is written as two bonds.
        order: the labels in their order around the ring; by default the order of `labels`.
    """
    return _row(labels, order, "tensor_ring", closed=True)


def hierarchical_tucker(labels: LabelWords, tree: Any = None) -> Rule:
    """Make the rule of hierarchical Tucker: a factor for each label, and a tree of cores that joins them.

        K[out in kh kw] => G[p q] G1[p a b] G2[q c d] U[out a] V[in b] P[kh c] Q[kw d]

    Factors and their bonds are called as in `tucker`. G is the root of the tree; G1, G2, ... are the inner cores, from
    the root downwards. Sources: Hackbusch and Kuehn 2009; Grasedyck 2010.

    Args:
        labels: the labels of K, in the order of its axes.
        tree: nested tuples whose leaves are the labels, such as (("out", "kh"), ("in", "kw")). Each tuple joins two
            or more branches. By default the labels are halved again and again; of an odd number the second half is
            the larger one.

    Raises:
        RuleError: a leaf is not one of the labels, or a label is missing or occurs twice.
    """
    labels = distinct(labels)
    tree = _balanced(labels) if tree is None else tree
    leaves = _leaves(tree, labels)
    if sorted(leaves) != sorted(labels):
        wrong = next(label for label in (*leaves, *labels) if leaves.count(label) != labels.count(label))
        raise RuleError(
            f"{wrong!r} occurs {leaves.count(wrong)} times in the tree",
            labels=" ".join(labels),
            fix="a tree with each label once",
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
    """Make the rule of the block term decomposition: a sum of t Tucker decompositions (De Lathauwer 2008).

        K[out in kh kw] => U[out a t] G[a b kh kw t] V[b in t]

    Args:
        labels: the labels of K, in the order of its axes.
        modes: the labels that get a factor in every term; by default the channels, which are `out` and `in`, or the
            first two labels where these do not both occur.
    """
    labels = distinct(labels)
    chosen = channels_of(labels) if modes is None else among(labels, modes, what="mode")
    name = "block_term" if modes is None else f"block_term {' '.join(chosen)}"
    return rule_for(labels, _factored(labels, chosen, term="t"), name)


def spatially_separable(labels: LabelWords) -> Rule:
    """Make the rule that writes each filter as an outer product of vectors, one for each label of the window.

        K[out in kh kw] => A[out in kh] B[out in kw]

    The channels are `out` and `in`, or the first two labels where these do not both occur. The window is made of the
    other labels, of which there must be at least two. Separable filters that channels share (Jaderberg et al. 2014)
    are the cut "out kw | in kh" instead. Source: Rigamonti et al. 2013.
    """
    labels = distinct(labels)
    channels = channels_of(labels)
    window = [label for label in labels if label not in channels]
    if len(window) < 2:
        raise RuleError(
            "a window of fewer than two labels cannot be separated",
            labels=" ".join(labels),
            fix="at least four labels, as of a Conv2d: out in kh kw",
        )
    nodes = [node(nth(CORES, n), (*channels, label)) for n, label in enumerate(window)]
    return rule_for(labels, nodes, "spatially_separable")


def depthwise_separable(labels: LabelWords) -> Rule:
    """Make the rule of one filter for each input channel, followed by a matrix that mixes the channels.

        K[out in kh kw] => D[in kh kw] P[out in]

    The channels are `out` and `in`, or the first two labels where these do not both occur. The window is made of the
    other labels, of which there must be at least one. Sources: Howard et al. 2017; He et al. 2019.
    """
    labels = distinct(labels)
    out, into = channels_of(labels)
    if len(labels) < 3:
        raise RuleError("a linear layer has no window to be separated from its channels", labels=" ".join(labels))
    filters = node("D", [label for label in labels if label != out])
    return rule_for(labels, [filters, node("P", (out, into))], "depthwise_separable")


def projection(labels: LabelWords, onto: Mapping[str, str] | None = None) -> Rule:
    """Make the rule that projects some labels onto bases, which are constants and not fitted.

        K[out in kh kw] => G[out in c d] P[c kh] Q[d kw], where P and Q are constants: dct

    Element [c, x] of the basis "dct" is the c-th vector of the orthonormal discrete cosine transform (DCT-II) at x.
    Factors and bonds are called as in `tucker`. A bond that is smaller than its label keeps that many vectors of the
    basis, those that hold the most of the kernel's norm. Source for kernels: Chen et al. 2016.

    Args:
        labels: the labels of K, in the order of its axes.
        onto: the basis of each label that is projected; by default "dct" for all labels but the two channels.

    Raises:
        RuleError: no label is projected, or a basis is not known.
    """
    labels = distinct(labels)
    if onto is None:
        onto = {label: "dct" for label in labels if label not in channels_of(labels)}
        name = "dct"
    else:
        name = f"projection {' '.join(f'{label}={basis}' for label, basis in onto.items())}"
    if not onto:
        raise RuleError(
            "no label is projected", labels=" ".join(labels), fix="onto={label: basis}; the window of a kernel"
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
    """The word at a place of the alphabet, counted from 0. After the last one it continues with A_2, B_2, ..."""
    times, place = divmod(number, len(alphabet))
    return f"{alphabet[place]}_{times + 1}" if times else alphabet[place]


def take(word: str, taken: set[str]) -> str:
    """Return `word`, or a free word that is like it, and add it to `taken`."""
    free = fresh(word, taken)
    taken.add(free)
    return free


def distinct(labels: LabelWords) -> tuple[str, ...]:
    found = labels_of(labels)
    if len(found) < 2:
        raise RuleError(
            f"a tensor of {len(found)} labels has no decomposition",
            labels=" ".join(found) or "none",
            fix="at least two, for example 'out in kh kw'",
        )
    for label in found:
        if found.count(label) > 1:
            raise RuleError(f"the label {label!r} occurs twice", labels=" ".join(found), fix="each label once")
    return found


def among(labels: tuple[str, ...], chosen: LabelWords, *, what: str) -> tuple[str, ...]:
    """The chosen labels, in the order that they have in `labels`."""
    found = labels_of(chosen)
    for label in found:
        if label not in labels:
            raise RuleError(f"the {what} {label!r} is not one of the labels", labels=" ".join(labels))
        if found.count(label) > 1:
            raise RuleError(f"the {what} {label!r} occurs twice", given=" ".join(found), fix="each once")
    if not found:
        raise RuleError(f"no {what} is given", labels=" ".join(labels), fix="one of these, or more")
    return tuple(label for label in labels if label in found)


def channels_of(labels: tuple[str, ...]) -> tuple[str, str]:
    """The labels of the output channels and of the input channels."""
    return ("out", "in") if {"out", "in"} <= set(labels) else (labels[0], labels[1])


def row_of_cores(groups: Sequence[tuple[str, ...]], taken: Iterable[str], *, closed: bool) -> list[str]:
    """A row of cores, each joined to the next; if the row is closed, the last is joined to the first.

    Args:
        groups: the labels that each core carries, besides its bonds.
        taken: words that no bond may have.
    """
    taken = set(taken)
    if closed and len(groups) < 3:
        raise RuleError(
            f"a ring needs at least three cores, and with {len(groups)} it would be a cut",
            cores=" and ".join(" ".join(group) for group in groups),
            fix="at least three cores, or a cut",
        )
    ends = (take("z", taken),) if closed else ()
    bonds = [take(nth(ROW_BONDS, number), taken) for number in range(len(groups) - 1)]
    before = [ends, *((bond,) for bond in bonds)]
    after = [*((bond,) for bond in bonds), ends]
    return [node(nth(CORES, n), (*before[n], *group, *after[n])) for n, group in enumerate(groups)]


def _factored(labels: tuple[str, ...], modes: tuple[str, ...], *, term: str | None = None) -> list[str]:
    """A core and a factor for each mode. All of them carry the label `term`, if one is given."""
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
            "the order does not have exactly the labels of the tensor",
            labels=" ".join(labels),
            order=" ".join(along),
            fix="each label once",
        )
    full_name = name if along == labels else f"{name} {' '.join(along)}"
    return rule_for(labels, row_of_cores([(label,) for label in along], labels, closed=closed), full_name)


def _balanced(labels: tuple[str, ...]) -> Any:
    if len(labels) == 1:
        return labels[0]
    half = len(labels) // 2
    return (_balanced(labels[:half]), _balanced(labels[half:]))


def _leaves(tree: Any, labels: tuple[str, ...]) -> list[str]:
    """The leaves from left to right. A tree that is deeper than the number of labels is refused."""
    leaves, waiting = [], [(tree, 0)]
    while waiting:
        branch, depth = waiting.pop()
        if isinstance(branch, str):
            leaves.append(branch)
            continue
        if not isinstance(branch, tuple) or len(branch) < 2 or depth >= len(labels):
            raise RuleError(
                f"{branch!r} is not a branch of a tree"
                if depth < len(labels)
                else "the tree is deeper than its labels",
                labels=" ".join(labels),
                fix="nested tuples of two or more, for example (('out', 'in'), ('kh', 'kw'))",
            )
        waiting += [(child, depth + 1) for child in reversed(branch)]
    return leaves


def _tree_text(tree: Any) -> str:
    return tree if isinstance(tree, str) else f"({' '.join(map(_tree_text, tree))})"
