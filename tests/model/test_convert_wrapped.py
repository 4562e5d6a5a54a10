"""Models in the states in which torch code keeps them: converted with the same numbers, or refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tnalgebra as tn
from tests.conversion_cases import SHAPE, assert_same, network, state
from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.model.convert import convert

CUT: Any = {"*": [("out | in kh kw", 2), ("out | in", 2)]}


def assert_layers_compute_their_kernels(model: nn.Module, x: Tensor) -> int:
    """Compare every decomposed layer that is called with torch's of the rebuilt kernel. Returns their number."""
    called = []

    def compare(layer: Any, args: Any, output: Tensor) -> None:
        expected = layer.to_dense()(*args)
        torch.testing.assert_close(output, expected, atol=2e-2 if x.dtype.itemsize < 4 else 1e-5, rtol=0)
        called.append(layer)

    hooks = [one.register_forward_hook(compare) for one in model.modules() if isinstance(one, tn.nn.KernelLayer)]
    model(x)
    for hook in hooks:
        hook.remove()
    return len({*called})


# Where conversion runs ----------------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "the meta device by default": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu"),
}


@pytest.mark.parametrize("options", [{}, {"example": SHAPE}, {"size": "parameters 0.7", "fractions": (0.3, 0.6)}])
@pytest.mark.parametrize("place", PLACES)
def test_where_a_conversion_runs_changes_nothing(place: str, options: Any) -> None:
    patterns = CUT if "size" not in options else {nn.Conv2d: "out | in kh kw"}
    expected, _ = convert(network(), patterns, **options)
    with PLACES[place]():
        model, report = convert(network_outside(), patterns, **options)
    assert report.converted
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])
    model(torch.randn(SHAPE)).sum().backward()
    assert all(one.grad is not None for one in model.parameters())


def network_outside() -> nn.Sequential:
    with torch.inference_mode(False), torch.device("cpu"):
        return network()


def test_a_conversion_where_parameters_lose_their_elements() -> None:
    model = network()
    before = state(model)
    with accelerate.init_empty_weights(), refused(LayerError, "meta device", "init_empty_weights"):
        convert(model, CUT)
    assert_same(before, state(model))


# What a model is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model, report = convert(network().to(dtype), CUT, example=SHAPE)
    assert assert_layers_compute_their_kernels(model, torch.randn(SHAPE).to(dtype)) == len(report.converted) == 4


class Reading(nn.Module):
    """Reads of its layers what the parts of well-known models do: where a weight is, and of which type and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(0, 1, self.first.weight.shape[1], device=self.first.weight.device)
        x = self.first(x.to(self.first.weight) + place)
        return self.second(x.to(dtype=self.second.weight.dtype)) / self.second.weight.size(1)


def test_a_model_that_reads_facts_of_weights() -> None:
    torch.manual_seed(0)
    model, x = Reading(), torch.randn(4, 6)
    expected = copy.deepcopy(model)
    _, report = convert(model, CUT, example=x)
    assert report.converted == ("first", "second")
    for name in report.converted:
        expected.get_submodule(name).weight.data = model.get_submodule(name).dense_weight()
    torch.testing.assert_close(model(x), expected(x))


def test_frozen_models_stay_frozen() -> None:
    model, _ = convert(network().requires_grad_(False), CUT)
    assert not any(one.requires_grad for one in model.parameters())


class Table(nn.Module):
    """A kernel that is not of a class of torch's, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_kernels_of_other_classes_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that its quantisation and its scripts are old
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
        scripted = torch.jit.script(nn.Linear(8, 8))
    model = nn.Sequential(Table(), nn.Linear(8, 8), scripted, quantised)
    _, report = convert(model, CUT, example=(2, 6))
    assert report.converted == ("1",)
    assert report.others.keys() == {"0", "2", "3.0"}
    assert "Table" in report.others["0"]
    assert "before torch.jit" in report.others["2"]
    assert "before it is quantised" in report.others["3.0"]
    assert "left as it is: 0, of the class Table" in str(report)
    for name, kind in (("0", "Table"), ("2", "torch.jit"), ("3", "quantised")):
        with refused(LayerError, "no kernel", kind):
            convert(nn.Sequential(model.get_submodule(name)), CUT)


# What holds a layer ---------------------------------------------------------------------------------------------------


def test_a_compiled_layer_stays_and_compiled_models_are_converted() -> None:
    model = network()
    model[3] = torch.compile(model[3], backend="eager")
    _, report = convert(model, CUT, example=SHAPE)
    assert report["3._orig_mod"].reason.startswith("torch.compile calls it as it was")
    assert len(report.converted) == 3
    plain, x = network(), torch.randn(SHAPE)
    whole = torch.compile(plain, backend="eager")
    before = whole(x)
    convert(whole, CUT)
    torch.testing.assert_close(whole(x), plain(x))
    assert not torch.allclose(whole(x), before)
    assert assert_layers_compute_their_kernels(plain, x) == 4


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_a_gradient_stay(register: str) -> None:
    model = network()
    getattr(model[3].weight, register)(lambda _: None)
    _, report = convert(model, CUT)
    assert report["3"].reason.startswith("its weight has hooks of its gradient")


def with_accelerate() -> nn.Module:
    return accelerate.cpu_offload(network(), execution_device="cpu")


def without_elements() -> nn.Module:
    return network().to("meta")


def faked() -> nn.Module:
    with FakeTensorMode():
        return network()


def buffered() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6))
    weight = model[0]._parameters.pop("weight")
    model[0].register_buffer("weight", weight)
    return model


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (with_accelerate, ["accelerate", "remove_hook_from_module"]),
        (without_elements, ["meta device", "to_empty"]),
        (faked, ["FakeTensor"]),
        (buffered, ["not a parameter"]),
    ],
)
def test_weights_that_are_elsewhere(make: Callable[[], nn.Module], facts: list[str]) -> None:
    with refused(LayerError, *facts):
        convert(make(), CUT)


@contextmanager
def one_process(folder: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_models_of_several_processes(tmp_path: Any) -> None:
    with one_process(tmp_path):
        inner = nn.Sequential(nn.parallel.DistributedDataParallel(network()))
        with refused(LayerError, "the module '0'", "DistributedDataParallel", "convert it, then wrap it"):
            convert(inner, CUT)
        with refused(LayerError, "FSDPModule", "convert it, then wrap it"):
            convert(fully_shard(network(), mesh=init_device_mesh("cpu", (1,))), CUT)
        model, report = convert(network(), CUT, example=SHAPE)
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert assert_layers_compute_their_kernels(wrapped, torch.randn(SHAPE)) == len(report.converted)
