"""Types of numbers, and inputs of all kinds."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import torch

from tests.use_cases import AUTOCAST, NUMBERS_ALONE, TYPES, Holding, Trial, same, use

# Autocast ---------------------------------------------------------------------------------------------------------


def lowered(one: Trial, dtype: torch.dtype) -> None:
    exact = one(one.dense())
    with torch.autocast("cpu", dtype):
        value, expected = one(), one(one.dense())
    assert value.dtype == expected.dtype
    assert (value - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()
    value.float().square().sum().backward()
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in one.layer.parameters())


def lowered_frozen(one: Trial, dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype):
        value, expected = one.freeze()(), one(one.dense())
    same(value, expected)


for _dtype in (torch.bfloat16, torch.float16):
    use(AUTOCAST, f"`{_dtype}`")(partial(lowered, dtype=_dtype))
    use(AUTOCAST, f"`{_dtype}`, frozen")(partial(lowered_frozen, dtype=_dtype))


@use(AUTOCAST, "weights of float64, which stay")
def _(one: Trial) -> None:
    one.layer.double()
    with torch.autocast("cpu", torch.bfloat16):
        one.check(one.x.double() if one.x.is_floating_point() else one.x)


# Other numbers ----------------------------------------------------------------------------------------------------


@use(TYPES, "bfloat16, float16, float64")
def _(one: Trial) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        other = one.of(copy.deepcopy(one.layer).to(dtype))
        value = other(x=one.x.to(dtype) if one.x.is_floating_point() else one.x)
        assert value.dtype == dtype
        assert (value - one()).norm() <= 8 * torch.finfo(dtype).eps * one().norm() + 1e-5 * one().norm()


@use(TYPES, "float8 weights", refused="the weights are torch.float8_e4m3fn")
def _(one: Trial) -> None:
    one.layer.to(torch.float8_e4m3fn)
    one()


@use(TYPES, "complex inputs", refused="the input 'X' is torch.complex64", without=NUMBERS_ALONE)
def _(one: Trial) -> None:
    one(x=one.x + 0j)


@use(TYPES, "complex weights", refused="the weights are torch.complex64")
def _(one: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one.layer.to(torch.complex64)
    one(x=one.x + 0j if one.x.is_floating_point() else one.x)


@use(TYPES, "`torch.ao.quantization.quantize_dynamic`, which leaves the layer as it is")
def _(one: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Holding(one), dtype=torch.qint8)  # type: ignore[attr-defined]
    result = model(one.x)
    same(result[0] if isinstance(result, tuple) else result, one(one.dense()))


@use(TYPES, "`torch.inference_mode`, frozen within it or not")
def _(one: Trial) -> None:
    with torch.inference_mode():
        one.check()
        one.freeze().check()
    one.check()


@use(TYPES, "an empty batch, expanded and transposed inputs")
def _(one: Trial) -> None:
    for x in (one.x[:0], one.x[:1].expand(3, *one.x.shape[1:]), one.x.mT.contiguous().mT):
        one.check(x)
