"""Multiply-adds of a convolution with a decomposed kernel: by hand, and against every order of contractions."""

from __future__ import annotations

from itertools import permutations
from math import prod
from typing import Any

import pytest

from tests.refusals import refused
from tnalgebra.errors import NetworkError, SizeError
from tnalgebra.networks import Network, kernel_multiply_adds, parse


@pytest.mark.parametrize(
    ("text", "positions", "count"),
    [
        ("K[out:7 in:5 kh:3 kw:2] -> [out in kh kw]", (11, 13), 143 * 7 * 5 * 3 * 2),
        ("W[out:7 in:5] -> [out in]", (), 7 * 5),
        (
            "A[out:7 r:2] B[in:5 r] C[kh:3 r] D[kw:2 r] -> [out in kh kw]",
            (11, 13),
            143 * (7 * 2 + 5 * 2 + 3 * 2 + 2 * 2),
        ),
        ("U[out:7 a:3] G[a b:2 k:4] V[b in:5] -> [out in k]", (10,), 10 * (5 * 2 + 3 * 2 * 4 + 7 * 3)),
        ("D[in:5 kh:3 kw:2] P[out:7 in] -> [out in kh kw]", (4, 3), 12 * (5 * 3 * 2 + 7 * 5)),
        ("A[out:7 p:2] Copy[p q] B[q in:5] -> [out in]", (), 7 * 2 + 2 * 5),
        ("A[out:7 p:2] B[p in:5] Fill[p | value=1/2] -> [out in]", (), 7 * 2 + 2 * 5),
        (
            "Fuse[out o1:4 o2:5] Fuse[in i1:2 i2:3] A[o1 i1 p:6] B[p o2 i2] -> [out in]",
            (),
            min(4 * 2 * 6 * 3 + 6 * 5 * 3 * 4, 6 * 5 * 3 * 2 + 4 * 2 * 6 * 5),
        ),
        ("A[out:7 r:40] B[r in:5 kh:1 kw:1] -> [out in kh kw]", (9, 9), 7 * 40 * 5 + 81 * 7 * 5),  # rebuilt: cheaper
    ],
)
def test_counts_by_hand(text: str, positions: tuple[int, ...], count: int) -> None:
    assert kernel_multiply_adds(parse(text), positions) == count


def test_no_order_of_the_cores_after_the_input_is_cheaper() -> None:
    network = parse("A[out:7 p:3] B[p in:5 q:2] C[q kh:3 s:4] D[s kw:2] -> [out in kh kw]")
    cores = [set(node.labels) for node in network.nodes]
    sequential = [in_order(network, [cores[n] for n in order], 12) for order in permutations(range(4))]
    assert kernel_multiply_adds(network, (4, 3)) <= min(sequential)


def in_order(network: Network, cores: list[set[str]], positions: int) -> int:
    """Absorb one core after the other into the input."""
    live, count = {"in"}, 0
    for number, core in enumerate(cores):
        count += positions * prod(network.sizes[label] for label in live | core)
        live = (live | core) & (set().union(*cores[number + 1 :]) | {"out"})
    return count


def test_what_cannot_be_counted() -> None:
    network = parse("A[out:7 p:3] B[p in:5] -> [out in]")
    with refused(NetworkError, "(28,)", "the labels out in"):
        kernel_multiply_adds(network, (28,))
    positions: Any
    for positions in ((-3,), (2.5,), 28):
        with refused(NetworkError, repr(positions)):
            kernel_multiply_adds(network, positions)
    with refused(SizeError, "'p'"):
        kernel_multiply_adds(parse("A[out:7 p] B[p in:5] -> [out in]"), ())
    with refused(NetworkError, "windows of its own"):
        kernel_multiply_adds(parse("A[out:7 in:5 j:2] B[i:3] Conv[k i j] -> [out in k]"), (4,))
