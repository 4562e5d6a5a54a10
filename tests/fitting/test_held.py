"""Every reported error is the one that the numbers which are held have, in every type and everywhere they are held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.kernel_cases import gaussian, metric_of
from tnalgebra.errors import RuleError
from tnalgebra.networks import Network
from tnalgebra.rewriting import Fit
from tnalgebra.tensors import evaluate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
QUICK = {"starts": 2, "sweeps": 30}
RULES = [entry.name for entry in tn.decompositions.CATALOGUE]

DEGENERATE = torch.einsum("or,ir,hr,wr->oihw", *(gaussian(size, 2, seed=size) for size in (9, 6, 3, 4)))
DEGENERATE = DEGENERATE + 30 * sum(
    torch.einsum("o,i,h,w->oihw", *(gaussian(size, seed=size + 50 * (axis == place)) for axis, size in enumerate((9, 6, 3, 4))))
    for place in range(4)
)
"""Close to a derivative of a rank-one tensor, which components of CP come near only by cancelling each other."""


def error_of(network: Network, values: Mapping[str, Tensor], kernel: Tensor) -> float:
    """By the slow evaluation in float64."""
    held = {name: value.detach().double() for name, value in values.items()}
    return float((evaluate(network, held) - kernel.double()).norm() / kernel.double().norm())


def check_fit(fit: Fit, kernel: Tensor) -> None:
    error = error_of(fit.network, fit.values, kernel)
    claims = [fit.relative_error, fit.trace.steps[-1].relative_error, fit.records()[-1]["relative_error"]]
    if fit.report is not None:
        claims.append(fit.report.relative_error)
    assert claims == pytest.approx([error] * len(claims), rel=1e-6, abs=1e-12)
    assert {value.dtype for value in fit.values.values()} == {kernel.dtype}


def check_layer(layer: tn.nn.KernelLayer, kernel: Tensor) -> None:
    values = {name: getattr(layer, name) for name in {node.name for node in layer.kernel.nodes} - {"Fuse", "Copy", "Fill"}}
    assert layer.relative_error == pytest.approx(error_of(layer.kernel, values, kernel), rel=1e-6, abs=1e-12)


def dense_layer(rule: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    linear = rule in ("mpo", "monarch")
    layer = nn.Linear(12, 10) if linear else nn.Conv2d(6, 9, (3, 4), padding=1)
    return layer.to(dtype)


def size_of(rule: str) -> object:
    """About half of the parameters, or nothing to choose."""
    return {"depthwise_separable": None, "spatially_separable": None, "dct": {"a": 2, "b": 2}}.get(rule, "parameters 0.5")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_errors_are_those_of_the_numbers_held(rule: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = dense_layer(rule, dtype)
    weight, size = module.weight.detach().clone(), size_of(rule)
    labels = "out in" if weight.ndim == 2 else "out in kh kw"
    try:
        fit = tn.rules(labels)[rule].apply(weight, size, **QUICK)
    except RuleError:
        pytest.skip(f"{rule} does not exist for these labels")
    check_fit(fit, weight)
    check_layer(tn.nn.decomposed(module, fit), weight)
    wide = tn.rules(labels)[rule].apply(weight.double(), size, **QUICK)
    check_layer(tn.nn.decomposed(module, wide), weight)
    model, shape = nn.Sequential(module), (2, 12) if weight.ndim == 2 else (2, 6, 5, 5)
    report = tn.convert(model, {"*": rule}, size, example=torch.zeros(shape, dtype=dtype), **QUICK)
    check_layer(model[0], weight)
    (row,) = report.records()
    assert row["relative_error"] == model[0].relative_error
    tn.save(model, tmp_path / "model.safetensors")
    read = tn.load(tmp_path / "model.safetensors", nn.Sequential(dense_layer(rule, dtype)))
    check_layer(read[0], weight)
