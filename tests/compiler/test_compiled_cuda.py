"""Compiled networks on a GPU against the CPU, and moved there; other tests run on both devices."""

from __future__ import annotations

import pytest
import torch

from tests.emitted_cases import CASES, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_values_and_gradients_are_those_of_the_cpu(name: str) -> None:
    case = CASES[name]
    gradients = []
    for device in ("cpu", "cuda"):
        module, x = case.compiled(device), case.input(device).requires_grad_()
        assert all(tensor.device.type == device for tensor in (*module.parameters(), *module.buffers()))
        value = module(x)
        value.pow(2).sum().backward()
        tensors = [x.grad, *(parameter.grad for _, parameter in sorted(module.named_parameters()))]
        gradients.append([value.detach().cpu(), *(one.cpu() for one in tensors if one is not None)])
    assert len(gradients[0]) == len(gradients[1]) == len(list(case.values())) + 2
    for one, two in zip(*gradients, strict=True):
        same(one, two, rtol=1e-9, atol=1e-9)  # of squares


@each_case
@pytest.mark.parametrize("frozen", [False, True], ids=["thawed", "frozen"])
def test_a_module_moves_to_the_gpu(name: str, frozen: bool) -> None:
    case, x = CASES[name], CASES[name].input("cuda")
    module = case.compiled(frozen=frozen).cuda()
    same(module(x), case.value(case.input()).cuda())
    same(module.thaw()(x), case.value(case.input()).cuda())
    same(module.freeze()(x), case.value(case.input()).cuda())  # planned again, for the GPU
    assert module.plan.request.device.type == "cuda"
    assert all(buffer.is_cuda for buffer in module.buffers())
