"""The uses themselves: what is done to modules, by kind."""

from __future__ import annotations

import copy
import io
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import tnalgebra as tn
from tests.use_cases import Trial, layer_arguments, new_layer, same, use

FROZEN, AUTOCAST, PARAMETERS = "a frozen layer", "autocast", "parameters"
META, TRACED, FUNCTIONS = "the meta device", "traced", "transforms"
COPIED, COMPUTED, TYPES, WRAPPED = "copied", "cores that are computed", "other numbers", "wrapped"
NUMBERS_ALONE = "Embedding"
"""The layer whose input is not floating point."""
ATTENTION = "MultiheadAttention"
"""The layer that is not made with random values."""


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, core: Tensor) -> Tensor:
        return 2 * core


def values(one: Trial, layer: nn.Module, tensors: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
    """The output of a layer with other tensors in the place of its own."""
    result = functional_call(layer, tensors, one.inputs(x))
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


# Frozen ---------------------------------------------------------------------------------------------------------


def changed(text: str) -> Callable[[Callable[[Trial], nn.Module | None]], None]:
    """List a change of a frozen layer: the layer computes with what it then has."""

    def listed(change: Callable[[Trial], nn.Module | None]) -> None:
        def run(one: Trial) -> None:
            one.freeze()()
            layer = change(one) or one.layer
            one.of(layer).check()
            one.of(layer).check()

        use(FROZEN, text)(run)

    return listed


@changed("`p.mul_(2)` under `no_grad`")
def _(one: Trial) -> None:
    with torch.no_grad():
        for parameter in one.layer.parameters():
            parameter.mul_(2)


@changed("`p.data.mul_(2)`, also by a `.data` or numpy array taken earlier")
def _(one: Trial) -> None:
    aliases = [parameter.data for parameter in one.layer.parameters()]
    arrays = [parameter.detach().numpy() for parameter in one.layer.parameters()]
    one()
    for alias in aliases:
        alias.mul_(2)
    one.check()
    for array in arrays:
        array *= 2


@changed("`vector_to_parameters`, and a later change of the vector")
def _(one: Trial) -> None:
    vector = 2 * nn.utils.parameters_to_vector(one.layer.parameters()).detach()
    nn.utils.vector_to_parameters(vector, one.layer.parameters())
    one.check()
    vector.mul_(0.75)


@changed("`layer.G = Parameter(...)`, `swap_tensors`")
def _(one: Trial) -> None:
    layer, name = one.core
    setattr(layer, name, nn.Parameter(3 * getattr(layer, name).detach()))
    one.check()
    torch.utils.swap_tensors(getattr(layer, name), nn.Parameter(2 * getattr(layer, name).detach()))


@changed("`AveragedModel`, and an average by hand")
def _(one: Trial) -> nn.Module:
    average = torch.optim.swa_utils.AveragedModel(one.layer)
    average.update_parameters(one.layer)
    other = copy.deepcopy(one.layer)
    for parameter in other.parameters():
        parameter.data.mul_(2)
    average.update_parameters(other)
    one.of(average.module).check()
    for kept, new in zip(one.layer.parameters(), other.parameters(), strict=True):
        kept.data.mul_(0.9).add_(new.data, alpha=0.1)
    one.check()
    return average.module


@changed("a step of an optimizer")
def _(one: Trial) -> None:
    for kind in (torch.optim.SGD, partial(torch.optim.AdamW, fused=True)):
        for parameter in one.layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        kind(one.layer.parameters(), lr=0.1).step()
        one.check()


@changed("`load_state_dict`, with and without `assign`")
def _(one: Trial) -> None:
    for assign in (False, True):
        one.freeze().layer.load_state_dict({k: 1.5 * v for k, v in one.layer.state_dict().items()}, assign=assign)
        one.check()


@changed("`module.apply`, `_apply`, `double().float()`, `to_empty`")
def _(one: Trial) -> None:
    one.layer._apply(lambda tensor: 2 * tensor)  # type: ignore[no-untyped-call]
    one.check()
    one.layer.double().float()
    one.check()
    one.layer.to_empty(device="cpu")
    for tensor in one.layer.state_dict().values():
        nn.init.normal_(tensor)


@changed("`prune` and `parametrize` after `freeze`")
def _(one: Trial) -> None:
    layer, name = one.core
    prune.random_unstructured(layer, name, 0.5)
    one.check()
    prune.remove(layer, name)
    parametrize.register_parametrization(layer, name, Doubled())


@changed("a copy or a pickle that is changed")
def _(one: Trial) -> nn.Module:
    for other in (pickle.loads(pickle.dumps(one.layer)), copy.deepcopy(one.layer)):
        for parameter in other.parameters():
            parameter.data.mul_(2)
        one.of(other).check()
    return other


@use(FROZEN, "`functional_call`, and its gradients")
def _(one: Trial) -> None:
    tensors = {name: 1.5 * tensor.detach() for name, tensor in one.layer.named_parameters()}
    other = copy.deepcopy(one.layer)
    other.load_state_dict(tensors, strict=False)
    one.freeze()
    same(values(one, one.layer, tensors), one(one.of(other).dense()))
    own = dict(one.layer.named_parameters())
    slopes = grad(lambda tensors: values(one, one.layer, tensors).square().sum())(own)
    for name, slope in grad(lambda tensors: values(one, other, tensors).square().sum())(own).items():
        same(slopes[name], slope)


@use(FROZEN, "compiled, exported or traced, then changed", slow=True)
def _(one: Trial) -> None:
    one.freeze()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(one.layer, one.inputs())
    compiled = torch.compile(one.layer, backend="eager", fullgraph=True)
    one(compiled)
    for parameter in one.layer.parameters():
        parameter.data.mul_(2)
    for code in (traced, compiled, torch.export.export(one.layer, one.inputs()).module()):
        same(one(code), one(one.dense()))


# Autocast -------------------------------------------------------------------------------------------------------


def lowered(one: Trial, dtype: torch.dtype) -> None:
    exact = one(one.dense())
    with torch.autocast("cpu", dtype):
        value, expected = one(), one(one.dense())
    assert value.dtype == expected.dtype
    assert (value - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()
    value.float().square().sum().backward()
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in one.layer.parameters())


def lowered_frozen(one: Trial, dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype):
        value, expected = one.freeze()(), one(one.dense())
    same(value, expected)


for _dtype in (torch.bfloat16, torch.float16):
    use(AUTOCAST, f"`{_dtype}`")(partial(lowered, dtype=_dtype))
    use(AUTOCAST, f"`{_dtype}`, frozen")(partial(lowered_frozen, dtype=_dtype))


@use(AUTOCAST, "weights of float64, which stay")
def _(one: Trial) -> None:
    one.layer.double()
    with torch.autocast("cpu", torch.bfloat16):
        one.check(one.x.double() if one.x.is_floating_point() else one.x)


# Parameters -----------------------------------------------------------------------------------------------------


def contiguous(one: Trial) -> None:
    assert all(tensor.is_contiguous() for tensor in one.layer.state_dict().values())
    nn.utils.parameters_to_vector(one.layer.parameters())
    with tempfile.TemporaryDirectory() as folder:
        save_file(one.layer.state_dict(), Path(folder) / "layer.safetensors")
    one.check()


@use(PARAMETERS, "`parameters_to_vector`, `safetensors.torch.save_file`")
def _(one: Trial) -> None:
    contiguous(one)
    contiguous(one.of(copy.deepcopy(one.layer)))
    one.layer.load_state_dict({k: v.clone() for k, v in one.layer.state_dict().items()}, assign=True)
    contiguous(one)
    contiguous(one.freeze())


@use(PARAMETERS, "the same after `.to(memory_format=torch.channels_last)` and another plan")
def _(one: Trial) -> None:
    one.layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    contiguous(one)
    tn.nn.in_memory_format(one.layer, torch.channels_last)
    contiguous(one)


@use(PARAMETERS, "`named_buffers` and `modules` have nothing that torch's layer does not have")
def _(one: Trial) -> None:
    for layer in (one.layer, one.freeze().layer):
        assert {name for name, _ in layer.named_buffers()} <= {*layer.state_dict()}
        assert all(isinstance(part, tn.nn.KernelLayer | tn.nn.MultiheadAttention) for part in layer.modules())


# Meta -----------------------------------------------------------------------------------------------------------


def loaded(one: Trial, layer: nn.Module) -> None:
    assert all(parameter.is_meta for parameter in layer.parameters())
    layer.load_state_dict(one.layer.state_dict(), assign=True)
    one.of(layer).check()


@use(META, "made in `with torch.device('meta')`, or with `device='meta'`, then loaded", without=ATTENTION)
def _(one: Trial) -> None:
    with torch.device("meta"):
        layer = new_layer(one.name)
    loaded(one, layer)
    loaded(one, new_layer(one.name, device="meta"))


@use(META, "`accelerate.init_empty_weights`, `torch.nn.utils.skip_init`", without=ATTENTION)
def _(one: Trial) -> None:
    for buffers in (False, True):
        with accelerate.init_empty_weights(include_buffers=buffers):
            layer = new_layer(one.name)
        loaded(one, layer)
    kind, arguments = layer_arguments(one.name)
    layer = nn.utils.skip_init(kind, **arguments)
    layer.load_state_dict(one.layer.state_dict())
    one.of(layer).check()


@use(META, "`layer.to('meta')`, called")
def _(one: Trial) -> None:
    x = one.x.to("meta")
    for layer in (one.layer, one.freeze().layer):
        value, expected = one(copy.deepcopy(layer).to("meta"), x), one(one.dense().to("meta"), x)
        assert (value.shape, value.dtype, value.device) == (expected.shape, expected.dtype, expected.device)


@use(META, "`to_empty`, then loaded")
def _(one: Trial) -> None:
    state = copy.deepcopy(one.layer.state_dict())
    one.layer.to("meta").to_empty(device="cpu").load_state_dict(state)
    one.check()


@use(META, "`accelerate.cpu_offload` and `disk_offload`, which `dispatch_model` uses")
def _(one: Trial) -> None:
    expected, other = one(one.dense()), copy.deepcopy(one.layer)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        same(one(accelerate.disk_offload(one.layer, folder, execution_device=torch.device("cpu"))), expected)
        same(one(accelerate.cpu_offload(other, execution_device=torch.device("cpu"))), expected)


# Traced ---------------------------------------------------------------------------------------------------------


@use(TRACED, "`torch.jit.trace`")
def _(one: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = torch.jit.trace(one.layer, one.inputs())
    more = torch.cat([one.x, one.x])
    same(one(code, more), one(one.dense(), more))


@use(TRACED, "`torch.jit.script`", refused="torch.jit.script cannot read the code of this layer")
def _(one: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(one.layer)


class Holding(nn.Module):
    """A model that holds a layer."""

    def __init__(self, one: Trial) -> None:
        super().__init__()
        self.layer, self.copies = one.layer, len(one.inputs())

    def forward(self, x: Tensor) -> Any:
        return self.layer(*[x] * self.copies)


@use(TRACED, "`torch.fx.symbolic_trace` of a model, where it is a leaf")
def _(one: Trial) -> None:
    model = torch.fx.symbolic_trace(Holding(one))
    assert [node.target for node in model.graph.nodes if node.op == "call_module"] == ["layer"]
    result = model(one.x)
    same(result[0] if isinstance(result, tuple) else result, one(one.dense()))


@use(
    TRACED,
    "`torch.fx.symbolic_trace` of the layer alone",
    refused="torch.fx traces models that hold this layer, not the layer alone",
)
def _(one: Trial) -> None:
    torch.fx.symbolic_trace(one.layer)


@use(TRACED, "`make_fx`")
def _(one: Trial) -> None:
    same(one(make_fx(one.layer)(*one.inputs())), one(one.dense()))


@use(TRACED, "`torch.compile`, with autocast and an empty batch", without="ConvTranspose1d Conv3d", slow=True)
def _(one: Trial) -> None:
    torch._dynamo.reset()
    code = torch.compile(one.layer, backend="aot_eager", fullgraph=True)
    same(one(code), one(one.dense()))
    one(code).square().sum().backward()
    same(one(code, one.x[:0]), one(one.dense(), one.x[:0]))
    with torch.autocast("cpu", torch.bfloat16):
        same(one(code), one(one.dense()))


@use(TRACED, "`torch.export`, strict or not", slow=True)
def _(one: Trial) -> None:
    for strict in (False, True):
        same(one(torch.export.export(one.layer, one.inputs(), strict=strict).module()), one(one.dense()))


@use(TRACED, "ONNX by both exporters", slow=True)
def _(one: Trial) -> None:
    for dynamo in (False, True):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = Path(folder) / "layer.onnx"
            torch.onnx.export(one.layer, one.inputs(), file, dynamo=dynamo, verbose=False)
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [argument.name for argument in session.get_inputs()]
        value, *_ = session.run(None, {name: x.numpy() for name, x in zip(names, one.inputs(), strict=False)})
        same(torch.from_numpy(value), one(one.dense()).detach())


# Transforms -----------------------------------------------------------------------------------------------------


@use(FUNCTIONS, "`vmap` over inputs, frozen or not")
def _(one: Trial) -> None:
    more = torch.stack([one.x, one.x.flip(0)])
    dense = one.dense()
    expected = torch.vmap(lambda x: one(dense, x))(more)
    for layer in (one.layer, one.freeze().layer):
        same(torch.vmap(lambda x, layer=layer: one(layer, x))(more), expected)


@use(FUNCTIONS, "`vmap` over stacked parameters, `stack_module_state`")
def _(one: Trial) -> None:
    layers = [one.layer, copy.deepcopy(one.layer)]
    with torch.no_grad():
        for parameter in layers[1].parameters():
            parameter.mul_(1.5)
    expected = torch.stack([one(one.of(layer).dense()) for layer in layers])
    stacked = stack_module_state(layers)
    for base in (copy.deepcopy(one.layer).to("meta"), one.freeze().layer):
        code = torch.vmap(lambda *tensors, base=base: values(one, base, tensors))
        same(code(*stacked), expected)


@use(FUNCTIONS, "gradients of each example: `vmap` of `grad`")
def _(one: Trial) -> None:
    own = dict(one.layer.named_parameters())
    more = torch.stack([one.x, one.x.flip(0)])

    def slope(tensors: dict[str, Tensor], x: Tensor) -> Any:
        return grad(lambda tensors: values(one, one.layer, tensors, x).square().sum())(tensors)

    for name, slopes in torch.vmap(slope, (None, 0))(own, more).items():
        same(slopes, torch.stack([slope(own, x)[name] for x in more]))


@use(FUNCTIONS, "`grad`, `jvp`, `vjp`, `jacrev`, `hessian`", without=NUMBERS_ALONE)
def _(one: Trial) -> None:
    x, direction = one.x[:1, ..., :3] if one.name.startswith("Conv") else one.x[:1], torch.ones(())
    dense = one.dense()
    for layer in (one.layer, one.freeze().layer):

        def energy(x: Tensor, layer: nn.Module = layer) -> Tensor:
            return one(layer, x).square().sum()

        def other(x: Tensor) -> Tensor:
            return one(dense, x).square().sum()

        same(grad(energy)(x), grad(other)(x))
        same(jvp(energy, (x,), (x,))[1], jvp(other, (x,), (x,))[1])
        same(vjp(energy, x)[1](direction)[0], vjp(other, x)[1](direction)[0])
        same(jacrev(energy)(x), jacrev(other)(x))
        if one.name in ("Linear", "ConvTranspose1d"):
            same(hessian(energy)(x), hessian(other)(x))


@use(FUNCTIONS, "`torch.utils.checkpoint`, reentrant or not", without=NUMBERS_ALONE)
def _(one: Trial) -> None:
    for reentrant in (False, True):
        x = one.x.clone().requires_grad_()
        value = checkpoint(one, None, x, use_reentrant=reentrant)
        same(value, one(one.dense()))
        value.sum().backward()
        assert x.grad is not None


# Copied ---------------------------------------------------------------------------------------------------------


@use(COPIED, "`copy.copy`, `copy.deepcopy`, pickle, `torch.save`")
def _(one: Trial) -> None:
    file = io.BytesIO()
    torch.save(one.layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.copy(one.layer), copy.deepcopy(one.layer), pickle.loads(pickle.dumps(one.layer)), loaded):
        same(one(other), one(one.dense()))


@use(COPIED, "`share_memory`")
def _(one: Trial) -> None:
    one.freeze().layer.share_memory()
    one.check()
    for parameter in one.layer.parameters():
        parameter.data.mul_(2)
    one.check()


# Cores that are computed ----------------------------------------------------------------------------------------


@use(COMPUTED, "`parametrize`, `parametrizations.weight_norm` and `spectral_norm` of a core")
def _(one: Trial) -> None:
    for register in (
        lambda layer, name: parametrize.register_parametrization(layer, name, Doubled()),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ):
        layer, name = one.core
        register(layer, name)
        one.layer.eval()
        one.check()
        same(one(copy.deepcopy(one.layer)), one())
        parametrize.remove_parametrizations(layer, name)
        one.check()


@use(COMPUTED, "`prune`, and the older `weight_norm` and `spectral_norm` of a core")
def _(one: Trial) -> None:
    layer, name = one.core
    prune.l1_unstructured(layer, name, 0.5)
    one.check()
    prune.remove(layer, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer, name)
        one.check()
        nn.utils.remove_weight_norm(layer, name)
        nn.utils.spectral_norm(layer, name)
    one.layer.eval()
    one()
    one.check()


@use(
    COMPUTED,
    "`freeze` of a layer with a core that is computed",
    refused="a tensor of the layer is computed from others at each call",
)
def _(one: Trial) -> None:
    parametrize.register_parametrization(*one.core, Doubled())
    one.freeze()


# Other numbers --------------------------------------------------------------------------------------------------


@use(TYPES, "bfloat16, float16, float64")
def _(one: Trial) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        other = one.of(copy.deepcopy(one.layer).to(dtype))
        value = other(x=one.x.to(dtype) if one.x.is_floating_point() else one.x)
        assert value.dtype == dtype
        assert (value - one()).norm() <= 8 * torch.finfo(dtype).eps * one().norm() + 1e-5 * one().norm()


@use(TYPES, "float8 weights", refused="the weights are torch.float8_e4m3fn")
def _(one: Trial) -> None:
    one.layer.to(torch.float8_e4m3fn)
    one()


@use(TYPES, "complex inputs", refused="the input 'X' is torch.complex64", without=NUMBERS_ALONE)
def _(one: Trial) -> None:
    one(x=one.x + 0j)


@use(TYPES, "complex weights", refused="the weights are torch.complex64")
def _(one: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one.layer.to(torch.complex64)
    one(x=one.x + 0j if one.x.is_floating_point() else one.x)


@use(TYPES, "`torch.ao.quantization.quantize_dynamic`, which leaves the layer as it is")
def _(one: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Holding(one), dtype=torch.qint8)  # type: ignore[attr-defined]
    result = model(one.x)
    same(result[0] if isinstance(result, tuple) else result, one(one.dense()))


@use(TYPES, "`torch.inference_mode`, frozen within it or not")
def _(one: Trial) -> None:
    with torch.inference_mode():
        one.check()
        one.freeze().check()
    one.check()


@use(TYPES, "an empty batch, expanded and transposed inputs")
def _(one: Trial) -> None:
    for x in (one.x[:0], one.x[:1].expand(3, *one.x.shape[1:]), one.x.mT.contiguous().mT):
        one.check(x)


# Wrapped --------------------------------------------------------------------------------------------------------


def one_process() -> None:
    if not torch.distributed.is_initialized():
        store = torch.distributed.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


@use(WRAPPED, "`DataParallel` and `DistributedDataParallel` in one process")
def _(one: Trial) -> None:
    one_process()
    for wrapper in (nn.DataParallel, DistributedDataParallel):
        value = one(wrapper(one.layer))
        same(value, one(one.dense()))
        value.sum().backward()


@use(WRAPPED, "`FullyShardedDataParallel` in one process")
def _(one: Trial) -> None:
    one_process()
    expected = one(one.dense())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = FullyShardedDataParallel(one.layer, device_id=torch.device("cpu"), use_orig_params=True)
        value = one(layer)
    same(value, expected)
    value.sum().backward()


@use(WRAPPED, "`fully_shard` in one process, frozen or not")
def _(one: Trial) -> None:
    one_process()
    mesh, expected = torch.distributed.init_device_mesh("cpu", (1,)), one(one.dense())
    for layer in (copy.deepcopy(one.layer), one.freeze().layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fully_shard(layer, mesh=mesh)
            same(one(layer), expected)


@use(WRAPPED, "hooks")
def _(one: Trial) -> None:
    seen: list[str] = []
    one.layer.register_forward_hook(lambda *_: seen.append("forward"))
    one.layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one().sum().backward()
    assert seen == ["forward", "backward"]
