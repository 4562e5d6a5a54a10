"""Compiled networks on a GPU: values, gradients, dtypes, memory formats, freezing, measuring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.emitted_cases import CASES, Emitted, candidates, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

each_case = pytest.mark.parametrize("name", CASES)


@each_case
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_candidate_computes_the_network(name: str, channels_last: bool) -> None:
    case, x = CASES[name], CASES[name].input("cuda")
    if channels_last and x.ndim in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    for candidate in candidates(name, channels_last=channels_last):
        value = Emitted(case, candidate, device="cuda")(x)
        assert value.is_cuda
        same(value, case.value(case.input()).cuda())


@each_case
def test_values_and_gradients_are_those_of_the_cpu(name: str) -> None:
    case = CASES[name]
    gradients = []
    for device in ("cpu", "cuda"):
        module, x = case.compiled(device), case.input(device).requires_grad_()
        assert all(tensor.device.type == device for tensor in (*module.parameters(), *module.buffers()))
        value = module(x)
        value.pow(2).sum().backward()
        found = [x.grad, *(parameter.grad for _, parameter in sorted(module.named_parameters()))]
        gradients.append([value.detach().cpu(), *(one.cpu() for one in found if one is not None)])
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
    same(module.freeze()(x), case.value(case.input()).cuda())  # planned anew, for the GPU
    assert module.plan.request.device.type == "cuda"
    assert all(buffer.is_cuda for buffer in module.buffers())


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_and_half_precision(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    expected = case.value(case.input()).cuda()
    module = case.compiled("cuda", torch.float32)
    with torch.autocast("cuda", dtype):
        automatic = module(case.input("cuda", torch.float32))
    half = module.to(dtype).freeze()(case.input("cuda", dtype))
    assert half.dtype == dtype
    for value in (automatic, half):  # every factor of every step is rounded
        error = (value.double() - expected).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("options", [{}, {"backward": True}, {"memory_format": torch.channels_last}], ids=str)
@pytest.mark.parametrize("name", ["tucker-2", "locally connected", "grouped"])
def test_measuring(name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TNALGEBRA_CACHE", str(tmp_path))
    case, x = CASES[name], CASES[name].input("cuda")
    module = case.compiled("cuda", tune=True, **options)
    assert len(module.plan.candidates) == 1 or module.plan.chosen.measured is not None
    same(module(x), case.value(case.input()).cuda())
    same(module.freeze()(x), case.value(case.input()).cuda())


def test_torch_compile() -> None:
    case = CASES["tucker-2"]
    module = case.compiled("cuda")
    torch._dynamo.reset()
    fast = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (11, 13):
        x = case.input("cuda", n=count)
        same(fast(x), module(x))
