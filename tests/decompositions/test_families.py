"""Families of decompositions: their equations for any labels, their meaning by einsum, groups, factors of a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import gaussian
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.decompositions import (
    block_term,
    cp,
    cut,
    depthwise_separable,
    hierarchical_tucker,
    matrix_product_operator,
    monarch,
    per_group,
    projection,
    reshaped_ring,
    reshaped_train,
    spatially_separable,
    tensor_ring,
    tensor_train,
    tucker,
    tucker2,
)
from tnalgebra.errors import NetworkError, RuleError
from tnalgebra.networks import NamedTensor, Network, carriers, parse_rule, tensor_nodes, with_sizes
from tnalgebra.rewriting import Rule, rule
from tnalgebra.rewriting.sides import balanced_factors
from tnalgebra.tensors import evaluate

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
        (tucker(TWO, "kw out kh"), "tucker out kh kw", "G[a in c d] U[out a] P[kh c] Q[kw d]"),
        (tucker(TWO, "kh kw"), "tucker kh kw", "P[kh c] G[out in c d] Q[d kw]"),
        (tucker2("kh kw in out"), "tucker2", "Q[out d] G[kh kw c d] P[c in]"),
        (tensor_train(TWO, order="kh out in kw"), "tensor_train kh out in kw", "A[kh p] B[p out q] C[q in s] D[s kw]"),
        (tensor_ring(TWO), "tensor_ring", "A[z out p] B[p in q] C[q kh s] D[s kw z]"),
        (
            hierarchical_tucker(TWO, (("out", "kh"), "in", "kw")),
            "hierarchical_tucker ((out kh) in kw)",
            "G[p b d] G1[p a c] U[out a] V[in b] P[kh c] Q[kw d]",
        ),
        (block_term(ONE, ONE), "block_term out in k", "G[a b c t] U[out a t] V[in b t] P[k c t]"),
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
    "tucker 2d": (tucker(TWO), "G:abcd U:oa V:ib P:hc Q:wd -> o i h w"),
    "tucker2 2d": (tucker2(TWO), "U:oa G:abhw V:bi -> o i h w"),
    "tucker2 3d": (tucker2(THREE), "U:oa G:ablhw V:bi -> o i l h w"),
    "cp linear": (cp(LINEAR), "A:or B:ir -> o i"),
    "cp 2d": (cp(TWO), "A:or B:ir C:hr D:wr -> o i h w"),
    "train linear": (tensor_train(LINEAR), "A:op B:pi -> o i"),
    "train 2d in another order": (tensor_train(TWO, order="kh out kw in"), "A:hp B:poq C:qws D:si -> o i h w"),
    "train 3d": (tensor_train(THREE), "A:op B:piq C:qls D:sht E:tw -> o i l h w"),
    "ring 1d": (tensor_ring(ONE), "A:zop B:piq C:qkz -> o i k"),
    "ring 3d": (tensor_ring(THREE), "A:zop B:piq C:qls D:sht E:twz -> o i l h w"),
    "hierarchical 1d": (hierarchical_tucker(ONE), "G:ap G1:pbc U:oa V:ib P:kc -> o i k"),
    "hierarchical 2d": (hierarchical_tucker(TWO), "G:pq G1:pab G2:qcd U:oa V:ib P:hc Q:wd -> o i h w"),
    "block term linear": (block_term(LINEAR), "U:oat G:abt V:bit -> o i"),
    "block term 2d": (block_term(TWO), "U:oat G:abhwt V:bit -> o i h w"),
    "reshaped train 1d": (reshaped_train(ONE), "A:xyp B:puvq C:qk -> xu yv k"),
    "reshaped train 3d": (reshaped_train(THREE), "A:xyp B:puvq C:qlhw -> xu yv l h w"),
    "reshaped ring 2d": (reshaped_ring(TWO), "A:zxyp B:puvq C:qhwz -> xu yv h w"),
    "reshaped ring linear": (reshaped_ring(LINEAR), "A:zxyp B:puvq C:qstz -> xus yvt"),
    "mpo of three": (matrix_product_operator(LINEAR, 3), "A:xyp B:puvq C:qst -> xus yvt"),
    "monarch": (monarch(), "R:aji L:jba -> bj ai"),
    "separable 3d": (spatially_separable(THREE), "A:oil B:oih C:oiw -> o i l h w"),
    "depthwise 2d": (depthwise_separable(TWO), "D:ihw P:oi -> o i h w"),
    "dct 2d": (projection(TWO), "G:oicd P:ch Q:dw -> o i h w"),
    "tucker2 for each group": (per_group(tucker2(TWO)), "U:gma G:gabhw V:gbi -> gm i h w"),
    "depthwise for each group": (per_group(depthwise_separable(ONE)), "D:gik P:gmi -> gm i k"),
    "train over parts for each group": (per_group(reshaped_train(ONE)), "A:gxyp B:gpuvq C:gqk -> gxu yv k"),
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
        ("K[o in *k] => A[o g] B[g in *k]", "K[o in *k] => Fuse[o g_2 m] A[g_2 m g] B[g_2 g in *k]"),
        ("K[out in] => Fuse[out o1 o2] A[o1 r] B[r o2 in]", "K[out in] => Fuse[out g o1 o2] A[g o1 r] B[g r o2 in]"),
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
    [(72, 3, (6, 4, 3)), (2048, 11, (2,) * 11), (2**40, 3, (2**14, 2**13, 2**13)), (1_000_003, 2, (1_000_003, 1))],
)
def test_balanced_factors_of_large_sizes(size: int, count: int, factors: tuple[int, ...]) -> None:
    assert balanced_factors(size, count) == factors


# Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: cp("out"), "1 labels"),
        (lambda: cp(""), "0 labels"),
        (lambda: cp("out in out"), "'out'"),
        (lambda: tucker(TWO, "out k"), "'k';out in kh kw"),
        (lambda: tucker(TWO, "out out"), "'out'"),
        (lambda: tucker(TWO, ""), "mode"),
        (lambda: tensor_train(TWO, order="out in"), "order"),
        (lambda: tensor_ring(LINEAR), "three cores"),
        (lambda: reshaped_ring("a b", {"a": 2, "b": 2}), "three cores"),
        (lambda: reshaped_train(TWO, {}), "label"),
        (lambda: reshaped_train(TWO, {"out": 1}), "'out';1;2 to 64"),
        (lambda: reshaped_train(TWO, {"o": 2}), "'o'"),
        (lambda: matrix_product_operator(TWO), "two labels"),
        (lambda: matrix_product_operator(LINEAR, 1), "'out';1"),
        (lambda: monarch(ONE), "two labels"),
        (lambda: spatially_separable(ONE), "two labels"),
        (lambda: depthwise_separable(LINEAR), "window"),
        (lambda: projection(LINEAR), "label"),
        (lambda: projection(TWO, {"k": "dct"}), "'k'"),
        (lambda: hierarchical_tucker(LINEAR, ("out", "in", "in")), "'in';2 times"),
        (lambda: hierarchical_tucker(TWO, ("out", "in")), "'kh';0 times"),
        (lambda: hierarchical_tucker(LINEAR, (("out", "in"),)), "branch"),
        (lambda: hierarchical_tucker(LINEAR, ["out", "in"]), "branch"),
        (lambda: hierarchical_tucker(LINEAR, ((("a", "b"), "c"), "d")), "deeper"),
        (lambda: per_group(cut("out | in")), "notation"),
        (lambda: per_group("A[i b] B[b j] => T[i j]"), "left side"),
        (lambda: per_group("K[i j] => K[i b] B[b j]"), "'K'"),
        (lambda: per_group(cp(TWO), label="k"), "'k'"),
        (lambda: per_group("K[out *k] => A[out r] B[r *k]", label="k"), "'k'"),
    ],
)
def test_labels_that_make_no_sense(make: Callable[[], Rule], facts: str) -> None:
    with refused(RuleError, *facts.split(";")):
        make()


def test_a_label_is_a_word() -> None:
    with refused(NetworkError, "'3'"):
        cp("out 3")


def test_groups_have_a_size_and_keep_their_constants() -> None:
    with refused(RuleError, "'tucker2 per group'", "'g'", "sizes="):
        per_group(tucker2(TWO)).apply({"K": gaussian(12, 4, 3, 3)}, {"a": 2, "b": 2})
    grouped = per_group(projection(TWO))
    fit = grouped.apply({"K": gaussian(6, 4, 3, 3)}, {"c": 3, "d": 3}, sizes={"g": 2})
    assert fit.relative_error < 1e-12
    assert dict(grouped.fixed) == {"P": "dct", "Q": "dct"}
