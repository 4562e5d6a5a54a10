"""Whether a subclass of a torch layer, whose forward is not torch's, computes the same as torch's: it is tried."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SCALES = (1.0, 30.0, 0.01, 1.0)
"""Of the inputs: code that clips or rounds may show at large or at small numbers only."""

_CALLED = ("__call__", "forward", "_conv_forward")
"""Attributes of a class that determine what a call of a layer computes."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class _Trial:
    """An input, and the mode in which it is tried."""

    x: Tensor
    training: bool


def differing_forward(module: nn.Module, known: type[nn.Module]) -> str | None:
    """Why a layer may not compute what torch's layer of its class does; None where it does.

    A subclass with a forward of its own is called on random inputs of several sizes, in both modes and in its own
    dtype; outputs and gradients are compared with those of torch's layer with the same parameters and arguments.

    Args:
        module: an instance of `known`.
        known: torch's class.
    """
    if all(getattr(type(module), name, None) is getattr(known, name, None) for name in _CALLED):
        return None
    held = sorted({*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"})
    if held:
        return f"a forward of its own, and holds {', '.join(held)}"
    taken, expected = (_named(kind.forward) for kind in (type(module), known))
    if len(taken) > len(expected):
        return f"a forward of its own, which takes {', '.join(taken[1:])}"
    weight = module._parameters.get("weight")
    if weight is None:
        return "a forward of its own"
    if weight.is_meta:
        return "a forward of its own, which cannot be tried without elements of the weight"
    devices = [] if weight.device.type == "cpu" else [weight.device]
    kind = weight.device.type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind), torch.inference_mode(False):
        return next(filter(None, (_difference(module, known, trial) for trial in _trials(module, weight))), None)


def _named(forward: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a function takes one by one."""
    parameters = inspect.signature(forward).parameters.values()
    return [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _trials(module: Any, weight: Tensor) -> Iterator[_Trial]:
    generator = torch.Generator(weight.device).manual_seed(0)
    for number, scale in enumerate(_SCALES):
        if isinstance(module, nn.Embedding):
            x = torch.randint(module.num_embeddings, (2, number + 1), generator=generator, device=weight.device)
        else:
            x = torch.randn(_shape(module, number), generator=generator, dtype=torch.float32, device=weight.device)
            x = (scale * x).to(weight.dtype)
        yield _Trial(x, training=number % 2 == 0)


def _shape(module: Any, number: int) -> tuple[int, ...]:
    """Shapes of which the sizes differ by one, so that padding that depends on the size of the input shows."""
    if isinstance(module, nn.Linear):
        return (2, module.in_features) if number % 2 else (number + 1, 3, module.in_features)
    pads = (0,) * len(module.kernel_size) if isinstance(module.padding, str) else module.padding
    reach = (d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True))
    sizes = (max(r, 2 * p + 1) + number + axis for axis, (r, p) in enumerate(zip(reach, pads, strict=True)))
    return (2, module.in_channels, *sizes)


def _difference(module: nn.Module, known: type[nn.Module], trial: _Trial) -> str | None:
    subclass, plain = _bare(module, type(module), trial), _bare(module, known, trial)
    where = f"on an input of shape {tuple(trial.x.shape)} in {'training' if trial.training else 'evaluation'} mode"
    try:
        expected, actual = _outputs(plain, trial), _outputs(subclass, trial)
    except Exception as error:  # whatever the code of a stranger raises
        return f"a forward of its own, which raises {type(error).__name__} {where}"
    for one, other, what in zip(actual, expected, ("output", "gradient", "gradient", "gradient"), strict=False):
        if not _same(one, other):
            return f"a forward of its own, whose {what} differs {where}"
    return None


def _bare(module: nn.Module, kind: type[nn.Module], trial: _Trial) -> nn.Module:
    """The layer as an instance of a class, with the same parameters and without hooks."""
    bare = copy.copy(module)
    bare.__dict__.update({name: dict(module.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")})
    bare.__dict__.update({name: OrderedDict() for name in _HOOKS})
    bare.__dict__.update(training=trial.training, _compiled_call_impl=None)
    bare.__class__ = kind
    return bare


def _outputs(module: nn.Module, trial: _Trial) -> tuple[object, ...]:
    """The output, and its gradients with respect to the input and the parameters, where torch gives these."""
    parameters = [one for one in module.parameters() if one.requires_grad]
    if any(one.is_inference() for one in module.parameters()):
        with torch.no_grad():
            return (module(trial.x),)
    with torch.enable_grad():
        x = trial.x.clone().requires_grad_(trial.x.is_floating_point())
        y = module(x)
        inputs = [one for one in (x, *parameters) if one.requires_grad]
        if not isinstance(y, Tensor) or not inputs:
            return (y,)
        return (y.detach(), *torch.autograd.grad(y, inputs, torch.cos(y.detach()), allow_unused=True))


def _same(one: object, other: object) -> bool:
    """Equal, in single and double precision to rounding: another order of additions gives the same function."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or torch.finfo(one.dtype).eps > 1e-6:
        return torch.equal(one, other)
    distance, norm = float(torch.dist(one, other)), float(torch.linalg.vector_norm(other))
    return distance <= 16 * torch.finfo(one.dtype).eps * norm
