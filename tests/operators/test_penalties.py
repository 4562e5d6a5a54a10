"""Distance from orthogonality and Lipschitz bounds, against dense matrices, with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.operators.test_spectra import dense_matrix
from tests.refusals import refused
from tnalgebra.errors import NetworkError, SizeError

LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 12, 9)),
    "stride": (nn.Conv2d(2, 5, 3, padding=1, stride=2, padding_mode="circular"), (2, 12, 8)),
    "stride and dilation": (nn.Conv1d(2, 3, 3, padding=2, stride=2, dilation=2, padding_mode="circular"), (2, 24)),
    "groups": (nn.Conv1d(4, 6, 3, padding=1, groups=2, padding_mode="circular"), (4, 10)),
    "linear": (nn.Linear(5, 4), (5,)),
    "transposed": (nn.ConvTranspose1d(6, 3, 2, stride=2, padding=0), (6, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_orthogonality_is_that_of_the_dense_matrix(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer.double().reset_parameters()
    matrix = dense_matrix(layer, shape)
    turned = matrix.mT if name == "transposed" else matrix
    outputs = layer.weight.shape[0]
    expected = (turned @ turned.mT - torch.eye(len(turned))).square().sum() / (len(turned) / outputs)
    assert tn.orthogonality(layer).item() == pytest.approx(float(expected), rel=1e-12)


def test_an_orthogonal_layer_has_no_penalty() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 6).double())
    assert tn.orthogonality(layer) < 1e-20
    shifts = nn.Conv1d(4, 4, 3, padding=1, bias=False, padding_mode="circular")
    with torch.no_grad():
        shifts.weight.zero_()
        for number in range(4):
            shifts.weight[number, number, number % 3] = 1
    assert tn.orthogonality(shifts) == 0
    assert tn.operator_spectra(shifts, 9).condition == pytest.approx(1)


@pytest.mark.parametrize("name", LAYERS)
def test_lipschitz_bounds(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer.double().reset_parameters()
    norm = tn.operator_spectra(layer, shape[1:] or None).norm
    bounds = [float(tn.lipschitz_bound(layer, iterations=number).detach()) for number in (1, 2, 4)]
    assert bounds == sorted(bounds, reverse=True)
    assert norm <= bounds[-1] <= 1.15 * norm


@pytest.mark.parametrize("penalty", [tn.orthogonality, tn.lipschitz_bound])
def test_gradients(penalty: object) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    text = "X[n i x] Conv[x u k | stride=2 padding=1] K[o i k] -> [n o u]"
    assert callable(penalty)
    assert torch.autograd.gradcheck(lambda one: penalty(text, values={"K": one}), weight)


def test_the_cores_of_a_decomposed_layer_get_gradients() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, 3, padding=1).double()
    layer = tn.nn.decomposed(dense, "tucker2", 3)
    loss = tn.orthogonality(layer)
    assert loss.item() == pytest.approx(tn.orthogonality(layer.to_dense()).item(), rel=1e-12)
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in layer.named_parameters() if name != "bias")


def test_the_product_of_a_kernel_of_many_cores() -> None:
    """Both sides of a window over one element may be in one part of a contraction tree, which is then not a join."""
    torch.manual_seed(0)
    dense = nn.Conv3d(2, 4, (3, 1, 4), groups=2, stride=(2, 3, 3)).double()
    layer = tn.nn.decomposed(dense, "cp", 2)
    assert tn.orthogonality(layer).item() == pytest.approx(tn.orthogonality(layer.to_dense()).item(), rel=1e-12)


def test_a_penalty_makes_a_layer_orthogonal() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular")
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        tn.orthogonality(layer).backward()
        optimizer.step()
    condition = tn.operator_spectra(layer, 16).condition
    assert condition is not None
    assert condition < 1.05


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_a_window_without_padding_has_the_bound_of_zeros_in_every_mode(mode: str) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, stride=(1, 2))
    moded = nn.Conv2d(3, 4, 3, stride=(1, 2), padding_mode=mode)
    moded.load_state_dict(plain.state_dict())
    assert torch.equal(tn.lipschitz_bound(moded), tn.lipschitz_bound(plain))
    one_axis = nn.Conv2d(3, 4, 3, padding=(0, 1), padding_mode=mode)
    with refused(NetworkError, mode):
        tn.lipschitz_bound(one_axis)


def test_refusals() -> None:
    with refused(SizeError, "iterations is 0"):
        tn.lipschitz_bound(nn.Conv1d(2, 2, 3), iterations=0)
    with refused(NetworkError, "reflect"):
        tn.lipschitz_bound(nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"))
    with refused(NetworkError, "'x'", "'u'"):
        tn.lipschitz_bound(nn.Conv1d(2, 2, 1, padding=1, padding_mode="circular"))
    with refused(NetworkError, "'x'"):
        tn.orthogonality("X[x:5] Conv[x y k:2] Conv[x z h:2] -> [y z k h]")


def test_an_output_label_may_pass_a_window_of_one_place() -> None:
    """The window takes three of four outputs, and puts a place of zeros before them."""
    kernel = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = "X[n i x] Conv[x u k | padding=1 mode=circular] K[o i k] -> [n o u]"
    text = "X[n i x] Conv[x u k | padding=1 mode=circular] Conv[m o one:1 | padding=1:-1] K[m i k] -> [n o u]"
    moved = torch.cat([torch.zeros_like(kernel[:1]), kernel[:3]])
    for function in (tn.orthogonality, tn.lipschitz_bound):
        torch.testing.assert_close(function(text, values={"K": kernel}), function(plain, values={"K": moved}))
