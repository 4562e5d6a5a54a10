"""Changes of a frozen layer or of one that keeps what it contracted, and calls with other tensors in their place."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.func import grad
from torch.nn.utils import parametrize, prune

from tests.use_cases import FROZEN, Doubled, Trial, same, use, values


def changed(text: str) -> Callable[[Callable[[Trial], nn.Module | None]], None]:
    """List a change of a layer that is frozen, or called without gradients: it computes with what it then has."""

    def listed(change: Callable[[Trial], nn.Module | None]) -> None:
        def run(one: Trial) -> None:
            other = one.of(copy.deepcopy(one.layer))
            one.freeze()()
            layer = change(one) or one.layer
            one.of(layer).check()
            one.of(layer).check()
            with torch.no_grad():
                for _ in range(3):  # what two calls in a row have is kept
                    other()
                layer = change(other) or other.layer
                for _ in range(3):
                    other.of(layer).check()

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
