"""The network for waves: what its description says, on a periodic grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.wave_net import WaveNet, wave_net


def fields(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(depth: int = 4) -> WaveNet:
    torch.manual_seed(0)
    return wave_net(inputs=2, outputs=3, width=5, depth=depth).double()


def test_it_is_its_description() -> None:
    model = network()
    given = fields(2, 2, 6, 7)

    def convolved(x: Tensor, name: str) -> Tensor:
        around = torch.cat([x[..., -1:, :], x, x[..., :1, :]], dim=-2)
        around = torch.cat([around[..., -1:], around, around[..., :1]], dim=-1)
        return functional.conv2d(around, model.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.bias"))

    hidden = functional.gelu(convolved(given, "first"))
    hidden = hidden + functional.gelu(convolved(hidden, "middle.0"))
    hidden = hidden + functional.gelu(convolved(hidden, "middle.1"))
    expected = convolved(hidden, "last")
    assert expected.shape == (2, 3, 6, 7)
    torch.testing.assert_close(model(given), expected)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_value_depends_on_neighbours_up_to_its_depth(depth: int) -> None:
    given = fields(1, 2, 15, 15).requires_grad_()
    (gradient,) = torch.autograd.grad(network(depth)(given)[0, :, 7, 7].sum(), given)
    rows = torch.nonzero(gradient.abs().sum(dim=(0, 1, 3))).flatten().tolist()
    assert rows == list(range(7 - depth, 8 + depth))


def test_its_usual_size() -> None:
    model = wave_net()
    convolutions = [tuple(each.shape) for each in model.parameters() if each.ndim == 4]
    assert convolutions == [(40, 3, 3, 3), *[(40, 40, 3, 3)] * 5, (1, 40, 3, 3)]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32, 32)
