"""What a layer keeps of its weights between calls: every way to change a weight is seen by the next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import tnalgebra as tn
from tests.emitted_cases import same

close = partial(same, rtol=1e-4, atol=1e-5)  # float32, by other kernels of torch

Change = Callable[[tn.nn.Conv2d, str], object]


def _step(optimizer: torch.optim.Optimizer, tensor: Tensor) -> None:
    tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    tensor.grad = None


def _swap(layer: nn.Module, name: str) -> None:
    torch.utils.swap_tensors(getattr(layer, name), nn.Parameter(getattr(layer, name).detach() * 2))


def _numpy(layer: nn.Module, name: str) -> None:
    getattr(layer, name).detach().numpy()[...] *= 2


def _load(layer: nn.Module, name: str, *, assign: bool) -> None:
    layer.load_state_dict({**layer.state_dict(), name: getattr(layer, name).detach() * 2}, assign=assign)


def _one_element(layer: nn.Module, name: str) -> None:
    getattr(layer, name).data.flatten()[-1] += 1


def _in_inference_mode(layer: nn.Module, name: str) -> None:
    with torch.inference_mode():
        getattr(layer, name).mul_(2)


CHANGES: dict[str, Change] = {
    "in place": lambda layer, name: getattr(layer, name).detach().mul_(2),
    "in inference mode": _in_inference_mode,
    "through .data": lambda layer, name: getattr(layer, name).data.mul_(2),
    "one element": _one_element,
    "through numpy": _numpy,
    "through the storage": lambda layer, name: (
        getattr(layer, name).untyped_storage().copy_((getattr(layer, name).detach() * 2).untyped_storage())
    ),
    "foreach": lambda layer, name: torch._foreach_mul_([getattr(layer, name).data], 2),
    "another .data": lambda layer, name: setattr(getattr(layer, name), "data", getattr(layer, name).data * 2),
    "another order of elements": lambda layer, name: getattr(layer, name).data.copy_(getattr(layer, name).data.flip(0)),
    "another parameter": lambda layer, name: setattr(layer, name, nn.Parameter(getattr(layer, name).detach() * 2)),
    "swapped": _swap,
    "shared with processes": lambda layer, name: layer.share_memory() and getattr(layer, name).data.mul_(2),
    "sgd": lambda layer, name: _step(torch.optim.SGD([getattr(layer, name)], lr=0.1), getattr(layer, name)),
    "fused": lambda layer, name: _step(
        torch.optim.Adam([getattr(layer, name)], lr=0.1, fused=True), getattr(layer, name)
    ),
    "loaded": lambda layer, name: _load(layer, name, assign=False),
    "assigned": lambda layer, name: _load(layer, name, assign=True),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_weight_is_seen(how: str, channels_last: bool, frozen: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    dense = nn.Conv2d(24, 20, 3, padding=1)
    choices = {"input_size": 24, "batch_size": 1, "memory_format": layout, "tune": False}
    layer = tn.nn.Conv2d.from_conv(dense, "tucker2", {"a": 16, "b": 12}, **choices).eval()
    x = torch.randn(1, 24, 24, 24, generator=generator).contiguous(memory_format=layout)
    if frozen:
        layer.freeze()
    for name in ("U", "G", "V", "bias"):
        with torch.no_grad():
            for _ in range(3):  # the first call checks, and one of them keeps
                before = layer(x)
        CHANGES[how](layer, name)
        with torch.no_grad():
            after, again = layer(x), layer(x)
        assert not torch.allclose(after, before)
        close(after, _fresh(layer, x))
        close(again, after)


def test_a_change_back_is_seen() -> None:
    layer = tn.nn.Conv2d.from_conv(nn.Conv2d(24, 20, 3, padding=1), "tucker2", 12, input_size=24).eval()
    x = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = [layer(x) for _ in range(3)][-1]
        layer.G.mul_(2)
        layer(x)
        layer.G.mul_(0.5)
        close(layer(x), before)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # of torch's own rules
@pytest.mark.parametrize("called_before", [False, True])
def test_a_tangent_without_gradients(called_before: bool) -> None:
    """Forward-mode differentiation needs no gradients, so it is used where they are off."""
    layer = tn.nn.Conv2d(16, 16, 3, padding=1, rewrite="cp", size=6, tune=False, input_size=8)
    dense = layer.to_dense()
    x, direction = torch.randn(2, 4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(3 if called_before else 0):
            layer(x)
        expected = dense(direction) - dense(torch.zeros_like(direction))
        with forward_ad.dual_level():
            output = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction)))
            assert output.tangent is not None
            close(output.tangent, expected)
            close(output.primal, dense(x))
        close(layer(x), dense(x))


def _fresh(layer: tn.nn.Conv2d, x: Tensor) -> Tensor:
    """The output of torch's convolution with the kernel that the cores make now."""
    kernel = torch.einsum("oa,abhw,bi->oihw", *(getattr(layer, name).detach() for name in "UGV"))
    return torch.conv2d(x, kernel, layer.bias.detach(), padding=1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: layer.share_cores(copy.deepcopy(layer)) or layer])
def test_a_copy_keeps_values_of_its_own(copied: Callable[[tn.nn.Conv2d], tn.nn.Conv2d]) -> None:
    layer = tn.nn.Conv2d.from_conv(nn.Conv2d(24, 20, 3, padding=1), "tucker2", 12, input_size=24).eval()
    x = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = [layer(x) for _ in range(3)][-1]
        other = copied(layer)
        other.G.mul_(2)
        close(other(x), _fresh(other, x))
        if other is not layer:
            close(layer(x), before)
