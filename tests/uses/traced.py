"""Graphs of a layer, and functions of it."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, stack_module_state, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from tests.use_cases import FUNCTIONS, NUMBERS_ALONE, TRACED, Holding, Trial, same, use, values

# Traced -----------------------------------------------------------------------------------------------------------


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


# Transforms -------------------------------------------------------------------------------------------------------


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
