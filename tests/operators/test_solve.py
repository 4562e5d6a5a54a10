"""Solutions of linear equations with layers, and inverses as networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.errors import NetworkError, SizeError, ValuesError
from tnalgebra.networks import parse

LAYERS = {
    "circular": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 6, 7)),
    "stride 2": (nn.Conv2d(2, 8, 3, padding=1, stride=2, padding_mode="circular"), (2, 6, 8)),
    "groups and dilation": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, padding_mode="circular"), (4, 6, 7)),
    "transposed": (nn.ConvTranspose2d(8, 2, 2, stride=2), (8, 4, 5)),
    "transposed in groups": (nn.ConvTranspose1d(6, 2, 3, stride=3, groups=2), (6, 4)),
    "one stride for each axis": (nn.Conv2d(2, 4, (2, 1), stride=(2, 1)), (2, 4, 5)),
    "linear": (nn.Linear(5, 5), (5,)),
}
TOEPLITZ = {
    "zeros": (nn.Conv1d(2, 2, 3, padding=1), (2, 20)),
    "reflect": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (2, 6, 7)),
    "zeros with stride": (nn.Conv1d(2, 4, 3, padding=1, stride=2), (2, 12)),
}


def layer_and_input(name: str) -> tuple[nn.Module, Tensor]:
    """A layer of random values that is far from singular, and a batch of inputs."""
    layer, shape = (LAYERS | TOEPLITZ)[name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
        if name in TOEPLITZ:
            weight = layer.weight
            for number in range(len(weight)):
                weight[(number, number % weight.shape[1], *(size // 2 for size in weight.shape[2:]))] += 8
    return layer, torch.randn(2, *shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", LAYERS)
def test_solutions_and_inverses(name: str) -> None:
    layer, x = layer_and_input(name)
    with torch.no_grad():
        y = layer(x)
    assert (tn.solve(layer, y) - x).abs().max() < 1e-9
    network, values = tn.inverse(layer, x.shape[2:] or None)
    undo = tn.compile(network, inputs={"Y": y.shape}, values=values)
    bias = layer.bias.detach().reshape(-1, *(1 for _ in x.shape[2:]))
    assert (undo(y - bias) - x).abs().max() < 1e-9


@pytest.mark.parametrize("name", TOEPLITZ)
def test_solutions_without_circular_windows(name: str) -> None:
    layer, x = layer_and_input(name)
    with torch.no_grad():
        y = layer(x)
    assert (tn.solve(layer, y) - x).abs().max() < 1e-7


def test_a_circulant_matrix() -> None:
    """One circular window over all positions is a circulant matrix, and with zeros a Toeplitz matrix."""
    network = parse("X[n x:64] c[k:64] Conv[x y k | padding=0:63 mode=circular] -> [n y]")
    c = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = torch.stack([c.roll(shift) for shift in range(64)])
    right = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.solve(matrix, right.mT).mT
    assert (tn.solve(network, right, values={"c": c}) - expected).abs().max() < 1e-9


def test_a_toeplitz_matrix() -> None:
    network = parse("X[x:64] c[k:127] Conv[x y k | padding=63] -> [y]")
    decay = 0.5 ** torch.arange(-63, 64, dtype=torch.float64).abs()
    right = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = torch.stack([decay[63 - row : 127 - row] for row in range(64)])
    expected = torch.linalg.solve(matrix, right)
    assert (tn.solve(network, right, values={"c": decay}) - expected).abs().max() < 1e-8


def test_types_are_kept_and_integers_are_real_numbers() -> None:
    layer, x = layer_and_input("circular")
    y = layer(x).detach().float()
    assert tn.solve(layer, y).dtype == torch.float32
    values = random_values(parse("X[i:3] W[o:3 i] -> [o]"), 0)
    solution = tn.solve("X[i:3] W[o:3 i] -> [o]", torch.tensor([1, 2, 3]), values={"W": values["W"]})
    assert (values["W"] @ solution - torch.tensor([1.0, 2.0, 3.0])).abs().max() < 1e-10


def test_refusals() -> None:
    layer, _ = layer_and_input("circular")
    with refused(SizeError, "2 axes"):
        tn.solve(layer, torch.ones(3, 4))
    with refused(SizeError, "'out'", "4, as given"):
        tn.solve(layer, torch.ones(1, 4, 6, 6))
    with refused(NetworkError, "90 inputs", "as many outputs as inputs"):
        tn.solve(nn.Conv2d(2, 3, 1), torch.ones(1, 3, 5, 9))
    with refused(NetworkError, "10 outputs and 14 inputs"):
        tn.solve(nn.Conv1d(2, 2, 3, padding_mode="circular"), torch.ones(1, 2, 5))
    with refused(NetworkError, "does not commute", "mode zeros"):
        tn.inverse(nn.Conv1d(2, 2, 3, padding=1), 5)
    singular = nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")
    with torch.no_grad():
        singular.weight[0] = singular.weight[1]
    with refused(ValuesError, "singular"):
        tn.solve(singular, torch.ones(1, 2, 6))
    with refused(ValuesError, "residual"):
        tn.solve("X[x:4] c[k] Conv[x y k | padding=2:0] -> [y]", torch.ones(4), values={"c": [1.0, 0.0, 0.0]})
    with refused(ValuesError, "NaN"):
        tn.solve(layer, torch.full((1, 3, 6, 7), torch.nan))
    with refused(ValuesError, "NoneType"):
        tn.solve(layer, None)  # type: ignore[arg-type]
    with refused(ValuesError, "tolerance is -1"):
        tn.solve(layer, torch.ones(1, 3, 6, 7), tolerance=-1)
    with refused(ValuesError, "its kernel is zero"):
        tn.solve("X[x:8] c[k] Conv[x y k | padding=1] -> [y]", torch.ones(8), values={"c": torch.zeros(3)})
