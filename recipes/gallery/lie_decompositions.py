"""Convolutions over a group: the kernel is transformed by each element, and the group's label is convolved too.

The paper builds networks that commute with affine maps of the plane. It decomposes the group into factors which it can
integrate over, samples group elements, and evaluates a kernel, a function on the group's algebra, at the transformed
coordinates.

For a finite group the kernel is a tensor, and the layer is one network: here the quarter turns. `R` turns the window
for each output element g, `T` is the group's table, 1 where the input's element p is g s, and the layer commutes with
turns exactly. Other finite groups have other constants R and T.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

LAYER = "X[n c p x y] Conv[x u a:3 | padding=1] Conv[y v b:3 | padding=1] T[g s p] R[g a b e] K[o c s e] -> [n o g u v]"

CORES: Cores = {
    "group convolution": sized(LAYER, n=2, c=3, p=4, x=6, y=6, g=4, s=4, e=9, o=2),
}


def turns() -> dict[str, Tensor]:
    """R[g a b e]: 1 where the window's place e is at (a, b) after g turns; T[g s p]: 1 where p = g + s mod 4."""
    places = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    window = [torch.rot90(places, g, (1, 2)).permute(1, 2, 0) for g in range(4)]
    table = [torch.eye(4, dtype=torch.float64).roll(g, 1) for g in range(4)]
    return {"R": torch.stack(window), "T": torch.stack(table)}


def turned_kernels(kernel: Tensor) -> Tensor:
    """The kernel of one convolution, shape (4 o, 4 c, 3, 3): turned windows, and the group's axis rolled."""
    window = kernel.reshape(*kernel.shape[:3], 3, 3)
    rolled = [torch.rot90(window, g, (3, 4)).roll(g, 2) for g in range(4)]
    return torch.stack(rolled, 1).flatten(0, 1).flatten(1, 2)


def check(cores: Cores) -> dict[str, float]:
    """One `conv2d` with turned and rolled kernels; and an input that is turned turns the output."""
    values = random_values(cores["group convolution"]) | turns()
    computed = value(cores["group convolution"], values)
    expected = torch.conv2d(values["X"].flatten(1, 2), turned_kernels(values["K"]), padding=1)
    expected = expected.reshape(2, 2, 4, 6, 6)
    turned = torch.rot90(values["X"], 1, (3, 4)).roll(1, 2)
    after = value(cores["group convolution"], values | {"X": turned})
    return {
        "group convolution": difference(computed, expected),
        "a turned input": difference(after, torch.rot90(computed, 1, (3, 4)).roll(1, 2)),
    }


def gain() -> dict[str, float]:
    """The time of a dense layer with 4 times the channels, and its parameters; 16 images of 8 channels, 32x32."""
    x, kernel = torch.randn(16, 8, 4, 32, 32), torch.randn(8, 8, 4, 9)
    constants = {name: tensor.float() for name, tensor in turns().items()}
    program = tn.compile(LAYER, inputs={"X": tuple(x.shape)}, values={"K": kernel, **constants}, constants=[*constants])
    dense = torch.randn(32, 32, 3, 3)
    program.freeze()
    ratio = times_faster(lambda: program(X=x), lambda: torch.conv2d(x.flatten(1, 2), dense, padding=1))
    return {"dense convolution : compiled": ratio, "parameters kept": kernel.numel() / dense.numel()}


PAPER = Paper(
    title="Lie Group Decompositions for Equivariant Neural Networks",
    arxiv="2310.11366",
    source="`GConv2d` in `rgenn/layers.py` of github.com/mirceamironenco/rgenn, for how elements act on kernels",
    cores=CORES,
    check=check,
    gain=gain,
    outside="Continuous groups: their decompositions, the sampling of elements, and the network that evaluates the "
    "kernel at coordinates. The finite group stands in for them; its layer is exact.",
)
