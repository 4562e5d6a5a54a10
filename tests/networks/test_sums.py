"""Sums of networks: what their terms share, how they are joined and drawn, and what is refused."""

from __future__ import annotations

import copy
import operator
import pickle
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.refusals import refused
from tests.strategies import random_values, sums, valued_networks, valued_sums
from tnalgebra.errors import NetworkError, NotationError, SizeError, TnalgebraError
from tnalgebra.networks import (
    NamedTensor,
    Network,
    Sum,
    carriers,
    compose,
    isomorphic,
    kernel_multiply_adds,
    parse,
    parse_rule,
    renamed,
    resized,
    shapes,
    size_of,
    tensors_of,
    with_sizes,
)
from tnalgebra.networks.drawing.layout import layout_terms
from tnalgebra.tensors import evaluate, magnitude, values_for


def assert_same(value: Tensor, expected: Tensor, scale: Tensor) -> None:
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= 1e-12 * scale).all()


# What a sum is ------------------------------------------------------------------------------------------------


@given(sums())
def test_only_the_output_is_shared(network: Network) -> None:
    assert isinstance(network, Sum)
    for number, term in enumerate(network.terms):
        assert term.output == network.output
        for other in network.terms[:number]:
            assert carriers(term).keys() & carriers(other).keys() <= {*network.output}


@given(valued_sums())
def test_its_value_is_the_sum_of_the_values_of_its_terms(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    alone = [evaluate(term, {name: values[name] for name in tensors_of(term)}) for term in network.terms]
    assert_same(evaluate(network, values), torch.stack(alone).sum(0), magnitude(network, values))
    assert network.parameters == sum(value.numel() for value in values.values())
    assert shapes(network) == {name: tuple(value.shape) for name, value in values.items()}


@given(sums())
def test_it_is_a_value(network: Network) -> None:
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), Sum(network.terms)):
        assert twin == network
        assert hash(twin) == hash(network)
    assert network != network.terms[0]
    assert network.terms[0] != network
    assert network.terms[0].terms == (network.terms[0],)
    assert network.terms[0] + Sum(network.terms[1:] * 2) != network


def test_the_same_word_in_two_terms_is_renamed_apart() -> None:
    network = parse("U[o:5 a:2] V[a i:4] + P[o a:3] Q[a i] + R[i a] S[a_2 o] T[a a_2]")
    assert str(network) == "U[o:5 a:2] V[a i:4] + P[o a_2:3] Q[a_2 i] + R[i a_3] S[a_4 o] T[a_3 a_4]"
    assert [size_of(network, label) for label in ("a", "a_2")] == [2, 3]
    assert str(network.terms[1]) == "P[o:5 a_2:3] Q[a_2 i:4]"


def test_sizes_spread_between_the_terms() -> None:
    network = parse("A[o r:3] B[r i] + A[o s] C[s i] + D[o:4 i:6]")
    assert network.sizes == {"o": 4, "r": 3, "i": 6, "s": 3}
    larger = with_sizes(parse("A[o r] B[r i] + D[o i]"), {"r": 2, "o": 3, "i": 4})
    assert larger.parameters == 6 + 8 + 12
    assert resized(larger, {"o": 7}).sizes == {"o": 7}
    with refused(SizeError, "'r'", "2", "3"):
        with_sizes(larger, {"r": 3})
    with refused(SizeError, "'z'"):
        with_sizes(larger, {"z": 3})


def test_a_window_takes_the_size_that_another_term_knows() -> None:
    """Alone, the first term would take the smallest input that fits."""
    network = parse("X[n x] Conv[x y:4 k:3 | stride=2] K[k] + X[n:2 x:10] W[x y]")
    assert network.sizes["x"] == 10
    assert parse(str(network)) == network


def test_addition_takes_sums_apart() -> None:
    a, b, c = (parse(text) for text in ("A[i j]", "B[j i] -> [i j]", "C[i r] D[r j]"))
    assert a + (b + c) == (a + b) + c == Sum([a, b, c])
    assert (parse("B[j i]") + a).output == ("j", "i")
    with pytest.raises(TypeError):
        a + "B[i j]"


def test_sums_differences_and_multiples_have_their_values() -> None:
    a, b = parse("A[i:2 j:3]"), parse("B[i r:2] C[r j] + D[j i]")
    values = random_values(a + b, 0)
    of_a, of_b = (evaluate(each, values_for(each, values)) for each in (a, b))
    third: Any = np.float32(0.25)
    for network, expected in (
        (sum([a, b, a]), 2 * of_a + of_b),
        (a - b, of_a - of_b),
        (-b, -of_b),
        (2 * a - b * 0.1, 2 * of_a - of_b * 0.1),
        (a * Fraction(1, 3), of_a / 3),
        (b * third, of_b / 4),
        (0 * a, 0 * of_a),
    ):
        assert parse(str(network)) == network
        torch.testing.assert_close(evaluate(network, values_for(network, values)), expected, rtol=1e-14, atol=1e-14)


def test_factors_are_one_number() -> None:
    a = parse("A[i j]")
    assert str(a * 0.1) == "A[i j] Fill[| value=1/10]"
    assert str(-(a * 3)) == "A[i j] Fill[| value=-3]"
    assert (a * -2) * -0.5 == a * 1 == sum([a]) == a
    assert str(3 * parse("Fill[| value=1/3]")) == "Fill[| value=1]"
    wrong: Any
    for wrong in ("2", None, True, 1j, [1]):
        for operation, pair in product((operator.mul, operator.sub), ((a, wrong), (wrong, a))):
            with pytest.raises(TypeError):
                operation(*pair)
    with pytest.raises(TypeError):
        1 + a
    for wrong, fact in ((float("nan"), "nan"), (float("inf"), "inf"), (1e301, "1e300")):
        with refused(NetworkError, fact):
            wrong * a


@pytest.mark.parametrize(
    ("text", "error", "facts"),
    [
        ("A[i j] + B[i]", NotationError, ["'j' is open in term 1", "not in term 2", "Fill[j | value=1]"]),
        ("A[i] + B[i j] -> [i j]", NetworkError, ["term 1", "lacks the output label 'j'", "Fill[j | value=1]"]),
        ("A[i] + B[i j] + C[i] -> [i]", None, []),
        ("A[i j] + A[i] Fill[j | value=1]", NetworkError, ["'A'", "2 and with 1 axes"]),
        ("A[i:2 j] + A[j i:3]", SizeError, ["'i' has two sizes, 2 and 3"]),
        ("A[i:2 j:3] + A[j i]", SizeError, ["two sizes"]),
        ("A[i:2 r:3] B[r] + A[i s:4] B[s]", SizeError, ["'s' has two sizes"]),
        ("A[i] + ", NotationError, ["a node is missing"]),
    ],
)
def test_terms_that_do_not_fit(text: str, error: type[TnalgebraError] | None, facts: list[str]) -> None:
    if error is None:
        assert isinstance(parse(text), Sum)
        return
    with refused(error, *facts):
        parse(text)


def test_networks_that_cannot_be_added() -> None:
    with refused(NetworkError, "term 2", "lacks the output label 'j'"):
        Sum([parse("A[i j]"), parse("B[i]")])
    with refused(NetworkError, "term 2", "open label 'k'"):
        Sum([parse("A[i]"), parse("B[i k]")])
    for few in ([], [parse("A[i]")]):
        with refused(NetworkError, "a sum has"):
            Sum(few)


def test_what_works_on_a_product_refuses_a_sum() -> None:
    network = parse("A[i j] + B[i j]")
    for function in (carriers, lambda one: one.nodes):
        with refused(NetworkError, "a sum of 2 terms", "network.terms"):
            function(network)


def test_the_right_side_of_a_rule_may_be_a_sum() -> None:
    left, right = parse_rule("K[o i] => U[o a] V[a i] + D[o] Copy[o i]")
    assert left.terms == (left,)
    assert [term.output for term in right.terms] == [("o", "i")] * 2
    with refused(NetworkError, "term 2", "'i'"):
        parse_rule("K[o i] => U[o a] V[a i] + D[o]")


# Words --------------------------------------------------------------------------------------------------------


def test_renamed_keeps_labels_of_terms_apart() -> None:
    network = parse("A[i:2 r:3] B[r] + C[i s] D[s]")
    assert str(renamed(network, labels={"s": "r"})) == "A[i:2 r:3] B[r] + C[i r_2] D[r_2]"
    swapped = renamed(network, labels={"i": "r", "r": "i"}, names={"A": "C", "C": "A"})
    assert str(swapped) == "C[r:2 i:3] B[i] + A[r s] D[s]"
    assert str(renamed(network, names={"C": "A"})) == "A[i:2 r:3] B[r] + A[i s:3] D[s]"


def test_isomorphism_knows_terms() -> None:
    def same(one: str, other: str) -> bool:
        return isomorphic(parse(one), parse(other))

    assert same("A[i j] B[j k] + C[i k]", "X[a c] + Z[b c] Y[a b] -> [a c]")
    assert not same("A[i j] B[j k] + C[i k]", "A[i k] B[k j] C[j i] -> [i k]")
    assert not same("A[i] B[i] + C[i] D[i] -> [i]", "A[i] + B[i] C[i] D[i] -> [i]")
    assert not same("A[i j] + A[i j]", "A[i j] + A[j i]")
    assert not same("A[i j] + A[i j]", "A[i j] + B[i j]")
    assert same("A[i j] + A[j i]", "A[j i] + A[i j]")
    assert not same("A[i] + B[i]", "A[i] + B[i] + C[i]")


# Composition --------------------------------------------------------------------------------------------------


@given(valued_networks(max_nodes=3) | valued_sums(max_nodes=2), valued_sums(max_nodes=2), st.booleans(), st.data())
@settings(max_examples=100)
def test_composition_multiplies_out(
    first: tuple[Network, dict[str, Tensor]],
    second: tuple[Network, dict[str, Tensor]],
    product_last: bool,
    data: st.DataObject,
) -> None:
    (a, a_values), (b, b_values) = first, second
    if product_last:
        b = b.terms[0]
    names = {name: f"{name}_of_second" for name in tensors_of(b)}
    b, b_values = renamed(b, names=names), {new: b_values[old] for old, new in names.items()}
    # the input occurs in some of the terms, twice in the last one
    terms = []
    for number, term in enumerate(b.terms):
        nodes, sizes = [*term.nodes], dict(term.sizes)
        for place in range(data.draw(st.integers(0, 2)) if number + 1 < len(b.terms) else 2):
            labels = []
            for own in a.output:
                matching = [label for label, size in sizes.items() if size == a.sizes[own]]
                labels.append(data.draw(st.sampled_from([*matching, f"in{number}{place}{own}"])))
                sizes[labels[-1]] = a.sizes[own]
            nodes.append(NamedTensor("input", tuple(labels)))
        terms.append(Network(nodes, term.output, sizes))
    whole = Sum(terms) if len(terms) > 1 else terms[0]
    both = compose(a, whole, into="input")
    expected = evaluate(whole, {**b_values, "input": evaluate(a, a_values)})
    scale = magnitude(whole, {**b_values, "input": magnitude(a, a_values)})
    assert_same(evaluate(both, a_values | b_values), expected, scale)


def test_a_sum_before_and_after_an_arrow() -> None:
    layer = parse("X[n i] K[o i] -> [n o]")
    both = compose(parse("U[o a] V[a i] + D[o i]"), layer, into="K")
    assert str(both) == "U[o a] V[a i] X[n i] + D[o i_2] X[n i_2] -> [n o]"
    assert str(parse("A[i j] + B[i j]") >> parse("X[a b] X[b c] + C[a c]")) == (
        "A[i j] A[j j_2] + A[i j_3] B[j_3 j_2] + B[i j_4] A[j_4 j_2] + B[i j_5] B[j_5 j_2] + C[i j_2]"
    )
    clash = parse("A[i j] + B[i j]") >> parse("X[a b] A[b c] + B[a c]")
    assert str(clash) == "A[i j] A_2[j c] + B[i j_2] A_2[j_2 c] + B_2[i c]"
    with refused(NetworkError, "2 labels", "1 axes"):
        parse("A[i j] + B[i j]") >> parse("X[a] C[a b]")


# Drawing and counting -----------------------------------------------------------------------------------------


def test_terms_are_drawn_side_by_side_with_a_plus() -> None:
    text = "U[o:4 a] V[a i] + W[o i] + D[o] Copy[o i] -> [o i]"
    network = parse(text)
    plan = layout_terms([term.nodes for term in network.terms], network.output, network.sizes)
    ends = iter([2, 3, 5])
    centres = plan.xy[:5, 0]
    pluses = [box[0] for item, box in zip(plan.items, plan.boxes, strict=True) if item.text == "+"]
    assert len(pluses) == 2
    for plus in pluses:
        end = next(ends)
        assert centres[:end].max() < plus < centres[end:].min()
    svg = network._repr_svg_()
    assert svg.count(">o:4<") == 3
    assert svg.count(">+<") == 2
    with refused(NetworkError, "too large to draw", "120"):
        Sum([parse("A[a]")] * 121).draw()


def test_nodes_of_a_sum_are_placed_by_number_and_name() -> None:
    network = parse("U[o a] V[a i] + W[o i]")
    places: dict[int | str, tuple[float, float]] = {"U": (0, 0), "V": (1, 0), "W": (2, 1)}
    figure = network.draw(places=places)
    by_number: dict[int | str, tuple[float, float]] = {0: (0, 0), 1: (1, 0), 2: (2, 1)}
    plans = [
        layout_terms([term.nodes for term in network.terms], network.output, network.sizes, each)
        for each in (places, by_number)
    ]
    assert (plans[0].xy == plans[1].xy).all()
    assert (plans[0].xy[2] - plans[0].xy[0] == (160, 80)).all()
    assert figure.axes
    with refused(NetworkError, "missing", "W"):
        network.draw(places={"U": (0, 0), "V": (1, 0)})


def test_multiply_adds_are_those_of_the_terms() -> None:
    network = parse("U[o:8 a:2] V[a i:4] + D[o i]")
    assert kernel_multiply_adds(network, ()) == 2 * 4 + 8 * 2 + 8 * 4
    assert random_values(network, 0).keys() == {"U", "V", "D"}
