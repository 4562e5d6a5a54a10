"""Decompositions as chains of torch's convolutions, the way one writes them by hand."""

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
    """One convolution of a chain. Along an axis its window has the size of the layer's, or 1."""

    weight: Tensor
    """Shape (out, in of one group, 1 or kh, 1 or kw)."""
    groups: int = 1


def stage_arguments(dense: nn.Conv2d, chain: Sequence[Stage]) -> list[dict[str, Any]]:
    """Stride, padding and dilation of each stage of a chain in the place of a layer.

    Those of an axis belong to the stage that has its window; an axis without a window has its stride in the first
    stage, where it saves the most.
    """
    usual = {"stride": 1, "padding": 0, "dilation": 1}
    found = []
    for place, stage in enumerate(chain):
        sizes = zip(stage.weight.shape[2:], dense.kernel_size, strict=True)
        here = [own == size if size > 1 else place == 0 for own, size in sizes]
        found.append(
            {
                name: tuple(int(value) if one else other for value, one in zip(getattr(dense, name), here, strict=True))
                for name, other in usual.items()
            }
        )
    return found


def conv_chain(dense: nn.Conv2d, chain: Sequence[Stage], bias: Tensor | None = None) -> nn.Sequential:
    """The chain as torch's layers, in the place of a dense layer; the last one has the bias."""
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
    """Parameters and multiply-adds of a chain on an input of this shape, without a bias."""
    parameters = multiply_adds = 0
    found = torch.empty(tuple(shape), device="meta")
    for (weight, groups), arguments in zip(chain, stage_arguments(dense, chain), strict=True):
        own = torch.empty(weight.shape, device="meta")
        found = functional.conv2d(found, own, groups=groups, **arguments)
        parameters += weight.numel()
        multiply_adds += found.numel() // found.shape[1] * weight.numel()
    return parameters, multiply_adds


class Link(NamedTuple):
    """A core as one convolution: its name, the labels of its incoming and outgoing channels, its kh and kw."""

    name: str
    into: str
    out: str
    windows: tuple[str, ...]

    def stage(self, core: Tensor, labels: Sequence[str], window: Sequence[str] = LABELS[2:]) -> Stage:
        """The core, whose axes have these labels, as a stage; window: the labels of kh and kw."""
        axes = [label for label in (self.out, self.into, *window) if label in labels]
        weight = core.permute([labels.index(label) for label in axes])
        for axis, label in enumerate(window, 2):
            if label not in labels:
                weight = weight.unsqueeze(axis)
        return Stage(weight)


def chain_of(network: tn.Network, labels: Sequence[str] = LABELS) -> list[Link] | None:
    """The cores as links from the input's channels to the output's; None where they are not a chain.

    Args:
        labels: what the network calls out, in, kh, kw.
    """
    out, into, *window = labels
    cores = [node for node in network.nodes if isinstance(node, tn.networks.NamedTensor)]
    left = {node.name: node.labels for node in cores}
    links: list[Link] = []
    channel = into
    while left:
        holding = [name for name, own in left.items() if channel in own]
        if len(holding) != 1:
            return None
        own = left.pop(holding[0])
        others = [label for label in own if label not in (channel, *window)]
        if len(others) != 1 or len(set(own)) != len(own):
            return None
        own_window = tuple(name for name, label in zip(LABELS[2:], window, strict=True) if label in own)
        links.append(Link(holding[0], channel, others[0], own_window))
        channel = others[0]
    whole = len(cores) == len(network.nodes) and channel == out and len(links) > 1
    return links if whole and sorted(w for link in links for w in link.windows) == ["kh", "kw"] else None


class ChannelsLast(nn.Module):
    """A module in the other memory format; it converts its input itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return found


def one_call(
    module: nn.Module, images: Tensor, goes: Pass, loss: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> Call:
    """What is timed; it returns the output and, in training, the gradient of images that require one.

    Forward: no gradients are noted. Training: the output, and the gradients of all parameters, and of such images.
    """
    module.train(goes == "training")
    wanted = [tensor for tensor in (images, *module.parameters()) if tensor.requires_grad]

    @torch.no_grad()
    def forward(_: int) -> tuple[Tensor, ...]:
        return (module(images),)

    def training(_: int) -> tuple[Tensor, ...]:
        output: Tensor = module(images)
        differentiated, weights = loss(output)
        gradients = torch.autograd.grad(differentiated, wanted, weights)
        return (output, gradients[0]) if images.requires_grad else (output,)

    return forward if goes == "forward" else training
