"""Sums compiled: shared steps, kernels that are added first, and one program whatever the windows are."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.compiler_cases import calls, check, check_at, compiled
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.compiler import joined, tune
from tnalgebra.compiler import sums as program_sums
from tnalgebra.compiler.operations import Convolve, Plus
from tnalgebra.errors import CompileError, SizeError, TnalgebraError
from tnalgebra.networks import Conv, Network, aligned, collected, in_one_window, parse

LOW_RANK = "X[n:6 i:9] U[a:2 i] V[o:8 a] + X[n i] W[o i] -> [n o]"
DEPTHWISE = (
    "X[n:2 c:4 x:9 y:8] Conv[x u k:5 | padding=4 dilation=2] Conv[y v l:3 | padding=1] A[c k l]"
    " + X[n c x y] Conv[x u k:3 | padding=1] Conv[y v l:3 | padding=1] B[c k l]"
    " + X[n c u v] D[c] -> [n c u v]"
)
STRIDED = (
    "X[n:2 i:3 x:9] Conv[x u k:5 | padding=2 stride=2] A[o:4 i k]"
    " + X[n i x] Conv[x u k:3 | padding=1 stride=2] Fill[k | value=1/3] P[o i] -> [n o u]"
)
TWO_INPUTS = "X[n:5 i:4] A[o:3 i] + Y[n j:6] B[o j] + b[o] Fill[n | value=1] -> [n o]"
ATTENTION_LIKE = "Q[n:5 d:3] K[m:4 d] + R[n m] -> [n m]"

CASES = {
    "low rank": (LOW_RANK, "X", {"n": 11}),
    "depthwise": (DEPTHWISE, "X", {"n": 3, "x": 11, "y": 7}),
    "strided": (STRIDED, "X", {"n": 1, "x": 13}),
    "two inputs": (TWO_INPUTS, "X Y", {"n": 8}),
    "inputs alone": (ATTENTION_LIKE, "Q K R", {"n": 7, "m": 2}),
    "equal terms": ("X[n:4 i:3] A[o:5 i] + X[n i] A[o i] -> [n o]", "X", {"n": 9}),
    "tied in two places": ("X[n:4 i:5] A[o:5 i] + X[n i] A[i o] -> [n o]", "X", {"n": 9}),
    "a number": ("X[n:4 i:3] A[i] + Fill[n | value=1/2] -> [n]", "X", {"n": 6}),
    "grouped": (
        "X[n:2 c x:9] Fuse[c:6 g:2 i:3] Conv[x u k:3 | padding=1] K[o i k] Fuse[o:4 g m] -> [n o u]".replace(
            " -> [n o u]", ""
        )
        + " + X[n c x] Conv[x u k:1] P[o c k] -> [n o u]",
        "X",
        {"n": 3, "x": 12},
    ),
    "transposed": (
        "X[n:2 i:3 u:5] Conv[x u k:3 | stride=2] A[i o:4 k] + X[n i u] Conv[x u k:3 | stride=2] B[o] C[i k] -> [n o x]",
        "X",
        {},
    ),
    "reflected": (
        "X[n:2 i:3 x:7] Conv[x u k:3 | padding=1 mode=reflect] A[o:4 i k] + X[n i x] Conv[x u k:5 | padding=2 "
        "mode=reflect] B[o i k] -> [n o u]",
        "X",
        {"x": 9},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_candidate_is_right_also_at_other_sizes(name: str) -> None:
    text, inputs, others = CASES[name]
    module = check(text, inputs)
    if others:
        check_at(module, others)
    check(text, inputs, candidates="factored")
    check(text, inputs, backward=True)


def _without_the_last(programs: Any) -> Any:
    return _ADD(programs[:-1] if len(programs) > 1 else programs)


def _first_kernel_alone(terms: Any, name: str, **choices: Any) -> Any:
    pair = collected(terms, name, **choices)
    return None if pair is None else (pair[0], pair[1].terms[0])


def _one_place_off(terms: Any) -> Any:
    placed = in_one_window(terms)
    if placed is None:
        return None

    def moved(node: Any) -> Any:
        inner = isinstance(node, Conv) and node.low < 0
        return dataclasses.replace(node, low=node.low + 1, high=node.high - 1) if inner else node

    return [Network([moved(node) for node in term.nodes], term.output, term.sizes) for term in placed]


_ADD = program_sums.add_programs

BROKEN: list[tuple[str, Any, str]] = [
    ("add_programs", _without_the_last, "low rank"),
    ("collected", _first_kernel_alone, "grouped"),
    ("in_one_window", _one_place_off, "depthwise"),
    ("aligned", lambda terms: [terms[0]] * len(terms), "low rank"),
    ("fresh_words", lambda words, taken: {}, "depthwise"),  # labels of several sizes have one word
]
"""Parts of the lowering of sums, broken on purpose, and a case in which the battery sees it."""


@pytest.mark.parametrize(("name", "function", "case"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_the_battery_catches_a_broken_lowering(
    name: str, function: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, inputs, _ = CASES[case]
    for module in (program_sums, joined):
        monkeypatch.setattr(module, name, function, raising=module is program_sums)
    monkeypatch.setattr(tune, "_remembered", OrderedDict())  # not the candidates of other tests
    with pytest.raises((AssertionError, RuntimeError, TnalgebraError)):
        check(text, inputs)


def test_an_equal_step_is_done_once() -> None:
    window = "Conv[x u k:3] Conv[y v l:3]"
    text = f"X[n:8 i:16 x:30 y:30] {window} A[o:16 i k l] + X[n i x y] {window} B[o i k l] -> [n o u v]"
    module = compiled(parse(text), random_values(parse(text), 0), "X")
    assert calls(module)["conv2d"] == 1  # the kernels are added before
    values = random_values(parse("X[n:3 i:4] P[i j:5] A[j o:6] + X[n i] P[i j] B[j o] -> [n o]"), 0)
    module = compiled(parse("X[n:3 i:4] P[i j:5] A[j o:6] + X[n i] P[i j] B[j o] -> [n o]"), values, "X")
    window = "Conv[x u k:3 | padding=0:2]"
    pads = parse(f"X[n:2 c:3 x:9] {window} A[c k] + X[n c x] {window} Fill[k | value=1] -> [n c u]")
    padded = compiled(pads, random_values(pads, 0), "X")
    for candidate in (*module.plan.candidates, *padded.plan.candidates):
        operations = candidate.program.operations
        assert len({*operations}) == len(operations)


def test_windows_of_different_sizes_become_one_when_it_is_frozen() -> None:
    """Frozen, the kernels are added before the call, and one depthwise convolution is left."""
    network = parse(DEPTHWISE.replace("n:2 c:4 x:9 y:8", "n:8 c:64 x:28 y:28"))
    module = compiled(network, random_values(network, 0), "X")
    module.freeze()
    assert calls(module)["conv2d"] == 1
    kernels = [one for one in module.plan.chosen.program.operations if isinstance(one, Convolve)]
    assert [one.is_depthwise for one in kernels] == [True]


def test_the_bias_is_added_once_and_in_a_call() -> None:
    values = random_values(parse(LOW_RANK), 0)
    bias = torch.arange(8, dtype=torch.float64)
    weights = {name: value for name, value in values.items() if name != "X"} | {"bias": bias}
    module = tn.compile(LOW_RANK, inputs={"X": (6, 9)}, values=weights, bias="o")
    expected = tn.evaluate(parse(LOW_RANK), values) + bias
    torch.testing.assert_close(module(values["X"]), expected, rtol=1e-12, atol=1e-12)
    assert sum(isinstance(one, Plus) for one in module.plan.chosen.program.operations) == 1


def test_a_plan_of_a_sum_can_be_printed_drawn_exported_and_copied() -> None:
    network = parse(LOW_RANK)
    values = random_values(network, 0)
    module = compiled(network, values, "X")
    assert "sum of" in str(module.plan)
    assert module.plan.draw().axes
    x = values["X"]
    exported = torch.export.export(module, (x,), dynamic_shapes={"inputs": ({0: torch.export.Dim("n", min=2)},)})
    larger = torch.cat([x, x])
    torch.testing.assert_close(exported.module()(larger), module(larger))
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))

    def one(row: Any) -> Any:
        return module(row[None])[0]

    torch.testing.assert_close(torch.func.vmap(one)(x), module(x))
    tn.compile(network, inputs={"X": (6, 9)}, values=weights_of(values), dynamic={"n": (1, 64)})
    module.replan({"X": (12, 9)})
    torch.testing.assert_close(module(larger)[:6], module(x))


def weights_of(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if name != "X"}


def test_what_is_refused() -> None:
    values = random_values(parse(TWO_INPUTS), 0)
    module = compiled(parse(TWO_INPUTS), values, ["X", "Y"])
    with refused(CompileError, "do not fit each other"):
        module(values["X"], values["Y"][:3])
    with refused(CompileError, "'i'", "3 elements, not 4"):
        module(values["X"][:, :3], values["Y"])
    with refused(SizeError, "'n'"):
        tn.compile(TWO_INPUTS, inputs={"X": (5, 4), "Y": (4, 6)}, values={})
    with refused(CompileError, "no value for 'B', 'b'"):
        tn.compile(TWO_INPUTS, inputs={"X": (5, 4), "Y": (5, 6)}, values={"A": values["A"]})


def test_parallel_branches_of_torch_are_what_torch_computes() -> None:
    torch.manual_seed(0)
    one, two = nn.Conv2d(16, 16, 3, padding=1, bias=False).double(), nn.Conv2d(16, 16, 1, bias=False).double()
    text = (
        "X[n i:16 x y] Conv[x u k:3 | padding=1] Conv[y v l:3 | padding=1] A[o:16 i k l]"
        " + X[n i x y] Conv[x u k:1] Conv[y v l:1] B[o i k l] -> [n o u v]"
    )
    module = tn.compile(text, inputs={"X": (8, 16, 28, 28)}, values={"A": one.weight, "B": two.weight})
    x = torch.randn(3, 16, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(module(x), one(x) + two(x), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(module.freeze()(x), one(x) + two(x), rtol=1e-10, atol=1e-10)
    assert calls(module)["conv2d"] == 1


# Terms side by side -------------------------------------------------------------------------------------------


def test_terms_that_share_nothing_have_no_common_form() -> None:
    terms = aligned(parse("X[n i] A[i] + Y[n j] B[j] -> [n]").terms)
    assert collected(terms, "S", apart=lambda node: node.name in "XY") is None
    assert in_one_window(parse("X[n:2 i:3] A[i] + X[n i] B[i] -> [n]").terms) is None
    strides = parse("X[x:9] Conv[x y:4 k:2 | stride=2] A[k] + X[x] Conv[x y k:6] B[k]")
    assert in_one_window(strides.terms) is None
    # of inputs of another size the two would have another number of positions
    floors = parse("X[x:9] Conv[x y:4 k:2 | stride=2] A[k] + X[x] Conv[x y k:3 | stride=2] B[k]")
    assert in_one_window(floors.terms) is None
