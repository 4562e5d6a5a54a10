"""Cuts, truncations and rules in the notation: what they claim is what is measured, and the best there is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise, product
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import random_values, valued_networks
from torch import Tensor

from tnalgebra.bipartition import Bipartition
from tnalgebra.decompositions import all_cuts, cut, cut_sequence, rule, truncate
from tnalgebra.decompositions.cuts import Form
from tnalgebra.decompositions.trees import grow
from tnalgebra.errors import NetworkError, RankError, RuleError, SizeError, TnalgebraError, ValuesError
from tnalgebra.evaluation import evaluate, magnitude
from tnalgebra.network import Network, carriers, parameters
from tnalgebra.nodes import NamedTensor, Node
from tnalgebra.notation import parse
from tnalgebra.ranks import KeepFraction, ParameterBudget, Rank, RelativeError
from tnalgebra.rewriting import Fit, Rule, Trace
from tnalgebra.valuation import relative

SIZES = {"out": 7, "in": 5, "kh": 3, "kw": 2}
SEVEN = [
    "out | in kh kw",
    "in | out kh kw",
    "kh | out in kw",
    "kw | out in kh",
    "out in | kh kw",
    "out kh | in kw",
    "out kw | in kh",
]

Matrix: TypeAlias = NDArray[np.float64]
Case: TypeAlias = tuple[Rule, dict[str, Matrix], Tensor]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KERNEL = gaussian(*SIZES.values())


@st.composite
def tensors(draw: st.DrawFn, axes: int) -> Tensor:
    """Axes of different sizes in any order; of any rank, or with a spectrum that falls fast, or of small integers."""
    shape = draw(st.permutations((2, 3, 4, 5, 6)))[:axes]
    tensor = gaussian(*shape, seed=draw(st.integers(0, 2**32 - 1)))
    match draw(st.integers(0, 3)):
        case 1:  # low rank
            vectors = [gaussian(size, 2, seed=draw(st.integers(0, 2**32 - 1))) for size in shape]
            tensor = torch.ones(2, dtype=torch.float64)
            for vector in vectors:
                tensor = tensor.unsqueeze(-2) * vector
            tensor = tensor.sum(-1)
        case 2:  # falling fast
            for axis, size in enumerate(shape):
                decay = 0.1 ** torch.arange(size, dtype=torch.float64)
                tensor = tensor * decay.reshape([-1 if other == axis else 1 for other in range(axes)])
        case 3:  # equal values
            tensor = tensor.round()
    return tensor * draw(st.sampled_from((1.0, 1.0, 1e-150, 1e150)))


def unfolding(tensor: Tensor, labels: str, rows: str) -> Matrix:
    """The matrix whose rows are numbered by the labels `rows`, with numpy alone."""
    order = labels.split()
    left = rows.split()
    array = np.transpose(
        tensor.double().numpy(), [order.index(x) for x in (*left, *(y for y in order if y not in left))]
    )
    return array.reshape(math.prod(array.shape[: len(left)]), -1)


def tail(matrix: Matrix, rank: int) -> float:
    """Relative error of the best matrix of a rank."""
    values = np.linalg.svd(matrix, compute_uv=False)
    values = values / (values[0] or 1)
    return float(np.linalg.norm(values[rank:]) / (np.linalg.norm(values) or 1))


def check_claim(fit: Fit) -> None:
    """The reported error is the measured one, and the sizes are those of the values."""
    *_, step = fit.trace.steps
    assert step.relative_error == pytest.approx(fit.relative_error, rel=1e-6, abs=1e-9)
    for node in fit.network.nodes:
        if isinstance(node, NamedTensor):
            assert tuple(fit.values[node.name].shape) == tuple(fit.network.sizes[label] for label in node.labels)
    assert fit.parameters == sum(value.numel() for value in fit.values.values())
    assert fit.network.output == fit.trace.start.output


# Cuts -------------------------------------------------------------------------------------------------------

sides = st.permutations(["a", "b", "c", "d"]).flatmap(
    lambda labels: st.integers(1, 3).map(lambda at: (labels[:at], labels[at:]))
)


@given(tensors(4), sides, st.data(), st.sampled_from(("factors", "svd")))
def test_a_cut_is_the_best_of_its_rank(
    kernel: Tensor, halves: tuple[list[str], list[str]], data: st.DataObject, form: Form
) -> None:
    left, right = (" ".join(side) for side in halves)
    matrix = unfolding(kernel, "a b c d", left)
    rank = data.draw(st.integers(1, min(matrix.shape)))
    fit = cut(f"{left} | {right}", of="K[a b c d]", form=form).apply({"K": kernel}, ranks={"r": rank})
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail(matrix, rank), rel=1e-6, abs=1e-10)
    rows, columns = matrix.shape
    assert fit.parameters == rank * (rows + columns + (form == "svd"))
    if rank == min(matrix.shape):
        assert fit.relative_error <= 1e-10


@given(st.sampled_from(SEVEN), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from((1e-6, 1e-3, 0.1)))
def test_no_other_factors_of_a_cuts_rank_are_nearer(text: str, rank: int, seed: int, step: float) -> None:
    kernel = gaussian(*SIZES.values(), seed=seed)
    assume(rank <= min(unfolding(kernel, " ".join(SIZES), text.partition("|")[0]).shape))
    fit = cut(text).apply({"K": kernel}, ranks=rank)
    moved = {name: value + step * gaussian(*value.shape, seed=seed + 1) for name, value in fit.values.items()}
    assert relative(evaluate(fit.network, moved) - kernel, kernel) >= fit.relative_error * (1 - 1e-12)


@given(tensors(3), st.sampled_from(("out | in k", "out k | in", "k | in out", "k in | out")))
def test_the_error_of_a_cut_falls_with_its_rank(kernel: Tensor, text: str) -> None:
    full = min(unfolding(kernel, "out in k", text.partition("|")[0]).shape)
    errors = [cut(text).apply({"K": kernel}, ranks=rank).relative_error for rank in range(1, full + 1)]
    assert all(later <= earlier + 1e-10 for earlier, later in pairwise(errors))
    assert errors[-1] <= 1e-10


def test_all_cuts_of_a_kernel_are_seven() -> None:
    assert [entry.name for entry in all_cuts("out in kh kw")] == SEVEN
    assert [entry.name for entry in all_cuts(parse("G[out a] V[a in kh kw]"))] == SEVEN
    for count in range(2, 7):
        labels = [f"x{number}" for number in range(count)]
        cuts = all_cuts(labels)
        assert len(cuts) == 2 ** (count - 1) - 1
        bipartitions = {frozenset(map(frozenset, (side.split() for side in entry.name.split("|")))) for entry in cuts}
        assert len(bipartitions) == len(cuts)
    assert all_cuts("out") == []
    for entry in all_cuts("o i h"):  # the left side is known, in this order
        assert entry.apply({"K": gaussian(4, 3, 2)}, ranks=1).trace.start == parse("K[o:4 i:3 h:2]")


@given(tensors(4), st.sampled_from(SEVEN), st.sampled_from(("factors", "svd")), st.floats(0.05, 1))
def test_a_budget_of_a_cut_is_used_up_and_not_exceeded(kernel: Tensor, text: str, form: Form, fraction: float) -> None:
    matrix = unfolding(kernel, " ".join(SIZES), text.partition("|")[0])
    each = sum(matrix.shape) + (form == "svd")
    if fraction * matrix.size < each:
        with pytest.raises(RankError, match=f"rank 1 takes {each}\n"):
            cut(text, form=form).apply({"K": kernel}, ranks=ParameterBudget(fraction))
        return
    fit = cut(text, form=form).apply({"K": kernel}, ranks=ParameterBudget(fraction))
    assert fit.parameters <= fraction * matrix.size
    assert fit.parameters + each > fraction * matrix.size or fit.network.sizes["r"] == min(matrix.shape)


@pytest.mark.parametrize(
    ("labels", "count"), [("out in", 1), ("out in k", 3), ("out in kh kw", 7), ("out in kd kh kw", 15)]
)
def test_kernels_of_any_dimension(labels: str, count: int) -> None:
    kernel = gaussian(*(2, 3, 4, 5, 6)[: len(labels.split())])
    cuts = all_cuts(labels)
    assert len(cuts) == count
    for entry in cuts:
        left = entry.name.partition("|")[0]
        fit = entry.apply({"K": kernel}, ranks=2)
        assert fit.relative_error == pytest.approx(tail(unfolding(kernel, labels, left), 2), rel=1e-9, abs=1e-12)
        assert fit.network.output == tuple(labels.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out kh | in kw", "L[out:7 kh:3 r:2] R[r in:5 kw:2] -> [out in kh kw]"),
        ("in kw | out kh", "L[in:5 kw:2 r:2] R[r out:7 kh:3] -> [out in kh kw]"),
        ("kw, in | kh, out", "L[kw:2 in:5 r:2] R[r kh:3 out:7] -> [out in kh kw]"),
        ("out|in kh kw", "L[out:7 r:2] R[r in:5 kh:3 kw:2]"),
    ],
)
def test_a_cut_is_written_with_its_sides_as_given(text: str, expected: str) -> None:
    fit = cut(text).apply({"K": KERNEL}, ranks=2)
    assert str(fit.network) == expected
    assert fit.dense().shape == KERNEL.shape
    check_claim(fit)
    left, right = (side.replace(",", " ").split() for side in text.split("|"))
    assert cut(Bipartition(tuple(left), tuple(right))).name == cut(text).name


def test_the_factors_of_a_cut_share_the_singular_values() -> None:
    values = np.linalg.svd(unfolding(KERNEL, "out in kh kw", "out kh"), compute_uv=False)[:3]
    fit = cut("out kh | in kw").apply({"K": KERNEL}, ranks=3)
    left, right = fit.values["L"].reshape(21, 3), fit.values["R"].reshape(3, 10)
    expected = torch.diag(torch.from_numpy(values))
    torch.testing.assert_close(left.mT @ left, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(right @ right.mT, expected, rtol=1e-12, atol=1e-12)


def test_the_svd_form_has_isometries_and_the_singular_values() -> None:
    values = np.linalg.svd(unfolding(KERNEL, "out in kh kw", "out kh"), compute_uv=False)[:3]
    fit = cut("out kh | in kw", form="svd").apply({"K": KERNEL}, ranks=3)
    assert str(fit.network) == "U[out:7 kh:3 r:3] S[r] V[r in:5 kw:2] -> [out in kh kw]"
    U, V = fit.values["U"].reshape(21, 3), fit.values["V"].reshape(3, 10)
    torch.testing.assert_close(U.mT @ U, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(V @ V.mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(fit.values["S"], torch.from_numpy(values), rtol=1e-12, atol=0)


@given(valued_networks(min_nodes=2), st.data())
def test_a_cut_of_any_network_is_the_best_of_its_rank(
    example: tuple[Network, dict[str, Tensor]], data: st.DataObject
) -> None:
    """Reserved nodes, hyperedges, ties: it is contracted first."""
    network, values = example
    assume(len(network.output) > 1)
    labels = data.draw(st.permutations(network.output))
    at = data.draw(st.integers(1, len(labels) - 1))
    fit = cut(Bipartition(tuple(labels[:at]), tuple(labels[at:]))).apply(network, values, ranks=KeepFraction(0.5))
    dense = evaluate(network, values)
    matrix = unfolding(dense, " ".join(network.output), " ".join(labels[:at]))
    rank = fit.trace.steps[0].change.ranks["r"]
    assert rank == max(1, round(0.5 * min(matrix.shape)))
    assert fit.network.output == network.output
    rounding = 1e-12 * float(magnitude(network, values).norm())
    best = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])
    assert float((fit.dense() - dense).norm()) == pytest.approx(best, rel=1e-6, abs=rounding + 1e-10)
    assert fit.trace.steps[0].relative_error == pytest.approx(fit.relative_error, rel=1e-6, abs=1e-9)


def test_a_cut_of_a_network_takes_names_that_are_free() -> None:
    fit = cut("out r | in").apply(
        parse("L[out b] R[b in r] U[r] -> [out in r]"), values_of("L[out:4 b:3] R[b in:5 r:2] U[r]"), ranks=2
    )
    assert str(fit.network) == "L_2[out:4 r:2 r_2:2] R_2[r_2 in:5] -> [out in r]"


def values_of(text: str, seed: int = 0) -> dict[str, Tensor]:
    return random_values(parse(text), seed)


def test_cuts_follow_one_another() -> None:
    first, second = cut_sequence("out kh | in kw then out | in kh kw")
    assert (first.name, second.name) == ("out kh | in kw", "out | in kh kw")
    one = first.apply({"K": KERNEL}, ranks=4)
    two = one.then(second, ranks=3)
    assert str(two.network) == "L_2[out:7 r_2:3] R_2[r_2 in:5 kh:3 kw:2]"
    assert two.trace.steps[1].relative_error == pytest.approx(tail(unfolding(one.dense(), "out in kh kw", "out"), 3))
    assert two.relative_error == pytest.approx(relative(two.dense() - KERNEL, KERNEL), rel=1e-12)
    torch.testing.assert_close(two.dense(), second.apply({"K": one.dense()}, ranks=3).dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cut("out in"), RuleError, "a cut has one '|', here are 0"),
        (lambda: cut("out | in | kh"), RuleError, "a cut has one '|', here are 2"),
        (lambda: cut("| in"), RuleError, "the left side of a cut is empty"),
        (lambda: cut("out | out"), RuleError, "the label 'out' stands twice in a cut"),
        (lambda: cut("out | in", form="qr"), RuleError, "the form of a cut is 'qr'\n  fix: 'factors' or 'svd'"),  # type: ignore[arg-type]
        (lambda: cut("a | b", of="K[a b c]"), RuleError, "the label 'c' is missing in the cut"),
        (lambda: cut("a | b", of="K[a c]"), RuleError, "the cut names an unknown label 'b'"),
        (
            lambda: cut("out | in").apply({"K": KERNEL}, ranks=2),
            ValuesError,
            "the value of 'K' has 4 axes, its node has 2",
        ),
        (lambda: cut("a | b").apply({"K": KERNEL}, ranks=2), RuleError, "the cut names an unknown label 'a'\n"),
        (lambda: cut("a | b").apply({"K": KERNEL[0, 0, 0]}, ranks=2), RuleError, "it is not known what is cut"),
        (lambda: cut("a | b").apply({"K": 3.0}, ranks=2), RuleError, "it is not known what is cut"),
        (lambda: cut("a | b").apply({"K": KERNEL, "L": KERNEL}, ranks=2), RuleError, "it is not known what is cut"),
        (lambda: cut("out | in").apply(parse("K[out in k]")), RuleError, "the label 'k' is missing in the cut"),
        (lambda: cut("a b | c d", of="K[a b c d]").apply({"K": KERNEL}), RankError, "no rank for 'r'"),
        (
            lambda: cut("out | in kh kw").apply({"K": KERNEL}, ranks=8),
            RankError,
            "rank 8 of bond 'r' is outside 1 to 7",
        ),
        (
            lambda: cut("out | in kh kw").apply({"K": KERNEL}, ranks=0),
            RankError,
            "rank 0 of bond 'r' is outside 1 to 7",
        ),
        (lambda: cut("out | in kh kw").apply({"K": KERNEL}, ranks=0.5), RankError, "an integer, or KeepFraction(0.5)"),
        (lambda: cut("out | in kh kw").apply({"K": KERNEL}, ranks=True), RankError, "the rank of bond 'r' is True"),
        (lambda: cut("out | in kh kw").apply({"K": KERNEL}, ranks={"s": 2}), RuleError, "has no bond 's'\n  known: r"),
        (lambda: cut("out | in kh kw").apply({"K": KERNEL / 0}, ranks=2), ValuesError, "holds NaN or infinity"),
    ],
)
def test_what_a_cut_refuses(call: Callable[[], object], error: type[TnalgebraError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


# Any dtype, any shape ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_factors_have_the_type_of_the_kernel(dtype: torch.dtype, epsilon: float) -> None:
    kernel = KERNEL.to(dtype)
    tucker = rule(TREES["tucker2"][0])
    matrix = parse("A[i b] B[b j]"), {"A": kernel[:, :, 0, 0], "B": kernel[0, :, :, 0]}
    for fit in (
        cut("out kh | in kw").apply({"K": kernel}, ranks=10),
        tucker.apply({"K": kernel}, ranks={"a": 7, "b": 5}),
        truncate("b").apply(*matrix, ranks=3),
    ):
        assert all(value.dtype == dtype for value in fit.values.values())
        assert fit.trace.steps[0].relative_error < 1e-12  # of the numbers as they are in float64
        assert fit.relative_error < epsilon
        assert fit.dense().dtype == dtype


def test_a_kernel_of_zeros_has_an_error_of_zero() -> None:
    kernel = torch.zeros(7, 5, 3, 2)
    ranks: list[Rank] = [1, KeepFraction(0.5), RelativeError(0.1), ParameterBudget(0.5)]
    for rank in ranks:
        fit = cut("out kh | in kw").apply({"K": kernel}, ranks=rank)
        assert fit.relative_error == fit.trace.steps[0].relative_error == 0
        assert torch.equal(fit.dense(), kernel)
    tucker = rule(TREES["tucker2"][0]).apply({"K": kernel}, ranks=ParameterBudget(0.5))
    assert tucker.relative_error == 0
    assert torch.equal(tucker.dense(), kernel)
    network = parse("A[i b] B[b j]")
    assert (
        truncate("b").apply(network, {"A": kernel[0, 0], "B": kernel[0, 0].mT}, ranks=RelativeError(0.1)).relative_error
        == 0
    )


@pytest.mark.parametrize("shape", list(product((1, 4), (1, 3), (1, 2), (1,))))
def test_axes_of_one_element(shape: tuple[int, ...]) -> None:
    kernel = gaussian(*shape)
    for text in SEVEN:
        fit = cut(text).apply({"K": kernel}, ranks=KeepFraction(1))
        assert fit.relative_error < 1e-10
        check_claim(fit)
    for text, _ in TREES.values():
        if text.startswith("K[o i h w]"):
            entry = rule(text)
            fit = entry.apply({"K": kernel}, ranks=dict.fromkeys(entry.ranks, KeepFraction(1)))
            assert fit.relative_error < 1e-10
            check_claim(fit)


# Trees ------------------------------------------------------------------------------------------------------

TREES: dict[str, tuple[str, dict[str, str]]] = {
    "two cores": ("K[o i] => L[o r] R[r i]", {"r": "o"}),
    "turned": ("K[o i] => L[r i] R[o r]", {"r": "o"}),
    "tucker2": ("K[o i h w] => U[o a] G[a b h w] V[b i]", {"a": "o", "b": "i"}),
    "tucker": (
        "K[o i h w] => G[a b c d] U[o a] V[i b] P[h c] Q[w d]",
        {"a": "o", "b": "i", "c": "h", "d": "w"},
    ),
    "train": ("K[o i h w] => A[o p] B[p i q] C[q h s] D[s w]", {"p": "o", "q": "o i", "s": "w"}),
    "train in another order": (
        "K[o i h w] => A[h p] B[q p o] C[s w q] D[i s]",
        {"p": "h", "q": "h o", "s": "i"},
    ),
    "hierarchical": (
        "K[o i h w] => U[o a] V[i b] P[h c] Q[w d] S[a b e] T[c d e]",
        {"a": "o", "b": "i", "c": "h", "d": "w", "e": "o i"},
    ),
    "star": ("K[o i h] => G[a b c] U[a o] V[b i] P[c h]", {"a": "o", "b": "i", "c": "h"}),
    "1-d": ("K[o i k] => A[o p] B[k q] C[p i q]", {"p": "o", "q": "k"}),
    "3-d": (
        "K[o i d h w] => U[o a] G[a b e] V[b i] P[e d f] Q[f h w]",
        {"a": "o", "b": "i", "e": "o i", "f": "h w"},
    ),
}
"""Rule, and for each bond the open labels on one side of it."""


@st.composite
def tree_cases(draw: st.DrawFn) -> Case:
    """A rule, its kernel, and the kernel's matrix across each bond."""
    text, bonds = TREES[draw(st.sampled_from(list(TREES)))]
    labels = text[2 : text.index("]")]
    kernel = draw(tensors(len(labels.split())))
    return rule(text), {bond: unfolding(kernel, labels, rows) for bond, rows in bonds.items()}, kernel


@given(tree_cases(), st.data())
def test_a_tree_is_nearly_the_best_of_its_ranks(case: Case, data: st.DataObject) -> None:
    """No tree is better than the worst of its bonds alone; this one is at most sqrt(number of bonds) worse."""
    entry, matrices, kernel = case
    assert set(entry.ranks) == set(matrices)
    ranks = {bond: data.draw(st.integers(1, min(matrix.shape)), label=bond) for bond, matrix in matrices.items()}
    fit = entry.apply({"K": kernel}, ranks=ranks)
    check_claim(fit)
    chosen = fit.trace.steps[0].change.ranks
    assert all(1 <= chosen[bond] <= rank for bond, rank in ranks.items())
    tails = [tail(matrix, ranks[bond]) for bond, matrix in matrices.items()]
    assert fit.relative_error <= math.hypot(*tails) * (1 + 1e-9) + 1e-10
    assert fit.relative_error >= max(tails) * (1 - 1e-9) - 1e-10
    if all(ranks[bond] == min(matrix.shape) for bond, matrix in matrices.items()):
        assert fit.relative_error <= 1e-10


@given(tree_cases())
def test_a_tree_of_full_rank_is_the_kernel(
    case: Case,
) -> None:
    entry, matrices, kernel = case
    for rank in (KeepFraction(1), RelativeError(0)):
        fit = entry.apply({"K": kernel}, ranks=dict.fromkeys(matrices, rank))
        check_claim(fit)
        assert fit.relative_error <= 1e-10


@given(tree_cases(), st.sampled_from((0.5, 0.1, 1e-2, 1e-4)))
def test_a_relative_error_holds_at_each_bond(case: Case, error: float) -> None:
    entry, matrices, kernel = case
    fit = entry.apply({"K": kernel}, ranks=dict.fromkeys(matrices, RelativeError(error)))
    check_claim(fit)
    assert fit.relative_error <= error * math.sqrt(len(matrices)) * (1 + 1e-9)
    if len(matrices) == 1:
        ((bond, matrix),) = matrices.items()
        rank = fit.trace.steps[0].change.ranks[bond]
        fewer = tail(matrix, rank - 1)
        assert rank == 1 or fewer > error * (1 - 1e-9) or tail(matrix, rank) < 1e-13


@given(tree_cases(), st.floats(0.05, 1))
def test_a_fraction_is_rounded_at_each_bond(case: Case, fraction: float) -> None:
    entry, matrices, kernel = case
    wanted = {bond: max(1, round(fraction * min(matrix.shape))) for bond, matrix in matrices.items()}
    one = entry.apply({"K": kernel}, ranks=dict.fromkeys(matrices, KeepFraction(fraction)))
    two = entry.apply({"K": kernel}, ranks=wanted)
    assert one.network == two.network
    assert all(torch.equal(one.values[name], value) for name, value in two.values.items())


@given(tree_cases(), st.floats(0.05, 1))
def test_a_budget_is_never_exceeded(case: Case, fraction: float) -> None:
    entry, matrices, kernel = case
    least = entry.apply({"K": kernel}, ranks=dict.fromkeys(matrices, 1)).parameters
    if least > fraction * kernel.numel():
        with pytest.raises(RankError, match=f"rank 1 takes {least}\n"):
            entry.apply({"K": kernel}, ranks=ParameterBudget(fraction))
        return
    fit = entry.apply({"K": kernel}, ranks=ParameterBudget(fraction))
    check_claim(fit)
    assert fit.parameters <= fraction * kernel.numel()


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_a_budget_is_used_up_where_most_is_saved_a_parameter(seed: int, fraction: float) -> None:
    """Each step is the best there is, and at the end nothing fits any more: said again, as slowly as one can."""
    spectra = {
        bond: gaussian(size, seed=seed + size).abs().sort(descending=True)[0].tolist()
        for bond, size in (("b", 5), ("a", 7), ("c", 2))
    }

    def count(ranks: Mapping[str, int]) -> int:
        return 5 * ranks["b"] + 7 * ranks["a"] + 2 * ranks["c"] + math.prod(ranks.values())

    before, ranks = count({"a": 7, "b": 5, "c": 2}), {"a": 1, "b": 1, "c": 1}
    assume(fraction * before >= count(ranks))
    while True:
        larger = [(bond, {**ranks, bond: ranks[bond] + 1}) for bond in ranks if ranks[bond] < len(spectra[bond])]
        fitting = [(bond, more) for bond, more in larger if count(more) <= fraction * before]
        if not fitting:
            break
        saved = {bond: spectra[bond][ranks[bond]] ** 2 / (count(more) - count(ranks)) for bond, more in fitting}
        best = max(saved.values())
        ranks = dict(fitting)[min(bond for bond, value in saved.items() if value == best)]
    assert grow(spectra, count, ParameterBudget(fraction), before) == ranks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K[o i h w] => U[o a] G[a b h w] V[b i]", "U[o:7 a:2] G[a b:2 h:3 w:2] V[b i:5] -> [o i h w]"),
        ("K[o i h w] => A[w p] B[p h i b] C[o b]", "A[w:2 p:2] B[p h:3 i:5 b:2] C[o:7 b] -> [o i h w]"),
    ],
)
def test_a_decomposition_is_written_as_the_rule_writes_it(text: str, expected: str) -> None:
    entry = rule(text)
    fit = entry.apply({"K": KERNEL}, ranks=dict.fromkeys(entry.ranks, 2))
    assert str(fit.network) == expected


def test_a_tucker_form_is_the_truncated_hosvd() -> None:
    fit = rule(TREES["tucker"][0]).apply({"K": KERNEL}, ranks={"a": 7, "b": 5, "c": 3, "d": 1})
    values, vectors = np.linalg.svd(unfolding(KERNEL, "o i h w", "w"))[1::-1]
    assert fit.relative_error == pytest.approx(values[1] / np.linalg.norm(values))
    assert abs(float(fit.values["Q"][:, 0] @ torch.from_numpy(vectors[:, 0]))) == pytest.approx(1)


def test_a_rule_takes_its_target_from_several_tensors() -> None:
    entry = rule("A[i b] B[b j] => L[i r] R[r j]")
    values = {"A": gaussian(40, 2), "B": gaussian(2, 30, seed=1)}
    fit = entry.apply(values, ranks=1)
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail((values["A"] @ values["B"]).numpy(), 1))
    budget = entry.apply(values, ranks=ParameterBudget(0.5))
    assert budget.parameters == 70 <= 0.5 * (80 + 60)  # of the left side's, not of the dense matrix's
    assert cut("i | j").apply(parse("A[i b] B[b j]"), values, ranks=ParameterBudget(0.5)).parameters == 70


# Fuse on the right ------------------------------------------------------------------------------------------

BLOCKS = "W[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]"


@given(st.permutations((2, 3, 4, 5)), st.integers(0, 2**32 - 1), st.data())
def test_blocks_of_a_matrix(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    """Van Loan and Pitsianis 1993: the best sum of Kronecker products is an SVD of the rearranged matrix."""
    o1, o2, i1, i2 = shape
    matrix = gaussian(o1 * o2, i1 * i2, seed=seed)
    rearranged = matrix.reshape(o1, o2, i1, i2).permute(0, 2, 1, 3).reshape(o1 * i1, o2 * i2).numpy()
    rank = data.draw(st.integers(1, min(rearranged.shape)))
    fit = rule(BLOCKS).apply({"W": matrix}, sizes={"o1": o1, "i2": i2}, ranks={"p": rank})
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail(rearranged, rank), rel=1e-6, abs=1e-10)
    products = sum(torch.kron(fit.values["A"][:, :, p], fit.values["B"][p]) for p in range(rank))
    assert isinstance(products, Tensor)
    torch.testing.assert_close(fit.dense(), products, rtol=1e-10, atol=1e-10)
    assert fit.network.sizes["o2"] == o2
    assert parse(str(fit.network)) == fit.network


def test_a_train_over_reshaped_labels() -> None:
    text = "K[out in kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw]"
    kernel = gaussian(12, 10, 3, 2)
    fit = rule(text).apply({"K": kernel}, sizes={"o1": 3, "i1": 2}, ranks={"p": KeepFraction(1), "q": KeepFraction(1)})
    assert fit.relative_error < 1e-10
    assert str(fit.network) == (
        "Fuse[out:12 o1:3 o2:4] Fuse[in:10 i1:2 i2:5] A[o1 i1 p:6] B[p o2 i2 q:6] C[q kh:3 kw:2]"
    )


def test_a_fuse_alone_is_a_reshape() -> None:
    fit = rule("W[out in] => Fuse[out o1 o2] T[o1 o2 in]").apply({"W": gaussian(6, 5)}, sizes={"o1": 2})
    assert torch.equal(fit.values["T"], gaussian(6, 5).reshape(2, 3, 5))
    assert fit.relative_error == 0


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({}, SizeError, "the parts of a Fuse have no sizes"),
        ({"o1": 2}, SizeError, "the parts of a Fuse have no sizes"),
        ({"o1": 4, "i1": 2}, SizeError, "label 'out' of size 6 does not divide into parts of 4"),
        ({"o1": 2, "i1": 2, "i2": 3}, SizeError, "label 'in' has two sizes"),
        ({"o1": 2, "i1": 2, "x": 3}, RuleError, "has no label on its right side 'x'\n  known: out o1 o2 in i1 i2 p"),
        ({"o1": 2.5, "i1": 2}, SizeError, "the size of label 'o1' is 2.5\n  fix: an integer"),
        ({"o1": 0, "i1": 2}, SizeError, "label 'o1' would have size 0"),
    ],
)
def test_sizes_of_parts_that_do_not_fit(sizes: dict[str, int], error: type[TnalgebraError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        rule(BLOCKS).apply({"W": gaussian(6, 8)}, sizes=sizes, ranks={"p": 2})


# Right sides that are no trees ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", "the bonds close a loop"),
        ("K[o i h w] => A[o r] B[i r] C[h r] D[w r]", "the bond 'r' stands on 4 cores, not on 2"),
        ("K[o i h w] => D[i h w] P[o i]", "the open label 'i' stands on 2 cores, not on 1"),
        ("K[o i] => L[o r s] R[r s i]", "two bonds are parallel"),
        ("K[o i] => L[o r] R[i] -> [o i]", "the bond 'r' stands on 1 cores, not on 2"),
        ("K[o i] => L[o] R[i]", "the cores are not connected"),
        ("K[o i] => L[o r] M[r s] N[s t] O[t r2] P[r2 s2] R[s2 i] Q[x] S[x]", "the cores are not connected"),
        ("K[o i] => L[o r] L[r i]", "a core stands twice"),
        ("K[o i] => L[o r] Copy[r s] R[s i]", "a node is neither a core nor a Fuse"),
        ("K[o i] => L[o r] R[r i] Fill[| value=2]", "a node is neither a core nor a Fuse"),
        ("K[o i] => L[o r] Fuse[r s t] R[s t i]", "Fuse[r s t] splits a bond"),
        ("K[o i] V[j] => L[o r] R[r i] V[j]", "the tensor 'V' is not new"),
        ("K[o i] => K[o r] R[r i]", "the tensor 'K' is not new"),
        ("K[o i] => T[o i i]", "the open label 'i' stands on 2 cores, not on 1"),
        ("K[o i] => L[o p p] R[i]", "the cores are not connected"),
        ("K[o i] => L[o p p i]", "the bonds close a loop"),
        ("K[o] => Fuse[o a b] A[o a] B[o b] -> [o]", "the label 'o', which a Fuse splits, stands on a core"),
        ("K[o i] => Fuse[o a a] A[a p] B[p i]", "'a' is a part of two labels, or twice of one"),
        ("K[o i] => Fuse[o i b] A[i p] B[p b]", "'i' is a part of two labels, or twice of one"),
        ("K[o] => Fuse[o a b] A[a] -> [o]", "the open label 'b' stands on 0 cores, not on 1"),
        ("K[o i] => Fuse[o a b] Fuse[a c d] A[c d p] B[p b i]", "Fuse[a c d] splits a bond"),
    ],
)
def test_right_sides_that_are_no_trees(text: str, because: str) -> None:
    message = "the right side is no tree of new cores, which is what can be fitted\n  because: "
    with pytest.raises((RuleError, NetworkError), match=re.escape(message + because) + "\n  rule:    "):
        rule(text)


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        ({"a": 2}, RankError, "no rank for 'b'\n  fix: ranks={'b': ...} or a ParameterBudget"),
        ({}, RankError, "no rank for 'a', 'b'\n"),
        (None, RankError, "no rank for 'a', 'b'\n"),
        (3, RankError, "one rank, 3, for the bonds a b\n  fix: ranks={'a': ..., 'b': ...}"),
        (KeepFraction(0.5), RankError, "one rank, KeepFraction(fraction=0.5), for the bonds a b"),
        ({"a": 8, "b": 1}, RankError, "rank 8 of bond 'a' is outside 1 to 7\n  fix: 7 is full: nothing is lost"),
        ({"a": 0, "b": 1}, RankError, "rank 0 of bond 'a' is outside 1 to 7"),
        ({"a": 0.5, "b": 1}, RankError, "the rank of bond 'a' is 0.5\n  fix: an integer, or KeepFraction(0.5)"),
        ({"a": True, "b": 1}, RankError, "the rank of bond 'a' is True"),
        ({"a": ParameterBudget(0.5), "b": 1}, RankError, "a ParameterBudget is for all bonds of a rule together"),
        ({"a": 2, "b": 2, "c": 2}, RuleError, "the rule 'tucker2' has no bond 'c'\n  known: a b"),
        (
            ParameterBudget(0.05),
            RankError,
            "ParameterBudget(fraction=0.05) allows 10 parameters, rank 1 takes 18\n  fix: a fraction of at least",
        ),
    ],
)
def test_ranks_that_do_not_fit(ranks: dict[str, Rank] | Rank | None, error: type[TnalgebraError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        rule(TREES["tucker2"][0], name="tucker2").apply({"K": KERNEL}, ranks=ranks)


def test_the_least_budget_that_is_named_is_enough() -> None:
    tucker = rule(TREES["tucker2"][0])
    assert tucker.apply({"K": KERNEL}, ranks=ParameterBudget(0.0858)).parameters == 18
    with pytest.raises(RankError, match=r"fix: a fraction of at least 0.0858$"):
        tucker.apply({"K": KERNEL}, ranks=ParameterBudget(0.0857))


# Truncation -------------------------------------------------------------------------------------------------


@st.composite
def trees(draw: st.DrawFn) -> tuple[Network, dict[str, Tensor]]:
    """A random tree of named tensors, each with 0 to 2 open labels, whose bonds may be larger than they need be."""
    count = draw(st.integers(2, 5))
    labels: list[list[str]] = [[] for _ in range(count)]
    sizes: dict[str, int] = {}
    for number in range(1, count):
        bond = f"b{number}"
        sizes[bond] = draw(st.integers(1, 4))
        labels[number].append(bond)
        labels[draw(st.integers(0, number - 1))].append(bond)
    for number in range(count):
        for place in range(draw(st.integers(0, 2))):
            label = f"x{number}{place}"
            sizes[label] = draw(st.sampled_from((2, 3, 1)))
            labels[number].append(label)
    nodes: list[Node] = [
        NamedTensor(f"T{number}", tuple(draw(st.permutations(own)))) for number, own in enumerate(labels)
    ]
    output = draw(st.permutations([label for label in sizes if label.startswith("x")]))
    network = Network(draw(st.permutations(nodes)), output, sizes)
    return network, random_values(network, draw(st.integers(0, 2**32 - 1)))


def sides_of(network: Network, bond: str) -> Iterator[tuple[Network, str]]:
    """The two parts a bond joins, each as a network whose first open label is the bond, and its open labels."""
    for start, _ in carriers(network)[bond]:
        inside, pending = {start}, [start]
        while pending:
            for label in network.nodes[pending.pop()].labels:
                for position, _ in carriers(network)[label]:
                    if label != bond and position not in inside:
                        inside.add(position)
                        pending.append(position)
        nodes = [network.nodes[position] for position in sorted(inside)]
        there = {label for node in nodes for label in node.labels}
        rows = [label for label in network.output if label in there]
        yield Network(nodes, [bond, *rows], {label: network.sizes[label] for label in there}), " ".join(rows)


@given(trees(), st.data())
def test_a_truncated_bond_is_the_svd_across_it(example: tuple[Network, dict[str, Tensor]], data: st.DataObject) -> None:
    network, values = example
    bond = data.draw(st.sampled_from([label for label in carriers(network) if label.startswith("b")]))
    rank = data.draw(st.one_of(st.just(1), st.just(KeepFraction(0.5)), st.just(RelativeError(0.3))))
    fit = truncate(bond).apply(network, values, ranks={bond: rank})
    dense = evaluate(network, values)
    _, rows = next(sides_of(network, bond))
    matrix = unfolding(dense, " ".join(network.output), rows)
    chosen = fit.trace.steps[0].change.ranks[bond]
    assert fit.network.sizes[bond] == chosen
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail(matrix, chosen), rel=1e-6, abs=1e-9)
    assert [(node.name, node.labels) for node in fit.network.nodes] == [(n.name, n.labels) for n in network.nodes]
    assert all(size <= network.sizes[label] for label, size in fit.network.sizes.items())
    grams = []
    for part, _ in sides_of(fit.network, bond):
        flat = evaluate(part, {name: fit.values[name] for name in (node.name for node in part.nodes)}).reshape(
            chosen, -1
        )
        grams.append(flat @ flat.mT)
    scale = float(torch.linalg.vector_norm(dense)) + 1
    singular = torch.from_numpy(np.linalg.svd(matrix, compute_uv=False)[:chosen].copy())
    for gram in grams:  # both sides meet in the square roots of the singular values
        torch.testing.assert_close(gram, torch.diag(singular), rtol=0, atol=1e-9 * scale)


@given(trees())
def test_a_bond_of_full_rank_loses_nothing(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    fit = Fit(network, values, Trace(network, ()))
    for bond in [label for label in carriers(network) if label.startswith("b")]:
        fit = fit.then(truncate(bond), ranks=KeepFraction(1))
    dense = evaluate(network, values)
    assert ((fit.dense() - dense).abs() <= 1e-11 * magnitude(network, values).max()).all()


def test_truncating_leaves_what_does_not_hang_together_with_the_bond() -> None:
    """Hyperedges, ties, loops and reserved nodes are no hindrance elsewhere."""
    text = "A[i:4 b:3] B[b j:5] C[r:2 x:3] D[r y:2] E[r] F[z:2 z] F[u:2 v:2] Conv[p:5 q k:2] -> [i j x y u v q]"
    values = values_of(text)
    fit = truncate("b").apply(parse(text), values, ranks=2)
    assert {name for name in values if not torch.equal(values[name], fit.values[name])} == {"A", "B"}
    check_claim(fit)
    assert fit.trace.steps[0].relative_error == pytest.approx(tail((values["A"] @ values["B"]).numpy(), 2))
    fit.trace.check(values)


def test_a_long_train_is_cut_down_bond_by_bond() -> None:
    text = "A[i:4 b:4] B[b j:5 c:9] C[c k:3 d:6] D[d l:6] -> [i j k l]"
    values = values_of(text)
    fit = truncate("c").apply(parse(text), values, ranks=9)
    fit = fit.then(truncate("b"), ranks=2).then(truncate("d"), ranks=3)
    assert str(fit.network) == "A[i:4 b:2] B[b j:5 c:9] C[c k:3 d:3] D[d l:6]"
    first, *rest = [step.relative_error for step in fit.trace.steps]
    assert first < 1e-12
    assert max(rest) * 0.5 < fit.relative_error < math.hypot(*rest) * 1.0001


@pytest.mark.parametrize(
    ("text", "bond", "message"),
    [
        ("A[z:2 o:3 p:2] B[p i:4 z]", "p", "the bonds close a loop, so no bond is an orthogonality centre"),
        ("A[i:3 b:2 c:2] B[b c j:4]", "b", "the bonds close a loop"),
        ("A[i:3 b:2] B[b x:2 x] -> [i]", "b", "the bonds close a loop"),
        ("A[i:3 b:2] A[j b]", "b", "the node 'A' stands several times"),
        ("A[i:2 b:2] B[b j:2] C[j k:3] C[l:2 m:3] -> [i k l m]", "b", "the node 'C' stands several times"),
        ("A[i:3 b:2] Copy[b c] B[c j:4]", "b", "the node 'Copy' is no named tensor"),
        ("A[i:3 b:2] B[b j:4] Fill[j | value=1] -> [i]", "b", "the node 'Fill' is no named tensor"),
        ("A[i:3 r:2] B[r j:4] C[r k:2] -> [i j k]", "r", "the closed label 'r' stands 3 times"),
        ("A[i:3 b:2] B[b r:2 j:4] C[r k:2] D[r l:2] -> [i j k l]", "b", "the closed label 'r' stands 3 times"),
        ("A[i:3 b:2 x:2] B[b j:4] -> [i j]", "b", "the closed label 'x' stands 1 times"),
        ("A[i:3 b:2] B[b i j:4] -> [i j]", "b", "the open label 'i' stands 2 times"),
        ("A[i:3 b:2] B[b j:4]", "i", "'i' is open, not a bond"),
        ("A[i:3 b:2] B[b j:4]", "x", "there is no bond 'x'\n  labels:  i b j"),
        ("A[i:3 b:2] B[b j:4] -> [i b j]", "b", "the open label 'b' stands 2 times"),
    ],
)
def test_bonds_that_cannot_be_truncated(text: str, bond: str, message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        truncate(bond).apply(parse(text), values_of(text), ranks=1)


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        (4, RankError, "rank 4 of bond 'b' is outside 1 to 3"),
        (0, RankError, "rank 0 of bond 'b' is outside 1 to 3"),
        (None, RankError, "no rank for 'b'"),
        ({"c": 2}, RuleError, "the rule 'truncate b' has no bond 'c'\n  known: b"),
        (ParameterBudget(0.5), RankError, "a ParameterBudget is for all bonds of a rule together"),
        (0.5, RankError, "an integer, or KeepFraction(0.5)"),
    ],
)
def test_ranks_of_a_truncation(ranks: Rank | dict[str, Rank] | None, error: type[TnalgebraError], message: str) -> None:
    """A bond of 5 values between 3 rows and 4 columns has 3 singular values."""
    text = "A[i:3 b:5] B[b j:4]"
    with pytest.raises(error, match=re.escape(message)):
        truncate("b").apply(parse(text), values_of(text), ranks=ranks)


def test_a_bond_is_a_word() -> None:
    with pytest.raises(NetworkError, match="bond 'a b' is not a word"):
        truncate("a b")


def test_parameters_of_a_truncated_tree() -> None:
    text = "A[i:3 b:5] B[b j:4]"
    fit = truncate("b").apply(parse(text), values_of(text), ranks=2)
    assert (parameters(fit.trace.start), fit.parameters) == (35, 14)
