"""Checkpoints of other models: refused, and the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra.nn as layers
from tests.checkpoint_cases import TIED, X, converted, layers_of, network, same_state
from tnalgebra.checkpoint.file import load, save
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
    cases: list[tuple[nn.Module, str]] = [
        (network(stride=2), r"layer '0' differs in stride\n  file:  \[1, 1\]\n  model: \[2, 2\]"),
        (network(bias=False), r"layer '0' differs in bias\n  file:  True\n  model: False"),
        (network(padding="same"), r"layer '0' differs in padding"),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3), *short), r"differs in class\n.*Conv2d\n.*ConvTranspose2d"),
        (nn.Sequential(nn.ReLU(), *short), r"differs in class\n  file:  Conv2d\n  model: ReLU"),
        (nn.Sequential(*short, nn.Conv2d(4, 4, 3)), r"layer '0' differs in class"),
        (nn.Sequential(), r"the model has no layer '0'"),
        (wider, r"'3.weight' has another shape\n  file:  \(6, 2, 3, 2\)\n  model: \(8, 2, 3, 2\)"),
        (other_norm, r"other tensors than the model\n  unexpected: 1.bias, 1.weight"),
        (hooked, r"layer '0' of the model cannot be exchanged"),
        (converted("cp"), r"layer '0' differs in kernel"),
        (converted(rank=3), r"layer '0' differs in ranks\n  file:  a=2 b=2\n  model: a=3 b=3"),
        (converted(TIED), r"layer '0' differs in kernel"),
        (network().to("meta"), r"on the meta device"),
    ]
    for model, message in cases:
        before, modules = {k: v.clone() for k, v in model.state_dict().items()}, layers_of(model)
        with pytest.raises(CheckpointError, match=message):
            load(path, into=model)
        assert all(one is two for one, two in zip(modules, layers_of(model), strict=True))
        assert all(value.is_meta or torch.equal(value, before[k]) for k, value in model.state_dict().items())
    save(network(), path)
    with pytest.raises(CheckpointError, match=r"layer '0' differs in kernel\n  file:  one dense tensor"):
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


def test_wrapped_models_are_told_from_plain_ones(tmp_path: Path) -> None:
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    save(converted(), plain)
    save(nn.DataParallel(converted()), wrapped)
    same_state(load(wrapped, into=nn.DataParallel(network())).module, converted())
    with pytest.raises(CheckpointError, match=r"in a DataParallel, and the file's was not\n.*into=model.module"):
        load(plain, into=nn.DataParallel(network()))
    with pytest.raises(CheckpointError, match=r"into=model\._orig_mod"):
        load(plain, into=torch.compile(network()))
    with pytest.raises(CheckpointError, match=r"all names of the file begin with 'module', as in a wrapper"):
        load(wrapped, into=network())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"dtype": "float16"}, r"dtype='float16'\n  fix: a type of real numbers, such as torch\.float32"),
        ({"dtype": torch.complex64}, r"dtype=torch\.complex64"),
        ({"noise": "0.1"}, "noise='0.1'"),
        ({"noise": -1}, "noise=-1"),
        ({"into": {}}, r"the model is a dict\n  fix: a torch\.nn\.Module"),
    ],
)
def test_choices_that_are_none(choices: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(network(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model.safetensors", **{"into": network(), **choices})


def test_a_model_of_inference_mode_is_loaded_there(tmp_path: Path) -> None:
    save(converted(), tmp_path / "model.safetensors")
    with torch.inference_mode():
        model = network()
    with pytest.raises(CheckpointError, match=r"made in inference mode(.|\n)*fix: a model made outside"):
        load(tmp_path / "model.safetensors", into=model)
    assert isinstance(model[0], nn.Conv2d)
    with torch.inference_mode():
        same_state(load(tmp_path / "model.safetensors", into=model), converted())
