"""What cannot be compiled, and calls that cannot be computed: the error says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tnalgebra as tn
from tests.compiler_cases import check, check_at, compiled, random
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.errors import CompileError, NotationError, SizeError, ValuesError
from tnalgebra.networks.network import Network
from tnalgebra.networks.notation import parse
from tnalgebra.tensors.evaluation import evaluate

# What cannot be compiled ---------------------------------------------------------------------------------------------


CONVOLUTION = "X[n in:3 x] Conv[x u k] K[out:4 in k:2] -> [n out u]"


def convolution(**choices: Any) -> tn.compiler.Compiled:
    return compiled(*_valued(CONVOLUTION, n=2, x=7), ["X"], **choices)


def _valued(text: str, **sizes: int) -> tuple[Network, dict[str, Tensor]]:
    network = parse(text)
    network = Network(network.nodes, network.output, {**network.sizes, **sizes})
    return network, random_values(network, 0)


KERNEL = random(4, 3, 2)


@pytest.mark.parametrize(
    ("choices", "error", "facts"),
    [
        ({"inputs": {}}, CompileError, ("no input", "X K", "inputs=")),
        ({"inputs": {"Y": (2, 3)}}, CompileError, ("'Y'", "X K")),
        ({"inputs": {"Conv": (7, 6, 2)}}, CompileError, ("'Conv'",)),
        ({"inputs": {"X": (2, 3)}}, CompileError, ("'X' has 2 axes", "(2, 3)", "X[n in x]")),
        ({"inputs": {"X": (2, 5, 7)}}, SizeError, ("label 'in'", "3, in X[")),
        ({"inputs": {"X": (0, 3, 7)}}, SizeError, ("label 'n'", "size 0")),
        ({"inputs": {"X": (2, 3, 1)}}, SizeError, ("window over 'k'", "2 elements")),
        ({"values": {}}, CompileError, ("no value for 'K'", "X[")),
        ({"values": {"K": KERNEL, "X": random(2, 3, 7)}}, CompileError, ("'X' is an input and has a value",)),
        ({"values": {"K": KERNEL, "Q": KERNEL}}, ValuesError, ("'Q'",)),
        ({"values": {"K": KERNEL[:, :2]}}, ValuesError, ("axis 'in' of 'K'", 2, 3)),
        ({"values": {"K": KERNEL / 0}}, ValuesError, ("'K'", "NaN")),
        ({"constants": ["Q"]}, CompileError, ("constant 'Q'", "values: K")),
        ({"candidates": "fast"}, CompileError, ("'fast'", "'all' or 'factored'")),
        ({"memory_format": "nhwc"}, CompileError, ("'nhwc'", "torch.contiguous_format")),
        ({"dynamic": {"x": (4, 9)}}, CompileError, ("size of 'x' cannot change",)),
        ({"dynamic": {"in": (1, 9)}}, CompileError, ("'in'", "inputs only, such as the batch")),
        ({"dynamic": {"b": (1, 9)}}, CompileError, ("'b'", "labels: ")),
        ({"dynamic": {"n": (5, 4)}}, CompileError, ("'n' is (5, 4)", "(least, most)")),
        ({"dynamic": {"n": (0, 4)}}, CompileError, ("'n' is (0, 4)",)),
        ({"dynamic": {"n": (1, 2, 3)}}, CompileError, ("'n' is (1, 2, 3)",)),
        ({"inputs": {"X": (True, 3, 7)}}, CompileError, ("'X'", "(True, 3, 7)")),
        ({"inputs": {"X": (2.0, 3, 7)}}, CompileError, ("'X'", "(2.0, 3, 7)")),
        *(({"max_elements": most}, CompileError, (repr(most), "at least 1")) for most in ("x", -1, 0, 1.5, None, True)),
        ({"max_elements": 10}, CompileError, ("within 10 elements", "X[n:2 in:3 x:7]")),
    ],
)
def test_what_cannot_be_compiled(choices: dict[str, Any], error: type[Exception], facts: tuple[object, ...]) -> None:
    arguments = {"inputs": {"X": (2, 3, 7)}, "values": {"K": KERNEL}, **choices}
    with refused(error, *facts):
        tn.compile(CONVOLUTION, **arguments)


def test_integers_of_numpy_are_sizes() -> None:
    shape: Any = tuple(np.array([2, 3, 7]))
    most: Any = np.int64(10**6)
    module = tn.compile(CONVOLUTION, inputs={"X": shape}, values={"K": KERNEL}, max_elements=most, tune=False)
    X = random(2, 3, 7)
    torch.testing.assert_close(module(X), torch.conv1d(X, KERNEL))


def test_a_batch_in_a_range_is_computed_for_every_size() -> None:
    module = check(
        Network(parse(CONVOLUTION).nodes, ["n", "out", "u"], {"n": 2, "x": 7, "in": 3, "out": 4, "k": 2}),
        "X",
        dynamic={"n": (1, 64)},
    )
    for batch in (1, 7, 65):
        check_at(module, {"n": batch})


@pytest.mark.parametrize(
    "name", ["training", "forward", "T_destination", "float", "code", "plan", "freeze", "_parameters", "_code", "self"]
)
def test_names_that_a_module_has_itself(name: str) -> None:
    with refused(CompileError, repr(name), "another name"):
        tn.compile(CONVOLUTION.replace("K[", f"{name}["), inputs={"X": (2, 3, 7)}, values={name: KERNEL})
    with refused(CompileError, repr(name)):
        tn.compile(CONVOLUTION.replace("X[", f"{name}["), inputs={name: (2, 3, 7)}, values={"K": KERNEL})


@pytest.mark.parametrize(
    ("text", "inputs", "values", "error", "facts"),
    [
        ("X[n i] weight.x[o i]", {"X": (2, 3)}, {}, NotationError, ("'.'",)),
        ("X[n a] Y[n b]", {"X": (2, 3), "Y": (4, 5)}, {}, SizeError, ("'n' has sizes 2 and 4", "Y[n b]")),
        ("X[n n]", {"X": (2, 3)}, {}, SizeError, ("'n' has sizes 2 and 3",)),
        ("X[x] Conv[x u k] K[k:2] Y[u]", {"X": (5,), "Y": (3,)}, {"K": [1.0, 2.0]}, SizeError, ("'u' has two sizes",)),
        ("X[n] Copy[a b] -> [n a]", {"X": (2,)}, {}, SizeError, ("label 'a'", "Copy[a b]", "n=2")),
        (
            *("X[n a] V[a] W[a]", {"X": (2, 3)}, {"V": torch.ones(3), "W": random(3)}),
            *(CompileError, ("V torch.float32 on cpu", "W torch.float64 on cpu")),
        ),
    ],
)
def test_networks_that_cannot_be_compiled(
    text: str, inputs: dict[str, Any], values: dict[str, Any], error: type[Exception], facts: tuple[str, ...]
) -> None:
    with refused(error, *facts):
        tn.compile(text, inputs=inputs, values=values)


def test_integers_become_the_floating_type_of_the_others() -> None:
    module = tn.compile("X[n a] V[a] W[a]", inputs={"X": (2, 3)}, values={"V": [1, 2, 3], "W": random(3)})
    assert module.V.dtype == torch.float64


# Calls ---------------------------------------------------------------------------------------------------------------


X: Tensor = random(2, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "named", "facts"),
    [
        ((), {}, ("'X' is missing", "inputs: X")),
        ((X, X), {}, ("2 inputs", "inputs: X")),
        ((), {"Y": X}, ("'Y'", "inputs: X")),
        ((X,), {"X": X}, ("'X' is given twice",)),
        ((None,), {}, ("'X' is not a tensor", "NoneType")),
        ((X[0],), {}, ("'X' has 2 axes", "(3, 7)", "X[n:2 in:3 x:7]")),
        ((X[:, :2],), {}, ("axis 'in' of the input 'X' has 2", "elements, not 3", "(2, 2, 7)")),
        ((X.float(),), {}, ("'X' is torch.float32", "torch.float64", "X.to(")),
        ((X.long(),), {}, ("'X' is torch.int64", "floating")),
        ((X[:, :, :1],), {}, ("X (2, 3, 1)", "window over 'k'")),
    ],
)
def test_calls_that_cannot_be_computed(
    arguments: Sequence[Any], named: dict[str, Tensor], facts: tuple[str, ...]
) -> None:
    module = convolution()
    with refused(CompileError, *facts):
        module(*arguments, **named)
    with refused(CompileError, *facts):
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
    with refused(CompileError, f"X (4, 3), Y {shape}", "'n' has sizes 4 and"):
        module(torch.ones(4, 3), torch.ones(shape))
    assert module(torch.ones(3, 3), torch.ones(3, 2)).shape[-1] == 2


def test_an_input_that_a_window_gives_another_size() -> None:
    module = tn.compile(
        "X[x:9] Conv[x u k] K[k:3] Y[u] -> []", inputs={"X": (9,), "Y": (7,)}, values={"K": torch.ones(3)}
    )
    assert module(torch.ones(5), torch.ones(3)) == 9
    for size in (1, 4):
        with refused(CompileError, f"Y ({size},)"):
            module(torch.ones(5), torch.ones(size))


def test_two_inputs_without_weights_are_of_one_type() -> None:
    module = tn.compile("X[n i] Y[n j] -> [n i j]", inputs={"X": (4, 3), "Y": (4, 2)})
    assert module(torch.ones(4, 3).double(), torch.ones(4, 2).double()).dtype == torch.float64
    with refused(CompileError, "'Y' is torch.float64, 'X' is torch.float32"):
        module(torch.ones(4, 3), torch.ones(4, 2).double())
