"""Every case that is hard for a plan, by name."""

from __future__ import annotations

from typing import Any

import pytest

import tnalgebra as tn
from tests.compiler_cases import check, check_at
from tnalgebra.networks.network import Network
from tnalgebra.networks.notation import parse

HARD = {
    "k still live after the join": (
        "X[n:2 i:3 x:9] Conv[x y k|padding=1] A[o:4 i k:3] B[o k] M[k m:2] -> [n o m y]; n=3 x=12"
    ),
    "k in the output": "X[n:2 i:3 x:9] Conv[x y k|stride=2] K[o:4 i k:3] -> [n o y k]; n=1 x=8",
    "a mask on x": "X[n:2 i:3 x:9] M[x] Conv[x y k|padding=1] K[o:4 i k:3] -> [n o y]; n=5",
    "a mask on x that comes with the input": (
        "X[n:2 i:3 x:9] M[x] Conv[x y k|padding=1] K[o:4 i k:3] -> [n o y]; n=5 x=11; X M"
    ),
    "y on the kernel": "X[n:2 i:3 x:9] Conv[x y:7 k] K[o:4 i k:3 y] -> [n o y]; n=5",
    "y on the kernel, two axes": (
        "X[n:2 i:3 x:5 z:6] Conv[x y:4 k] Conv[z w:4 l|stride=1] K[o:4 i k:2 l:3 y w] -> [n o y w]; n=1"
    ),
    "x on two windows": "X[n:2 i:3 x:9] Conv[x y k] Conv[x z l] K[o:4 i k:3] L[o l:2] -> [n o y z]; n=3",
    "patch covariance": (
        "X[n:2 i:3 x:7 z:6] Conv[x u k:3|padding=1] Conv[z v l:2] X[n j x2 z2] Conv[x2 u k2|padding=1] Conv[z2 v l2]"
        " -> [i k l j k2 l2]; n=3 x=6 z=7"
    ),
    "weight gradient": (
        "X[n:2 i:3 x:9 z:8] Conv[x u k:3|stride=2 padding=1] Conv[z v l:2] G[n o:4 u v] -> [o i k l]; n=3 x=11 z=7; X G"
    ),
    "input gradient": "G[n:2 o:4 u:5] Conv[x u k|stride=2 padding=1] K[o i:3 k:3] X[n i x] -> [n]; n=3 u=6 x=12; G X",
    "patches": (
        "X[n:2 i:3 x:9 z:8] Conv[x u k:3|stride=2 padding=1] Conv[z v l:2|padding=1] -> [n i k l u v]; n=1 x=6 z=7"
    ),
    "flat patches": (
        "X[n:2 i:3 x:9 z:8] Conv[x u k:3|stride=2 padding=1] Conv[z v l:2|padding=1] Fuse[f i k l] Fuse[p u v]"
        " -> [n f p]; n=1 x=6 z=7 p=24"
    ),
    "cropped and placed by windows of one place": (
        "X[n:3 c:9 x:8] Conv[c b:4 p:1|padding=-2:-3] Conv[o:7 b q:1|padding=-1:-2] Conv[x y k:3] M[b k] -> [n o y];"
        " n=2 x=11"
    ),
    "a tied input beside a reshape": (
        "X[n:3 i:8] Fuse[i a b c] H[a:2 p:2] H[b q] H[c r] Fuse[o p q r] -> [n o]; n=2; X H"
    ),
    "a window of one place beside others": (
        "X[s i:3 x:9] Conv[s n:2 one:1 | padding=1:-1] Conv[x y k] A[o:4 r:2] B[i r] C[k:3 r] -> [n o y]; x=10"
    ),
    "padding at one end": "X[n:2 i:3 x:9] Conv[x y k|padding=0:2] K[o:4 i k:3] -> [n o y]; x=10",
    "padding that crops": "X[n:2 i:3 x:9] Conv[x y k|padding=-2:-1 stride=2] K[o:4 i k:3] -> [n o y]; x=10",
    "Fuse 2x3 against 3x2": "X[n:4 a:2 b:3] Fuse[i a b] Fuse[i c:3 d:2] K[c d o:5] -> [n o]; n=1",
    "Fuse 2x3 against 3x2, one part live": "X[n:4 a:2 b:3] Fuse[i a b] Fuse[i c:3 d:2] K[d o:5] -> [n c o]",
    "a label on both sides, live": "X[n:2 g:4 x:9] Conv[x y k] K[g k:3] -> [n g y]; n=3 x=8",
    "a label on both sides, dead": "X[n:2 i:4 x:9] Conv[x y k] K[i k:3] -> [n y]; n=3 x=8",
    "labels on both sides, live and dead": "X[n:2 g:4 i:3 x:9] Conv[x y k] K[i g o:5 k:2] -> [n g o y]; n=3 x=8",
    "a label on the left only, beside the window": (
        "X[n:2 i:4 x:9 z:5] Conv[x y k] K[o:6 i k:3] -> [n o y z]; n=3 x=8 z=7"
    ),
    "labels on the left only, on either side of the channels": (
        "X[n:2 m:3 i:4 x:9 z:5] Conv[x y k] K[o:6 i k:3] -> [z o y m n]; n=3 m=1 x=8 z=7"
    ),
    "a label on the right only, summed after": "X[n:2 i:4 x:9] Conv[x y k] K[o:6 i k:3] V[o] -> [n y]",
    "transposed": "X[n:2 i:4 y:5] Conv[x y k|stride=3] K[o:6 i k:2] -> [n o x]; n=1 y=6",
    "transposed, y summed too": "X[n:2 i:4 y:5] Conv[x y k|stride=2] K[i k:3] M[x r:2] -> [n r]; n=1",
    "transposed, more positions than windows reach": (
        "X[n:2 i:4 y:3] Conv[x:8 y k|stride=3 padding=1:1] K[o:5 i k:2] -> [n o x]; n=5"
    ),
    "transposed, less cut off at the high end": "X[n:2 i:4 y:6] Conv[x:7 y k|padding=1:0] K[o:5 i k:3] -> [n o x]; y=1",
    "transposed, nothing cut off at the high end": (
        "X[n:2 i:4 y:7] Conv[x:9 y k|padding=2:0 dilation=2] K[o:5 i k:3] -> [n o x]; y=1"
    ),
    "two windows of one step": "X[n:2 i:3 x:9 z:8] Conv[x y k] Conv[z w l] K[o:4 i k:3 l:2] -> [n o y w]; x=5",
    "three windows of one step": (
        "X[n:2 i:3 x:5 z:6 s:7] Conv[x y k] Conv[z w l|stride=2] Conv[s t m|padding=1] K[o:2 i k:3 l:2 m:3]"
        " -> [n o y w t]; x=6 z=5 s=9 n=1"
    ),
    "four windows": (
        "X[n:2 x:5 z:4 s:3 r:3] Conv[x y k] Conv[z w l] Conv[s t m] Conv[r q p] K[o:2 k:2 l:2 m:2 p:2]"
        " -> [n o y w t q]; n=1 x=6"
    ),
    "a box sum": "X[n:2 c:3 x:9] Conv[x y k:3|stride=2] -> [n c y]; n=5 x=8",
    "a box sum, dilated": "X[n:2 c:3 x:9] Conv[x y k:3|dilation=2 padding=1] -> [n c y]; n=5 x=8",
    "a box sum of which y is summed": "X[n:2 c:3 x:9] Conv[x y k:3] -> [n c]; n=5 x=8",
    "a box sum in a padding mode": "X[n:2 c:3 x:9] Conv[x y k:3|padding=2:1 mode=reflect] -> [n c y]; x=8",
    "box sums before channels": (
        "X[n:2 c:3 x:9 z:8] Conv[x u k|stride=2] Conv[z v l|stride=2] Fill[k:2 l:2|value=1/4] W[o:5 c]"
        " -> [n o u v]; n=5 x=8 z=9"
    ),
    "a window over ones beside one over an input": (
        "X[n:2 a:7] Conv[a u h:3] Fill[b:8|value=1] Conv[b v w:3] Q[h w] -> [n u v]; a=9 n=1"
    ),
    "the same, transposed": "X[n:2 u:7] Conv[a:9 u h:3] Conv[b:8 v:6 w:3] Q[h w] -> [n a b]; n=1",
    "all positions summed": "X[n:2 c:3 x:9] Conv[x y k] K[o:4 c k:3] -> [n o]; n=5 x=8",
    "a chain of linear layers": "X[n:7 i:3] A[j:5 i] B[k:4 j] C[l:6 k] -> [n l]; n=1",
    "tied tensors": "X[n:3 i:4] W[j:4 i] W[k:4 j] -> [n k]; n=2",
    "tied tensors, turned": "X[n:3 i:4] W[j:5 i] W[j k] -> [n k]; n=2",
    "a hyperedge": "X[n:3 i:4] A[r:5 i] B[r] C[r o:2] -> [n o]; n=2",
    "an open hyperedge": "X[n:3 i:4] A[r:5 i] B[r] C[r o:2] -> [n r o]; n=2",
    "a copy with two open labels": "X[n:3 a:4] Copy[a b c] W[b o:2] -> [n a c o]; n=2",
    "the output on a copy's labels": "X[n:3 a:4] Copy[a b] -> [n a b]; n=2",
    "a diagonal": "X[n:3 a:4 a] W[a o:2] -> [n o]; n=2",
    "a trace": "X[n:3 a:4 a] -> [n]; n=2 a=5",
    "a scalar input": "x[] K[a:3 b:2] -> [b]; ; x",
    "a scalar weight": "X[n:3 a:2] s[] -> [a n]; n=2 a=5",
    "a scalar result": "X[n:3 a:2] W[a n] -> []",
    "no weight": "X[n:3 a:2] -> [a n]; n=1 a=4",
    "an input without a label in the output": "X[n:3] W[a:2 b:4] -> [b a]; n=5",
    "disconnected parts": "X[n:3 a:2] W[b:4] V[a] U[c:5 b] -> [c n]; n=1",
    "an outer product": "X[n:3] W[b:4] -> [n b]; n=1",
    "labels of size 1": "X[n:1 i:1 x:5 z:1] Conv[x y k] K[o:1 i k:3] V[z] -> [n o y z]; n=2 x=7",
    "a label of size 1 that grows": "X[n:1 i:3] Y[n j:2] W[i j o:4] -> [n o]; n=3; X Y",
    "a batch of 1": "X[n:1 i:3 x:6 z:7] Conv[x y k] Conv[z w l] K[o:4 i k:2 l:3] -> [n o y w]; n=4",
    "covariance": "X[n:5 i:3] X[n j] -> [i j]; n=2 i=4 j=4",
    "covariance with weights between": "X[n:5 i:3] W[i j:4] W[k j] X[n k] -> [n]; n=2",
    "two inputs": "X[n:5 i:3] Y[n j:4] W[o:2 i j] -> [n o]; n=2; X Y",
    "two inputs, one with positions": "X[n:2 i:3 x:9] Conv[x y k] Y[n o:4 i k:3] -> [n o y]; n=3 x=8; X Y",
    "inputs that meet no weight": "X[n:5 i:3] Y[n i] W[o:2] -> [n o]; n=2 i=4; X Y",
    "a weight that meets no input": "X[n:5] W[a:2 b:3] V[b] -> [n a]; n=2",
    "attention": "Q[n:2 h:3 s:4 d:5] K[n h t:6 d] V[n h t e:2] -> [n h s e]; n=1 s=7 t=3; Q K V",
    "a reshape between two layers": "X[n:2 i:3 x:4] Conv[x y k] K[o:4 i k:2] Fuse[f o y:3] W[p:5 f] -> [n p]; n=1",
    "two reshapes of a label in the output": "X[n:3 f:6] Fuse[f a:2 b:3] Fuse[f c:3 d:2] K[a p:4] L[d] -> [n f p]; n=1",
    "space to depth": "X[n:2 c:3 x:6 y:4] Fuse[x u:3 a:2] Fuse[y v:2 b:2] Fuse[f c a b] W[o:5 f] -> [n o u v]; n=1",
    "Monarch": "X[n:3 in:6] Fuse[in a:2 i:3] R[a j:4 i] L[j b:5 a] Fuse[out b j] -> [n out]; n=1",
    "a shuffle of channels": "X[n:2 c:6 x:5] Fuse[c a:2 b:3] Fuse[d b a] Conv[x y k] K[o:4 d k:3] -> [n o y]; n=1 x=6",
    "a repeated label on a window": "X[n:2 x:3] Conv[x x k:2|padding=1:0] K[k] -> [n x]; n=1",
    "a repeated label on a reshape": "X[n:2 f:9] Fuse[f a:3 a] -> [n a]; n=1",
    "a factor": "X[n:2 a:3] Fill[a|value=2/3] W[o:4 a] -> [n o]; n=1",
    "a mean over a label whose size moves": "X[n:2 c:3 x:9] Fill[x|value=mean] W[o:4 c] -> [n o]; x=4",
    "a label of a fill alone": "X[n:2 a:3] Fill[b:4|value=1/2] -> [n b]; n=1",
}
"""Name -> the network; sizes of a later call, if any may change; the inputs, if they are not X alone."""


@pytest.mark.parametrize("name", HARD)
def test_hard_case(name: str) -> None:
    text, _, rest = HARD[name].partition("; ")
    sizes, _, inputs = rest.partition("; ")
    module = check(text, inputs or "X")
    if sizes:
        check_at(module, {label: int(size) for label, size in (pair.split("=") for pair in sizes.split())})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"padding": 1}, {}),
        ({"stride": 2}, {"dilation": 3}),
        ({"dilation": 2, "padding": 1}, {"stride": 2}),
        ({"padding": 1}, {"padding": 1}),
        ({"stride": 2, "padding": 1}, {"stride": 2, "padding": 1}),
        ({"padding": 1, "padding_mode": "circular"}, {"padding": 1, "padding_mode": "reflect"}),
    ],
)
def test_two_convolutions(first: dict[str, Any], second: dict[str, Any]) -> None:
    network = tn.networks.convolution((3,), in_channels=3, out_channels=4, **first) >> tn.networks.convolution(
        (2,), in_channels=4, out_channels=5, **second
    )
    module = check(Network(network.nodes, network.output, {**network.sizes, "n": 2, "x": 15}), "X")
    assert {name: tuple(value.shape) for name, value in module.named_parameters()} == {"K": (4, 3, 3), "K_2": (5, 4, 2)}
    for batch, width in ((1, 15), (3, 18), (2, 17), (2, 16)):
        check_at(module, {"n": batch, "x": width})


def test_more_than_52_labels_in_one_pair() -> None:
    shared = " ".join(f"s{i}" for i in range(30))
    sizes = {f"s{i}": 2 if i % 6 == 0 else 1 for i in range(30)}
    left, right = " ".join(f"a{i}" for i in range(30)), " ".join(f"b{i}" for i in range(30))
    sizes |= {f"a{i}": 1 + (i == 7) for i in range(30)} | {f"b{i}": 1 + 2 * (i == 4) for i in range(30)}
    network = parse(f"X[n {shared} {left}] W[{right} {shared}] -> [n {left} {right}]")
    check(Network(network.nodes, network.output, {**sizes, "n": 3}), "X")
