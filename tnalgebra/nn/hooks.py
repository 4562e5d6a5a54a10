"""What a call of a layer does besides its forward, and the tensors that hooks of torch's compute from others."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from .torch_layers import AnyLayer

_COMPUTING = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Classes of hooks before a call that compute a tensor of the module."""


def is_altered(module: nn.Module) -> bool:
    """Whether a module has hooks of its calls, parametrisations, or a forward of its own on the object itself."""
    forward = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return bool(
        forward or module._backward_hooks or module._backward_pre_hooks or "parametrizations" in module._modules
    )


def computed_tensor(module: AnyLayer) -> str | None:
    """Which tensor of a layer is computed from others at each call, as a reason why the layer cannot be exchanged."""
    if parametrize.is_parametrized(module):
        names = module.get_submodule("parametrizations")._modules
        return f"its {' and '.join(names)} is parametrised: remove_parametrizations first"
    for name in ("weight", "bias"):
        others = [key for key in (*module._parameters, *module._buffers) if key.startswith(f"{name}_")]
        if name not in module._parameters and others:
            listed = ", ".join(key for key in others if key in module._parameters)
            return f"its {name} is computed from {listed}: remove the weight norm, spectral norm or pruning first"
    return None


def compute_tensors(module: nn.Module) -> None:
    """Have the tensors that hooks compute at each call follow from what they are computed from."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _COMPUTING):
            hook(module, ())


def keep_tensors(module: nn.Module) -> None:
    """Make parameters of the tensors that hooks and parametrisations compute, with the elements that they have."""
    for hook in [*module._forward_pre_hooks.values()]:
        match hook:
            case WeightNorm():
                remove_weight_norm(module, hook.name)
            case SpectralNorm():
                remove_spectral_norm(module, hook.name)
            case prune.BasePruningMethod():
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    if parametrize.is_parametrized(module):
        kind = type(module)  # which copies have in common, and from which torch removes the property
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        for name in [*module.get_submodule("parametrizations")._modules]:
            parametrize.remove_parametrizations(module, name)
