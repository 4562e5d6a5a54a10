"""Decompositions as chains of torch's convolutions, as one writes them by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from recipes.benchmarks.runner import Call, Pass

LABELS = tn.networks.KERNEL_LABELS[4]
"""out, in, kh, kw."""


class Stage(NamedTuple):
    """One convolution of a chain. Along each axis its window has the size of the layer's window, or 1."""

    weight: Tensor
    """Shape (out, in of one group, 1 or kh, 1 or kw)."""
    groups: int = 1


def stage_arguments(dense: nn.Conv2d, chain: Sequence[Stage]) -> list[dict[str, Any]]:
    """Stride, padding and dilation of each stage of a chain that replaces a layer.

    Those of an axis belong to the stage that has its window; an axis without a window has its stride in the first
    stage, where it saves the most.
    """
    usual = {"stride": 1, "padding": 0, "dilation": 1}
    arguments = []
    for place, stage in enumerate(chain):
        sizes = zip(stage.weight.shape[2:], dense.kernel_size, strict=True)
        here = [window == size if size > 1 else place == 0 for window, size in sizes]
        each = {name: zip(getattr(dense, name), here, strict=True) for name in usual}
        arguments.append({n: tuple(int(value) if one else usual[n] for value, one in each[n]) for n in usual})
    return arguments


def conv_chain(dense: nn.Conv2d, chain: Sequence[Stage], bias: Tensor | None = None) -> nn.Sequential:
    """A chain that replaces a dense layer, as torch's layers; the last one has the bias."""
    layers: list[nn.Conv2d] = []
    for (weight, groups), arguments in zip(chain, stage_arguments(dense, chain), strict=True):
        outputs, inputs, *window = weight.shape
        kind: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device, "bias": False}
        layer = nn.Conv2d(inputs * groups, outputs, tuple(window), groups=groups, **arguments, **kind)  # type: ignore[arg-type]
        layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        layers.append(layer)
    if bias is not None:
        layers[-1].bias = nn.Parameter(bias.detach().clone())
    return nn.Sequential(*layers)


def chain_work(dense: nn.Conv2d, chain: Sequence[Stage], shape: Sequence[int]) -> tuple[int, int]:
    """The parameters and multiply-adds of a chain on an input of this shape, without a bias."""
    parameters = multiply_adds = 0
    images = torch.empty(tuple(shape), device="meta")
    for (weight, groups), arguments in zip(chain, stage_arguments(dense, chain), strict=True):
        images = functional.conv2d(images, torch.empty(weight.shape, device="meta"), groups=groups, **arguments)
        parameters += weight.numel()
        multiply_adds += images.numel() // images.shape[1] * weight.numel()
    return parameters, multiply_adds


class Link(NamedTuple):
    """A core as a convolution: its name, the labels of its incoming and outgoing channels, and its window labels."""

    name: str
    into: str
    out: str
    windows: tuple[str, ...]

    def stage(self, core: Tensor, labels: Sequence[str], window: Sequence[str] = LABELS[2:]) -> Stage:
        """The core, whose axes have these labels, as a stage; `window` has the labels of kh and kw."""
        axes = [label for label in (self.out, self.into, *window) if label in labels]
        weight = core.permute([labels.index(label) for label in axes])
        for axis, label in enumerate(window, 2):
            if label not in labels:
                weight = weight.unsqueeze(axis)
        return Stage(weight)


def chain_of(network: tn.Network, labels: Sequence[str] = LABELS) -> list[Link] | None:
    """The cores as links from the input's channels to the output's; None if they are not a chain.

    Args:
        labels: the labels in the network of out, in, kh and kw.
    """
    out, into, *window = labels
    cores = [node for node in network.nodes if isinstance(node, tn.networks.NamedTensor)]
    left = {node.name: node.labels for node in cores}
    links: list[Link] = []
    channel = into
    while left:
        holding = [name for name, of_core in left.items() if channel in of_core]
        if len(holding) != 1:
            return None
        of_core = left.pop(holding[0])
        others = [label for label in of_core if label not in (channel, *window)]
        if len(others) != 1 or len(set(of_core)) != len(of_core):
            return None
        windows = tuple(name for name, label in zip(LABELS[2:], window, strict=True) if label in of_core)
        links.append(Link(holding[0], channel, others[0], windows))
        channel = others[0]
    whole = len(cores) == len(network.nodes) and channel == out and len(links) > 1
    return links if whole and sorted(w for link in links for w in link.windows) == ["kh", "kw"] else None


class ChannelsLast(nn.Module):
    """A module with weights in channels_last; it converts its input itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return output


def one_call(
    module: nn.Module, images: Tensor, goes: Pass, loss: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> Call:
    """The call that is timed. It returns the output and, in training, the gradient of images that require one.

    Forward: under `no_grad`. Training: the output, and the gradients of all parameters and of such images.
    """
    module.train(goes == "training")
    differentiable = [tensor for tensor in (images, *module.parameters()) if tensor.requires_grad]

    @torch.no_grad()
    def forward(_: int) -> tuple[Tensor, ...]:
        return (module(images),)

    def training(_: int) -> tuple[Tensor, ...]:
        output: Tensor = module(images)
        differentiated, weights = loss(output)
        gradients = torch.autograd.grad(differentiated, differentiable, weights)
        return (output, gradients[0]) if images.requires_grad else (output,)

    return forward if goes == "forward" else training
