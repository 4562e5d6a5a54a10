"""Every reported error is the one that the numbers which are held have, in every type and everywhere they are held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.kernel_cases import KERNEL, gaussian, measured, metric_of
from tnalgebra.errors import RuleError
from tnalgebra.networks import Network, tensor_nodes
from tnalgebra.rewriting import Fit
from tnalgebra.tensors import evaluate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
QUICK = {"starts": 2, "sweeps": 30}
RULES = [entry.name for entry in tn.decompositions.CATALOGUE]


PARTS = [gaussian(size, 2, seed=size).unbind(1) for size in (9, 6, 3, 4)]
BORDER = sum(
    torch.einsum("o,i,h,w->oihw", *(part[axis == place] for axis, part in enumerate(PARTS))) for place in range(4)
) + 0.01 * gaussian(9, 6, 3, 4)
"""Near a tensor of border rank 2: two components come near it only by cancelling each other."""

NEAR_BORDER = (
    "K[o i h w] => A[o r] B[i r] C[h r] D[w r]",
    "K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]",
    "K[o i h w] => A[o r] B[i r] C[h w r] D[o s] E[i s]",
)


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
    values = {name: getattr(layer, name) for name in tensor_nodes(layer.kernel)}
    assert layer.relative_error == pytest.approx(error_of(layer.kernel, values, kernel), rel=1e-6, abs=1e-12)


def dense_layer(rule: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    linear = rule in ("mpo", "monarch")
    layer = nn.Linear(12, 10) if linear else nn.Conv2d(6, 9, (3, 4), padding=1)
    return layer.to(dtype)


def size_of(rule: str) -> object:
    """About half of the parameters, or nothing to choose."""
    fixed = {"depthwise_separable": None, "spatially_separable": None, "dct": {"c": 2, "d": 2}}
    return fixed.get(rule, "parameters 0.6")


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
    choices = QUICK if size is None else {**QUICK, "size": size}
    example = torch.zeros(shape, dtype=dtype)
    _, report = tn.convert(model, {"0": (rule, choices)}, example=example, allow_larger=True, progress=False)
    check_layer(model[0], weight)
    (row,) = report.records()
    assert row["relative_error"] == pytest.approx(model[0].relative_error, rel=1e-12)
    tn.save(model, tmp_path / "model.safetensors")
    check_layer(tn.load(tmp_path / "model.safetensors", into=nn.Sequential(dense_layer(rule, dtype)))[0], weight)


@pytest.mark.parametrize("equation", NEAR_BORDER)
def test_short_types_lose_little(equation: str) -> None:
    """Even of a kernel whose components in float64 cancel each other."""
    errors = {}
    for dtype in DTYPES[1:]:
        module = nn.Conv2d(6, 9, (3, 4)).to(dtype)
        module.weight.data = BORDER.to(dtype)
        for stability in (0.0, 0.01):
            layer = tn.nn.decomposed(module, equation, 2, stability=stability, **QUICK)
            check_layer(layer, module.weight.detach())
            errors[dtype, stability] = layer.relative_error
            assert layer.relative_error < 1
    for (dtype, stability), error in errors.items():
        rounding = 8 * torch.finfo(dtype).eps
        assert error <= 1.02 * errors[torch.float32, stability] + rounding


def test_errors_of_the_output_are_those_of_the_numbers_held() -> None:
    ring = tn.rules()["tensor_ring"]
    for crossed in (False, True):
        metric = metric_of(1, crossed=crossed)
        for dtype in DTYPES:
            kernel = KERNEL.to(dtype)
            fit = ring.apply(kernel, 2, metric=metric, **QUICK)
            wide = ring.apply(kernel.double(), 2, metric=metric, **QUICK)
            module = nn.Conv2d(5, 7, (3, 2)).to(dtype)
            module.weight.data = kernel
            for layer in (tn.nn.decomposed(module, fit), tn.nn.decomposed(module, wide)):
                held = {name: core.detach().double() for name, core in layer.cores().items()}
                error = measured(evaluate(layer.kernel, held), metric, kernel.double())
                assert layer.output_error == pytest.approx(error, rel=1e-6)
                report = layer.trace.steps[0].change.report
                assert report is not None
                assert report.output_error == layer.output_error
            assert fit.output_error == tn.nn.decomposed(module, fit).output_error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_of_further_steps_are_those_of_the_numbers_held(dtype: torch.dtype) -> None:
    kernel = KERNEL.to(dtype)
    for first, second, size in (
        (tn.rules()["tensor_train"], tn.decompositions.truncate("p q"), {"p": 3, "q": 3}),
        (tn.rules()["tensor_train"], tn.decompositions.truncate("p"), {"p": 3}),
        (tn.rules()["tensor_ring"], tn.decompositions.truncate("p"), {"p": 2}),
        (tn.rules()["tensor_ring"], tn.decompositions.correct_degeneracy(0.1), None),
        (tn.rules()["cp"], tn.decompositions.drop_components("r"), {"r": 2}),
        (tn.cut("out | in kh kw"), tn.rule("L[o r] R[r i h w] => A[o p] B[p i q] C[q h w]"), {"p": 3, "q": 2}),
    ):
        fit = first.apply(kernel, 4, **QUICK)
        before = evaluate(fit.network, {name: value.double() for name, value in fit.values.items()})
        after = fit.then(second, size, **({} if size is None else QUICK))
        assert after.relative_error == pytest.approx(error_of(after.network, after.values, kernel), rel=1e-6)
        step = after.trace.steps[-1]
        assert step.relative_error == pytest.approx(error_of(after.network, after.values, before), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("budget", [0.2, 0.45, 0.9])
def test_constants_are_not_parameters_of_a_budget(budget: float) -> None:
    """The rank is the largest whose cores fit into the budget, for a kernel and for a layer of a model."""
    text, size = "W[out in] => A[out r] P[r in]", f"parameters {budget}"
    layer = nn.Linear(12, 16, bias=False)
    largest = max(rank for rank in range(1, 13) if 16 * rank <= budget * 16 * 12)
    fit = tn.rule(text).apply(layer.weight, size, fixed={"P": "dct"})
    assert fit.network.sizes["r"] == largest
    assert fit.parameters == fit.trace.records()[0]["parameters_after"] == 16 * largest
    requested = {"0": (text, {"fixed": {"P": "dct"}})}
    model, report = tn.convert(nn.Sequential(layer), requested, size=size, tune=False)
    assert report["0"].ranks == {"r": largest}
    assert sum(one.numel() for one in model.parameters()) == report["0"].parameters_after == fit.parameters
