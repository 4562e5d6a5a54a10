"""Whether torch records the calls of a module, and what a module does then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

from ..errors import CompileError

_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._is_tracing


def is_traced() -> bool:
    """Whether torch records what is called, to run it later with other tensors, so that no element can be read."""
    if torch.compiler.is_compiling() or is_jit_traced():
        return True
    if not _modes():
        return False
    modes = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.PROXY, modes.FAKE))


def is_watched() -> bool:
    """Whether something records, counts or transforms what is called, so that a call may make none but its own."""
    if torch.compiler.is_compiling() or _modes() > 0 or _transforms() is not None or _tracing():
        return True
    return forward_ad._current_level >= 0  # inputs may have tangents, also where gradients are off


def is_jit_traced() -> bool:
    """Whether `torch.jit.trace` records what is called; sizes are tensors there."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_exported() -> bool:
    """Whether torch writes what is called into a graph for another runtime, which may lack Fourier transforms."""
    return torch.compiler.is_exporting() or is_jit_traced() or torch.onnx.is_in_onnx_export()


def is_symbolic(*arguments: object) -> bool:
    """Whether an argument stands for a value in a graph that `torch.fx.symbolic_trace` makes."""
    for one in arguments:  # noqa: SIM110, as this is asked at every call
        if isinstance(one, fx.Proxy):
            return True
    return False


def leaf_call(module: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """The call of a module in a graph that torch.fx traces: it is a leaf there, as torch's layers are.

    Raises:
        CompileError: the module itself is traced.
    """
    tracer: Any = next(one for one in (*inputs, *named.values()) if isinstance(one, fx.Proxy)).tracer
    if tracer.root is module:
        fix = "torch.nn.Sequential(layer), torch.export or layer.code"
        raise CompileError("torch.fx traces models that hold this layer, not the layer alone", layer=module, fix=fix)
    call: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(module), tuple(inputs), dict(named))
    return call
