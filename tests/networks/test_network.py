"""What a network is, what one can ask of it, and what makes a new one."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.refusals import refused
from tests.strategies import networks, random_values, valued_networks
from tnalgebra.errors import NetworkError, SizeError
from tnalgebra.networks import (
    Conv,
    Copy,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    Variable,
    carriers,
    compose,
    open_variables,
    parse,
    parse_rule,
    renamed,
    shape_of,
    shapes,
    size_of,
    tensor_nodes,
    with_sizes,
)
from tnalgebra.tensors import evaluate, magnitude

K = NamedTensor("K", ("a", "b"))

# Construction -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "output", "facts"),
    [
        ([], None, ["no nodes"]),
        ([K], ["c"], ["'c'", "a b"]),
        ([K], ["a", "b", "a"], ["'a' twice", "Copy[a a_2]"]),
        ([K, NamedTensor("K", ("c",))], None, ["'K'", "K[a b]", "K[c]"]),
        ([NamedTensor("Copy", ("a",))], None, ["'Copy'", "reserved"]),
        ([NamedTensor("1K", ("a",))], None, ["'1K'"]),
        ([NamedTensor("K", ("a b",))], None, ["'a b'"]),
        ([Copy(("a", ""))], None, ["label ''"]),
        ([Conv("x", "y", 3)], None, ["label 3"]),  # type: ignore[arg-type]
        ([Copy(tuple(f"a{i}" for i in range(65)))], None, ["'Copy'", "65 axes", "at most 64"]),
        ([Fuse("a", ())], None, ["Fuse[a]"]),
        ([Fill(("a",), "median")], None, ["'median'", "Fill[a | value=median]"]),  # type: ignore[arg-type]
        ([Fill(("a",), 0.5)], None, ["0.5", "Fraction"]),  # type: ignore[arg-type]
        ([Fill(("a",), Fraction(10**301))], None, ["302 digits"]),
        ([Fill(("a",), Fraction(1, 3**3000))], None, ["1434 digits"]),
        ([Conv("x", "y", "k", stride=0)], None, ["stride is 0", "Conv[x y k | stride=0]"]),
        ([Conv("x", "y", "k", dilation=-2)], None, ["dilation is -2"]),
        ([Conv("x", "y", "k", stride=1.5)], None, ["stride is 1.5", "an integer"]),  # type: ignore[arg-type]
        ([Conv("x", "y", "k", high=2**41)], None, ["high is 2199023255552"]),
        ([Conv("x", "y", "k", mode="wrap")], None, ["'wrap'", "zeros"]),
    ],
)
def test_networks_that_mean_nothing(nodes: list[Node], output: list[str] | None, facts: list[str]) -> None:
    with refused(NetworkError, *facts):
        Network(nodes, output)


def test_a_size_of_a_label_that_is_not_there() -> None:
    with refused(SizeError, "'z'", "a b"):
        Network([K], sizes={"z": 3})


def test_the_output_is_every_label_that_stands_once() -> None:
    assert parse("A[a b] B[b c c] Copy[d] C[e d e]").output == ("a",)
    assert parse("A[c b] B[b a]").output == ("c", "a")


def test_a_network_is_frozen() -> None:
    network = parse("K[a:2 b]")
    with pytest.raises(AttributeError, match="cannot assign"):
        network.nodes = ()  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        network.sizes["a"] = 3  # type: ignore[index]


@given(networks())
def test_copies_are_equal_and_equal_networks_hash_alike(network: Network) -> None:
    twins = [copy.copy(network), copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    for twin in twins:
        assert twin == network
        assert hash(twin) == hash(network)
        assert dict(twin.sizes) == dict(network.sizes)
    assert len({network, *twins}) == 1


def test_networks_differ_in_nodes_output_and_sizes() -> None:
    network = parse("K[a b] V[b]")
    assert network != parse("V[b] K[a b]")
    assert network != parse("K[a b] V[b] -> [a b]")
    assert network != parse("K[a:2 b] V[b]")
    assert network != parse("K[a c] V[c]")
    assert network != "K[a b] V[b]"
    assert repr(network) == "Network('K[a b] V[b]')"


# Questions --------------------------------------------------------------------------------------------------


@given(networks())
def test_carriers_and_shapes(network: Network) -> None:
    places = carriers(network)
    assert sorted(place for found in places.values() for place in found) == [
        (position, axis) for position, node in enumerate(network.nodes) for axis in range(len(node.labels))
    ]
    for label, found in places.items():
        assert all(network.nodes[position].labels[axis] == label for position, axis in found)
    for name, positions in tensor_nodes(network).items():
        for position in positions:
            assert shapes(network)[name] == shape_of(network, network.nodes[position].labels)
    values = random_values(network, 0)
    assert network.parameters == sum(value.numel() for value in values.values())


def test_a_tied_tensor_is_counted_once() -> None:
    network = parse("K[a:2 b:3] K[c d] V[b:3 d]")
    assert tensor_nodes(network) == {"K": [0, 1], "V": [2]}
    assert network.parameters == 6 + 9
    assert parse("s[]").parameters == 1
    assert parse("Copy[a:2 b]").parameters == 0


def test_unknown_sizes() -> None:
    network = parse("K[a:2 b]")
    for ask in (lambda: size_of(network, "b"), lambda: shapes(network), lambda: network.parameters):
        with refused(SizeError, "'b'", "K[a b]", "a=2", "b:SIZE"):
            ask()
    with refused(SizeError, "'z'", "no node", "nothing"):
        size_of(parse("K[a]"), "z")


def test_variables_of_a_rule() -> None:
    left, _ = parse_rule("Conv[x y k | stride=s padding=p] Fill[k | value=v] Conv[x z k | stride=s] => Copy[x y z]")
    assert open_variables(left) == ("s", "p", "v")
    assert open_variables(parse("Conv[x y k]")) == ()


# New networks -----------------------------------------------------------------------------------------------


def test_with_sizes() -> None:
    network = with_sizes(parse("X[x:9] Conv[x y k]"), {"k": 3})
    assert network.sizes == {"x": 9, "k": 3, "y": 7}
    with refused(SizeError, "'x'", "9, in X[x:9] Conv[x y:7 k:3]", "8, as given"):
        with_sizes(network, {"x": 8})
    with refused(SizeError, "'y'"):
        with_sizes(parse("X[x:9] Conv[x y:3 k | stride=2]"), {"k": 3})
    with refused(SizeError, "'z'"):
        with_sizes(network, {"z": 8})


def test_renamed_swaps_labels_and_names_at_once() -> None:
    network = parse("K[a:2 b:3] V[b c:4] Conv[c d e:2] -> [d a]")
    swapped = renamed(network, labels={"a": "b", "b": "a", "e": "c", "c": "e"}, names={"K": "V", "V": "K"})
    assert str(swapped) == "V[b:2 a:3] K[a e:4] Conv[e d:3 c:2] -> [d b]"
    assert renamed(network) == network


def test_renamed_ties_and_takes_diagonals() -> None:
    assert str(renamed(parse("A[a b] B[c d]"), names={"B": "A"})) == "A[a b] A[c d]"
    assert str(renamed(parse("A[a:3 b:3] -> [a]"), labels={"b": "a"})) == "A[a:3 a] -> [a]"
    with refused(SizeError, "sizes 3 and 2", "'a'"):
        renamed(parse("A[a:3 b:2] -> [a]"), labels={"b": "a"})
    with refused(NetworkError, "'A'", "1 and with 2 axes"):
        renamed(parse("A[a] B[c d]"), names={"B": "A"})
    with refused(NetworkError, "'a' twice"):
        renamed(parse("A[a b]"), labels={"b": "a"})


def test_renaming_leaves_reserved_nodes_alone() -> None:
    assert str(renamed(parse("Copy[Copy a]"), names={"Copy": "K"}, labels={"Copy": "b"})) == "Copy[b a]"


# Composition ------------------------------------------------------------------------------------------------


@given(valued_networks(max_nodes=4), valued_networks(max_nodes=4), st.data())
def test_composition_feeds_the_value_of_the_first_to_the_second(
    first: tuple[Network, dict[str, Tensor]], second: tuple[Network, dict[str, Tensor]], data: st.DataObject
) -> None:
    """The input occurs once or twice, with labels of the second network, new labels, or one label twice."""
    (a, a_values), (b, b_values) = first, second
    fresh = (f"in{number}" for number in count())
    sizes = dict(b.sizes)
    places = []
    for _ in range(data.draw(st.integers(1, 2))):
        labels = []
        for own in a.output:
            matching = [label for label, size in sizes.items() if size == a.sizes[own]]
            new = next(fresh)
            labels.append(data.draw(st.sampled_from([new, *matching])))
            sizes[labels[-1]] = a.sizes[own]
        places.append(NamedTensor("input", tuple(labels)))
    nodes = data.draw(st.permutations([*b.nodes, *places]))
    opened = data.draw(st.permutations(list(sizes)))[:3]
    b = Network(nodes, opened, sizes)

    both = compose(a, b, into="input")
    taken = set(a_values)
    b_names = [name for name in tensor_nodes(b) if name != "input"]
    new_names = [name for name in tensor_nodes(both) if name not in taken]
    assert len(new_names) == len(b_names)
    assert [name for name in b_names if name not in taken] == [name for name in new_names if name in b_names]
    order = [node.name for node in b.nodes if isinstance(node, NamedTensor) and node.name != "input"]
    new_order = [node.name for node in both.nodes if isinstance(node, NamedTensor) and node.name not in taken]
    values = {**a_values, **{new: b_values[old] for old, new in zip(order, new_order, strict=True)}}

    expected = evaluate(b, {**b_values, "input": evaluate(a, a_values)})
    scale = magnitude(b, {**b_values, "input": magnitude(a, a_values)})
    assert ((evaluate(both, values) - expected).abs() <= 1e-12 * scale).all()


def test_names_and_labels_are_renamed_apart() -> None:
    layer = "X[n i x] Conv[x u k] K[o i k] -> [n o u]"
    both = parse(layer) >> parse(layer)
    assert str(both) == ("X[n i x] Conv[x u k] K[o i k] Conv[u u_2 k_2] K_2[o_2 o k_2] -> [n o_2 u_2]")
    three = both >> parse(layer)
    assert list(tensor_nodes(three)) == ["X", "K", "K_2", "K_3"]


def test_sizes_pass_through_a_composition() -> None:
    both = parse("X[n:2 x:9] Conv[x u k:3]  -> [n u]") >> parse("X[b x] Conv[x v l:2] -> [b v]")
    assert str(both) == "X[n:2 x:9] Conv[x u:7 k:3] Conv[u v:6 l:2] -> [n v]"
    assert both.sizes["v"] == 6
    with refused(SizeError, "sizes 7 and 8", "'u'"):
        parse("X[n:2 x:9] Conv[x u k:3] -> [n u]") >> parse("X[b x:8]")


def test_an_input_that_stands_twice_is_copied_with_its_tensors_tied() -> None:
    both = compose(parse("A[a r] B[r b] -> [a b]"), parse("X[p q] X[q s] W[s]"))
    assert str(both) == "A[a r] B[r b] A[b r_2] B[r_2 b_2] W[b_2]"


def test_an_input_with_one_label_twice_takes_the_diagonal() -> None:
    assert str(parse("A[a r] B[r b] -> [a b]") >> parse("X[p p] -> [p]")) == "A[a r] B[r a] -> [a]"
    assert str(parse("A[a b]") >> parse("X[p p]")) == "A[a a]"


def test_an_open_label_of_the_input_may_be_summed_or_carried_elsewhere() -> None:
    assert str(parse("A[a b]") >> parse("X[p q] W[q] -> [p q]")) == "A[a b] W[b] -> [a b]"
    assert str(parse("A[a b]") >> parse("X[p q] -> []")) == "A[a b] -> []"


def test_scalars_compose() -> None:
    assert str(parse("s[]") >> parse("X[] K[a]")) == "s[] K[a]"


def test_which_tensor_is_the_input() -> None:
    assert set(tensor_nodes(parse("A[a]") >> parse("K[b] X[b]"))) == {"A", "K"}
    assert str(parse("A[a]") >> parse("K[b] Copy[b c] K[c]")) == "A[a] A[a_2] Copy[a a_2]"
    with refused(NetworkError, "K V", "K[a] V[a]", "into=..."):
        parse("A[a]") >> parse("K[a] V[a]")
    with refused(NetworkError, "none"):
        parse("K[a]") >> parse("Copy[a]")
    assert str(compose(parse("A[a]"), parse("K[a] V[a]"), into="V")) == "A[a] K[a]"


def test_compositions_that_mean_nothing() -> None:
    with refused(NetworkError, "'Z'", "K[a]", "tensors: K"):
        compose(parse("A[a]"), parse("K[a]"), into="Z")
    with refused(NetworkError, "1 labels", "'X' has 2 axes", "A[a b] -> [b]", "X[p q] W[q]"):
        parse("A[a b] -> [b]") >> parse("X[p q] W[q]")


def test_a_composition_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values: dict[str, Any] = {"X": random(2, 3, 9), "K": random(4, 3, 3), "K_2": random(5, 4, 2)}
    layer = parse("X[n i x] Conv[x u k | padding=1] K[o i k] -> [n o u]")
    expected = torch.conv1d(torch.conv1d(values["X"], values["K"], padding=1), values["K_2"], padding=1)
    torch.testing.assert_close(evaluate(layer >> layer, values), expected, rtol=1e-12, atol=1e-12)


def test_variables_survive_a_composition() -> None:
    node = Conv("x", "u", "k", stride=Variable("s"))
    both = parse("A[a]") >> Network([NamedTensor("X", ("x",)), node])
    assert both.nodes[1] == Conv("a", "u", "k", stride=Variable("s"))
