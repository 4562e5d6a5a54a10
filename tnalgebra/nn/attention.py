"""`MultiheadAttention`: torch's attention with a layer of its own for each of its four projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional

from ..compiler import is_jit_traced, is_symbolic, leaf_call
from ..errors import CompileError, LayerError
from .base import LayerRewrite
from .layers import Linear
from .planning import LayerChoices

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Names of the linear layers of an attention."""


class MultiheadAttention(torch_nn.Module):
    """`torch.nn.MultiheadAttention` whose projections are layers, so that each may be decomposed or dense.

    Arguments, inputs and outputs of a call are those of torch's layer, and so is the value, to rounding. torch reads
    the weights of its attention in a fused function of its own in evaluation mode; this layer calls its projections
    and `scaled_dot_product_attention` in both modes. Nested tensors are refused.

    Attributes:
        q_proj, k_proj, v_proj, out_proj: `Linear` of torch or of tnalgebra.
        bias_k, bias_v: shape (1, 1, embed_dim), a further key and value; None without `add_bias_kv`.
    """

    q_proj: torch_nn.Module
    k_proj: torch_nn.Module
    v_proj: torch_nn.Module
    out_proj: torch_nn.Module
    bias_k: torch_nn.Parameter | None
    bias_v: torch_nn.Parameter | None
    in_proj_bias = None
    _qkv_same_embed_dim = False  # both are what torch's encoder layer asks before it reads the weights itself

    def __init__(self, attention: torch_nn.MultiheadAttention) -> None:
        """Make the layer with the values of one of torch's and dense projections: see `from_attention`."""
        super().__init__()
        reason = attention_obstacle(attention)
        if reason is not None:
            raise LayerError("the attention cannot be taken apart into its projections", because=reason)
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.kdim, self.vdim = attention.kdim, attention.vdim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        packed, bias = attention.in_proj_weight, attention.in_proj_bias
        separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        weights = separate if packed is None else packed.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        for name, weight, part in zip(PROJECTIONS, weights, biases, strict=False):
            setattr(self, name, _linear(_part(weight), None if part is None else _part(part)))
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.register_parameter("bias_k", _as_parameter(attention.bias_k))
        self.register_parameter("bias_v", _as_parameter(attention.bias_v))
        self.train(attention.training)

    @classmethod
    def from_attention(
        cls,
        attention: torch_nn.MultiheadAttention,
        rewrite: LayerRewrite | None = None,
        size: object = None,
        **choices: Unpack[LayerChoices],
    ) -> Self:
        """Make the layer that does what one of torch's does, its four projections decomposed.

            layer = tn.nn.MultiheadAttention.from_attention(attention, "out | in", "keep 0.25")

        Args:
            attention: torch's layer, which stays as it is.
            rewrite, size, choices: of each projection, as of `Conv2d.from_conv`; without a rewrite they stay dense.

        Raises:
            LayerError: a subclass with a forward of its own, or one whose weights are computed from others.
            RuleError, RankError, ValuesError, SizeError: as of `Rule.apply`.
        """
        layer = cls(attention)
        if rewrite is not None:
            for name in PROJECTIONS:
                setattr(layer, name, Linear.from_linear(getattr(layer, name), rewrite, size, **choices))
        return layer

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: shape (l, n, embed_dim), (n, l, embed_dim) with `batch_first`, or (l, embed_dim).
            key, value: the same with s in place of l, and kdim or vdim features.
            key_padding_mask: shape (n, s) or (s,): True, or a number that is added, where a key is left out.
            need_weights: return the attention weights too, which takes more time.
            attn_mask: shape (l, s) or (n * num_heads, l, s): True, or a number that is added, where a query does not
                attend to a key.
            average_attn_weights: return the mean of the weights over the heads.
            is_causal: `attn_mask` is the causal mask, and need not be read.

        Returns:
            The output, of the shape of `query`; and the weights, shape (n, l, s), (n, num_heads, l, s) for each head,
            or None.

        Raises:
            CompileError: inputs or masks of other shapes, or nested tensors.
            RuntimeError: `is_causal` without a mask, as in torch.
        """
        arguments = (query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        if is_symbolic(*arguments):
            return leaf_call(self, arguments, {})  # type: ignore[return-value]
        batched = _check_inputs(query, key, value)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is None: give the causal mask as well")
        order = 1 if batched and not self.batch_first else 0  # of the batch among the axes
        query, key, value = (x.transpose(0, order) if batched else x.unsqueeze(0) for x in (query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(query, key, attn_mask, key_padding_mask)
        heads, mask = self._project((query, key, value), mask)
        output, weights = self._attend(heads, mask, need_weights=need_weights, causal=causal)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        output = self.out_proj(output.permute(2, 0, 1, 3).flatten(2))  # laid out as torch's, for a dropout that follows
        return (output.transpose(0, 1 - order) if batched else output.squeeze(1)), weights

    def _project(
        self, inputs: tuple[Tensor, Tensor, Tensor], mask: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """Queries, keys and values of each head, shape (n, heads, length, features), and a mask for all the keys."""
        q, k, v = self.q_proj(inputs[0]), self.k_proj(inputs[1]), self.v_proj(inputs[2])
        further: list[tuple[Tensor | float, Tensor | float]] = [(0.0, 0.0)] if self.add_zero_attn else []
        if self.bias_k is not None and self.bias_v is not None:
            further.insert(0, (self.bias_k, self.bias_v))
        for rows in further:
            k, v = (torch.cat([x, _row(row, x)], 1) for x, row in zip((k, v), rows, strict=True))
            mask = None if mask is None else functional.pad(mask, (0, 1))
        q, k, v = (x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        return (q, k, v), mask

    def _attend(
        self, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, *, need_weights: bool, causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The output of each head, shape (n, heads, l, features), and the weights, shape (n, heads, l, s)."""
        q, k, v = heads
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal), None
        scores = (q / math.sqrt(self.head_dim)) @ k.transpose(2, 3)
        weights = functional.softmax(scores if mask is None else scores + mask.to(scores.dtype), dim=-1)
        weights = functional.dropout(weights, dropout) if dropout else weights
        return weights @ v, weights

    def _mask(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores, broadcast to shape (n, heads, l, s)."""
        (n, length), s = query.shape[:2], key.shape[1]
        mask = None
        if attn_mask is not None:
            shapes = {(length, s): (1, 1, length, s), (n * self.num_heads, length, s): (n, self.num_heads, length, s)}
            if tuple(attn_mask.shape) not in shapes:
                _refuse("attn_mask", attn_mask, " or ".join(map(str, shapes)))
            mask = _added(attn_mask, query.dtype).reshape(shapes[tuple(attn_mask.shape)])
        if padding is not None:
            if padding.numel() != n * s or padding.shape[-1] != s:
                _refuse("key_padding_mask", padding, str((n, s)))
            left_out = _added(padding, query.dtype).reshape(n, 1, 1, s)
            mask = left_out if mask is None else mask + left_out
        return mask

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def attention_obstacle(attention: torch_nn.MultiheadAttention) -> str | None:
    """Why an attention of torch's cannot be taken apart into its projections; None where it can."""
    replaced = "forward" in attention.__dict__
    if replaced or type(attention).forward is not torch_nn.MultiheadAttention.forward:
        return f"{type(attention).__name__} has a forward of its own"
    known = {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v"}
    odd = sorted({*attention._parameters, *attention._buffers, *attention._modules} - known - {"out_proj"})
    if odd:
        return f"it holds {', '.join(odd)}, which torch's attention does not"
    weights = [name for name in ("in_proj_weight", "q_proj_weight") if attention._parameters.get(name) is not None]
    if not weights or attention.out_proj._parameters.get("weight") is None:
        return "its weights are computed from other parameters: remove the parametrisation or weight norm first"
    if attention._state_dict_hooks or attention._load_state_dict_pre_hooks:
        return "it has hooks of its state, which know its parameters: remove them first"
    return None


def packed_attention(layer: MultiheadAttention) -> torch_nn.MultiheadAttention | None:
    """torch's attention with copies of the projections' values; None where these are not plain linear layers."""
    projections = [getattr(layer, name) for name in PROJECTIONS]
    if any(type(one) is not torch_nn.Linear or {*one._parameters} != {"weight", "bias"} for one in projections):
        return None
    weights, biases = ([getattr(one, key) for one in projections[:3]] for key in ("weight", "bias"))
    kinds = {(one.dtype, one.device) for one in layer.parameters()}
    if any(one is None for one in biases) != all(one is None for one in biases) or len(kinds) > 1:
        return None
    choices = {"kdim": layer.kdim, "vdim": layer.vdim, "batch_first": layer.batch_first, "device": "meta"}
    further = {"add_bias_kv": layer.bias_k is not None, "add_zero_attn": layer.add_zero_attn}
    new: Any = torch_nn.MultiheadAttention(layer.embed_dim, layer.num_heads, layer.dropout, **choices, **further)
    if new.in_proj_weight is None:
        new._parameters |= {f"{name}_weight": _joined([one]) for name, one in zip(PROJECTIONS, weights, strict=False)}
    else:
        new._parameters["in_proj_weight"] = _joined(weights)
    new._parameters["in_proj_bias"] = None if biases[0] is None else _joined(biases)
    new.out_proj._parameters |= layer.out_proj._parameters
    if layer.bias_k is not None:
        new._parameters |= {"bias_k": layer.bias_k, "bias_v": layer.bias_v}
    return new.train(layer.training)  # type: ignore[no-any-return]


def _joined(tensors: Sequence[Tensor]) -> torch_nn.Parameter:
    """A parameter with copies of others, one below the other; it is trained if any of them is."""
    trained = any(one.requires_grad for one in tensors)
    return torch_nn.Parameter(torch.cat([*tensors]).detach(), requires_grad=trained)


def _as_parameter(tensor: Tensor | None) -> torch_nn.Parameter | None:
    assert tensor is None or isinstance(tensor, torch_nn.Parameter)
    return tensor


def _part(tensor: Tensor) -> torch_nn.Parameter:
    """A parameter with a copy of a part of another."""
    return torch_nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


def _linear(weight: Tensor, bias: Tensor | None) -> torch_nn.Linear:
    """A linear layer of these parameters themselves."""
    layer = torch_nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer._parameters.update(weight=_as_parameter(weight), bias=_as_parameter(bias))
    return layer


def _row(value: Tensor | float, like: Tensor) -> Tensor:
    """One more key or value for each of the batch, shape (n, 1, embed_dim)."""
    row = value if isinstance(value, Tensor) else like.new_full((1, 1, like.shape[2]), value)
    return row.to(like.dtype).expand(like.shape[0], 1, -1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added to scores."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _check_inputs(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the inputs have a batch. Raises CompileError for shapes that do not belong together."""
    if query.is_nested or key.is_nested or value.is_nested:
        raise CompileError("nn.MultiheadAttention does not take nested tensors", fix="padded tensors, and a mask")
    shapes = {"query": tuple(query.shape), "key": tuple(key.shape), "value": tuple(value.shape)}
    agree = query.ndim == key.ndim and (is_jit_traced() or key.shape[:-1] == value.shape[:-1])
    if query.ndim not in (2, 3) or not agree:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        fact = "query, key and value have 3 axes, or 2 without a batch, and key and value are equally long"
        raise CompileError("the inputs of nn.MultiheadAttention do not belong together", shapes=listed, needed=fact)
    return query.ndim == 3


def _refuse(name: str, mask: Tensor, needed: str) -> None:
    raise CompileError(f"{name} has the shape {tuple(mask.shape)}", needed=needed)
