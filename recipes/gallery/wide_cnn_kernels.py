"""The kernel of an infinitely wide CNN is built from inner products of patches, layer by layer.

The paper studies deep CNNs in the limit of infinite width, where training is a regression with a fixed kernel. The
first layer takes inner products of patches of two inputs. Each layer applies an arc-cosine function to them and
averages over the patches inside of a larger patch, so that the spectrum of the kernel has the hierarchy of the
network.

In the notation a patch is a window, or a `Fuse` where patches do not overlap, and an average is a `Fill`. With
overlapping patches the kernel of all pairs of positions is indexed by a position u and the distance d to the other
position: a window over products at that distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

ALL_PAIRS = (
    "X[n c x:{x}] X[m c z:{x}] Conv[z x d:{x} | padding=0:{last} mode=circular] Conv[x u k:{k} | padding=0:{edge} "
    "mode=circular] Fill[k | value=mean] -> [n m u d]"
)

CORES: Cores = {
    "patches of two inputs": tn.parse("X[n:3 d:12] Fuse[d a:2 b:3 k:2] Y[m:4 e:12] Fuse[e a b k] -> [a b n m]"),
    "average over a larger patch": tn.parse("T[a:2 b:3 n:3 m:4] Fill[b | value=mean] -> [a n m]"),
    "patches of all pairs of positions": sized(ALL_PAIRS.format(x=9, last=8, k=3, edge=2), n=4, m=4, c=2),
}


def arc_cosine(t: Tensor) -> Tensor:
    """The covariance of a layer of rectified units, as a function of that of its inputs."""
    t = t.clamp(-1, 1)
    return ((1 - t * t).sqrt() + (math.pi - t.arccos()) * t) / math.pi


def check(cores: Cores) -> dict[str, float]:
    """A kernel of three layers by loops over patches, and shifted products for all pairs of positions."""
    first, average, pairs = cores.values()
    values = {name: tensor / 4 for name, tensor in random_values(first).items()}
    x, y = values["X"], values["Y"]
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for a in range(2):
        blocks = [slice(6 * a + 2 * b, 6 * a + 2 * b + 2) for b in range(3)]
        inner = sum(arc_cosine(x[:, block] @ y[:, block].T) for block in blocks)
        expected += arc_cosine(torch.as_tensor(inner) / 3) / 2
    computed = arc_cosine(value(average, {"T": arc_cosine(value(first, values))})).mean(0)
    signal = random_values(pairs)["X"]
    patches = torch.stack([signal.roll(-offset, 2) for offset in range(3)], 3)
    expected_pairs = [torch.einsum("ncuk,mcuk->nmu", patches, patches.roll(-d, 2)) / 3 for d in range(9)]
    return {
        "kernel of three layers": difference(computed, expected),
        "all pairs of positions": difference(value(pairs, {"X": signal}), torch.stack(expected_pairs, 3)),
    }


def gain() -> dict[str, float]:
    """All pairs of 128 positions on a circle, 4 inputs of 64 channels, windows of 31.

    The plan takes products before it sums over windows, by a convolution with ones or a pooling of torch, whichever
    takes less time.
    """
    x = torch.randn(4, 64, 128)
    program = tn.compile(ALL_PAIRS.format(x=128, last=127, k=31, edge=30), inputs={"X": tuple(x.shape)})

    def theirs() -> Tensor:
        patches = torch.cat([x, x[:, :, :30]], 2).unfold(2, 31, 1)
        return torch.einsum("ncuk,mcwk->nmuw", patches, patches) / 31

    return {
        "multiply-adds, patches first : plan": (4 * 128) ** 2 * 64 * 31 / program.plan.multiply_adds,
        "time, patches first in torch : compiled": times_faster(lambda: program(X=x), theirs),
    }


PAPER = Paper(
    title="What Can Be Learnt With Wide Convolutional Neural Networks?",
    arxiv="2208.01003",
    source="`k1` and `dcrfk` in `kernel_functions.py` of github.com/pcsl-epfl/convolutional_neural_kernels",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The arc-cosine functions of the elements lie between the networks. The rates of learning are statements "
    "about spectra of the whole kernel, which is not multilinear in the inputs.",
)
