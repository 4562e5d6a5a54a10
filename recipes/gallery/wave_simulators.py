"""Convolutions that are decomposed before training, for a network that predicts waves.

The paper replaces the kernels of a convolutional simulator by products of one-way filters before it is trained: a
filter along the channels and one along each axis of the window. The network has a fraction of the parameters from its
first step, and predicts solutions of a 2D wave equation about as well as the dense one.

One term for each output channel is `P[o i] A[o h] B[o w]`. A sum over r terms is the decomposition CP, whose filters
are shared among the output channels.
"""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

WINDOWS = "X[n i x y] Conv[x u h:3 | padding=1] Conv[y v w:3 | padding=1]"
CORES: Cores = {
    name: sized(f"{WINDOWS} {kernel} -> [n o u v]", n=2, i=4, x=7, y=6, o=5, r=3)
    for name, kernel in {
        "one-way filters": "P[o i] A[o h] B[o w]",
        "one-way filters, r terms": "A[o r] B[i r] C[h r] D[w r]",
    }.items()
}


def check(cores: Cores) -> dict[str, float]:
    """Chains of torch's convolutions: 1x1, 3x1, 1x3, and for r terms another 1x1."""
    one, terms = cores.values()
    values = random_values(one)
    channels = conv2d(values["X"], values["P"][:, :, None, None])
    tall = conv2d(channels, values["A"][:, None, :, None], padding=(1, 0), groups=5)
    wide = conv2d(tall, values["B"][:, None, None, :], padding=(0, 1), groups=5)
    other = random_values(terms)
    channels = conv2d(other["X"], other["B"].T[:, :, None, None])
    tall = conv2d(channels, other["C"].T[:, None, :, None], padding=(1, 0), groups=3)
    chain = conv2d(conv2d(tall, other["D"].T[:, None, None, :], padding=(0, 1), groups=3), other["A"][:, :, None, None])
    return {
        "one-way filters": difference(value(one, values), wide),
        "r terms": difference(value(terms, other), chain),
    }


def gain() -> dict[str, float]:
    """A layer of 40 channels on a field of 32x32, as in `recipes.a_priori --preset waves`, at a tenth of the size."""
    dense = torch.nn.Conv2d(40, 40, 3, padding=1, bias=False)
    kernel = "P[o i] A[o h] B[o w]"
    fields = torch.randn(32, 40, 32, 32)
    values = {"P": torch.randn(40, 40), "A": torch.randn(40, 3), "B": torch.randn(40, 3)}
    program = tn.compile(f"{WINDOWS} {kernel} -> [n o u v]", inputs={"X": tuple(fields.shape)}, values=values)
    parameters = sum(tensor.numel() for tensor in values.values())
    return {
        "parameters kept": parameters / dense.weight.numel(),
        "dense layer : compiled": times_faster(lambda: program(X=fields), lambda: dense(fields)),
    }


PAPER = Paper(
    title="A priori compression of convolutional neural networks for wave simulators",
    arxiv="2304.04964",
    source="the abstract, which was all that could be read; the form of the filters is the natural one of its words",
    cores=CORES,
    check=check,
    gain=gain,
    outside="Whether such a network predicts as well as a dense one is a matter of training: `recipes.a_priori` trains "
    "both on a wave equation.",
)
