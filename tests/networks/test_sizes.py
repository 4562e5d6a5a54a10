"""Every size that follows from others, in any order of the nodes, and every contradiction by name."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refusals import refused
from tests.strategies import networks
from tnalgebra.errors import SizeError
from tnalgebra.networks.network import Network
from tnalgebra.networks.nodes import Conv, NamedTensor
from tnalgebra.networks.notation import parse, parse_rule
from tnalgebra.networks.sizes import infer_sizes, input_size, output_size

# Laws -------------------------------------------------------------------------------------------------------


@given(networks(max_nodes=5), st.randoms(use_true_random=False))
def test_the_order_of_the_nodes_has_no_meaning(network: Network, random: Random) -> None:
    given_sizes = {label: size for label, size in network.sizes.items() if random.random() < 0.5}
    outcomes = []
    for _ in range(4):
        nodes = list(network.nodes)
        random.shuffle(nodes)
        shuffled = list(given_sizes.items())
        random.shuffle(shuffled)
        try:
            outcomes.append(infer_sizes(nodes, dict(shuffled)))
        except SizeError:
            outcomes.append({})
    assert all(outcome == outcomes[0] for outcome in outcomes)


@given(networks(kinds=("tensor", "Copy", "Fuse", "Fill")), st.randoms(use_true_random=False))
def test_what_is_inferred_is_true(network: Network, random: Random) -> None:
    """Without windows nothing is guessed: whatever follows from some of the sizes is one of the sizes."""
    given_sizes = {label: size for label, size in network.sizes.items() if random.random() < 0.5}
    inferred = infer_sizes(network.nodes, given_sizes)
    assert given_sizes.items() <= inferred.items() <= network.sizes.items()


@given(networks())
def test_inference_is_finished(network: Network) -> None:
    assert infer_sizes(network.nodes, network.sizes) == network.sizes


@given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)
)
def test_window_formulas_against_torch(x: int, k: int, stride: int, low: int, high: int, dilation: int) -> None:
    numbers = {"stride": stride, "low": low, "high": high, "dilation": dilation}
    if x + low + high < dilation * (k - 1) + 1:
        assert output_size(x, k, **numbers) < 1
        return
    padded = torch.nn.functional.pad(torch.zeros(1, 1, x), (low, high))
    y = torch.nn.functional.conv1d(padded, torch.zeros(1, 1, k), stride=stride, dilation=dilation).shape[-1]
    assert output_size(x, k, **numbers) == y
    fewest = next(size for size in range(-8, 20) if output_size(size, k, **numbers) == y)
    assert input_size(y, k, **numbers) == fewest


# Each rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inferred"),
    [
        ("K[a:2 b] K[c d:3]", {"a": 2, "b": 3, "c": 2, "d": 3}),
        ("K[a b:3] K[b c]", {"a": 3, "b": 3, "c": 3}),
        ("K[a b] K[b c:4] K[c d]", {"a": 4, "b": 4, "c": 4, "d": 4}),
        ("Copy[a b c:5]", {"a": 5, "b": 5, "c": 5}),
        ("Copy[a b] Copy[b c] Copy[c d:6]", {"a": 6, "b": 6, "c": 6, "d": 6}),
        ("Fuse[w p:2 q:3 r:4]", {"w": 24, "p": 2, "q": 3, "r": 4}),
        ("Fuse[w:24 p:2 q r:4]", {"w": 24, "p": 2, "q": 3, "r": 4}),
        ("Fuse[w:24 p:2 q r]", {"w": 24, "p": 2}),
        ("Fuse[w p:7]", {"w": 7, "p": 7}),
        ("Fuse[w:7 p]", {"w": 7, "p": 7}),
        ("Fuse[w:9 p p]", {"w": 9}),
        ("Fuse[w p:3 p]", {"w": 9, "p": 3}),
        ("Fuse[w w p:1]", {"p": 1}),
        ("Fuse[w:5 w p]", {"w": 5, "p": 1}),
        ("Conv[x:9 y k:3]", {"x": 9, "y": 7, "k": 3}),
        ("Conv[x:9 y k:3 | stride=2 padding=1 dilation=2]", {"x": 9, "y": 4, "k": 3}),
        ("Conv[x:9 y k:3 | padding=-1:-2]", {"x": 9, "y": 4, "k": 3}),
        ("Conv[x:9 y:7 k]", {"x": 9, "y": 7, "k": 3}),
        ("Conv[x:9 y:7 k | padding=1 dilation=2]", {"x": 9, "y": 7, "k": 3}),
        ("Conv[x:9 y:4 k | stride=2]", {"x": 9, "y": 4}),
        ("Conv[x y:7 k:3]", {"x": 9, "y": 7, "k": 3}),
        ("Conv[x y:4 k:3 | stride=2]", {"x": 9, "y": 4, "k": 3}),
        ("Conv[x y:4 k:3 | stride=2 padding=1:0]", {"x": 8, "y": 4, "k": 3}),
        ("Conv[x:9 x k:1]", {"x": 9, "k": 1}),
        ("Conv[x:2 y k:1 | padding=9 mode=zeros]", {"x": 2, "y": 20, "k": 1}),
        ("Conv[x:2 y k:1 | padding=9 mode=replicate]", {"x": 2, "y": 20, "k": 1}),
        ("Conv[x:3 y k:2 | padding=2 mode=reflect]", {"x": 3, "y": 6, "k": 2}),
        ("Conv[x:3 y k:2 | padding=3 mode=circular]", {"x": 3, "y": 8, "k": 2}),
        ("Fill[a:3 b | value=1]", {"a": 3}),
        ("Conv[x y:4 k:3 | stride=2] Conv[z x l:2]", {"x": 9, "y": 4, "k": 3, "z": 10, "l": 2}),
        ("Conv[x y:4 k:3 | stride=2] Conv[x z:5 l:2 | stride=2]", {"x": 10, "y": 4, "k": 3, "z": 5, "l": 2}),
        ("Conv[x y:4 k:3 | stride=2] K[x] K[t:10]", {"x": 10, "y": 4, "k": 3, "t": 10}),
        (
            "Conv[x y:4 k:3 | stride=2] Copy[x t] Conv[t z:5 l:2 | stride=2]",
            {"x": 10, "t": 10, "y": 4, "k": 3, "z": 5, "l": 2},
        ),
    ],
)
def test_inference(text: str, inferred: dict[str, int]) -> None:
    assert dict(parse(text).sizes) == inferred
    nodes = parse(text).nodes
    for order in itertools.permutations(nodes):
        assert infer_sizes(order, _written(text)) == inferred


def _written(text: str) -> dict[str, int]:
    words = text.replace("[", " ").replace("]", " ").split()
    pairs = (word.split(":") for word in words if ":" in word and "=" not in word)
    return {label: int(size) for label, size in pairs}


def test_windows_with_variables_infer_nothing() -> None:
    left, _ = parse_rule("Conv[x:9 y k:3 | stride=s] => Copy[x y k]")
    assert left.sizes == {"x": 9, "k": 3}


# Each contradiction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("K[a:2] K[b:3]", ["'b'", "3, from b=3", "2, from K[a]"]),
        ("Copy[a:2 b] Copy[b c:3]", ["'c'", "3, from c=3", "2, from Copy[b c]"]),
        ("Fuse[w:7 p:2 q:3]", ["'w'", "7, from w=7", "6, from Fuse[w p q] (w is the product of its parts)"]),
        ("Fuse[w:7 p:2 q]", ["'w' of size 7", "parts of 2", "Fuse[w:7 p:2 q]"]),
        ("Conv[x:9 y:8 k:3]", ["'y'", "8, from y=8", "7, from Conv[x y k]"]),
        ("Conv[x:4 y k:3 | dilation=2]", ["'k' spans 5", "Conv[x:4 y k:3 | dilation=2]"]),
        ("Conv[x:9 y:8 k | dilation=2]", ["'k'", "'x' of 9", "8 positions 'y'"]),
        ("Conv[x:4 y:6 k]", ["'k' would have size -1", "Conv[x y k]", "1 to 1099511627776"]),
        ("Conv[x y:1 k:1 | padding=3]", ["'x' would have size -5", "smallest input"]),
        ("Conv[x y:1 k:1 | padding=1:0]", ["'x' would have size 0"]),
        ("Conv[x:3 y k:2 | padding=3 mode=reflect]", ["reflect", "'x' of size 3 by 3", "at most 2"]),
        ("Conv[x:3 y k:2 | padding=0:4 mode=circular]", ["circular", "'x' of size 3 by 4", "at most 3"]),
        ("Conv[x y:4 k:3 | stride=2] Fuse[x p q:5]", ["'x' of size 9", "parts of 5", "Fuse[x:9 p q:5]"]),
        ("Fuse[w p:1000000000000 q:1000000000000]", ["'w' would have size 1000000000000000000000000"]),
    ],
)
def test_contradictions(text: str, facts: list[str]) -> None:
    with refused(SizeError, *facts):
        parse(text)


@pytest.mark.parametrize("size", [0, -1, 2**40 + 1, 2.0, "2", None])
def test_sizes_that_are_refused(size: object) -> None:
    with refused(SizeError, "'a'", f"a={size}, as given" if isinstance(size, int) else f"{size!r}\n  fix: an integer"):
        Network([NamedTensor("K", ("a",))], sizes={"a": size})  # type: ignore[dict-item]


def test_a_size_may_be_any_integer_type() -> None:
    sizes = Network([Conv("x", "y", "k")], sizes={"x": torch.zeros(9).shape[0], "k": 3}).sizes
    assert sizes == {"x": 9, "k": 3, "y": 7}


@pytest.mark.parametrize(
    ("window", "size"),
    [
        ("stride=11 padding=0:2", 1),  # an input of 0 would fit too, and does not exist
        ("stride=5 padding=3:3 mode=reflect", 4),  # reflection by 3 needs 4
        ("stride=5 padding=3:3 mode=circular", 3),
    ],
)
def test_the_smallest_input_is_one_that_exists(window: str, size: int) -> None:
    network = parse(f"Y[y:{1 if 'mode' not in window else 2}] K[k:2] Conv[x y k | {window}] X[x]")
    assert network.sizes["x"] == size
