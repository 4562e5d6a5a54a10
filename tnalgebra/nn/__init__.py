"""Torch layers whose kernel is a tensor network, and the network of a torch layer."""

from .base import KernelLayer, Origin, Planning
from .layers import (
    LAYERS,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    decomposed,
    in_memory_format,
)
from .torch_layers import (
    KERNEL_LAYERS,
    TRANSPOSED,
    DenseLayer,
    kernel_labels_of,
    kernel_layers,
    layer_network,
    memory_format_of,
    own_weight,
)

__all__ = [
    "KERNEL_LAYERS",
    "LAYERS",
    "TRANSPOSED",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DenseLayer",
    "KernelLayer",
    "Linear",
    "Origin",
    "Planning",
    "decomposed",
    "in_memory_format",
    "kernel_labels_of",
    "kernel_layers",
    "layer_network",
    "memory_format_of",
    "own_weight",
]
