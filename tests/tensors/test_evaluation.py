"""The oracle against the definitions, its invariances, and what it says to values that do not fit."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.dense_oracle import dense_value
from tests.refusals import refused
from tests.strategies import in_other_words, random_values, valued_networks, valued_sums
from tests.stuck import not_stuck
from tnalgebra.errors import NetworkError, SizeError, ValuesError
from tnalgebra.networks import Conv, Network, Variable, carriers, parse, resized, shape_of
from tnalgebra.tensors import bind, contract, evaluate, magnitude, pattern

EPS = torch.finfo(torch.float64).eps
ROUNDING = 64 * EPS  # of `magnitude`: sums of at most 20,000 terms, added pairwise


def assert_same(one: Tensor, two: Tensor, scale: Tensor) -> None:
    assert one.shape == two.shape
    assert one.dtype == two.dtype == torch.float64
    assert ((one - two).abs() <= ROUNDING * scale).all()


def values_of(text: str) -> tuple[Network, dict[str, Tensor]]:
    network = parse(text)
    return network, random_values(network, 0)


# Laws -------------------------------------------------------------------------------------------------------


@given(valued_networks() | valued_sums())
def test_value_is_the_sum_of_products_of_the_definitions(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    expected = torch.from_numpy(dense_value(network, values))
    value = evaluate(network, values)
    assert value.shape == shape_of(network, network.output)
    assert_same(value, expected, magnitude(network, values))


@given(valued_networks() | valued_sums(), st.data())
def test_value_does_not_depend_on_order_and_words(
    example: tuple[Network, dict[str, Tensor]], data: st.DataObject
) -> None:
    network, values = example
    other, names = data.draw(in_other_words(network))
    renamed_values = {names[name]: value for name, value in values.items()}
    assert_same(evaluate(other, renamed_values), evaluate(network, values), magnitude(network, values))


@given(valued_networks(), st.randoms())
def test_closed_labels_are_open_ones_summed_in_any_order(
    example: tuple[Network, dict[str, Tensor]], random: Random
) -> None:
    network, values = example
    labels = list(carriers(network))
    random.shuffle(labels)
    everything = evaluate(Network(network.nodes, labels, network.sizes), values)
    closed = [label for label in labels if label not in network.output]
    turned = everything.permute([labels.index(label) for label in (*network.output, *closed)])
    expected = evaluate(network, values)
    assert_same(turned.reshape(*expected.shape, -1).sum(-1), expected, magnitude(network, values))


@given(valued_networks() | valued_sums())
def test_magnitude_bounds_the_value(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    absolute = {name: value.abs() for name, value in values.items()}
    assert (evaluate(network, values).abs() <= magnitude(network, values) * (1 + ROUNDING)).all()
    assert torch.equal(magnitude(network, values), magnitude(network, absolute))


@given(valued_networks(kinds=("tensor", "Copy", "Fuse")) | valued_sums(kinds=("tensor", "Copy", "Fuse")))
def test_sizes_are_learnt_from_the_values(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    shapeless = resized(network, {})
    bound, _ = bind(shapeless, values)
    assert bound.sizes.items() <= network.sizes.items()
    if bound.sizes == network.sizes:
        assert torch.equal(evaluate(shapeless, values), evaluate(network, values))


# Examples by hand -------------------------------------------------------------------------------------------


def test_against_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64)
    kernel = torch.randn(5, 3, 3, 4, generator=generator, dtype=torch.float64)
    text = "X[n i x y] Conv[x u h|stride=2 padding=1] Conv[y v w|stride=3 padding=2 dilation=2] K[o i h w] -> [n o u v]"
    value = evaluate(parse(text), {"X": image, "K": kernel})
    expected = torch.nn.functional.conv2d(image, kernel, stride=(2, 3), padding=(1, 2), dilation=(1, 2))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_scalars() -> None:
    assert evaluate(parse("s[] t[]"), {"s": 3, "t": 0.5}) == 1.5
    assert evaluate(parse("Copy[] Fill[|value=-2/3]")).item() == pytest.approx(-2 / 3, abs=EPS)
    assert evaluate(parse("Fill[a:3 b:4|value=mean] -> []")).item() == pytest.approx(1, abs=EPS)


def test_diagonal_and_trace() -> None:
    matrix = torch.arange(9.0).reshape(3, 3)
    assert evaluate(parse("K[a a] -> [a]"), {"K": matrix}).tolist() == [0, 4, 8]
    assert evaluate(parse("K[a a]"), {"K": matrix}).item() == 12
    cube = torch.arange(27.0).reshape(3, 3, 3)
    assert evaluate(parse("K[a a a] -> [a]"), {"K": cube}).tolist() == [0, 13, 26]


def test_label_that_is_summed_alone() -> None:
    assert evaluate(parse("K[a b] -> [b]"), {"K": [[1, 2], [3, 4], [5, 6]]}).tolist() == [9, 12]


def test_a_tied_tensor_stands_in_both_places() -> None:
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(evaluate(parse("K[a b] K[b c]"), {"K": matrix}), (matrix @ matrix).double())


@pytest.mark.parametrize("value", [[1, 2, 3], np.array([1, 2, 3], dtype=np.int8), torch.tensor([1, 2, 3]).half()])
def test_values_of_any_real_type_are_evaluated_in_float64(value: Any) -> None:
    value = evaluate(parse("K[a] Fill[b:2|value=1/2]"), {"K": value})
    assert value.dtype == torch.float64
    assert value.tolist() == [[0.5, 0.5], [1, 1], [1.5, 1.5]]


def test_gradients_pass_through() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    evaluate(parse("K[a b] K[c b] -> []"), {"K": weight}).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * weight.detach().sum(0).expand(3, 4))


def test_more_than_52_labels_in_all() -> None:
    chain = " ".join(f"K{i}[x{i}:2 x{i + 1}]" for i in range(60))
    network, values = values_of(f"{chain} Copy[x60 x0]")
    expected = torch.linalg.multi_dot([values[f"K{i}"] for i in range(60)]).trace()
    torch.testing.assert_close(evaluate(network, values), expected, rtol=1e-12, atol=0)


def test_more_than_52_labels_in_one_pair() -> None:
    """60 labels on each of two tensors: summed, on both and open, on one only; sizes 1 but for a few."""
    names = [f"x{i}" for i in range(60)]
    sizes = dict.fromkeys(names, 1) | {"x0": 2, "x1": 3, "x2": 4, "x30": 5}
    only_a, only_b = "a:6", "b:7"
    text = (
        f"A[{' '.join(f'{name}:{sizes[name]}' for name in names)} {only_a}] "
        f"B[{only_b} {' '.join(reversed(names))}] -> [b {' '.join(names[2:])} a]"
    )
    network, values = values_of(text)
    a = values["A"].reshape(2, 3, 4, 5, 6)
    b = values["B"].reshape(7, 5, 4, 3, 2)
    expected = torch.einsum("pqrsa,bsrqp->brsa", a, b)
    value = evaluate(network, values)
    assert value.ndim == 60
    torch.testing.assert_close(value.reshape(7, 4, 5, 6), expected, rtol=1e-12, atol=1e-12)


def test_negative_padding_crops() -> None:
    value = evaluate(parse("X[x] Conv[x y k:1|padding=-1:-2] -> [y]"), {"X": [1, 2, 3, 4, 5, 6]})
    assert value.tolist() == [2, 3, 4]


# What does not fit ------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("text", "values", "facts"),
    [
        ("K[a b] V[b]", {"K": [[1.0]]}, ["'V'", "K[a:1 b:1] V[b]"]),
        ("K[a b] V[b]", {}, ["'K', 'V'"]),
        ("K[a]", {"K": [1.0], "W": [1.0]}, ["'W'", "tensors: K"]),
        ("Copy[a:2]", {"W": [1.0]}, ["tensors: none"]),
        ("K[a b]", {"K": [1.0, 2.0]}, ["'K' has 1 axes", "(2,)", "K[a b]"]),
        ("K[a]", {"K": [1.0, NAN, INF]}, ["'K' holds NaN", "2 of 3"]),
        ("K[a b]", {"K": torch.zeros(3, 0)}, ["'K' is empty", "(3, 0)"]),
        ("K[a:2 b:3]", {"K": torch.ones(3, 2)}, ["'a' of 'K' has 3", "size 2", "(3, 2)", "K[a:2 b:3]"]),
        ("K[a a]", {"K": torch.ones(3, 2)}, ["'a' of 'K' has 2", "size 3"]),
        ("K[a b] V[b]", {"K": torch.ones(2, 3), "V": torch.ones(4)}, ["'b' of 'V' has 4"]),
        ("K[a b] K[b c]", {"K": torch.ones(2, 3)}, ["contradict", "'b' has two sizes"]),
        (
            "X[x] Conv[x y k] K[k] Y[y]",
            {"X": torch.ones(5), "K": torch.ones(2), "Y": torch.ones(5)},
            ["contradict", "'y' has two sizes"],
        ),
        ("K[a b]", {"K": None}, ["'K'", "NoneType"]),
        ("K[a b]", {"K": "abc"}, ["no basis has the name 'abc'", "tensor: K"]),
        ("K[a b]", {"K": torch.eye(3).to_sparse()}, ["'K' is torch.sparse_coo"]),
        ("K[a b]", {"K": torch.empty(3, 3, device="meta")}, ["'K' has no elements", "meta"]),
    ],
)
def test_values_that_do_not_fit(text: str, values: dict[str, Any], facts: list[str]) -> None:
    with refused(ValuesError, *facts):
        evaluate(parse(text), values)


def test_unknown_size() -> None:
    with refused(SizeError, "'b'", "Copy[b c]", "a=2", "b:SIZE"):
        evaluate(parse("K[a] Copy[b c]"), {"K": [1, 2]})


def test_a_variable_is_not_a_number() -> None:
    network = Network([Conv("x", "y", "k", stride=Variable("s"))], sizes={"x": 5, "y": 3, "k": 3})
    with refused(NetworkError, "attributes s are variables", "Conv[x y k | stride=s]"):
        evaluate(network)


def test_memory_guard_stops_a_dense_pattern_before_it_is_made() -> None:
    with not_stuck(), refused(SizeError, 10**20, "Copy[a:100000"):
        evaluate(parse("Copy[a:100000 b c d]"))
    with refused(SizeError, "max_elements above 10"):
        pattern(parse("Fill[a:4 b:4|value=1]").nodes[0], parse("Fill[a:4 b:4|value=1]"), max_elements=10)


def test_memory_guard_stops_an_intermediate() -> None:
    network, values = values_of("A[a:40] B[b:50] C[c:60]")
    with refused(SizeError, 120000, "=40"):
        evaluate(network, values, max_elements=100_000)
    assert evaluate(network, values, max_elements=120_000).shape == (40, 50, 60)


def test_memory_guard_counts_what_is_kept_only() -> None:
    network, values = values_of("A[a:40 b:50] B[b c:40] -> [a]")
    assert evaluate(network, values, max_elements=2000).shape == (40,)


def test_more_than_64_axes_in_an_intermediate() -> None:
    a, b = (" ".join(f"{word}{i}:1" for i in range(40)) for word in "ab")
    operands = [(torch.ones([1] * 40), tuple(f"{word}{i}" for i in range(40))) for word in "ab"]
    with refused(NetworkError, "80 axes", "at most 64"):
        evaluate(parse(f"A[{a}] B[{b}]"), {"A": operands[0][0], "B": operands[1][0]})
    with refused(NetworkError, "80 axes", "at most 64"):
        contract(operands, [label for _, labels in operands for label in labels])
