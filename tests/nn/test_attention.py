"""The attention of projections against torch's, in float64, for every argument of the call."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import CompileError, LayerError

# Sums of at most a few dozen products of numbers around 1, in another order, in float64.
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

E, HEADS, N, L, S = 12, 3, 2, 5, 7


def attention(**arguments: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, HEADS, dtype=torch.float64, **arguments)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.normal_()  # which torch begins with zeros
    return layer


def inputs(layer: nn.MultiheadAttention, *, batched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(length: int, features: int) -> Tensor:
        shape = (N, length, features) if layer.batch_first else (length, N, features)
        shape = shape if batched else (length, features)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return draw(L, E), draw(S, layer.kdim), draw(S, layer.vdim)


def check_equal(layer: nn.MultiheadAttention, new: nn.Module, x: tuple[Tensor, ...], **options: Any) -> None:
    for one, two in zip(new(*x, **options), layer(*x, **options), strict=True):
        assert (one is None) == (two is None)
        if two is not None:
            torch.testing.assert_close(one, two, **ROUNDING)


LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False, "batch_first": True},
    "further keys": {"add_bias_kv": True, "add_zero_attn": True},
    "other features": {"kdim": 4, "vdim": 9, "add_zero_attn": True, "batch_first": True},
}
CAUSAL = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
FLAT = torch.zeros(L, S, dtype=torch.bool).index_fill_(1, torch.tensor([2]), value=True)
EACH = torch.randn(N * HEADS, L, S, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
PADDING = torch.arange(S) >= torch.tensor([[5], [6]])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("train", [True, False])
def test_every_argument_of_a_call(name: str, train: bool) -> None:
    layer = attention(**LAYERS[name]).train(train)
    new = tn.nn.MultiheadAttention.from_attention(layer)
    assert new.training == train
    x = inputs(layer)
    masks = (None, FLAT, EACH)
    paddings = (None, PADDING, torch.where(PADDING, -2.0, 0.5).double())
    for attn_mask, padding, need, average in itertools.product(masks, paddings, (True, False), (True, False)):
        mixed = attn_mask is not None and padding is not None and attn_mask.dtype != padding.dtype
        if not mixed:  # of which torch warns
            options = {"need_weights": need, "average_attn_weights": average}
            check_equal(layer, new, x, attn_mask=attn_mask, key_padding_mask=padding, **options)
    alone = inputs(layer, batched=False)
    for options in ({}, {"need_weights": False}, {"key_padding_mask": PADDING[0]}, {"attn_mask": EACH[:HEADS]}):
        check_equal(layer, new, alone, **options)
    if layer.kdim == layer.vdim == E and not layer.add_zero_attn:
        own = (x[0],) * 3
        for need in (True, False):
            check_equal(layer, new, own, attn_mask=CAUSAL, is_causal=True, need_weights=need)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_types_of_torch(dtype: torch.dtype) -> None:
    layer = attention(batch_first=True).float()
    new = tn.nn.MultiheadAttention.from_attention(layer)
    x = tuple(one.float() for one in inputs(layer))
    paddings = (None, PADDING, torch.where(PADDING, -2.0, 0.5), torch.where(PADDING, -2.0, 0.5).to(dtype))
    for attn_mask, padding, need in itertools.product((None, FLAT, EACH.float()), paddings, (True, False)):
        if attn_mask is None or padding is None or attn_mask.dtype == padding.dtype:
            options: dict[str, Any] = {"attn_mask": attn_mask, "key_padding_mask": padding, "need_weights": need}
            with torch.autocast("cpu", dtype):
                got, expected = new(*x, **options), layer(*x, **options)
            for one, two in zip(got, expected, strict=True):
                assert (one is None) == (two is None)
                if two is not None:  # to a few roundings to 8 bits of numbers around 1; types are compared too
                    torch.testing.assert_close(one, two, rtol=0.02, atol=0.02)


def test_gradients_are_those_of_torch() -> None:
    layer = attention(add_bias_kv=True)
    new = tn.nn.MultiheadAttention.from_attention(layer)
    x = inputs(layer)
    layer(*x)[0].square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    new(*x)[0].square().sum().backward()
    projections = (new.q_proj, new.k_proj, new.v_proj)
    close: Any = torch.testing.assert_close
    close(torch.cat([one.weight.grad for one in projections]), expected["in_proj_weight"], **ROUNDING)
    close(torch.cat([one.bias.grad for one in projections]), expected["in_proj_bias"], **ROUNDING)
    for name in ("out_proj.weight", "out_proj.bias", "bias_k", "bias_v"):  # which are the same parameters
        close(new.get_parameter(name).grad, expected[name], **ROUNDING)


def test_dropout_is_that_of_torch() -> None:
    layer = attention(dropout=0.4)
    new = tn.nn.MultiheadAttention.from_attention(layer)
    x = inputs(layer)
    for need in (True, False):
        outputs = []
        for module in (layer, new):
            torch.manual_seed(5)
            outputs.append(module(*x, need_weights=need)[0])
        torch.testing.assert_close(*outputs, **ROUNDING)


@pytest.mark.parametrize("name", LAYERS)
def test_decomposed_projections(name: str) -> None:
    layer = attention(**LAYERS[name])
    new = tn.nn.MultiheadAttention.from_attention(layer, "out | in", 3)
    assert {type(new.get_submodule(name)) for name in ("q_proj", "k_proj", "v_proj", "out_proj")} == {tn.nn.Linear}
    twin = copy.deepcopy(layer)
    weights = [one.dense_weight().detach() for one in (new.q_proj, new.k_proj, new.v_proj)]
    with torch.no_grad():
        if twin.in_proj_weight is None:
            for one, weight in zip("qkv", weights, strict=True):
                getattr(twin, f"{one}_proj_weight").copy_(weight)
        else:
            twin.in_proj_weight.copy_(torch.cat(weights))
        twin.out_proj.weight.copy_(new.out_proj.dense_weight())
    check_equal(twin, new, inputs(layer))
    code: Any = torch.compile(new, fullgraph=True, backend="eager")
    torch.testing.assert_close(code(*inputs(layer)), new(*inputs(layer)), **ROUNDING)


def test_what_is_refused() -> None:
    class Scaled(nn.MultiheadAttention):
        def forward(self, *inputs: Any, **options: Any) -> Any:
            return super().forward(*inputs, **options)

    with refused(LayerError, "Scaled", "forward"):
        tn.nn.MultiheadAttention.from_attention(Scaled(E, HEADS))
    new = tn.nn.MultiheadAttention.from_attention(attention())
    q, k, v = inputs(attention())
    with refused(CompileError, "attn_mask", (L, L), (L, S)):
        new(q, k, v, attn_mask=CAUSAL)
    with refused(CompileError, "key_padding_mask", (N, S)):
        new(q, k, v, key_padding_mask=PADDING[:, :3])
    with refused(CompileError, "query", (S, E)):
        new(q, k[:, 0], v[:, 0])
    with pytest.raises(RuntimeError, match="is_causal"):
        new(q, q, q, is_causal=True)
