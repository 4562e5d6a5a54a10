"""What cannot be compiled, and calls that cannot be computed: the error says why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tnalgebra as tn
from tests.compiler_cases import check, check_at, compiled, random
from tests.strategies import random_values
from tnalgebra.errors import CompileError, NotationError, SizeError, ValuesError
from tnalgebra.network.network import Network
from tnalgebra.network.notation import parse
from tnalgebra.tensors.evaluation import evaluate

# What cannot be compiled ---------------------------------------------------------------------------------------------


CONVOLUTION = "X[n in:3 x] Conv[x u k] K[out:4 in k:2] -> [n out u]"


def convolution(**choices: Any) -> tn.Compiled:
    return compiled(*_valued(CONVOLUTION, n=2, x=7), ["X"], **choices)


def _valued(text: str, **sizes: int) -> tuple[Network, dict[str, Tensor]]:
    network = parse(text)
    network = Network(network.nodes, network.output, {**network.sizes, **sizes})
    return network, random_values(network, 0)


KERNEL = random(4, 3, 2)


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"inputs": {}}, CompileError, "there is no input\n  tensors: X K\n  fix:     inputs={'X': shape}"),
        ({"inputs": {"Y": (2, 3)}}, CompileError, "there is no tensor 'Y' to be the input\n  tensors: X K\n"),
        ({"inputs": {"Conv": (7, 6, 2)}}, CompileError, "there is no tensor 'Conv' to be the input"),
        (
            {"inputs": {"X": (2, 3)}},
            CompileError,
            "the input 'X' has 2 axes, its node has 3\n  shape: (2, 3)\n  node:  X[n in x]",
        ),
        ({"inputs": {"X": (2, 5, 7)}}, SizeError, "label 'in' has two sizes\n  first:  3, in X["),
        ({"inputs": {"X": (0, 3, 7)}}, SizeError, "label 'n' would have size 0"),
        ({"inputs": {"X": (2, 3, 1)}}, SizeError, "the window over 'k' reaches 2 elements"),
        ({"values": {}}, CompileError, "no value for 'K'\n  network: X["),
        ({"values": {"K": KERNEL, "X": random(2, 3, 7)}}, CompileError, "'X' is an input and has a value"),
        ({"values": {"K": KERNEL, "Q": KERNEL}}, ValuesError, "a value is given for 'Q', no tensor of the network"),
        ({"values": {"K": KERNEL[:, :2]}}, ValuesError, "the axis 'in' of 'K' has 2 elements, the label has size 3"),
        ({"values": {"K": KERNEL / 0}}, ValuesError, "the value of 'K' holds NaN or infinity"),
        ({"constants": ["Q"]}, CompileError, "the constant 'Q' has no value\n  values: K"),
        ({"candidates": "fast"}, CompileError, "candidates is 'fast'\n  fix: 'all' or 'factored'"),
        ({"memory_format": "nhwc"}, CompileError, "memory_format is 'nhwc'\n  fix: one of torch.contiguous_format, "),
        ({"dynamic": {"x": (4, 9)}}, CompileError, "the size of 'x' decides other sizes, or a weight has it"),
        ({"dynamic": {"in": (1, 9)}}, CompileError, "fix:     a label that stands on inputs only, such as the batch"),
        ({"dynamic": {"b": (1, 9)}}, CompileError, "a range is given for 'b', no label of the network\n  labels: "),
        ({"dynamic": {"n": (5, 4)}}, CompileError, "the range of 'n' is (5, 4)\n  fix: (least, most), at least 1"),
        ({"dynamic": {"n": (0, 4)}}, CompileError, "the range of 'n' is (0, 4)"),
        ({"dynamic": {"n": (1, 2, 3)}}, CompileError, "the range of 'n' is (1, 2, 3)"),
        (
            {"max_elements": 10},
            CompileError,
            "no way to compute the network keeps every tensor within 10 elements\n  network: X[n:2 in:3 x:7] ",
        ),
    ],
)
def test_what_cannot_be_compiled(choices: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"inputs": {"X": (2, 3, 7)}, "values": {"K": KERNEL}, **choices}
    with pytest.raises(error, match=re.escape(message)):
        tn.compile(CONVOLUTION, **arguments)


def test_a_batch_in_a_range_is_computed_for_every_size() -> None:
    module = check(
        Network(parse(CONVOLUTION).nodes, ["n", "out", "u"], {"n": 2, "x": 7, "in": 3, "out": 4, "k": 2}),
        "X",
        dynamic={"n": (1, 64)},
    )
    for batch in (1, 7, 65):
        check_at(module, {"n": batch})


@pytest.mark.parametrize(
    "name", ["training", "forward", "T_destination", "code", "plan", "freeze", "_parameters", "self"]
)
def test_names_that_a_module_has_itself(name: str) -> None:
    message = f"a tensor is called {name!r}, which a module has for itself\n  fix: another name in the network"
    with pytest.raises(CompileError, match=re.escape(message)):
        tn.compile(CONVOLUTION.replace("K[", f"{name}["), inputs={"X": (2, 3, 7)}, values={name: KERNEL})
    with pytest.raises(CompileError, match=re.escape(message)):
        tn.compile(CONVOLUTION.replace("X[", f"{name}["), inputs={name: (2, 3, 7)}, values={"K": KERNEL})


@pytest.mark.parametrize(
    "name", ["T", "torch", "input", "size", "pattern_0", "frozen_0", "lambda", "class", "None", "x", "X_1"]
)
def test_names_that_only_look_taken(name: str) -> None:
    check(*_named(CONVOLUTION.replace("K[", f"{name}[")), "X")
    check(*_named(CONVOLUTION.replace("X[", f"{name}[")), name)
    check(f"X[n:2 i:3] {name}[o:4 i] Copy[o p q] -> [n p q]", "X")
    check(f"{name}[n:2 i:3] W[o:4 i] Copy[o p q] -> [n p q]", name)


def _named(text: str) -> tuple[Network]:
    return (_valued(text, n=2, x=7)[0],)


def test_a_name_with_a_dot_is_not_in_the_notation() -> None:
    with pytest.raises(NotationError, match=r"character '\.' has no meaning here"):
        tn.compile("X[n i] weight.x[o i]", inputs={"X": (2, 3)})


def test_sizes_that_contradict() -> None:
    with pytest.raises(SizeError, match=r"label 'n' has sizes 2 and 4\n  where: Y\[n b\]"):
        tn.compile("X[n a] Y[n b]", inputs={"X": (2, 3), "Y": (4, 5)})
    with pytest.raises(SizeError, match="label 'n' has sizes 2 and 3"):
        tn.compile("X[n n]", inputs={"X": (2, 3)})
    with pytest.raises(SizeError, match="label 'u' has two sizes"):
        tn.compile("X[x] Conv[x u k] K[k:2] Y[u]", inputs={"X": (5,), "Y": (3,)}, values={"K": [1.0, 2.0]})


def test_a_size_that_is_not_known() -> None:
    with pytest.raises(SizeError, match=r"the size of label 'a' is unknown\n  where: Copy\[a b\]\n  known: n=2"):
        tn.compile("X[n] Copy[a b] -> [n a]", inputs={"X": (2,)})


def test_values_of_two_types() -> None:
    message = "the values differ in dtype or device\n  values: V torch.float32 on cpu, W torch.float64 on cpu"
    with pytest.raises(CompileError, match=re.escape(message)):
        tn.compile("X[n a] V[a] W[a]", inputs={"X": (2, 3)}, values={"V": torch.ones(3), "W": torch.ones(3).double()})


def test_integers_become_the_floating_type_of_the_others() -> None:
    module = tn.compile("X[n a] V[a] W[a]", inputs={"X": (2, 3)}, values={"V": [1, 2, 3], "W": random(3)})
    assert module.V.dtype == torch.float64


# Calls ---------------------------------------------------------------------------------------------------------------


X: Tensor = random(2, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "the input 'X' is missing\n  inputs: X"),
        ((X, X), {}, "2 inputs are given\n  inputs: X"),
        ((), {"Y": X}, "'Y' is no input\n  inputs: X"),
        ((X,), {"X": X}, "'X' is given twice\n  inputs: X"),
        ((X[0],), {}, "the input 'X' has 2 axes, its node has 3\n  shape: (3, 7)\n  node:  X[n:2 in:3 x:7]"),
        ((X[:, :2],), {}, "the axis 'in' of the input 'X' has 2 elements, needed are 3\n  shape: (2, 2, 7)\n  node:"),
        ((X.float(),), {}, "the input 'X' is torch.float32, the weights are torch.float64\n  fix: X.to(torch.float64)"),
        ((X.long(),), {}, "the input 'X' is torch.int64\n  fix: floating point numbers"),
        (
            (X[:, :, :1],),
            {},
            "the sizes of the inputs do not fit\n  shapes:  X (2, 3, 1)\n  because: the window over 'k'",
        ),
    ],
)
def test_calls_that_cannot_be_computed(arguments: Sequence[Tensor], named: dict[str, Tensor], message: str) -> None:
    module = convolution()
    with pytest.raises(CompileError, match=re.escape(message)):
        module(*arguments, **named)
    with pytest.raises(CompileError, match=re.escape(message)):
        module.freeze()(*arguments, **named)


def test_autocast_lets_another_type_pass() -> None:
    network, values = _valued(CONVOLUTION, n=2, x=7)
    module = compiled(network, {name: value.float() for name, value in values.items()}, ["X"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = module(values["X"].bfloat16())
    assert value.dtype == torch.bfloat16
    # bfloat16 has 8 bits; sums of six products
    torch.testing.assert_close(value.double(), evaluate(network, values), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("shape", [(3, 2), (1, 2)])
@pytest.mark.parametrize("text", ["X[n:4 i:3] Y[n j:2] -> [n i j]", "X[n:4 i:3] Y[n j:2] -> [i j]"])
def test_inputs_that_disagree(text: str, shape: tuple[int, int]) -> None:
    module = tn.compile(text, inputs={"X": (4, 3), "Y": (4, 2)})
    message = (
        f"the sizes of the inputs do not fit\n  shapes:  X (4, 3), Y {shape}\n  because: label 'n' has sizes 4 and"
    )
    with pytest.raises(CompileError, match=re.escape(message)):
        module(torch.ones(4, 3), torch.ones(shape))
    assert module(torch.ones(3, 3), torch.ones(3, 2)).shape[-1] == 2


def test_an_input_that_a_window_gives_another_size() -> None:
    module = tn.compile(
        "X[x:9] Conv[x u k] K[k:3] Y[u] -> []", inputs={"X": (9,), "Y": (7,)}, values={"K": torch.ones(3)}
    )
    assert module(torch.ones(5), torch.ones(3)) == 9
    for size in (1, 4):
        with pytest.raises(CompileError, match="the sizes of the inputs do not fit"):
            module(torch.ones(5), torch.ones(size))


def test_two_inputs_without_weights_are_of_one_type() -> None:
    module = tn.compile("X[n i] Y[n j] -> [n i j]", inputs={"X": (4, 3), "Y": (4, 2)})
    assert module(torch.ones(4, 3).double(), torch.ones(4, 2).double()).dtype == torch.float64
    with pytest.raises(CompileError, match=r"the input 'Y' is torch\.float64, 'X' is torch\.float32"):
        module(torch.ones(4, 3), torch.ones(4, 2).double())
