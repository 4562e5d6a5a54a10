"""Torch layers whose kernel is a tensor network, and the network of a torch layer."""

from .adapted import Adapted
from .adapter_layer import adapter_layer, check_scale
from .adapter_start import start_adapter
from .attention import MultiheadAttention, attention_obstacle, packed_attention
from .base import KernelLayer, check_dense
from .embedding import Embedding
from .forwards import differing_forward
from .hooks import computed_tensor, is_altered
from .kernels import elements_by_default, with_names
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
    layer_class,
)
from .origin import Origin, check_fit_of, check_sum
from .planning import Planning, nominal_shape
from .torch_layers import (
    CONVOLUTIONS,
    DECOMPOSABLE,
    KERNEL_LAYERS,
    TRANSPOSED,
    AnyLayer,
    DenseLayer,
    kernel_labels_of,
    kernel_layers,
    layer_network,
    memory_format_of,
    own_weight,
)
from .weight_facts import WEIGHT_FACTS

__all__ = [
    "CONVOLUTIONS",
    "DECOMPOSABLE",
    "KERNEL_LAYERS",
    "LAYERS",
    "TRANSPOSED",
    "WEIGHT_FACTS",
    "Adapted",
    "AnyLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DenseLayer",
    "Embedding",
    "KernelLayer",
    "Linear",
    "MultiheadAttention",
    "Origin",
    "Planning",
    "adapter_layer",
    "attention_obstacle",
    "check_dense",
    "check_fit_of",
    "check_scale",
    "check_sum",
    "computed_tensor",
    "decomposed",
    "differing_forward",
    "elements_by_default",
    "in_memory_format",
    "is_altered",
    "kernel_labels_of",
    "kernel_layers",
    "layer_class",
    "layer_network",
    "memory_format_of",
    "nominal_shape",
    "own_weight",
    "packed_attention",
    "start_adapter",
    "with_names",
]
