"""Traces: saved, loaded, replayed and checked; files that are none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.refusals import refused
from tests.rule_cases import BLOCKS, HALVES, KERNEL, MATRIX, TRAIN, TUCKER, same_bits, two_steps
from tnalgebra.decompositions import cut, load_trace, truncate
from tnalgebra.errors import RuleError, TnalgebraError, ValuesError
from tnalgebra.fitting import KeepFraction, ParameterBudget, RelativeError
from tnalgebra.networks import Network, parse
from tnalgebra.rewriting import Change, Fit, Options, Place, Rule, Trace, rewrite, rule
from tnalgebra.rewriting.exact import contract_bond, drop_copy_of_two

RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="ring")
CP = rule("K[o i h w] => A[o r] B[i r] C[h r] D[w r]", name="cp")

# Traces: saved, loaded, replayed ----------------------------------------------------------------------------


def recorded() -> dict[str, Fit]:
    """A fit for every kind of rule and option that a trace can hold."""
    chain = parse("A[i b] B[b c] C[c j]")
    matrices = {"A": MATRIX, "B": MATRIX.mT @ MATRIX, "C": MATRIX.mT.contiguous()}
    return {
        "two steps": two_steps(),
        "exact": contract_bond.apply(chain, values=matrices, at=1).then(contract_bond),
        "exact notation": rule("A[i b] B[b j] => B[b j] A[i b] -> [i j]").apply(chain, values=matrices, at=0),
        "contraction": rule("A[i b] B[b j] => T[i j]", name="join").apply(chain, values=matrices, bind={"A": "B"}),
        "cut": cut("out kh | in kw").apply({"K": KERNEL}, KeepFraction(0.5)),
        "cut of named labels": cut("a c | b", of="K[a b c]").apply({"K": KERNEL[0]}, RelativeError(0.3)),
        "cuts": cut("out | in kh kw").apply({"K": KERNEL}, 4).then(cut("out kw | in kh", form="svd"), 3),
        "truncation": truncate("b").apply(chain, 3, values=matrices).then(truncate("c"), 2),
        "sizes": BLOCKS.apply({"W": MATRIX}, {"p": np.int64(3)}, sizes={"o1": np.int64(2), "i2": 2}),
        "budget": TUCKER.apply({"K": KERNEL.float()}, ParameterBudget(0.4)),
        "half": TUCKER.apply({"K": KERNEL.bfloat16()}, {"a": KeepFraction(0.5), "b": RelativeError(0.1)}),
        "ring": RING.apply({"K": KERNEL}, {"z": 2, "p": 3, "q": 2, "s": 2}, seed=3, starts=2, sweeps=9),
        "tied": rule("K[o i] => L[o r] L[i r]").apply({"K": MATRIX @ MATRIX.mT}, 2, seed=1, starts=2),
        "single": CP.apply({"K": KERNEL}, ParameterBudget(0.2), starts=2, sweeps=7, dtype=torch.float32),
        "of the half": CP.apply({"K": KERNEL.half()}, 2, starts=2, sweeps=5),
        "disconnected": rule("K[o i h w] => A[o r] B[i r] C[h] D[w]").apply({"K": KERNEL}, KeepFraction(0.5)),
        "basis": rule("K[o i h w] => D[c h] T[o i c w]", fixed={"D": "dct"}).apply({"K": KERNEL}, 2),
        "constant": CP.apply({"K": KERNEL}, 3, starts=2, sweeps=9, fixed={"C": MATRIX[:3, :3] / 3}),
        "constant basis": rule("K[o i h w] => A[o r] B[i r] C[r h] D[w r]").apply(
            {"K": KERNEL}, 2, starts=2, sweeps=9, fixed={"C": "dct"}
        ),
        "kept tensor": rule("A[i b] B[b j] => A[i b] L[b r] R[r j]").apply(chain, 2, values=matrices, at=0, starts=2),
        "fuse": rule("K[out in] => Fuse[out a b] Fuse[in c d] A[a c r] B[b d r]").apply({"K": MATRIX}, 2),
        "no step": Fit(parse("K[a]"), {}, Trace(parse("K[a]"), ())),
        "no sizes": contract_bond.apply(parse("A[i b] B[b j]")),
    }


RECORDED = recorded()


def start_values(fit: Fit) -> dict[str, Tensor]:
    """The values before the first step: those that the tensors of the first network have."""
    return dict(fit.values if fit._start is None else fit._start)


@pytest.mark.parametrize("name", RECORDED)
def test_a_trace_is_saved_loaded_and_replayed_bit_for_bit(name: str, tmp_path: Path) -> None:
    fit = RECORDED[name]
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


def test_errors_are_saved_as_numbers_that_json_has(tmp_path: Path) -> None:
    fit = RECORDED["cut"]
    step = fit.trace.steps[0]

    def saved(**errors: float) -> Trace:
        changed = Trace(fit.trace.start, (replace(step, change=replace(step.change, **errors)),))
        changed.save(tmp_path / "trace.json")
        json.loads((tmp_path / "trace.json").read_text(), parse_constant=lambda word: pytest.fail(word))
        return load_trace(tmp_path / "trace.json")

    loaded = saved(relative_error=math.inf, output_error=0.25).steps[0]
    assert (loaded.change.relative_error, loaded.change.output_error) == (math.inf, 0.25)
    assert saved(output_error=math.inf).steps[0].change.output_error == math.inf
    assert saved().steps[0].change.output_error is None
    with refused(RuleError, "saved", "NaN"):
        saved(relative_error=math.nan)


@st.composite
def kernels(draw: st.DrawFn) -> Tensor:
    shape = draw(st.permutations([2, 3, 4, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    return torch.randn(shape, generator=generator).to(dtype)


def random_steps(kernel: Tensor, random: Random) -> Fit:
    """A Tucker form, sometimes its core as a train, sometimes a bond cut down, sometimes contracted back."""
    o, i = kernel.shape[:2]
    fit = TUCKER.apply({"K": kernel}, {"a": random.randint(1, o), "b": random.randint(1, i)}, sweeps=3)
    if random.random() < 0.5:
        fit = fit.then(TRAIN, {"p": KeepFraction(0.5), "q": RelativeError(0.5)}, bind={"G": "G"}, sweeps=3)
    if random.random() < 0.5:
        fit = fit.then(truncate("a"), 1, sweeps=3)
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
    fit = TUCKER.apply({"K": KERNEL}, ParameterBudget(0.4))
    other = fit.trace.replay({"K": KERNEL.flip(0) ** 3})
    assert other.network == fit.network
    assert other.relative_error != pytest.approx(fit.relative_error, rel=0.01)
    expected = TUCKER.apply({"K": KERNEL.flip(0) ** 3}, fit.trace.steps[0].change.ranks)
    assert same_bits(other.values, expected.values)
    with refused(ValuesError, "'o'", "'K'", "5", "7"):
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
    fit = TUCKER.apply({"K": KERNEL}, {"a": 3, "b": 4})
    values = {"K": KERNEL}
    fit.trace.check(values)
    with refused(RuleError, "step 2", "double", "exact"):
        fit.then(lying("double", "exact", doubled)).then(truncate("a"), 2).trace.check(values)
    with refused(RuleError, "step 2", "double", "error of 0", "true"):
        fit.then(lying("double", "approximate", doubled)).trace.check(values)
    with refused(RuleError, "step 2", "nudge", "exact"):
        fit.then(lying("nudge", "exact", nudged)).then(lying("double", "exact", doubled)).trace.check(values)
    with refused(RuleError, "'turn'", "open labels"):
        fit.then(lying("turn", "exact", turned))


def test_check_compares_with_what_the_trace_says(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    two_steps().trace.save(path)
    text = path.read_text()
    path.write_text(text.replace("U[o:7 a:3] A[a p:2]", "A[o:7 a:3] U[a p:2]"))
    with refused(RuleError, "step 2", "train", "trace: A[o:7 a:3]", "true:  U[o:7 a:3]"):
        load_trace(path).check({"K": KERNEL})
    path.write_text(text.replace('"p": 2', '"p": 1'))
    with refused(RuleError, "step 2", "train"):
        load_trace(path).check({"K": KERNEL})


def test_a_trace_of_a_rule_without_a_description_cannot_be_saved(tmp_path: Path) -> None:
    fit = HALVES.apply({"K": MATRIX}, 2).then(lying("double", "exact", doubled))
    with refused(RuleError, "'double'", "tn.rule"):
        fit.trace.save(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


# Files that are not traces -----------------------------------------------------------------------------------

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
    ("content", "facts"),
    [
        ("", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ('{"start": ' + "9" * 5000 + "}", "ValueError"),
        ("[]", "TypeError"),
        ("{}", "'start'"),
        ({"start": 5, "steps": []}, "int"),
        ({"start": "K[o", "steps": []}, "K[o"),
        ({"start": "K[o]"}, "'steps'"),
        ({"start": "K[o]", "steps": [3]}, "TypeError"),
        ({"nodes": [1]}, "node"),
        ({"nodes": [-1]}, "node"),
        ({"nodes": ["os"]}, "ValueError"),
        ({"nodes": [math.inf]}, "OverflowError"),
        ({"ranks": [2]}, "AttributeError"),
        ({"ranks": {"r": None}}, "TypeError"),
        ({"after": "L[o:6 o:7]"}, "'o';6;7"),
        ({"rule": {}}, "rule"),
        ({"rule": {"python": "import os"}}, "{'python': 'import os'}"),
        ({"rule": {"exact": "__import__"}}, "'__import__';trim_copy"),
        ({"rule": {"exact": ["trim_copy"]}}, "TypeError"),
        ({"rule": {"notation": "K[o i]", "name": "x"}}, "'=>'"),
        ({"rule": {"notation": "K[o i] => K[i o] -> [o i]", "name": "x"}}, "not equal"),
        ({"rule": {"notation": "K[o i] => T[o i]", "name": 3}}, "rule"),
        ({"rule": {"cut": 5, "form": "svd"}}, "int"),
        ({"rule": {"cut": "out | in", "form": "eval"}}, "rule"),
        ({"rule": {"cut": "a | b", "form": "svd", "of": "K[a b"}}, "K[a b"),
        ({"rule": {"truncate": "a-b"}}, "'a-b'"),
        ({"rule": {"truncate": []}}, "[]"),
        *(({"relative_error": error}, repr(error)) for error in (math.nan, math.inf, "0.5", -0.1)),
        ({"output_error": None}, "None"),
        ({"search": {"dtype": "bfloat16"}}, "'bfloat16';float64 or float32"),
        ({"search": {"dtype": ["float64"]}}, "TypeError"),
    ],
)
def test_a_file_that_is_not_a_trace_is_refused(content: Any, facts: str, tmp_path: Path) -> None:
    if isinstance(content, dict) and "start" not in content:
        content = {"start": "K[o:6 i:8]", "steps": [STEP | content]}
    path = tmp_path / "trace.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with refused(TnalgebraError, *facts.split(";")):
        load_trace(path)


def test_the_step_those_files_are_made_of_is_right(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"start": "K[o:6 i:8]", "steps": [STEP]}))
    assert same_bits(load_trace(path).replay({"K": MATRIX}).values, HALVES.apply({"K": MATRIX}, 2).values)


def test_huge_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(bytes(range(256)))
    with refused(RuleError, "UnicodeDecodeError"):
        load_trace(path)
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with refused(RuleError, "17825792", "16777216"):
        load_trace(path)
    for missing in (tmp_path, tmp_path / "nowhere.json"):
        with refused(RuleError, missing):
            load_trace(missing)


@pytest.mark.slow
def test_a_file_with_flipped_bytes_is_a_trace_or_an_error_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    two_steps().then(truncate("p"), 1).then(contract_bond, at=0).then(cut("o h | i w"), 2).trace.save(path)
    original = path.read_bytes()
    random = Random(0)
    valid = 0
    for _ in range(200):
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
    assert 10 < valid < 200
