"""Families of decompositions: their equations for any labels, their meaning by einsum, groups, factors of a size."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import check_claim, gaussian
from tests.strategies import random_values
from tnalgebra.decompositions.cuts import cut
from tnalgebra.decompositions.families import (
    block_term,
    cp,
    depthwise_separable,
    hierarchical_tucker,
    projection,
    spatially_separable,
    tensor_ring,
    tensor_train,
    tucker,
    tucker2,
)
from tnalgebra.decompositions.reshaped import matrix_product_operator, monarch, per_group, reshaped_ring, reshaped_train
from tnalgebra.errors import NetworkError, RuleError
from tnalgebra.fitting.ranks import KeepFraction
from tnalgebra.network.network import Network, carriers, tensor_nodes, with_sizes
from tnalgebra.network.nodes import NamedTensor
from tnalgebra.network.notation import parse_rule
from tnalgebra.rewriting.rule import Rule
from tnalgebra.rewriting.sides import balanced_factors
from tnalgebra.rewriting.text import rule
from tnalgebra.tensors.evaluation import evaluate

LINEAR, ONE, TWO, THREE = "out in", "out in k", "out in kh kw", "out in kd kh kw"

Family = Callable[[str], Rule]

CORES: dict[Family, Callable[[int], int]] = {
    tucker: lambda n: n + 1,
    tucker2: lambda n: 3,
    cp: lambda n: n,
    tensor_train: lambda n: n,
    tensor_ring: lambda n: n,
    hierarchical_tucker: lambda n: 2 * n - 1,
    block_term: lambda n: 3,
    reshaped_train: lambda n: 2 + (n > 2),
    reshaped_ring: lambda n: 3,
    matrix_product_operator: lambda n: 2,
    monarch: lambda n: 2,
    spatially_separable: lambda n: n - 2,
    depthwise_separable: lambda n: 2,
    projection: lambda n: n - 1,
}
"""A family -> how many cores it makes for n labels."""

EXISTS: dict[Family, Callable[[int], bool]] = {
    tensor_ring: lambda n: n >= 3,
    matrix_product_operator: lambda n: n == 2,
    monarch: lambda n: n == 2,
    spatially_separable: lambda n: n >= 4,
    depthwise_separable: lambda n: n >= 3,
    projection: lambda n: n >= 3,
}

WORDS = (
    *("a", "b", "c", "d", "i", "j", "o1", "i1", "p", "q", "r", "s", "t", "z", "g", "m", "k", "K", "U", "G"),
    *("Copy", "Fuse", "out", "in", "kh", "kw", "o", "o_2", "a_2", "out1", "other", "index"),
)
"""Labels that are also what cores, bonds or parts would be called."""


def right_of(entry: Rule) -> Network:
    return parse_rule(entry.equation)[1]


# Equations ---------------------------------------------------------------------------------------------------


@given(st.sampled_from(list(CORES)), st.lists(st.sampled_from(WORDS), min_size=2, max_size=7, unique=True))
def test_the_equation_for_any_labels(family: Family, labels: list[str]) -> None:
    count = len(labels)
    if not EXISTS.get(family, lambda _: True)(count):
        with pytest.raises(RuleError):
            family(" ".join(labels))
        return
    entry = family(" ".join(labels))
    left, right = parse_rule(entry.equation)
    assert left.nodes == (NamedTensor("K", tuple(labels)),)
    assert left.output == right.output == tuple(labels)
    names = tensor_nodes(right)
    assert len(names) == CORES[family](count)
    assert all(len(places) == 1 for places in names.values())
    assert "K" not in names
    assert not set(entry.ranks) & set(labels)
    assert rule(entry.spec["notation"]).equation == entry.equation
    assert all(len(set(node.labels)) == len(node.labels) for node in right.nodes)
    for label, places in carriers(right).items():
        assert len(places) >= 2 or label in labels, f"{label} is summed alone"


def test_sixty_labels() -> None:
    labels = [f"x{n}" for n in range(60)]
    for family in (tucker, cp, tensor_train, tensor_ring, hierarchical_tucker):
        right = right_of(family(" ".join(labels)))
        assert len(tensor_nodes(right)) == CORES[family](60)
        assert right.output == tuple(labels)


@pytest.mark.parametrize(
    ("entry", "name", "right"),
    [
        (tucker(TWO), "tucker", "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]"),
        (tucker(TWO, "kw out kh"), "tucker out kh kw", "G[a in c d] U[out a] P[kh c] Q[kw d]"),
        (tucker(TWO, "kh kw"), "tucker kh kw", "P[kh c] G[out in c d] Q[d kw]"),
        (tucker(TWO, ["in"]), "tucker in", "V[in b] G[out b kh kw]"),
        (tucker2(TWO), "tucker2", "U[out a] G[a b kh kw] V[b in]"),
        (tucker2("kh kw in out"), "tucker2", "Q[out d] G[kh kw c d] P[c in]"),
        (cp(ONE), "cp", "A[out r] B[in r] C[k r]"),
        (tensor_train(TWO), "tensor_train", "A[out p] B[p in q] C[q kh s] D[s kw]"),
        (tensor_train(TWO, order="kh out in kw"), "tensor_train kh out in kw", "A[kh p] B[p out q] C[q in s] D[s kw]"),
        (tensor_ring(TWO), "tensor_ring", "A[z out p] B[p in q] C[q kh s] D[s kw z]"),
        (
            hierarchical_tucker(TWO),
            "hierarchical_tucker",
            "G[p q] G1[p a b] G2[q c d] U[out a] V[in b] P[kh c] Q[kw d]",
        ),
        (
            hierarchical_tucker(TWO, (("out", "kh"), "in", "kw")),
            "hierarchical_tucker ((out kh) in kw)",
            "G[p b d] G1[p a c] U[out a] V[in b] P[kh c] Q[kw d]",
        ),
        (block_term(TWO), "block_term", "U[out a t] G[a b kh kw t] V[b in t]"),
        (block_term(ONE, ONE), "block_term out in k", "G[a b c t] U[out a t] V[in b t] P[k c t]"),
        (
            reshaped_train(TWO),
            "reshaped_train",
            "Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw]",
        ),
        (
            reshaped_train("out other c", {"other": 3, "out": 2}),
            "reshaped_train other=3 out=2",
            "Fuse[out out1 out2] Fuse[other other1 other2 other3] "
            "A[out1 other1 p] B[p out2 other2 q] C[q other3 s] D[s c]",
        ),
        (
            reshaped_ring(ONE),
            "reshaped_ring",
            "Fuse[out o1 o2] Fuse[in i1 i2] A[z o1 i1 p] B[p o2 i2 q] C[q k z]",
        ),
        (
            matrix_product_operator(LINEAR, 3),
            "mpo 3",
            "Fuse[out o1 o2 o3] Fuse[in i1 i2 i3] A[o1 i1 p] B[p o2 i2 q] C[q o3 i3]",
        ),
        (monarch(), "monarch", "Fuse[in a i] R[a j i] L[j b a] Fuse[out b j]"),
        (spatially_separable(THREE), "spatially_separable", "A[out in kd] B[out in kh] C[out in kw]"),
        (depthwise_separable(TWO), "depthwise_separable", "D[in kh kw] P[out in]"),
        (projection(TWO), "dct", "G[out in c d] P[c kh] Q[d kw]"),
        (projection(TWO, {"out": "dct"}), "projection out=dct", "G[a in kh kw] U[a out]"),
    ],
)
def test_the_equations_of_kernels(entry: Rule, name: str, right: str) -> None:
    assert entry.name == name
    assert entry.spec["notation"].partition(" => ")[2] == right


# Meaning -----------------------------------------------------------------------------------------------------

EINSUMS: dict[str, tuple[Rule, str]] = {
    "tucker linear": (tucker(LINEAR), "U:oa G:ab V:bi -> o i"),
    "tucker 1d": (tucker(ONE), "G:abc U:oa V:ib P:kc -> o i k"),
    "tucker 2d": (tucker(TWO), "G:abcd U:oa V:ib P:hc Q:wd -> o i h w"),
    "tucker 3d": (tucker(THREE), "G:abcde U:oa V:ib P:lc Q:hd R:we -> o i l h w"),
    "tucker2 linear": (tucker2(LINEAR), "U:oa G:ab V:bi -> o i"),
    "tucker2 1d": (tucker2(ONE), "U:oa G:abk V:bi -> o i k"),
    "tucker2 2d": (tucker2(TWO), "U:oa G:abhw V:bi -> o i h w"),
    "tucker2 3d": (tucker2(THREE), "U:oa G:ablhw V:bi -> o i l h w"),
    "cp linear": (cp(LINEAR), "A:or B:ir -> o i"),
    "cp 1d": (cp(ONE), "A:or B:ir C:kr -> o i k"),
    "cp 2d": (cp(TWO), "A:or B:ir C:hr D:wr -> o i h w"),
    "cp 3d": (cp(THREE), "A:or B:ir C:lr D:hr E:wr -> o i l h w"),
    "train linear": (tensor_train(LINEAR), "A:op B:pi -> o i"),
    "train 1d": (tensor_train(ONE), "A:op B:piq C:qk -> o i k"),
    "train 2d": (tensor_train(TWO), "A:op B:piq C:qhs D:sw -> o i h w"),
    "train 2d in another order": (tensor_train(TWO, order="kh out kw in"), "A:hp B:poq C:qws D:si -> o i h w"),
    "train 3d": (tensor_train(THREE), "A:op B:piq C:qls D:sht E:tw -> o i l h w"),
    "ring 1d": (tensor_ring(ONE), "A:zop B:piq C:qkz -> o i k"),
    "ring 2d": (tensor_ring(TWO), "A:zop B:piq C:qhs D:swz -> o i h w"),
    "ring 3d": (tensor_ring(THREE), "A:zop B:piq C:qls D:sht E:twz -> o i l h w"),
    "hierarchical linear": (hierarchical_tucker(LINEAR), "G:ab U:oa V:ib -> o i"),
    "hierarchical 1d": (hierarchical_tucker(ONE), "G:ap G1:pbc U:oa V:ib P:kc -> o i k"),
    "hierarchical 2d": (hierarchical_tucker(TWO), "G:pq G1:pab G2:qcd U:oa V:ib P:hc Q:wd -> o i h w"),
    "hierarchical 3d": (
        hierarchical_tucker(THREE),
        "G:pq G1:pab G2:qcs G3:sde U:oa V:ib P:lc Q:hd R:we -> o i l h w",
    ),
    "block term linear": (block_term(LINEAR), "U:oat G:abt V:bit -> o i"),
    "block term 1d": (block_term(ONE), "U:oat G:abkt V:bit -> o i k"),
    "block term 2d": (block_term(TWO), "U:oat G:abhwt V:bit -> o i h w"),
    "block term 3d": (block_term(THREE), "U:oat G:ablhwt V:bit -> o i l h w"),
    "reshaped train 1d": (reshaped_train(ONE), "A:xyp B:puvq C:qk -> xu yv k"),
    "reshaped train 2d": (reshaped_train(TWO), "A:xyp B:puvq C:qhw -> xu yv h w"),
    "reshaped train 3d": (reshaped_train(THREE), "A:xyp B:puvq C:qlhw -> xu yv l h w"),
    "reshaped ring 2d": (reshaped_ring(TWO), "A:zxyp B:puvq C:qhwz -> xu yv h w"),
    "reshaped ring linear": (reshaped_ring(LINEAR), "A:zxyp B:puvq C:qstz -> xus yvt"),
    "mpo": (matrix_product_operator(), "A:xyp B:puv -> xu yv"),
    "mpo of three": (matrix_product_operator(LINEAR, 3), "A:xyp B:puvq C:qst -> xus yvt"),
    "monarch": (monarch(), "R:aji L:jba -> bj ai"),
    "separable 2d": (spatially_separable(TWO), "A:oih B:oiw -> o i h w"),
    "separable 3d": (spatially_separable(THREE), "A:oil B:oih C:oiw -> o i l h w"),
    "depthwise 1d": (depthwise_separable(ONE), "D:ik P:oi -> o i k"),
    "depthwise 2d": (depthwise_separable(TWO), "D:ihw P:oi -> o i h w"),
    "depthwise 3d": (depthwise_separable(THREE), "D:ilhw P:oi -> o i l h w"),
    "dct 1d": (projection(ONE), "G:oic P:ck -> o i k"),
    "dct 2d": (projection(TWO), "G:oicd P:ch Q:dw -> o i h w"),
    "dct 3d": (projection(THREE), "G:oicde P:cl Q:dh R:ew -> o i l h w"),
    "tucker2 for each group": (per_group(tucker2(TWO)), "U:gma G:gabhw V:gbi -> gm i h w"),
    "depthwise for each group": (per_group(depthwise_separable(ONE)), "D:gik P:gmi -> gm i k"),
    "train over parts for each group": (
        per_group(reshaped_train(ONE)),
        "A:gxyp B:gpuvq C:gqk -> gxu yv k",
    ),
}
"""The rule, and its value: core:letters ... -> an output label a word, of parts that are fused row-major."""


def by_einsum(text: str, values: dict[str, Tensor]) -> Tensor:
    cores, _, output = text.partition(" -> ")
    names, subscripts = zip(*(core.split(":") for core in cores.split()), strict=True)
    assert set(names) == set(values)
    wholes = output.split()
    found = torch.einsum(f"{','.join(subscripts)}->{''.join(wholes)}", *(values[name] for name in names))
    sizes = dict(zip("".join(wholes), found.shape, strict=True))
    return found.reshape([math.prod(sizes[letter] for letter in whole) for whole in wholes])


@pytest.mark.parametrize("case", EINSUMS)
def test_the_right_side_means_what_it_is_called(case: str) -> None:
    entry, text = EINSUMS[case]
    right = right_of(entry)
    cores = [node for node in right.nodes if isinstance(node, NamedTensor)]
    free = dict.fromkeys(label for node in cores for label in node.labels)
    sizes = dict(zip(free, itertools.cycle((3, 2, 4, 5) if len(free) > 6 else (2, 3, 4, 5, 6, 7)), strict=False))
    right = with_sizes(right, sizes)
    values = random_values(right, seed=3)
    expected = by_einsum(text, values)
    # sums of at most 2000 products of normal numbers, in another order
    torch.testing.assert_close(evaluate(right, values), expected, rtol=1e-12, atol=1e-11)


TREES = {
    "tucker": (tucker, {}),
    "tucker of the window": (lambda labels: tucker(labels, labels.split()[-1]), {}),
    "tucker2": (tucker2, {}),
    "tensor_train": (tensor_train, {}),
    "another order": (lambda labels: tensor_train(labels, order=reversed(labels.split())), {}),
    "hierarchical_tucker": (hierarchical_tucker, {}),
    "reshaped_train": (reshaped_train, {"o1": 2, "i1": 3}),
}
"""Families whose right side is a tree, with sizes of parts."""

SHAPES = {LINEAR: (8, 6), ONE: (8, 6, 5), TWO: (8, 6, 3, 2), THREE: (8, 6, 3, 2, 4)}


@pytest.mark.parametrize("labels", SHAPES)
@pytest.mark.parametrize("family", TREES)
def test_a_tree_of_full_rank_is_the_kernel(family: str, labels: str) -> None:
    make: Any
    make, sizes = TREES[family]
    entry = make(labels)
    kernel = gaussian(*SHAPES[labels])
    fit = entry.apply({"K": kernel}, ranks=dict.fromkeys(entry.ranks, KeepFraction(1)), sizes=sizes)
    check_claim(fit)
    assert fit.relative_error <= 1e-12
    torch.testing.assert_close(fit.dense(), kernel, rtol=0, atol=1e-12)


# Groups ------------------------------------------------------------------------------------------------------


def test_per_group_takes_the_groups_as_torch_stores_them() -> None:
    """Each group of a grouped convolution's kernel is the decomposition with that group's cores."""
    right = with_sizes(right_of(per_group(cp(ONE))), {"g": 3, "m": 2, "in": 4, "k": 5, "r": 6})
    values = random_values(right, seed=4)
    dense = evaluate(right, values)
    alone = with_sizes(right_of(cp(ONE)), {"out": 2, "in": 4, "k": 5, "r": 6})
    for group, part in enumerate(dense.chunk(3)):  # torch: the output channels of group 0, then those of group 1, ...
        expected = evaluate(alone, {name: value[group] for name, value in values.items()})
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "equation"),
    [
        (tucker2(TWO), "K[out in kh kw] => Fuse[out g m] U[g m a] G[g a b kh kw] V[g b in] -> [out in kh kw]"),
        (
            "K[o in *k] => A[o g] B[g in *k]",
            "K[o in *k] => Fuse[o g_2 m] A[g_2 m g] B[g_2 g in *k]",
        ),
        (
            "K[out in] => Fuse[out o1 o2] A[o1 r] B[r o2 in]",
            "K[out in] => Fuse[out g o1 o2] A[g o1 r] B[g r o2 in]",
        ),
        ("K[out in] => A[out r] A[in r]", "K[out in] => Fuse[out g m] A[g m r] A[g in r]"),
    ],
)
def test_per_group(given: Rule | str, equation: str) -> None:
    assert per_group(given).equation == equation


def test_per_group_of_another_label_and_names() -> None:
    entry = per_group(cp("in out k"), label="in")
    assert entry.equation == "K[in out k] => Fuse[in g m] A[g m r] B[g out r] C[g k r]"
    assert entry.name == "cp per group"
    assert set(entry.ranks) == {"r"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: per_group(cut("out | in")), "is not in the notation"),
        (lambda: per_group("A[i b] B[b j] => T[i j]"), "because: its left side is not one tensor"),
        (lambda: per_group("K[i j] => K[i b] B[b j]"), "because: 'K' stands on both sides"),
        (lambda: per_group(cp(TWO), label="k"), "there is no label 'k' to split"),
        (lambda: per_group("K[out *k] => A[out r] B[r *k]", label="k"), "there is no label 'k' to split"),
    ],
)
def test_per_group_refuses(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make()


# Factors of a size -------------------------------------------------------------------------------------------


def factorisations(size: int, count: int) -> list[tuple[int, ...]]:
    if count == 1:
        return [(size,)]
    return [
        (first, *rest)
        for first in range(1, size + 1)
        if size % first == 0
        for rest in factorisations(size // first, count - 1)
    ]


@given(st.integers(1, 400), st.integers(1, 4))
def test_balanced_factors_are_the_most_equal(size: int, count: int) -> None:
    every = {tuple(sorted(factors, reverse=True)) for factors in factorisations(size, count)}
    assert balanced_factors(size, count) == min(every)


@pytest.mark.parametrize(
    ("size", "count", "factors"),
    [
        (64, 2, (8, 8)),
        (64, 3, (4, 4, 4)),
        (72, 3, (6, 4, 3)),
        (7, 3, (7, 1, 1)),
        (1, 2, (1, 1)),
        (2048, 11, (2,) * 11),
        (2**40, 3, (2**14, 2**13, 2**13)),
        (1_000_003, 2, (1_000_003, 1)),
    ],
)
def test_balanced_factors(size: int, count: int, factors: tuple[int, ...]) -> None:
    assert balanced_factors(size, count) == factors


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        (0, 2, "the size is 0"),
        (8, 0, "the number of parts is 0"),
        (8, 65, "the number of parts is 65\n  fix: an integer from 1 to 64"),
        (8.0, 2, "the size is 8.0"),
    ],
)
def test_what_has_no_factors(size: Any, count: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        balanced_factors(size, count)


# Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cp("out"), "a tensor of 1 labels has no decomposition"),
        (lambda: cp(""), "a tensor of 0 labels"),
        (lambda: cp("out in out"), "the label 'out' stands twice"),
        (lambda: tucker(TWO, "out k"), "the mode 'k' is none of the labels\n  labels: out in kh kw"),
        (lambda: tucker(TWO, "out out"), "the mode 'out' stands twice"),
        (lambda: tucker(TWO, ""), "no mode is given"),
        (lambda: block_term(TWO, "o i"), "the mode 'o' is none of the labels"),
        (lambda: tensor_train(TWO, order="out in"), "the order holds other labels"),
        (lambda: tensor_ring(LINEAR), "a ring of 2 cores is a cut whose bond is two bonds"),
        (lambda: reshaped_ring("a b", {"a": 2}), None),
        (lambda: reshaped_ring("a b", {"a": 2, "b": 2}), "a ring of 2 cores"),
        (lambda: reshaped_train(TWO, {}), "no label is given"),
        (lambda: reshaped_train(TWO, {"out": 1}), "the number of parts of 'out' is 1\n  fix: an integer from 2 to 64"),
        (lambda: reshaped_train(TWO, {"o": 2}), "the label 'o' is none of the labels"),
        (lambda: matrix_product_operator(TWO), "a matrix product operator has two labels, no window"),
        (lambda: matrix_product_operator(LINEAR, 1), "the number of parts of 'out' is 1"),
        (lambda: monarch(ONE), "a Monarch matrix has two labels, no window"),
        (lambda: spatially_separable(ONE), "a window of fewer than two labels cannot be separated"),
        (lambda: depthwise_separable(LINEAR), "a linear layer has no window"),
        (lambda: projection(LINEAR), "no label is projected"),
        (lambda: projection(TWO, {"k": "dct"}), "the label 'k' is none of the labels"),
        (lambda: hierarchical_tucker(LINEAR, ("out", "in", "in")), "'in' stands 2 times in the tree"),
        (lambda: hierarchical_tucker(TWO, ("out", "in")), "'kh' stands 0 times in the tree"),
        (lambda: hierarchical_tucker(LINEAR, (("out", "in"),)), "is no branch of a tree"),
        (lambda: hierarchical_tucker(LINEAR, ["out", "in"]), "is no branch of a tree"),
        (lambda: hierarchical_tucker(LINEAR, ((("a", "b"), "c"), "d")), "the tree is deeper than its labels"),
    ],
)
def test_labels_that_make_no_sense(make: Callable[[], Rule], message: str | None) -> None:
    if message is None:
        assert right_of(make()).output == ("a", "b")
        return
    with pytest.raises(RuleError, match=re.escape(message)):
        make()


def test_a_label_is_a_word() -> None:
    with pytest.raises(NetworkError, match="label '3' is not a word"):
        cp("out 3")


def test_the_number_of_groups_is_not_guessed() -> None:
    grouped = per_group(tucker2("out in kh kw"))
    with pytest.raises(RuleError, match="the rule 'tucker2 per group' needs the size of 'g'\n  fix: sizes="):
        grouped.apply({"K": gaussian(12, 4, 3, 3)}, ranks={"a": 2, "b": 2})


def test_constants_stay_constants_in_each_group() -> None:
    grouped = per_group(projection("out in kh kw"))
    fit = grouped.apply({"K": gaussian(6, 4, 3, 3)}, sizes={"g": 2}, ranks={"c": 3, "d": 3})
    assert fit.relative_error < 1e-12
    assert dict(grouped.fixed) == {"P": "dct", "Q": "dct"}
