"""What people do to modules: each function does it to any module, torch's, a decomposed one, or the reference."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune

import tnalgebra as tn
from tests.use_cases import Doubled


class Outcome(NamedTuple):
    """What came out; and where the module's own values were used, the module with its cores, and its input."""

    outputs: tuple[Tensor, ...]
    module: nn.Module | None = None
    input: Tensor | None = None


@dataclass(frozen=True)
class Aid:
    """What a transform needs beside a module and an input.

    values: a new value for every parameter, by its name.
    path, core: the submodule with a kernel, and the name of one of its parameters.
    dtype: another dtype than the module's.
    fresh: makes a module of the same kind with other values.
    """

    values: Mapping[str, Tensor]
    path: str
    core: str
    dtype: torch.dtype
    fresh: Callable[[], nn.Module]


def pattern(like: Tensor) -> Tensor:
    """Positive numbers, exact in every dtype, of a tensor's shape, dtype and device: tangents and cotangents."""
    count = torch.arange(like.numel(), dtype=torch.float64)
    return (0.5 + 0.25 * (count % 3)).to(like.device, like.dtype).reshape(like.shape)


def _smooth(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _arguments(aid: Aid, x: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The new values, and the input if it has derivatives."""
    return dict(aid.values), (x,) if _smooth(x) else ()


def _loss(module: nn.Module, x: Tensor) -> Callable[..., Tensor]:
    def loss(values: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        y = functional_call(module, values, inputs or (x,))
        total = (y * pattern(y)).sum()
        return total.real if total.is_complex() else total

    return loss


# Functions of the parameters and the input; the reference goes through the same -----------------------------------


def do_vmap(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    many = torch.stack([x, x.flip(0) if x.ndim else x, x])
    return Outcome((torch.func.vmap(lambda one: functional_call(module, dict(aid.values), (one,)))(many),))


def do_ensemble(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    many = {name: torch.stack([value, value + pattern(value)]) for name, value in aid.values.items()}
    return Outcome((torch.func.vmap(lambda values: functional_call(module, values, (x,)))(many),))


def do_grad(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    values, inputs = _arguments(aid, x)
    got = torch.func.grad(_loss(module, x), argnums=tuple(range(1 + len(inputs))))(values, *inputs)
    return Outcome((*got[1:], *got[0].values()))


def do_per_sample_grad(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    many = torch.stack([x, x.flip(0) if x.ndim else x])

    def one(part: Tensor) -> dict[str, Tensor]:
        return torch.func.grad(_loss(module, part))(dict(aid.values))  # type: ignore[no-any-return]

    return Outcome(tuple(torch.func.vmap(one)(many).values()))


def do_jvp(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    values, inputs = _arguments(aid, x)
    tangents = ({name: pattern(value) for name, value in values.items()}, *map(pattern, inputs))

    def call(values: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return functional_call(module, values, inputs or (x,))  # type: ignore[no-any-return]

    return Outcome(torch.func.jvp(call, (values, *inputs), tangents))


def do_jacrev(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    first = next(iter(aid.values))

    def call(value: Tensor) -> Tensor:
        y = functional_call(module, {**aid.values, first: value}, (x,))
        return (y * pattern(y)).sum(tuple(range(y.ndim - 1)))  # type: ignore[no-any-return]

    return Outcome((torch.func.jacrev(call)(aid.values[first]),))


def do_jacfwd(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    last = [*aid.values][-1]

    def call(value: Tensor) -> Tensor:
        return functional_call(module, {**aid.values, last: value}, (x,))  # type: ignore[no-any-return]

    return Outcome((torch.func.jacfwd(call)(aid.values[last]),))


def do_hessian_product(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    values, inputs = _arguments(aid, x)
    tangents = ({name: pattern(value) for name, value in values.items()}, *map(pattern, inputs))
    gradient = torch.func.grad(_loss(module, x))
    product = torch.func.jvp(lambda *all_: gradient(*all_), (values, *inputs), tangents)[1]
    return Outcome(tuple(product.values()))


def do_backward(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    """Gradients of the module's own parameters, by autograd."""
    return _backward(module, x, lambda one: module(one))


def do_double_backward(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    leaves = [x.detach().clone().requires_grad_()] if _smooth(x) else []
    y = module(*(leaves or [x]))
    leaves += [parameter for parameter in module.parameters() if parameter.requires_grad]
    total = (y * pattern(y)).sum()
    total = total.real if total.is_complex() else total
    first = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    norm = sum((one * pattern(one)).sum().real for one in first)
    assert isinstance(norm, Tensor)
    if not norm.requires_grad:  # a function that is linear in its only leaf
        return Outcome(tuple(one.detach() for one in first))
    second = torch.autograd.grad(norm, leaves, allow_unused=True, materialize_grads=True)
    return Outcome((*(one.detach() for one in first), *second))


def do_make_fx(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    call = make_fx(lambda values, one: functional_call(module, values, (one,)))(dict(aid.values), x)
    return Outcome((call(dict(aid.values), x),))


def _backward(module: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor]) -> Outcome:
    leaf = x.detach().clone().requires_grad_() if _smooth(x) else x
    y = call(leaf)
    for parameter in module.parameters():
        parameter.grad = None
    if y.requires_grad:
        total = (y * pattern(y)).sum()
        (total.real if total.is_complex() else total).backward()
    tensors = [*([leaf] if _smooth(x) else []), *(p for p in module.parameters() if p.requires_grad)]
    grads = (one.grad if one.grad is not None else torch.zeros_like(one) for one in tensors)
    return Outcome((y.detach(), *grads))


# Changes of the module, then a call -----------------------------------------------------------------------------


def _called(module: nn.Module, x: Tensor) -> Outcome:
    return Outcome((module(x),), module, x)


def do_torch_save(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return _called(torch.load(file, weights_only=False), x)


def _restated(module: nn.Module, x: Tensor, aid: Aid, change: Callable[[nn.Module], Any], *, assign: bool) -> Outcome:
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    other = aid.fresh().train(module.training)
    change(other)
    other.load_state_dict(state, assign=assign)
    return _called(other, x)


def do_state_dict(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    return _restated(module, x, aid, lambda other: None, assign=False)


def do_save(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    """`tn.save` and `tn.load`, and torch's own state dict for torch's layer."""
    if not isinstance(module, tn.nn.KernelLayer):
        return do_state_dict(module, x, aid)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        tn.save(module, path)
        loaded = tn.load(path)
        assert isinstance(loaded, nn.Module)
        return _called(loaded.train(module.training).to(x.device), x)


def do_safetensors(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file(module.state_dict(), path)
        other = aid.fresh().train(module.training)
        other.load_state_dict(load_file(path))
    return _called(other, x)


def do_vector(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, module.parameters())
    return _called(module, x)


def do_memory_format(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(x.ndim, torch.contiguous_format)
    return _called(tn.nn.in_memory_format(module, layout), x.contiguous(memory_format=layout))


def _compiled(module: nn.Module, x: Tensor, backend: str) -> Outcome:
    torch._dynamo.reset()
    try:
        y: Tensor = torch.compile(module, fullgraph=True, backend=backend)(x)  # type: ignore[assignment]
        return Outcome((y,), module, x)
    finally:
        torch._dynamo.reset()


def do_export(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    program = torch.export.export(module, (x,))
    return Outcome((program.module()(x),), module, x)


def _owner(module: nn.Module, aid: Aid) -> nn.Module:
    return module.get_submodule(aid.path)


def do_parametrize(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    parametrize.register_parametrization(_owner(module, aid), aid.core, Doubled())
    return _called(module, x)


def do_parametrize_removed(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    parametrize.register_parametrization(_owner(module, aid), aid.core, Doubled())
    parametrize.remove_parametrizations(_owner(module, aid), aid.core)
    return _called(module, x)


def do_weight_norm(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    parametrizations.weight_norm(_owner(module, aid), aid.core)
    return _called(module, x)


def do_spectral_norm(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    parametrizations.spectral_norm(_owner(module, aid), aid.core)
    return _called(module.eval(), x)


def do_prune(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    prune.l1_unstructured(_owner(module, aid), aid.core, amount=0.4)
    return _called(module, x)


def do_prune_removed(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    prune.random_unstructured(_owner(module, aid), aid.core, amount=0.4)
    prune.remove(_owner(module, aid), aid.core)
    return _called(module, x)


def do_assigned_parameter(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    owner = _owner(module, aid)
    value = getattr(owner, aid.core)
    setattr(owner, aid.core, nn.Parameter((value.detach() + pattern(value)), value.requires_grad))
    return _called(module, x)


def do_transposed_parameter(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    value = getattr(_owner(module, aid), aid.core)
    value.data = value.data.movedim(0, -1).contiguous().movedim(-1, 0) * 0.5
    return _called(module, x)


def do_half_autocast(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return _called(module, x)


def do_averaged(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    averaged.update_parameters(module)
    averaged.train(module.training)
    return Outcome((averaged(x),), averaged.module, x)


def do_optimizer_step(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    y = module(x)
    if y.requires_grad:  # of a frozen layer it does not
        (y * pattern(y)).sum().backward()
        optimizer.step()
    return _called(module, x)


def do_hooks(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    module.register_forward_pre_hook(lambda one, inputs: None)
    module.register_forward_hook(lambda one, inputs, output: output)
    module.register_full_backward_hook(lambda one, inputs, outputs: None)
    return _called(module, x)


def do_swap(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _called(module.to(aid.dtype), x.to(aid.dtype) if _smooth(x) else x)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def do_default_dtype(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _called(module, x)
    finally:
        torch.set_default_dtype(before)


def do_default_device(module: nn.Module, x: Tensor, aid: Aid) -> Outcome:
    with torch.device("meta"):
        return _called(module, x)


FUNCTIONAL: dict[str, Callable[[nn.Module, Tensor, Aid], Outcome]] = {
    "functional_call": lambda module, x, aid: Outcome((functional_call(module, dict(aid.values), (x,)),)),
    "vmap": do_vmap,
    "ensemble": do_ensemble,
    "grad": do_grad,
    "per-sample grad": do_per_sample_grad,
    "jvp": do_jvp,
    "jacrev": do_jacrev,
    "jacfwd": do_jacfwd,
    "hessian product": do_hessian_product,
    "backward": do_backward,
    "double backward": do_double_backward,
    "checkpoint": lambda module, x, aid: _backward(
        module, x, lambda one: torch.utils.checkpoint.checkpoint(module, one, use_reentrant=False)
    ),
    "make_fx": do_make_fx,
}
"""Transforms that the reference goes through as well."""

CHANGES: dict[str, Callable[[nn.Module, Tensor, Aid], Outcome]] = {
    "none": lambda module, x, aid: _called(module, x),
    "deepcopy": lambda module, x, aid: _called(copy.deepcopy(module), x),
    "copy": lambda module, x, aid: _called(copy.copy(module), x),
    "pickle": lambda module, x, aid: _called(pickle.loads(pickle.dumps(module)), x),
    "torch.save": do_torch_save,
    "state_dict": do_state_dict,
    "meta, then assign": lambda module, x, aid: _restated(module, x, aid, lambda other: other.to("meta"), assign=True),
    "to_empty, then load": lambda module, x, aid: _restated(
        module, x, aid, lambda other: other.to("meta").to_empty(device=x.device), assign=False
    ),
    "tn.save": do_save,
    "safetensors": do_safetensors,
    "vector": do_vector,
    "to(dtype)": lambda module, x, aid: _called(module.to(aid.dtype), x.to(aid.dtype) if _smooth(x) else x),
    "in_memory_format": do_memory_format,
    "to(channels_last)": lambda module, x, aid: _called(module.to(memory_format=torch.channels_last), x),
    "share_memory": lambda module, x, aid: _called(module.share_memory(), x),
    "compile": lambda module, x, aid: _compiled(module, x, "eager"),
    "compile aot": lambda module, x, aid: _compiled(module, x, "aot_eager"),
    "export": do_export,
    "jit.trace": lambda module, x, aid: Outcome((torch.jit.trace(module, (x,), check_trace=False)(x),), module, x),
    "fx trace": lambda module, x, aid: Outcome((fx.symbolic_trace(nn.Sequential(module))(x),), module, x),
    "parametrize": do_parametrize,
    "parametrize, removed": do_parametrize_removed,
    "weight_norm": do_weight_norm,
    "spectral_norm": do_spectral_norm,
    "prune": do_prune,
    "prune, removed": do_prune_removed,
    "new Parameter": do_assigned_parameter,
    "new .data": do_transposed_parameter,
    "autocast": do_half_autocast,
    "AveragedModel": do_averaged,
    "optimizer step": do_optimizer_step,
    "DataParallel": lambda module, x, aid: Outcome((nn.DataParallel(module)(x),), module, x),
    "hooks": do_hooks,
    "swap_tensors": do_swap,
    "keyword": lambda module, x, aid: Outcome((module(input=x) if not aid.path else module(x=x),), module, x),
    "default dtype": do_default_dtype,
    "default device": do_default_device,
}
"""Transforms after which the cores that the module has are those that count."""

COSTLY = ("compile", "compile aot", "export", "jit.trace", "make_fx")
"""Transforms that torch's layer goes through only where a decomposed one fails."""

TRANSFORMS = {**FUNCTIONAL, **CHANGES}


@contextmanager
def mode_of(module: nn.Module, mode: str) -> Iterator[None]:
    """Put a module into a mode, and be in it."""
    layers = [one for one in module.modules() if isinstance(one, tn.nn.KernelLayer)]
    module.train(mode in ("train", "changed"))
    if mode in ("frozen", "thawed", "frozen, then changed"):
        for layer in layers:
            layer.freeze()
    if mode == "thawed":
        for layer in layers:
            layer.thaw()
    if mode == "constant":
        module.requires_grad_(False)
    if "changed" in mode:
        _change(module)
    context = {"inference": torch.inference_mode, "no_grad": torch.no_grad}.get(mode)
    if context is None:
        yield
        return
    with context():
        yield


def _change(module: nn.Module) -> None:
    """Other values in place, one way for each parameter."""
    ways: tuple[Callable[[nn.Parameter], object], ...] = (
        lambda one: one.mul_(0.5),
        lambda one: one.copy_(pattern(one)),
        lambda one: one.data.add_(pattern(one)),
        lambda one: setattr(one, "data", one.data + pattern(one)),
    )
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            ways[number % len(ways)](parameter)


def with_values(aid: Aid, values: Mapping[str, Tensor]) -> Aid:
    return replace(aid, values=values)
