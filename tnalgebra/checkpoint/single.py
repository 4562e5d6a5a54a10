"""A file that holds one layer: it is made without a model, from what the file says of it."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from ..errors import CheckpointError, TnalgebraError
from ..model import Site
from ..networks import Fuse, NamedTensor, Network, all_nodes
from ..nn import LAYERS, AnyLayer, KernelLayer
from .format import MAX_INPUT, Description, LayerText
from .layers import check_layer, make_layer

_TORCH_ERRORS = (ValueError, RuntimeError, TypeError, OverflowError, AssertionError, TnalgebraError)
"""What torch raises for arguments that a layer cannot have."""


def make_single(description: Description) -> KernelLayer:
    """The layer of a file that `tn.save(layer, path)` wrote, its tensors zero.

    Nothing is allocated but what the file has: torch's layer is made without elements, and its weight is one zero.

    Raises:
        CheckpointError: the file holds a model, or what it says of the layer is contradictory.
    """
    layers = description.layers
    if len(layers) != 1 or layers[0].names != ("",):
        count = "1 decomposed layer" if len(layers) == 1 else f"{len(layers)} decomposed layers"
        fact = f"the file holds a model with {count}, which only the model's own code can make"
        raise CheckpointError(fact, fix="tn.load(path, into=model), with a new model of the same code")
    text = layers[0]
    _check_sizes(text.kernel)
    dense = _dense_layer(text, description)
    check_layer(text, dense)
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(dense.weight.ndim) if text.channels_last else None
    return make_layer(text, Site(dense, ("",), ()), layout)


def _check_sizes(kernel: Network) -> None:
    """Whether the tensors of the file, or labels that they have together, determine every size of the kernel."""
    nodes = [*all_nodes(kernel)]
    known = {label for node in nodes if isinstance(node, NamedTensor) for label in node.labels}
    for _ in nodes:
        known |= {node.whole for node in nodes if isinstance(node, Fuse) and known >= {*node.parts}}
    if not known >= {*kernel.output} or prod(kernel.sizes[label] for label in kernel.output) > MAX_INPUT:
        fact = "the layer's kernel has sizes that its tensors do not determine"
        raise CheckpointError(
            fact, kernel=str(kernel)[:200], fix="tn.load(path, into=layer), with a layer of these sizes"
        )


def _dense_layer(text: LayerText, description: Description) -> AnyLayer:
    """torch's layer as the file describes it: a weight of one zero, and the bias of the file."""
    kind = next((one for one in LAYERS if one.dense_class.__name__ == text.kind), None)
    if kind is None:
        raise CheckpointError(
            f"the file's layer is a {text.kind[:100]!r}", known=" ".join(one.__name__ for one in LAYERS)
        )
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in text.arguments.items()}
    try:
        dense: AnyLayer = kind.empty_dense(arguments)
    except (*_TORCH_ERRORS, KeyError) as error:
        fact = f"torch.nn.{text.kind} does not take the file's arguments"
        raise CheckpointError(fact, because=str(error)[:200] or type(error).__name__) from error
    dtype = next((tensor.dtype for tensor in description.tensors.values() if tensor.is_floating_point()), torch.float32)
    dense.weight = nn.Parameter(torch.zeros((), dtype=dtype).expand(dense.weight.shape))
    needed = {}
    if dense._parameters.get("bias") is not None:
        needed["bias"] = tuple(dense.get_parameter("bias").shape)
    if isinstance(dense, nn.Embedding) and dense.padding_idx is not None:
        needed["padding"] = (dense.embedding_dim,)
    for name, shape in needed.items():
        if name not in description.tensors or tuple(description.tensors[name].shape) != shape:
            raise CheckpointError(f"the file has no tensor {name!r} of the shape {shape}")
    if "bias" in needed:
        dense._parameters["bias"] = nn.Parameter(description.tensors["bias"].to(dtype, copy=True))
    return dense
