"""Checkpoints of other models: refused, and the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra.nn as layers
from tests.checkpoint_cases import X, converted, layers_of, network, same_state
from tests.refusals import refused
from tnalgebra.checkpoint import load, save
from tnalgebra.errors import CheckpointError


def test_other_models_are_refused_and_stay_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(converted(), path)
    wider = network()
    wider[3] = nn.Conv2d(4, 8, (3, 2), groups=2)
    hooked = network()
    hooked[0]._register_state_dict_hook(lambda *_: None)
    other_norm = network()
    other_norm[1] = nn.BatchNorm2d(4, affine=False)
    short = [*network()][1:]
    cases: list[tuple[nn.Module, list[str]]] = [
        (network(stride=2), ["'0'", "stride", "[1, 1]", "[2, 2]"]),
        (network(bias=False), ["'0'", "bias", "True", "False"]),
        (network(padding="same"), ["'0'", "padding"]),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3), *short), ["'0'", "class", "Conv2d", "ConvTranspose2d"]),
        (nn.Sequential(nn.ReLU(), *short), ["'0'", "class", "Conv2d", "ReLU"]),
        (nn.Sequential(), ["'0'", "Conv2d"]),
        (wider, ["'3.weight'", "(6, 2, 3, 2)", "(8, 2, 3, 2)"]),
        (other_norm, ["unexpected: 1.bias, 1.weight"]),
        (hooked, ["'0'", "state dict hooks"]),
        (converted("cp"), ["'0'", "kernel"]),
        (converted(rank=3), ["'0'", "ranks", "a=2 b=2", "a=3 b=3"]),
        (network().to("meta"), ["meta device"]),
    ]
    for model, facts in cases:
        before, modules = {k: v.clone() for k, v in model.state_dict().items()}, layers_of(model)
        with refused(CheckpointError, *facts):
            load(path, into=model)
        assert all(one is two for one, two in zip(modules, layers_of(model), strict=True))
        assert all(value.is_meta or torch.equal(value, before[k]) for k, value in model.state_dict().items())
    save(network(), path)
    with refused(CheckpointError, "'0'", "one dense tensor"):
        load(path, into=converted())


@pytest.mark.parametrize(
    "target", [network, converted, lambda: converted(rank=3)], ids=["dense", "same", "other ranks"]
)
def test_a_load_that_fails_late_leaves_the_model(
    target: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after half of the tensors were copied: values, dtypes, objects, gradients are as they were."""
    other = converted()
    for parameter in other.parameters():
        parameter.data.add_(1)
    save(other, tmp_path / "model.safetensors")
    model = target()
    model(X).sum().backward()
    if isinstance(model[0], layers.KernelLayer):
        model[0].freeze()
    expected, modules, text = model(X), layers_of(model), repr(model)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    def broken(self: nn.Module, *args: Any, **keywords: Any) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(nn.Conv2d, "_load_from_state_dict", broken)
    with pytest.raises(MemoryError):
        load(tmp_path / "model.safetensors", into=model, resize=True, dtype=torch.float64)
    assert all(one is two for one, two in zip(modules, layers_of(model), strict=True))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert tensor.dtype == before[name][1].dtype
        assert torch.equal(tensor, before[name][1])
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(X), expected)
    assert repr(model) == text


@pytest.mark.slow
def test_wrapped_models_are_told_from_plain_ones(tmp_path: Path) -> None:
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    save(converted(), plain)
    save(nn.DataParallel(converted()), wrapped)
    same_state(load(wrapped, into=nn.DataParallel(network())).module, converted())
    with refused(CheckpointError, "DataParallel", "into=model.module"):
        load(plain, into=nn.DataParallel(network()))
    with refused(CheckpointError, "into=model._orig_mod"):
        load(plain, into=torch.compile(network()))
    with refused(CheckpointError, "'module'", "tn.save(wrapper.module"):
        load(wrapped, into=network())


@pytest.mark.parametrize(
    ("choices", "facts"),
    [
        ({"dtype": "float16"}, ["'float16'", "torch.float32"]),
        ({"dtype": torch.complex64}, ["torch.complex64"]),
        ({"dtype": torch.int64}, ["torch.int64"]),
        ({"noise": "0.1"}, ["'0.1'"]),
        ({"noise": -1}, ["-1"]),
        ({"into": {}}, ["dict", "torch.nn.Module"]),
    ],
)
def test_choices_that_mean_nothing(choices: dict[str, Any], facts: list[str], tmp_path: Path) -> None:
    save(network(), tmp_path / "model.safetensors")
    with refused(CheckpointError, *facts):
        load(tmp_path / "model.safetensors", **{"into": network(), **choices})


def test_a_model_of_inference_mode_is_loaded_there(tmp_path: Path) -> None:
    save(converted(), tmp_path / "model.safetensors")
    with torch.inference_mode():
        model = network()
    with refused(CheckpointError, "inference mode", "a model made outside"):
        load(tmp_path / "model.safetensors", into=model)
    assert isinstance(model[0], nn.Conv2d)
    with torch.inference_mode():
        same_state(load(tmp_path / "model.safetensors", into=model), converted())
