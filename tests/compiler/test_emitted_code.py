"""The code of compiled networks under all that torch does to code: gradients, dtypes, memory formats, export, ..."""

from __future__ import annotations

import operator
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from tests.compiler_cases import random
from tests.emitted_cases import CASES, DEVICES, Case, Emitted, candidates, picked, same
from tnalgebra.compiler import transforms
from tnalgebra.compiler.choose import Candidate
from tnalgebra.compiler.emit import argument_names, emit
from tnalgebra.compiler.operations import Convolve, Unfold
from tnalgebra.compiler.program import Program
from tnalgebra.networks.nodes import NamedTensor

FUNCTIONS = {
    *(getattr(functional, f"conv{axes}d") for axes in (1, 2, 3)),
    *(getattr(functional, f"conv_transpose{axes}d") for axes in (1, 2, 3)),
    *(getattr(functional, f"avg_pool{axes}d") for axes in (1, 2, 3)),
    *(functional.linear, functional.pad, torch.matmul, torch.bmm, torch.unflatten, torch.diagonal),
    *(operator.mul, operator.truediv, operator.getitem),
    *(transforms.transform, transforms.transform_kernel, transforms.inverse_transform, transforms.convolve_each),
    *(operator.add, operator.floordiv, operator.neg),
}
PATTERN = Case("X[n:2 x:6] Conv[x u h:3 | padding=1] Conv[x v w:2] A[h a:2] B[w b:4] -> [n u v a b]", "n")
"""Two windows on one label: a plan makes one of them a dense pattern."""

HAS_COMPILER = any(map(shutil.which, ("g++", "clang++"))) and Path(sysconfig.get_path("include"), "Python.h").exists()

METHODS = {
    *("permute", "reshape", "flatten", "expand", "contiguous", "unfold", "squeeze", "unsqueeze", "sum", "size"),
    "flip",
}


def every_candidate(*names: str) -> Iterator[Any]:
    for name in names or CASES:
        for number, candidate in enumerate(picked(name)):
            yield pytest.param(name, candidate, id=f"{name}-{number}-{candidate.program.style}")


each_candidate = pytest.mark.parametrize(("name", "candidate"), list(every_candidate()))
each_case = pytest.mark.parametrize("name", CASES)


# Values and words -----------------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_every_candidate_computes_the_network(name: str, device: str, channels_last: bool) -> None:
    case = CASES[name]
    for x in (case.input(), case.input(**case.other_sizes()), case.input(n=1)):
        expected, x = case.value(x).to(device), x.to(device)
        if channels_last and x.ndim in (4, 5):
            x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        for candidate in candidates(name, channels_last=channels_last):
            same(Emitted(case, candidate, device)(x), expected)


@each_case
def test_code_calls_known_functions_and_names_its_arguments_like_their_tensors(name: str) -> None:
    for candidate in candidates(name):
        graph = emit(candidate.program).graph
        check_calls(graph)
        arguments = [node for node in graph.nodes if node.op == "placeholder"]
        names = [*candidate.program.inputs, *argument_names(candidate.program)]
        assert [node.name for node in arguments] == [node.target for node in arguments] == names
    check_calls(CASES[name].compiled(frozen=True)._code.graph)


def check_calls(graph: fx.Graph) -> None:
    for node in graph.nodes:
        assert node.op in ("placeholder", "output", "call_function", "call_method")
        if node.op == "call_function":
            assert node.target in FUNCTIONS, node.target
        if node.op == "call_method":
            assert node.target in METHODS, node.target
        assert "device" not in node.kwargs
        assert not any(
            isinstance(leaf, torch.device | torch.dtype | Tensor) for leaf in tree_leaves((node.args, node.kwargs))
        )


def test_code_as_text() -> None:
    module = CASES["tucker-2"].compiled()
    first, *rest = module.code.splitlines()
    assert first.startswith("def forward(self, X, ")
    assert rest[-1].strip().startswith("return ")
    assert len(rest) == sum(node.op != "placeholder" for node in module._code.graph.nodes)
    assert module.freeze().code.splitlines()[0] == "def forward(self, X, frozen_0):"


# Gradients ------------------------------------------------------------------------------------------------------


def tensors(case: Case, module: Emitted, device: str = "cpu") -> tuple[Tensor, ...]:
    stored = (getattr(module, name).detach() for name in module.names)
    return tuple(tensor.requires_grad_() for tensor in (case.input(device), *stored))


@each_candidate
@pytest.mark.parametrize("device", DEVICES)
def test_gradients(name: str, candidate: Candidate, device: str) -> None:
    case = CASES[name]
    module = Emitted(case, candidate, device)
    arguments = tensors(case, module, device)
    value = module.code(*arguments)
    weight = random(*value.shape, seed=3).to(device)
    gradients = torch.autograd.grad(value, arguments, weight)
    # the value is linear in each tensor: its gradient is the exact difference quotient along any direction
    for number, (tensor, gradient) in enumerate(zip(arguments, gradients, strict=True)):
        direction = random(*tensor.shape, seed=number).to(device)
        moved = [one.detach() + direction if one is tensor else one.detach() for one in arguments]
        change = ((module.code(*moved) - value.detach()) * weight).sum()
        same((gradient * direction).sum(), change, rtol=1e-8, atol=1e-8)  # differences of values near 100


torch_scripts = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's forward mode uses it


@torch_scripts
@pytest.mark.parametrize("name", ["tucker-2", "cp, stride 2", "transposed", "grouped", "locally connected", "reflect"])
def test_gradients_of_gradients(name: str) -> None:
    case = CASES[name]
    module = Emitted(case, candidates(name)[0])
    arguments = tensors(case, module)
    assert torch.autograd.gradcheck(module.code, arguments, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(module.code, arguments, fast_mode=True)


@torch_scripts
@pytest.mark.parametrize("name", ["tucker-2", "ring", "linear", "locally connected"])
def test_functional_transforms(name: str) -> None:
    case = CASES[name]
    module, x = case.compiled(), case.input()
    state = {key: value.detach() for key, value in module.named_parameters()}
    same(functional_call(module, state, (x,)), module(x).detach())

    key = next(iter(state))

    def of_one(value: Tensor) -> Tensor:
        output: Tensor = functional_call(module, {**state, key: value}, (x,))
        return output

    jacobian = jacrev(of_one)(state[key])
    direction = torch.ones_like(state[key])
    linear = (jacobian * direction).flatten(-direction.ndim).sum(-1)
    same(jvp(of_one, (state[key],), (direction,))[1], linear)
    same(of_one(direction), linear)  # the value is linear in every tensor

    models = torch.stack([state[key], 2 * state[key], direction])
    expected = torch.stack([of_one(one) for one in models])
    same(vmap(of_one)(models), expected)
    images = torch.stack([x, 2 * x])
    same(vmap(module)(images), torch.stack([module(x), 2 * module(x)]))


# Dtypes ---------------------------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("frozen", "dtype"), [(False, None), (True, None), (False, torch.bfloat16), (True, torch.float16)], ids=str
)
def test_low_precision(name: str, device: str, frozen: bool, dtype: torch.dtype | None) -> None:
    """Under autocast into bfloat16, or with the module and its input in a dtype of their own."""
    case = CASES[name]
    module = case.compiled(device, torch.float32, frozen=frozen).to(dtype or torch.float32)
    with torch.autocast(device, torch.bfloat16, enabled=dtype is None):
        value = module(case.input(device, dtype or torch.float32))
    if dtype or any("conv" in str(node.target) or "linear" in str(node.target) for node in module._code.graph.nodes):
        assert value.dtype == (dtype or torch.bfloat16)
    # every factor of every step is rounded: an error of some epsilon of the largest value
    expected = case.value(case.input()).to(device)
    assert value.shape == expected.shape
    epsilon = torch.finfo(dtype or torch.bfloat16).eps
    assert (value.double() - expected).abs().max() <= 8 * epsilon * expected.abs().max()


# Memory formats -------------------------------------------------------------------------------------------------


@each_candidate
def test_memory_of_inputs_changes_no_value(name: str, candidate: Candidate) -> None:
    case, x = CASES[name], CASES[name].input()
    module = Emitted(case, candidate)
    if x.ndim in (4, 5):
        last = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        same(module(last), module(x))
    strange = torch.empty_strided(x.shape, [2 * stride for stride in x.stride()], dtype=x.dtype).copy_(x)
    same(module(strange), module(x))
    same(module(x.flip(-1).transpose(0, 1).contiguous().transpose(0, 1).flip(-1)), module(x))


@pytest.mark.parametrize("name", ["tucker-2", "train", "7x7 stem", "grouped", "1x1", "depthwise, dilated"])
def test_channels_last_is_kept(name: str) -> None:
    case = CASES[name]
    module = case.compiled(memory_format=torch.channels_last)
    x = case.input().contiguous(memory_format=torch.channels_last)
    same(module(x), case.value(case.input()))
    for candidate in picked(name, channels_last=True):
        value = Emitted(case, candidate)(x)
        last = candidate.program.operations[-1]
        if candidate.program.style.memory_format == "channels_last" and isinstance(last, Convolve):
            assert value.is_contiguous(memory_format=torch.channels_last), candidate.program.style


# torch.compile --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in ("transposed", "locally connected", "Monarch", "pooling", "global pooling")),
        *((name, "eager") for name in ("grouped", "reflect on one axis")),  # faster; frozen
    ],
)
def test_torch_compile(name: str, backend: str, device: str) -> None:
    case = CASES[name]
    module = case.compiled(device, frozen=backend == "eager")
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    fast = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for count in (11, 13):  # sizes that nothing else has: torch takes equal ones for one
        x = case.input(device, n=count).requires_grad_()
        value, expected = fast(x), module(x)
        same(value, expected)
        (one,), (two,) = (torch.autograd.grad(v.pow(2).sum(), [x]) for v in (value, expected))
        same(one, two, rtol=1e-9, atol=1e-9)  # of squares
    assert counter.frame_count == 1


def test_freezing_and_thawing_a_module_that_torch_compiled() -> None:
    case = CASES["tucker-2"]
    module, x = case.compiled(), case.input()
    torch._dynamo.reset()
    fast = torch.compile(module, fullgraph=True, backend="eager")
    before = fast(x)
    module.freeze()
    same(fast(x), before)
    module.thaw()
    with torch.no_grad():
        module.U.mul_(2)
    same(fast(x), 2 * before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own modules, as they are loaded
@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler and the headers of Python")
def test_inductor() -> None:
    case = CASES["tucker-2"]
    module, x = case.compiled(), case.input()
    torch._dynamo.reset()
    same(torch.compile(module, fullgraph=True)(x), module(x))


# Export ---------------------------------------------------------------------------------------------------------


def dynamic_shapes(case: Case, program: Program) -> dict[int, Any]:
    """All sizes that may move; the batch alone with `unfold`, whose size torch binds to be a multiple of the stride."""
    unfolds = any(isinstance(operation, Unfold) for operation in program.operations)
    node = next(node for node in case.network.nodes if isinstance(node, NamedTensor) and node.name == "X")
    return {
        axis: Dim(f"size_{label}", min=2 if label == "n" else case.network.sizes[label], max=64)
        for axis, label in enumerate(node.labels)
        if label == "n" or (label in case.free.split() and not unfolds)
    }


def assert_free_of_nominal_sizes(program: torch.export.ExportedProgram, batch: int) -> None:
    """No constant of the graph is the batch it was exported with, and memory is addressed through shapes alone."""
    for node in program.graph.nodes:
        if node.op == "call_function":
            assert "as_strided" not in str(node.target)
            assert batch not in tree_leaves((node.args, node.kwargs)), node.format_node()


def check_export(case: Case, module: nn.Module, program: Program, wrap: str | None = None) -> None:
    """A module exported with a batch that nothing else has computes inputs of other sizes."""
    shapes = dynamic_shapes(case, program)
    exported = export(
        module, (case.input(n=41),), dynamic_shapes={wrap: (shapes,)} if wrap else (shapes,), strict=False
    )
    assert_free_of_nominal_sizes(exported, 41)
    run = exported.module()
    for sizes in ({"n": 3}, case.other_sizes()):
        sizes = sizes if len(shapes) > 1 else {"n": sizes["n"]}
        same(run(case.input(**sizes)), module(case.input(**sizes)))


@pytest.mark.parametrize(
    ("name", "candidate"), list(every_candidate("tucker-2", "grouped", "transposed", "locally connected"))
)
def test_export_of_every_style(name: str, candidate: Candidate) -> None:
    check_export(CASES[name], Emitted(CASES[name], candidate).eval(), candidate.program)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        *((name, False) for name in ("Monarch", "pooling", "global pooling", "depthwise, dilated", "1-d", "3-d")),
        *((name, True) for name in ("tucker-2", "reflect")),
    ],
)
def test_export_of_modules(name: str, frozen: bool) -> None:
    module = CASES[name].compiled(frozen=frozen)
    check_export(CASES[name], module, module.plan.chosen.program, "inputs")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:torch.onnx")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the exporter's own use of its libraries
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("grouped", False),
        ("global pooling", False),
        ("locally connected", False),
        ("reflect", True),
    ],
)
def test_onnx(name: str, frozen: bool, tmp_path: Path) -> None:
    case = CASES[name]
    module = case.compiled(dtype=torch.float32, frozen=frozen).eval()
    file = tmp_path / "module.onnx"
    torch.onnx.export(
        module,
        (case.input(n=41, dtype=torch.float32),),
        file,
        dynamo=True,
        dynamic_shapes={"inputs": ({0: Dim("n", min=2, max=64)},)},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (3, 7):
        x = case.input(n=count, dtype=torch.float32)
        (value,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = module(x).detach()
        error = (torch.from_numpy(value) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()  # float32: a few hundred terms, summed in another order


# Devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tucker-2", "transposed", "Monarch", "pooling", "global pooling", "locally connected", "reflect"]
)
def test_code_has_no_device_of_its_own(name: str) -> None:
    case = CASES[name]
    with FakeTensorMode():
        for candidate in picked(name):
            module = Emitted(case, candidate)
            arguments = [case.input(), *(getattr(module, name).detach() for name in module.names)]
            fakes = [torch.empty(one.shape, dtype=one.dtype, device="cuda") for one in arguments]
            assert emit(candidate.program)(*fakes).device.type == "cuda"


@each_case
@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("frozen", [False, True], ids=["thawed", "frozen"])
def test_a_module_moves_to_a_device(name: str, device: str, frozen: bool) -> None:
    case, x = CASES[name], CASES[name].input(device)
    module, expected = case.compiled(frozen=frozen).to(device), case.value(case.input()).to(device)
    same(module(x), expected)
    same(module.thaw()(x), expected)
    same(module.freeze()(x), expected)  # planned again, for the device
    assert module.plan.request.device.type == device
    assert all(buffer.device.type == device for buffer in module.buffers())


@pytest.mark.parametrize("name", ["tucker-2", "grouped", "global pooling", "locally connected", "pattern"])
def test_a_module_that_moved_is_frozen_where_it_is(name: str) -> None:
    module, shape = (PATTERN if name == "pattern" else CASES[name]).compiled(), CASES.get(name, PATTERN).shapes()["X"]
    module.to("meta")
    x = torch.empty(shape, dtype=torch.float64, device="meta")
    assert module(x).is_meta
    module.freeze()
    assert module(x).is_meta
    assert module.plan.request.device.type == "meta" or not module._weights
