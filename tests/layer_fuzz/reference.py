"""The slow and obvious layer: its kernel is one einsum of the cores in float64, its call is torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from tests.dense_oracle import dense_node
from tests.layer_fuzz.cases import SelfAttention


class Kernel(nn.Module):
    """A kernel as a torch.einsum of its cores, which are parameters named as those of the layer."""

    def __init__(self, layer: nn.Module, *, absolute: bool) -> None:
        super().__init__()
        self.network = layer.kernel if isinstance(layer, tn.nn.KernelLayer) else None
        self.absolute = absolute
        self.names = [] if self.network is None else [*tn.networks.tensor_nodes(self.network)]
        for name in (*(self.names or ["weight"]), "bias"):
            value = getattr(layer, name, None)
            if value is None or name in layer._parameters:
                self.register_parameter(name, None if value is None else _exact(value, absolute))
            else:
                self.register_buffer(name, exact(value, absolute=absolute))

    def weight_now(self) -> Tensor:
        if self.network is None:
            return self.weight  # type: ignore[return-value]
        network, like = self.network, getattr(self, self.names[0])
        numbers = {label: number for number, label in enumerate(network.sizes)}
        operands: list[Any] = []
        for node in network.nodes:
            if isinstance(node, tn.networks.NamedTensor):
                operands.append(getattr(self, node.name))
            else:
                dense = torch.from_numpy(dense_node(node, network, {}))
                operands.append((dense.abs() if self.absolute else dense).to(like.dtype))
            operands.append([numbers[label] for label in node.labels])
        weight = torch.einsum(*operands, [numbers[label] for label in network.output])
        return weight.flatten().unflatten(0, weight.shape)  # contiguous, as some derivatives of torch's ask for


class Reference(Kernel):
    """What a decomposed layer computes, in float64; with `absolute` the sum of the absolute values of all terms.

    Args:
        layer: the decomposed layer, from which names and cores are taken.
        dense: torch's layer with the same arguments.
    """

    def __init__(self, layer: nn.Module, dense: nn.Module, *, absolute: bool = False) -> None:
        super().__init__(layer, absolute=absolute)
        self.dense = [dense]  # not a submodule: its parameters are not those of the reference
        padding = getattr(layer, "padding", None) if isinstance(dense, nn.Embedding) else None
        self.padding = None if padding is None else _exact(padding, absolute).detach()

    def forward(self, x: Tensor) -> Tensor:
        dense, weight, bias = self.dense[0], self.weight_now(), self.bias
        match dense:
            case nn.Linear():
                return functional.linear(x, weight, bias)
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                return dense._conv_forward(x, weight, bias)
            case nn.Embedding():
                if self.padding is not None:
                    row = torch.arange(len(weight)) == dense.padding_idx
                    weight = torch.where(row.unsqueeze(1), self.padding, weight)
                return weight[x.long()]
        call = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
        numbers = (dense.stride, dense.padding, dense.output_padding, dense.groups, dense.dilation)
        return call[len(dense.kernel_size)](x, weight, bias, *numbers)  # type: ignore[operator, arg-type]


class AttentionReference(nn.Module):
    """torch's attention of an input to itself, in float64, with the weights that the projections' cores contract to."""

    def __init__(self, layer: SelfAttention, dense: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = nn.Module()
        attention: Any = layer.attention
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.attention.add_module(name, Kernel(getattr(attention, name), absolute=False))
        for name in ("bias_k", "bias_v"):
            value = getattr(attention, name)
            self.attention.register_parameter(name, None if value is None else _exact(value, False))
        self.dense = [dense]

    def forward(self, x: Tensor) -> Tensor:
        dense, held = self.dense[0], self.attention
        order = x.ndim == 3 and dense.batch_first
        x = x.transpose(0, 1) if order else x
        q, k, v, out = (getattr(held, f"{name}_proj") for name in ("q", "k", "v", "out"))
        bias = None if q.bias is None else torch.cat([q.bias, k.bias, v.bias])
        batched = x if x.ndim == 3 else x.unsqueeze(1)
        output, _ = functional.multi_head_attention_forward(
            batched, batched, batched, dense.embed_dim, dense.num_heads, None, bias, held.bias_k, held.bias_v,
            dense.add_zero_attn, 0.0, out.weight_now(), out.bias, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=q.weight_now(), k_proj_weight=k.weight_now(), v_proj_weight=v.weight_now(),
        )  # fmt: skip
        output = output if x.ndim == 3 else output.squeeze(1)
        return output.transpose(0, 1) if order else output


def reference_of(layer: nn.Module, dense: nn.Module, *, absolute: bool = False) -> nn.Module:
    """The reference with the present cores of a layer."""
    if isinstance(layer, SelfAttention):
        assert isinstance(dense, SelfAttention)
        return AttentionReference(layer, dense.attention)  # type: ignore[arg-type]
    return Reference(layer, dense, absolute=absolute)


def exact(value: Tensor, *, absolute: bool = False) -> Tensor:
    """A tensor in float64, or in complex128."""
    with torch.inference_mode(False), torch.no_grad():
        value = value.detach().clone()
    if not (value.is_floating_point() or value.is_complex()):
        return value
    value = value.to(torch.complex128 if value.is_complex() else torch.float64)
    return value.abs().double() if absolute else value


def _exact(value: Tensor, absolute: bool) -> nn.Parameter:
    return nn.Parameter(exact(value, absolute=absolute), value.requires_grad)
