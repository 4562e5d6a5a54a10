"""The errors that a layer reports are those of the cores that it holds, or None once these are other numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.dense_oracle import dense_value


def dense(dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(6, 8, 3, dtype=dtype)


def layer(module: nn.Conv2d, rewrite: str = "cp") -> Any:
    return tn.nn.Conv2d.from_conv(module, rewrite, 3, starts=1, sweeps=3)


def true_error(one: Any, module: nn.Conv2d) -> float:
    """By the slow contraction of the cores, in float64."""
    kernel = module.weight.detach().double()
    rebuilt = torch.from_numpy(dense_value(one.kernel, {n: v.detach().double() for n, v in one.cores().items()}))
    return float((rebuilt - kernel).norm() / kernel.norm())


def trained(one: Any) -> Any:
    one(torch.randn(2, 6, 5, 5)).square().sum().backward()
    torch.optim.SGD(one.parameters(), lr=0.1).step()
    return one


def averaged(one: Any) -> Any:
    average = torch.optim.swa_utils.AveragedModel(one)
    average.update_parameters(one)
    average.update_parameters(trained(copy.deepcopy(one)))
    return average.module


def loaded(one: Any, path: Path, **options: Any) -> Any:
    tn.save(one, path)
    return tn.load(path, **options)


KEPT: dict[str, Callable[[Any, Path], Any]] = {
    "as made": lambda one, _: one,
    "float64": lambda one, _: one.double(),
    "there and back": lambda one, _: one.double().float(),
    "frozen": lambda one, _: one.freeze(),
    "deepcopy": lambda one, _: copy.deepcopy(one),
    "pickle": lambda one, _: pickle.loads(pickle.dumps(one)),
    "file": loaded,
    "file, float64": lambda one, path: loaded(one, path, dtype=torch.float64),
    "file, into": lambda one, path: loaded(one, path, into=layer(dense())),
    "another bias": lambda one, _: one.bias.data.mul_(2) is None or one,
}
CHANGED: dict[str, Callable[[Any, Path], Any]] = {
    "float16": lambda one, _: one.half(),
    "bfloat16 and back": lambda one, _: one.bfloat16().float(),
    "of a model": lambda one, _: nn.Sequential(one).to(torch.bfloat16)[0],
    "trained": lambda one, _: trained(one),
    "in place": lambda one, _: one.A.data.mul_(2) is None or one,
    "averaged": lambda one, _: averaged(one),
    "file, bfloat16": lambda one, path: loaded(one, path, dtype=torch.bfloat16),
    "file, into bfloat16": lambda one, path: loaded(one, path, into=layer(dense()).bfloat16()),
    "file after training": lambda one, path: loaded(trained(one), path),
    "reset": lambda one, _: one.reset_parameters() or one,
    "meta": lambda one, _: one.to("meta"),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_error_of_the_same_numbers_is_kept(name: str, tmp_path: Path) -> None:
    one = KEPT[name](layer(dense()), tmp_path / "layer.safetensors")
    assert one.relative_error == pytest.approx(true_error(one, dense()), rel=1e-6)


@pytest.mark.parametrize("name", CHANGED)
def test_the_error_of_other_numbers_is_not_stated(name: str, tmp_path: Path) -> None:
    one = CHANGED[name](layer(dense()), tmp_path / "layer.safetensors")
    assert one.relative_error is None
    assert one.trace is None or one.trace.steps[0].relative_error < 1


def test_numbers_that_come_back_have_their_error_again() -> None:
    one = layer(dense())
    state, error = copy.deepcopy(one.state_dict()), one.relative_error
    assert trained(one).relative_error is None
    one.load_state_dict(state)
    assert one.relative_error == error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_of_a_short_type_has_the_error_of_its_rounded_cores(dtype: torch.dtype) -> None:
    module = dense(dtype)
    one = layer(module)
    assert one.A.dtype == dtype
    assert one.relative_error == pytest.approx(true_error(one, module), rel=1e-6)


def test_a_layer_with_a_folded_normalisation_has_another_kernel() -> None:
    model = nn.Sequential(layer(dense(), "tucker2"), nn.BatchNorm2d(8)).eval()
    torch.nn.init.uniform_(model[1].running_var, 0.5, 2)  # type: ignore[arg-type]
    tn.fold_batch_norm(model)
    assert model[0].relative_error is None
