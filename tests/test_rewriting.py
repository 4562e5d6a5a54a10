"""Applying rules, and the record of it: errors by text, what a fit holds, traces saved, replayed and checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_values
from torch import Tensor

from tnalgebra.decompositions import all_cuts, cut, load_trace, rule, truncate
from tnalgebra.driver import contract_back, rewrite, simplify
from tnalgebra.errors import (
    NetworkError,
    NotationError,
    RankError,
    RuleError,
    SizeError,
    TnalgebraError,
    ValuesError,
)
from tnalgebra.evaluation import evaluate
from tnalgebra.exact_rules import contract_bond, copy_of_one, drop_copy_of_two, merge_fuses, split_fuse, sum_label
from tnalgebra.network import Network
from tnalgebra.notation import parse
from tnalgebra.ranks import KeepFraction, ParameterBudget, RelativeError
from tnalgebra.rewriting import Change, Fit, Options, Place, Rule, Trace
from tnalgebra.valuation import common_dtype, norm, relative

TUCKER = rule("K[o i h w] => U[o a] G[a b h w] V[b i]", name="tucker2")
TRAIN = rule("G[o i h w] => A[o p] B[p i q] C[q h w]", name="train")
HALVES = rule("K[o i] => L[o r] R[r i]", name="halves")
BLOCKS = rule("W[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]", name="mpo2")
KERNEL = torch.randn(7, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MATRIX = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same_bits(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: HALVES.apply({"K": MATRIX}, {"K": MATRIX}, ranks=2),
            RuleError,
            "values are given twice: apply(values), or apply(network, values)",
        ),
        (
            lambda: contract_bond.apply({"A": MATRIX}),
            RuleError,
            "the rule 'contract_bond' has no left side of its own\n  fix: give a network",
        ),
        (
            lambda: rule("Conv[x y k | stride=s] => Conv[x y k | stride=s]").apply({}),
            RuleError,
            "has no left side of its own",
        ),
        (
            lambda: HALVES.apply({"K": MATRIX}, ranks={"q": 2}),
            RuleError,
            "the rule 'halves' has no bond 'q'\n  known: r",
        ),
        (
            lambda: contract_bond.apply(parse("A[i b] B[b j]"), ranks={"b": 2}),
            RuleError,
            "the rule 'contract_bond' has no bond 'b'\n  known: none",
        ),
        (lambda: contract_bond.apply(parse("A[i b] B[b j]"), ranks=2), RuleError, "has no bond"),
        (
            lambda: contract_bond.apply(parse("A[i b] B[b j]"), bind={"A": "B"}),
            RuleError,
            "the rule 'contract_bond' has no variable 'A'\n  known: none",
        ),
        (
            lambda: HALVES.apply({"K": MATRIX}, ranks=2, sizes={"x": 3}),
            RuleError,
            "the rule 'halves' has no label on its right side 'x'\n  known: o r i",
        ),
        (
            lambda: HALVES.apply(parse("K[o i]"), ranks=2),
            RuleError,
            "an approximate rule needs the value of 'K'\n  fix: apply(network, values)",
        ),
        (lambda: cut("out | in").apply(parse("K[out in]"), ranks=2), RuleError, "a cut needs the value of 'K'"),
        (
            lambda: truncate("b").apply(parse("A[i b] B[b j]"), {"A": MATRIX}, ranks=2),
            RuleError,
            "truncation needs the value of 'B'",
        ),
        (lambda: HALVES.apply({"W": MATRIX}, ranks=2), ValuesError, "no tensor of the network\n  tensors: K"),
        (lambda: HALVES.apply({"K": KERNEL}, ranks=2), ValuesError, "the value of 'K' has 4 axes, its node has 2"),
        (lambda: HALVES.apply({"K": MATRIX * math.nan}, ranks=2), ValuesError, "holds NaN or infinity"),
        (lambda: HALVES.apply({"K": MATRIX[:0]}, ranks=2), ValuesError, "the value of 'K' is empty"),
        (lambda: HALVES.apply({"K": MATRIX.to(torch.complex64)}, ranks=2), ValuesError, "is complex"),
        (lambda: HALVES.apply({}, ranks=2), RuleError, "an approximate rule needs the value of 'K'"),
        (
            lambda: sum_label.apply(parse("A[i b] B[b j]")),
            RuleError,
            "the rule 'sum_label' applies nowhere\n  rule:    T[i j] -> [i] => T2[i]\n  network: A[i b] B[b j]",
        ),
        (lambda: simplify(parse("K[a b]")).dense(), ValuesError, "no value for 'K'\n  where: K[a b]"),
        (lambda: simplify(parse("K[a b]")).relative_error, ValuesError, "no value for 'K'"),
        (lambda: simplify(parse("K[a b]")).parameters, SizeError, "the size of label 'a' is unknown"),
        (
            lambda: rule("K[a b] => K[b a] -> [a b]"),
            RuleError,
            "the two sides are not equal",
        ),
        (lambda: rule("K[a b] => L[a r] R[r c]"), NetworkError, "the output label 'b' stands on no node"),
        (
            lambda: rule("K[a b] => L[a r] R[r c] -> [a c]"),
            RuleError,
            "the two sides have different open labels\n  left:  a b\n  right: a c",
        ),
        (lambda: rule("K[a b] => L[a r] R[r b] -> [b a]"), RuleError, "their open labels in different orders"),
        (
            lambda: rule("K[a b] Conv[x y k] => K[a b] Conv[x y k | stride=s]"),
            RuleError,
            "the attribute 's' stands on the right side only",
        ),
        (
            lambda: rule("K[a b] => K[a b c] Fill[c | value=1]"),
            RuleError,
            "'K' has 2 axes on the left side, another number on the right",
        ),
        (lambda: rule("K[a b]"), NotationError, "a rule needs '=>'"),
        (lambda: rule("Copy[a b] => Fill[a b | value=1]"), RuleError, "the two sides are not equal: they differ by 1"),
        (lambda: rule("Conv[x y k | stride=2] => Conv[x y k | stride=3]"), RuleError, "the two sides are not equal"),
        (lambda: rule("Conv[x y k | padding=p] => Conv[x y k]"), RuleError, "no small sizes were found"),
        (
            lambda: rule("K[a:100000 b:100000] => Copy[a c] K[c b]"),
            RuleError,
            "no small sizes were found at which the two sides could be compared",
        ),
    ],
)
def test_what_is_refused(call: Callable[[], object], error: type[TnalgebraError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_an_exact_rule_is_compared_again_where_it_applies() -> None:
    """Up to the sizes at which rules are compared, a stride of 5 takes one position, as any does that fits."""
    lucky = rule("Conv[x y k | stride=s] => Conv[x y k | stride=5]", name="lucky")
    assert lucky.apply(parse("Conv[x:5 y:1 k:4 | stride=2]")).relative_error == 0
    with pytest.raises(RuleError, match="the two sides of an exact rule differ on these values"):
        lucky.apply(parse("Conv[x:10 y:2 k:1 | stride=6]"))


def test_an_exact_rule_that_holds_for_some_sizes_wants_to_know_them() -> None:
    cancel = rule("Fuse[a b c] Fuse[a d e] => Copy[b d] Copy[c e]")
    assert cancel.places(parse("Fuse[a b c] Fuse[a d e]")) == []
    assert cancel.places(parse("Fuse[a b:2 c] Fuse[a d:2 e]")) == []
    assert len(cancel.places(parse("Fuse[a b:2 c:3] Fuse[a d:2 e]"))) == 1
    assert len(rule("Fuse[a b c] Fuse[b d e] => Fuse[a d e c]").places(parse("Fuse[a b c] Fuse[b d e]"))) == 1


# What a fit holds -------------------------------------------------------------------------------------------


def test_a_fit_holds_network_values_error_parameters_and_trace(tmp_path: Path) -> None:
    fit = TUCKER.apply({"K": KERNEL}, ranks={"a": 3, "b": 4})
    assert str(fit.network) == "U[o:7 a:3] G[a b:4 h:3 w:2] V[b i:5] -> [o i h w]"
    assert {name: tuple(value.shape) for name, value in fit.values.items()} == {
        "U": (7, 3),
        "G": (3, 4, 3, 2),
        "V": (4, 5),
    }
    assert fit.parameters == 7 * 3 + 3 * 4 * 3 * 2 + 4 * 5
    dense = torch.einsum("oa,abhw,bi->oihw", fit.values["U"], fit.values["G"], fit.values["V"])
    torch.testing.assert_close(fit.dense(), dense, rtol=1e-12, atol=1e-12)
    true = float(torch.linalg.vector_norm(KERNEL - dense) / torch.linalg.vector_norm(KERNEL))
    assert fit.relative_error == pytest.approx(true, rel=1e-12)
    assert [step.rule for step in fit.trace.steps] == [TUCKER]
    assert fit.trace.network == fit.network
    assert fit._repr_svg_().lstrip().startswith(("<?xml", "<svg"))
    for suffix in ("svg", "png"):
        fit.draw(tmp_path / f"fit.{suffix}")
        assert (tmp_path / f"fit.{suffix}").stat().st_size > 1000


def test_values_may_be_integers_lists_arrays_or_parameters() -> None:
    whole = [[1, 2, 3], [4, 5, 6]]
    expected = HALVES.apply({"K": torch.tensor(whole, dtype=torch.float64)}, ranks=1).dense()
    for value in (whole, np.array(whole), torch.tensor(whole)):
        fit = HALVES.apply({"K": value}, ranks=1)
        assert fit.values["L"].dtype == torch.float64
        assert torch.equal(fit.dense(), expected)
    weight = torch.nn.Parameter(torch.tensor(whole, dtype=torch.float32))
    fit = HALVES.apply({"K": weight}, ranks=1)
    assert fit.values["L"].dtype == torch.float32
    assert not fit.values["L"].requires_grad


def test_values_of_two_types_meet_in_the_wider_one() -> None:
    network = parse("A[i b] B[b j]")
    values = {"A": MATRIX.float(), "B": KERNEL.reshape(-1, 21)[:8].clone()}
    fit = contract_bond.apply(network, values)
    assert fit.values["T"].dtype == torch.float64
    assert fit.relative_error < 1e-14
    assert cut("i | j").apply(network, values, ranks=2).values["L"].dtype == torch.float64
    assert common_dtype([]) == torch.float64
    assert common_dtype([MATRIX.half(), MATRIX.bfloat16()]) == torch.float32


def test_given_values_are_never_changed() -> None:
    kernel = KERNEL.clone()
    fit = TUCKER.apply({"K": kernel}, ranks={"a": 3, "b": 4})
    before = {name: value.clone() for name, value in fit.values.items()}
    fit.then(truncate("a"), ranks=2).then(TRAIN, bind={"G": "G"}, ranks={"p": 2, "q": 2})
    assert torch.equal(kernel, KERNEL)
    assert same_bits(fit.values, before)


def test_fits_are_compared_by_identity() -> None:
    one, two = (HALVES.apply({"K": MATRIX}, ranks=2) for _ in range(2))
    assert one == one
    assert one != two
    assert one.trace != two.trace
    assert len({one, two}) == 2


def test_the_norm_of_numbers_whose_squares_overflow_or_vanish() -> None:
    for scale in (1e200, 1e-200, 1e-310, 1.0):
        assert norm(MATRIX * scale) == pytest.approx(float(torch.linalg.vector_norm(MATRIX)) * scale, rel=1e-6)
        fit = HALVES.apply({"K": MATRIX * scale}, ranks=2)
        assert fit.relative_error == pytest.approx(HALVES.apply({"K": MATRIX}, ranks=2).relative_error, rel=1e-6)
    assert norm(torch.zeros(3)) == 0
    assert norm(torch.zeros(0)) == 0
    assert relative(torch.zeros(2), torch.zeros(2)) == 0
    assert relative(torch.ones(2), torch.zeros(2)) == math.inf


# One rewrite after another ----------------------------------------------------------------------------------


def two_steps() -> Fit:
    fit = TUCKER.apply({"K": KERNEL}, ranks={"a": 3, "b": 4})
    return fit.then(TRAIN, bind={"G": "G"}, ranks={"p": 2, "q": 3})


def test_a_core_of_a_decomposition_is_decomposed() -> None:
    one, two = TUCKER.apply({"K": KERNEL}, ranks={"a": 3, "b": 4}), two_steps()
    assert str(two.network) == "U[o:7 a:3] A[a p:2] B[p b:4 q:3] C[q h:3 w:2] V[b i:5] -> [o i h w]"
    assert two.values["U"] is not None
    assert torch.equal(two.values["U"], one.values["U"])
    core = torch.einsum("ap,pbq,qhw->abhw", *(two.values[name] for name in "ABC"))
    first, second = two.trace.steps
    assert second.relative_error == pytest.approx(relative(core - one.values["G"], one.values["G"]), rel=1e-9)
    assert first.relative_error == pytest.approx(one.relative_error, rel=1e-9)
    # the outer factors have orthonormal columns, so the squares of the two errors add up
    inner = second.relative_error**2 * (1 - first.relative_error**2)
    assert two.relative_error == pytest.approx(math.sqrt(first.relative_error**2 + inner), rel=1e-9)
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


def test_a_decomposition_contracts_back_to_its_dense_value() -> None:
    fit = two_steps()
    back = contract_back(fit.network, fit.values)
    assert len(back.network.nodes) == 1
    torch.testing.assert_close(back.dense(), fit.dense(), rtol=1e-12, atol=1e-12)


# Traces: saved, loaded, replayed ----------------------------------------------------------------------------


def recorded() -> dict[str, Fit]:
    """A fit for every kind of rule and option that a trace can hold."""
    chain = parse("A[i b] B[b c] C[c j]")
    matrices = {"A": MATRIX, "B": MATRIX.mT @ MATRIX, "C": MATRIX.mT.contiguous()}
    return {
        "two steps": two_steps(),
        "exact": contract_bond.apply(chain, matrices, at=1).then(contract_bond),
        "exact notation": rule("A[i b] B[b j] => B[b j] A[i b] -> [i j]").apply(chain, matrices, at=0),
        "contraction": rule("A[i b] B[b j] => T[i j]", name="join").apply(chain, matrices, bind={"A": "B"}),
        "cut": cut("out kh | in kw").apply({"K": KERNEL}, ranks=KeepFraction(0.5)),
        "cut of named labels": cut("a c | b", of="K[a b c]").apply({"K": KERNEL[0]}, ranks=RelativeError(0.3)),
        "cuts": cut("out | in kh kw").apply({"K": KERNEL}, ranks=4).then(cut("out kw | in kh", form="svd"), ranks=3),
        "truncation": truncate("b").apply(chain, matrices, ranks=3).then(truncate("c"), ranks=2),
        "sizes": BLOCKS.apply({"W": MATRIX}, sizes={"o1": np.int64(2), "i2": 2}, ranks={"p": np.int64(3)}),
        "budget": TUCKER.apply({"K": KERNEL.float()}, ranks=ParameterBudget(0.4)),
        "half": TUCKER.apply({"K": KERNEL.bfloat16()}, ranks={"a": KeepFraction(0.5), "b": RelativeError(0.1)}),
        "no step": Fit(parse("K[a]"), {}, Trace(parse("K[a]"), ())),
        "no sizes": contract_bond.apply(parse("A[i b] B[b j]")),
    }


def start_values(fit: Fit) -> dict[str, Tensor]:
    given = fit.values if fit._start is None else fit._start
    return dict(given)


@pytest.mark.parametrize("name", recorded())
def test_a_trace_is_saved_loaded_and_replayed_bit_for_bit(name: str, tmp_path: Path) -> None:
    fit = recorded()[name]
    fit.trace.save(tmp_path / "trace.json")
    loaded = load_trace(tmp_path / "trace.json")
    assert str(loaded) == str(fit.trace)
    assert (loaded.start, loaded.network) == (fit.trace.start, fit.network)
    again = loaded.replay(start_values(fit))
    assert again.network == fit.network
    assert same_bits(again.values, fit.values)
    assert str(again.trace) == str(fit.trace)
    again.trace.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "trace.json").read_bytes()
    if fit._start:
        loaded.check(start_values(fit))


@st.composite
def kernels(draw: st.DrawFn) -> Tensor:
    shape = draw(st.permutations([2, 3, 4, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    return torch.randn(shape, generator=generator).to(dtype)


def random_steps(kernel: Tensor, random: Random) -> Fit:
    """A Tucker form, sometimes its core as a train, sometimes a bond cut down, sometimes contracted back."""
    o, i = kernel.shape[:2]
    fit = TUCKER.apply({"K": kernel}, ranks={"a": random.randint(1, o), "b": random.randint(1, i)})
    if random.random() < 0.5:
        fit = fit.then(TRAIN, bind={"G": "G"}, ranks={"p": KeepFraction(0.5), "q": RelativeError(0.5)})
    if random.random() < 0.5:
        fit = fit.then(truncate("a"), ranks=1)
    if random.random() < 0.5:
        fit = fit.then(contract_bond, at=0)
    return fit


@given(kernels(), st.randoms(use_true_random=False))
def test_a_replay_gives_the_same_bits(kernel: Tensor, random: Random) -> None:
    fit = random_steps(kernel, random)
    again = fit.trace.replay({"K": kernel})
    assert again.network == fit.network
    assert same_bits(again.values, fit.values)
    assert [step.relative_error for step in again.trace.steps] == [step.relative_error for step in fit.trace.steps]
    fit.trace.check({"K": kernel})


def test_a_trace_is_replayed_on_other_values() -> None:
    fit = TUCKER.apply({"K": KERNEL}, ranks=ParameterBudget(0.4))
    other = fit.trace.replay({"K": KERNEL.flip(0) ** 3})
    assert other.network == fit.network
    assert other.relative_error != pytest.approx(fit.relative_error, rel=0.01)
    expected = TUCKER.apply({"K": KERNEL.flip(0) ** 3}, ranks=fit.trace.steps[0].change.ranks)
    assert same_bits(other.values, expected.values)
    with pytest.raises(ValuesError, match="the axis 'o' of 'K' has 5 elements, the label has size 7"):
        fit.trace.replay({"K": KERNEL.permute(1, 0, 2, 3)})


def test_a_trace_without_values_is_replayed_with_some() -> None:
    fit = rewrite(parse("A[i b] Copy[b c] B[c j]"), [drop_copy_of_two, contract_bond])
    values = {"A": MATRIX, "B": MATRIX.mT}
    torch.testing.assert_close(fit.trace.replay(values).dense(), MATRIX @ MATRIX.mT, rtol=1e-12, atol=1e-12)
    fit.trace.check(values)


# Promises ---------------------------------------------------------------------------------------------------


def lying(name: str, kind: Any, change: Callable[[Network, Mapping[str, Tensor]], Change]) -> Rule:
    """A rule about whole networks that does what it is told to."""

    def find(network: Network, options: Options) -> Iterator[Place]:
        yield Place(tuple(range(len(network.nodes))))

    def build(network: Network, place: Place, values: Mapping[str, Tensor], options: Options) -> Change:
        return change(network, values)

    return Rule(name, kind, "N => N", find, build)


def doubled(network: Network, values: Mapping[str, Tensor]) -> Change:
    name = next(iter(values))
    return Change(network, values={name: 2 * values[name]})


def turned(network: Network, values: Mapping[str, Tensor]) -> Change:
    return Change(Network(network.nodes, network.output[::-1], network.sizes))


def nudged(network: Network, values: Mapping[str, Tensor]) -> Change:
    return Change(network, values={name: value * (1 + 1e-10) for name, value in values.items()})


def test_check_names_the_first_step_that_breaks_its_promise() -> None:
    fit = TUCKER.apply({"K": KERNEL}, ranks={"a": 3, "b": 4})
    values = {"K": KERNEL}
    fit.trace.check(values)
    with pytest.raises(RuleError, match="step 2, double, is said to be exact and changes the value by"):
        fit.then(lying("double", "exact", doubled)).then(truncate("a"), ranks=2).trace.check(values)
    with pytest.raises(RuleError, match=r"step 2, double, claims a relative error of 0\n(.|\n)*true: +1"):
        fit.then(lying("double", "approximate", doubled)).trace.check(values)
    with pytest.raises(RuleError, match="step 2, nudge, is said to be exact"):
        fit.then(lying("nudge", "exact", nudged)).then(lying("double", "exact", doubled)).trace.check(values)
    with pytest.raises(RuleError, match="the rule 'turn' changes the open labels"):
        fit.then(lying("turn", "exact", turned))


def test_check_compares_with_what_the_trace_says(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    two_steps().trace.save(path)
    text = path.read_text()
    path.write_text(text.replace("U[o:7 a:3] A[a p:2]", "A[o:7 a:3] U[a p:2]"))
    with pytest.raises(
        RuleError, match=r"step 2, train, does not lead where the trace says\n  trace: A(.|\n)*true:  U"
    ):
        load_trace(path).check({"K": KERNEL})
    path.write_text(text.replace('"p": 2', '"p": 1'))
    with pytest.raises(RuleError, match="step 2, train, does not lead where the trace says"):
        load_trace(path).check({"K": KERNEL})


def test_a_trace_of_a_rule_without_a_description_cannot_be_saved(tmp_path: Path) -> None:
    fit = HALVES.apply({"K": MATRIX}, ranks=2).then(lying("double", "exact", doubled))
    with pytest.raises(RuleError, match=r"the rule 'double' cannot be saved\n  fix: a rule made by tn\.rule"):
        fit.trace.save(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


# Files that are no traces -----------------------------------------------------------------------------------

STEP = {
    "rule": {"notation": "K[o i] => L[o r] R[r i]", "name": "halves"},
    "nodes": [0],
    "labels": ["o", "i"],
    "ranks": {"r": 2},
    "sizes": {},
    "bind": {},
    "relative_error": 0.5,
    "after": "L[o:6 r:2] R[r i:8]",
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no trace\n  because: JSONDecodeError"),
        ("[]", "is no trace\n  because: TypeError"),
        ("{}", "is no trace\n  because: KeyError: 'start'"),
        ({"start": 5, "steps": []}, "a network is read from text, not from int"),
        ({"start": "K[o", "steps": []}, "unclosed bracket"),
        ({"start": "K[o]"}, "is no trace\n  because: KeyError: 'steps'"),
        ({"start": "K[o]", "steps": 3}, "is no trace\n  because: TypeError"),
        ({"start": "K[o]", "steps": [3]}, "is no trace\n  because: TypeError"),
        ({"nodes": [1]}, "a step is at a node that is not there"),
        ({"nodes": [-1]}, "a step is at a node that is not there"),
        ({"nodes": ["os"]}, "is no trace\n  because: ValueError"),
        ({"nodes": [math.inf]}, "is no trace\n  because: OverflowError"),
        ({"ranks": [2]}, "is no trace\n  because: AttributeError"),
        ({"ranks": {"r": math.inf}}, "is no trace\n  because: OverflowError"),
        ({"ranks": {"r": None}}, "is no trace\n  because: TypeError"),
        ({"after": "L[o:6 o:7]"}, "label 'o' has two sizes, 6 and 7"),
        ({"rule": {}}, "a rule is described in no known way"),
        ({"rule": {"python": "import os"}}, "a rule is described in no known way\n  rule: {'python': 'import os'}"),
        ({"rule": {"exact": "__import__"}}, "there is no exact rule '__import__'\n  rules: trim_copy, "),
        ({"rule": {"exact": ["trim_copy"]}}, "is no trace\n  because: TypeError"),
        ({"rule": {"notation": "K[o i]", "name": "x"}}, "a rule needs '=>'"),
        ({"rule": {"notation": "K[o i] => K[i o] -> [o i]", "name": "x"}}, "the two sides are not equal"),
        ({"rule": {"notation": "K[o i] => T[o i]", "name": 3}}, "a rule is described in no known way"),
        ({"rule": {"cut": "out in", "form": "factors"}}, "a cut has one '|'"),
        ({"rule": {"cut": 5, "form": "svd"}}, "is no trace"),
        ({"rule": {"cut": "out | in", "form": "eval"}}, "a rule is described in no known way"),
        ({"rule": {"cut": "a | b", "form": "svd", "of": "K[a b"}}, "unclosed bracket"),
        ({"rule": {"truncate": "a b"}}, "bond 'a b' is not a word"),
        ({"rule": {"truncate": []}}, "bond [] is not a word"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    if isinstance(content, dict) and "start" not in content:
        content = {"start": "K[o:6 i:8]", "steps": [STEP | content]} if content else content
    path = tmp_path / "trace.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(TnalgebraError, match=re.escape(message)):
        load_trace(path)


def test_the_step_those_files_are_made_of_is_right(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"start": "K[o:6 i:8]", "steps": [STEP]}))
    assert same_bits(load_trace(path).replay({"K": MATRIX}).values, HALVES.apply({"K": MATRIX}, ranks=2).values)


def test_deep_huge_and_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("[" * 100_000)
    with pytest.raises(RuleError, match="because: RecursionError"):
        load_trace(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(RuleError, match="because: UnicodeDecodeError"):
        load_trace(path)
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(RuleError, match=r"has 17825792 bytes\n  fix: a trace has at most 16777216"):
        load_trace(path)
    path.write_text('{"start": ' + "9" * 5000 + "}")
    with pytest.raises(RuleError, match="because: ValueError"):
        load_trace(path)


def test_a_file_with_flipped_bytes_is_a_trace_or_an_error_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    two_steps().then(truncate("p"), ranks=1).then(contract_bond, at=0).then(cut("o h | i w"), ranks=2).trace.save(path)
    original = path.read_bytes()
    random = Random(0)
    valid = 0
    for _ in range(400):
        content = bytearray(original)
        for _ in range(random.choice((1, 1, 2, 8))):
            place = random.randrange(len(content))
            match random.randrange(3):
                case 0:
                    content[place] = random.randrange(256)
                case 1:
                    del content[place : place + random.randrange(1, 9)]
                case 2:
                    content[place:place] = random.choice((b"9", b"-", b"[", b'"', b"a", b" ", b"e9", b":0"))
        path.write_bytes(content)
        try:
            trace = load_trace(path)
            assert str(trace)
            valid += 1
            trace.replay({"K": KERNEL})
        except TnalgebraError:
            pass
    assert 20 < valid < 400


# Until nothing applies --------------------------------------------------------------------------------------


def test_rules_that_go_round_in_circles_are_stopped() -> None:
    network = parse("Fuse[a:30 b:2 c:3 d:5]")
    message = (
        "rules still apply after 7 steps\n"
        "  last:    split_fuse, merge_fuses\n"
        "  network: Fuse[a:30 b:2 f:15] Fuse[f c:3 d:5]\n"
        "  fix:     leave out a rule that undoes another, or raise max_steps"
    )
    with pytest.raises(RuleError, match=re.escape(message)):
        rewrite(network, [split_fuse, merge_fuses], max_steps=7)


def test_exactly_as_many_steps_as_allowed_are_enough() -> None:
    network = parse("Copy[a:2] Copy[b:3]")
    assert len(rewrite(network, [copy_of_one], max_steps=2).trace.steps) == 2
    with pytest.raises(RuleError, match="rules still apply after 1 steps"):
        rewrite(network, [copy_of_one], max_steps=1)


def test_the_first_rule_that_applies_fires_first() -> None:
    network = parse("A[i:2 b:3] B[b c:4] C[c j:5]")
    fit = rewrite(network, [contract_bond], random_values(network, 0))
    assert [str(step.after) for step in fit.trace.steps] == ["T[i:2 c:4] C[c j:5]", "T_2[i:2 j:5]"]
    torch.testing.assert_close(fit.dense(), evaluate(network, random_values(network, 0)), rtol=1e-12, atol=1e-12)


def test_a_simplified_network_that_is_simple_stays() -> None:
    network = parse("K[out:5 in:4]")
    fit = simplify(network, {"K": torch.ones(5, 4)})
    assert fit.network == network
    assert fit.trace == Trace(network, ())
    assert fit.relative_error == 0


def test_a_rule_prints_its_equation() -> None:
    assert str(HALVES) == "halves: K[o i] => L[o r] R[r i]"
    assert (HALVES.ranks, TUCKER.ranks, BLOCKS.ranks) == (("r",), ("a", "b"), ("p",))
    assert str(all_cuts("out in")[0]) == "out | in: K[out in] => L[out r] R[r in]"
    assert str(truncate("b")) == "truncate b: A[.. b] B[b ..] => A[.. b] B[b ..], b smaller"
    assert HALVES.start is not None
    assert HALVES.start({}) == parse("K[o i]")
    with pytest.raises(RankError, match="no rank for 'r'"):
        HALVES.apply({"K": MATRIX})
