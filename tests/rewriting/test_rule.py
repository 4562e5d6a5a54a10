"""Applying rules: what is refused, what a fit holds, steps that follow one another, the driver."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.kernel_cases import check_claim
from tests.refusals import refused
from tests.rule_cases import BLOCKS, HALVES, KERNEL, MATRIX, TRAIN, TUCKER, same_bits, two_steps
from tests.strategies import random_values
from tnalgebra.decompositions import all_cuts, cut, truncate
from tnalgebra.errors import NetworkError, NotationError, RankError, RuleError, SizeError, TnalgebraError, ValuesError
from tnalgebra.networks import parse
from tnalgebra.rewriting import rewrite, rule, simplify
from tnalgebra.rewriting.exact import contract_bond, copy_of_one, merge_fuses, split_fuse, sum_label
from tnalgebra.tensors import evaluate, relative

# What is refused --------------------------------------------------------------------------------------------

CHAIN = parse("A[i b] B[b j]")
TIED = rule("K[o i h w] => A[o i r] C[h r] C[w r]", name="tied")
PARTS = rule("K[o i h w] => A[a r] B[b i h w r] Fuse[o a b:3]", name="parts")
TIED_PARTS = rule("K[o i] => A[a r] A[b r] C[i r] Fuse[o a b]", name="tied parts")


@pytest.mark.parametrize(
    ("call", "error", "facts"),
    [
        (lambda: HALVES.apply({"K": MATRIX}, 2, values={"K": MATRIX}), RuleError, "values="),
        (lambda: contract_bond.apply({"A": MATRIX}), RuleError, "'contract_bond';network"),
        (lambda: rule("Conv[x y k | stride=s] => Conv[x y k | stride=s]").apply({}), RuleError, "left side;network"),
        (lambda: HALVES.apply({"K": MATRIX}, {"q": 2}), RuleError, "'halves';'q';r"),
        (lambda: contract_bond.apply(CHAIN, {"b": 2}), RuleError, "'contract_bond';'b'"),
        (lambda: contract_bond.apply(CHAIN, 2), RuleError, "'contract_bond'"),
        (lambda: contract_bond.apply(CHAIN, bind={"A": "B"}), RuleError, "'contract_bond';'A'"),
        (
            lambda: rule("K[o i] => L[o r:2] R[r i]").apply(MATRIX, 3),
            RuleError,
            "no bond;states the size;leave the size out",
        ),
        (lambda: rule("K[o i] => L[o r:2] R[r i]").apply(MATRIX, "keep 0.5"), RuleError, "no bond"),
        (lambda: HALVES.apply({"K": MATRIX}, 2, sizes={"x": 3}), RuleError, "'halves';'x';o r i"),
        (lambda: HALVES.apply(parse("K[o i]"), 2), RuleError, "'K';values="),
        (lambda: HALVES.apply({}, 2), RuleError, "'K'"),
        (lambda: cut("out | in").apply(parse("K[out in]"), 2), RuleError, "'K'"),
        (lambda: truncate("b").apply(CHAIN, 2, values={"A": MATRIX}), RuleError, "'B'"),
        (lambda: HALVES.apply({"W": MATRIX}, 2), ValuesError, "'W';K"),
        (lambda: HALVES.apply({"K": KERNEL}, 2), ValuesError, "'K';4 axes;2"),
        (lambda: HALVES.apply({"K": MATRIX}), RankError, "'r'"),
        (lambda: sum_label.apply(CHAIN), RuleError, "'sum_label';T[i j] -> [i] => T2[i];A[i b] B[b j]"),
        (lambda: simplify(parse("K[a b]")).dense(), ValuesError, "'K';K[a b]"),
        (lambda: simplify(parse("K[a b]")).relative_error, ValuesError, "'K'"),
        (lambda: simplify(parse("K[a b]")).parameters, SizeError, "'a'"),
        (lambda: rule("K[a b] => K[b a] -> [a b]"), RuleError, "not equal"),
        (lambda: rule("K[a b] => L[a r] R[r c]"), NetworkError, "'b';right side;K[a b] => L[a r] R[r c]"),
        (lambda: rule("K[a b] -> L[a r] R[r b]"), NotationError, "'=>'"),
        (lambda: TIED.apply(KERNEL, 2), RuleError, "'tied';2, from w=2;3, from C[h r]"),
        (lambda: PARTS.apply(KERNEL, 2), RuleError, "'parts';'o' of size 7;parts of 3"),
        (lambda: TIED_PARTS.apply(MATRIX, 2), SizeError, "'o';a=3 b=2;3, from A[a r];sizes={'a'"),
        (lambda: HALVES.apply(MATRIX, 2, start=3), RuleError, "start=;int;a mapping"),
        (lambda: HALVES.apply(MATRIX, 2, metric={}), RuleError, "metric=;dict;Metric"),
        (lambda: HALVES.apply(MATRIX, "multiply-adds 0.3"), RankError, "'multiply-adds 0.3';tn.compare"),
        (lambda: HALVES.apply(torch.nn.Linear(3, 2), 1), RuleError, "Linear;layer.weight"),
        (lambda: rule("K[a b] => L[a r] R[r c] -> [a c]"), RuleError, "open labels;a b;a c"),
        (lambda: rule("K[a b] => L[a r] R[r b] -> [b a]"), RuleError, "order"),
        (lambda: rule("K[a b] Conv[x y k] => K[a b] Conv[x y k | stride=s]"), RuleError, "'s'"),
        (lambda: rule("K[a b] => K[a b c] Fill[c | value=1]"), RuleError, "'K';2 axes"),
        (lambda: rule("K[a b]"), NotationError, "'=>'"),
        (lambda: rule("Copy[a b] => Fill[a b | value=1]"), RuleError, "not equal"),
        (lambda: rule("Conv[x y k | stride=2] => Conv[x y k | stride=3]"), RuleError, "not equal"),
        (lambda: rule("Conv[x y k | padding=p] => Conv[x y k]"), RuleError, "sizes"),
        (lambda: rule("K[a:100000 b:100000] => Copy[a c] K[c b]"), RuleError, "sizes"),
    ],
)
def test_what_is_refused(call: Callable[[], object], error: type[TnalgebraError], facts: str) -> None:
    with refused(error, *facts.split(";")):
        call()


def test_a_bond_whose_size_is_in_the_text_is_not_chosen() -> None:
    one = rule("K[o i h w] => U[o a:2] G[a b h w] V[b i]")
    assert (one.ranks, one.sized) == (("b",), ("a",))
    assert dict(one.apply(KERNEL, 3).trace.steps[0].change.ranks) == {"a": 2, "b": 3}
    both = rule("K[o i h w] => U[o a:2] G[a b:3 h w] V[b i]")
    fit = both.apply(KERNEL)
    for ranks in (None, {}, {"a": 2}, {"a": 2, "b": 3}):  # as a trace has them
        assert both.apply(KERNEL, ranks).network == fit.network
    with refused(SizeError, "'a'", "2", "3"):
        both.apply(KERNEL, {"a": 3})


def test_an_exact_rule_is_compared_again_where_it_applies() -> None:
    """Up to the sizes at which rules are compared, a stride of 5 takes one position, as any does that fits."""
    lucky = rule("Conv[x y k | stride=s] => Conv[x y k | stride=5]", name="lucky")
    assert lucky.apply(parse("Conv[x:5 y:1 k:4 | stride=2]")).relative_error == 0
    with refused(RuleError, "differ"):
        lucky.apply(parse("Conv[x:10 y:2 k:1 | stride=6]"))


def test_an_exact_rule_that_holds_for_some_sizes_wants_to_know_them() -> None:
    cancel = rule("Fuse[a b c] Fuse[a d e] => Copy[b d] Copy[c e]")
    assert cancel.places(parse("Fuse[a b c] Fuse[a d e]")) == []
    assert cancel.places(parse("Fuse[a b:2 c] Fuse[a d:2 e]")) == []
    assert len(cancel.places(parse("Fuse[a b:2 c:3] Fuse[a d:2 e]"))) == 1
    assert cancel.places(parse("Fuse[a b:2 c:3] Fuse[a d:3 e:2]")) == []
    assert rule("K[a b] => T[a:5 b]").places(parse("K[p:4 q:3]")) == []
    assert len(rule("Fuse[a b c] Fuse[b d e] => Fuse[a d e c]").places(parse("Fuse[a b c] Fuse[b d e]"))) == 1


# What a fit holds -------------------------------------------------------------------------------------------


def test_a_fit_holds_network_values_error_parameters_and_trace() -> None:
    fit = TUCKER.apply({"K": KERNEL}, {"a": 3, "b": 4})
    check_claim(fit)
    assert str(fit.network) == "U[o:7 a:3] G[a b:4 h:3 w:2] V[b i:5] -> [o i h w]"
    assert fit.parameters == 7 * 3 + 3 * 4 * 3 * 2 + 4 * 5
    dense = torch.einsum("oa,abhw,bi->oihw", fit.values["U"], fit.values["G"], fit.values["V"])
    torch.testing.assert_close(fit.dense(), dense, rtol=1e-12, atol=1e-12)
    true = float(torch.linalg.vector_norm(KERNEL - dense) / torch.linalg.vector_norm(KERNEL))
    assert fit.relative_error == pytest.approx(true, rel=1e-12)
    assert [step.rule for step in fit.trace.steps] == [TUCKER]
    assert fit.trace.network == fit.network


def test_values_may_be_integers_lists_arrays_or_parameters() -> None:
    whole = [[1, 2, 3], [4, 5, 6]]
    expected = HALVES.apply({"K": torch.tensor(whole, dtype=torch.float64)}, 1).dense()
    for value in (whole, np.array(whole), torch.tensor(whole)):
        fit = HALVES.apply({"K": value}, 1)
        assert fit.values["L"].dtype == torch.float64
        assert torch.equal(fit.dense(), expected)
    weight = torch.nn.Parameter(torch.tensor(whole, dtype=torch.float32))
    fit = HALVES.apply({"K": weight}, 1)
    assert fit.values["L"].dtype == torch.float32
    assert not fit.values["L"].requires_grad


def test_values_of_two_types_meet_in_the_wider_one() -> None:
    network = parse("A[i b] B[b j]")
    values = {"A": MATRIX.float(), "B": KERNEL.reshape(-1, 21)[:8].clone()}
    fit = contract_bond.apply(network, values=values)
    assert fit.values["T"].dtype == torch.float64
    assert fit.relative_error < 1e-14
    assert cut("i | j").apply(network, 2, values=values).values["L"].dtype == torch.float64
    halves = {"A": MATRIX.half(), "B": MATRIX.mT.bfloat16()}
    assert contract_bond.apply(network, values=halves).values["T"].dtype == torch.float32


def test_given_values_are_never_changed() -> None:
    kernel = KERNEL.clone()
    fit = TUCKER.apply({"K": kernel}, {"a": 3, "b": 4})
    before = {name: value.clone() for name, value in fit.values.items()}
    fit.then(truncate("a"), 2).then(TRAIN, {"p": 2, "q": 2}, bind={"G": "G"})
    assert torch.equal(kernel, KERNEL)
    assert same_bits(fit.values, before)


def test_fits_are_compared_by_identity() -> None:
    one, two = (HALVES.apply({"K": MATRIX}, 2) for _ in range(2))
    assert one == one
    assert one != two
    assert one.trace != two.trace
    assert len({one, two}) == 2


# One rewrite after another ----------------------------------------------------------------------------------


def test_a_core_of_a_decomposition_is_decomposed() -> None:
    one, two = TUCKER.apply({"K": KERNEL}, {"a": 3, "b": 4}), two_steps()
    assert str(two.network) == "U[o:7 a:3] A[a p:2] B[p b:4 q:3] C[q h:3 w:2] V[b i:5] -> [o i h w]"
    assert torch.equal(two.values["U"], one.values["U"])
    core = torch.einsum("ap,pbq,qhw->abhw", *(two.values[name] for name in "ABC"))
    first, second = two.trace.steps
    assert second.relative_error == pytest.approx(relative(core - one.values["G"], one.values["G"]), rel=1e-9)
    assert first.relative_error == pytest.approx(one.relative_error, rel=1e-9)
    assert two.relative_error == pytest.approx(relative(KERNEL - two.dense(), KERNEL), rel=1e-9)
    assert two.relative_error == pytest.approx(relative(two.dense() - KERNEL, KERNEL), rel=1e-12)


def test_a_trace_is_printed_step_by_step() -> None:
    first, second = two_steps().trace.steps
    assert str(two_steps().trace) == (
        "start\n"
        "    K[o:7 i:5 h:3 w:2]\n"
        "1. tucker2 on K[o i h w] at o i h w\n"
        f"    a=3 b=4; relative error {first.relative_error:.3g}; parameters 210 -> 113\n"
        "    U[o:7 a:3] G[a b:4 h:3 w:2] V[b i:5] -> [o i h w]\n"
        "2. train on G[a b h w] at a b h w\n"
        f"    p=2 q=3; relative error {second.relative_error:.3g}; parameters 113 -> 89\n"
        "    U[o:7 a:3] A[a p:2] B[p b:4 q:3] C[q h:3 w:2] V[b i:5] -> [o i h w]"
    )
    symbolic = contract_bond.apply(parse("A[i b] B[b j]"))
    assert str(symbolic.trace) == (
        "start\n    A[i b] B[b j]\n1. contract_bond on A[i b] B[b j]\n    exact; parameters ? -> ?\n    T[i j]"
    )


# Until nothing applies --------------------------------------------------------------------------------------


def test_rules_that_go_round_in_circles_are_stopped() -> None:
    network = parse("Fuse[a:30 b:2 c:3 d:5]")
    with refused(RuleError, "7 steps", "split_fuse, merge_fuses", "Fuse[a:30 b:2 f:15] Fuse[f c:3 d:5]", "max_steps"):
        rewrite(network, [split_fuse, merge_fuses], max_steps=7)
    assert len(rewrite(parse("Copy[a:2] Copy[b:3]"), [copy_of_one], max_steps=2).trace.steps) == 2


def test_the_first_rule_that_applies_fires_first() -> None:
    network = parse("A[i:2 b:3] B[b c:4] C[c j:5]")
    fit = rewrite(network, [contract_bond], random_values(network, 0))
    assert [str(step.after) for step in fit.trace.steps] == ["T[i:2 c:4] C[c j:5]", "T_2[i:2 j:5]"]
    torch.testing.assert_close(fit.dense(), evaluate(network, random_values(network, 0)), rtol=1e-12, atol=1e-12)


def test_a_rule_prints_its_equation() -> None:
    assert str(HALVES).splitlines()[0] == "halves: K[o i] => L[o r] R[r i]"
    assert (HALVES.ranks, TUCKER.ranks, BLOCKS.ranks) == (("r",), ("a", "b"), ("p",))
    assert repr(all_cuts("out in")[0]) == "<Rule out | in: K[out in] => L[out r] R[r in]>"
    assert repr(truncate("b")) == "<Rule truncate b: A[.. b] B[b ..] .. => A[.. b] B[b ..] .., b smaller>"
