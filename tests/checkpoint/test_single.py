"""A file of one layer gives the layer back without a model, and contradicts itself in no way that is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.checkpoint_cases import put_together, same_layer, same_state, taken_apart
from tests.nn_cases import LAYERS, input_for, usual
from tests.refusals import refused
from tnalgebra.errors import CheckpointError
from tnalgebra.nn.layers import decomposed

OTHERS: dict[str, dict[str, Any]] = {
    "Linear": {"bias": False},
    "Embedding": {"padding_idx": 2},
    "Conv2d": {"stride": (2, 1), "padding_mode": "reflect", "padding": 1, "groups": 2},
    "Conv1d": {"padding": "same"},
    "ConvTranspose2d": {"stride": 2, "output_padding": (1, 0)},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_back_alone(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {**usual(name), "dtype": dtype}
    layer = decomposed(getattr(nn, name)(**arguments, **OTHERS.get(name, {})), "cp", 2, starts=1, batch_size=3)
    tn.save(layer, tmp_path / "layer.safetensors")
    loaded = tn.load(tmp_path / "layer.safetensors")
    same_state(loaded, layer)
    same_layer(loaded, layer)
    x = input_for(name, arguments)
    assert torch.equal(loaded(x), layer(x))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert tn.load(tmp_path / "layer.safetensors", dtype=torch.float32)(
        x.float() if name != "Embedding" else x
    ).dtype == (torch.float32)


@pytest.mark.parametrize(("name", "layout"), [("Conv2d", torch.channels_last), ("Conv3d", torch.channels_last_3d)])
def test_a_layer_of_another_memory_format_comes_back_in_it(
    name: str, layout: torch.memory_format, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = getattr(nn, name)(4, 6, 3).to(memory_format=layout)
    layer = decomposed(module, "cp", 2, starts=1)
    tn.save(layer, tmp_path / "layer.safetensors")
    loaded = tn.load(tmp_path / "layer.safetensors")
    x = input_for(name, {"in_channels": 4, "dtype": torch.float32}).contiguous(memory_format=layout)
    assert layer(x).is_contiguous(memory_format=layout)
    assert loaded(x).is_contiguous(memory_format=layout)
    assert torch.equal(loaded(x), layer(x))


def test_a_reshaped_layer_with_constants(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 6)
    train = "W[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]"
    for layer in (
        tn.nn.Linear.from_linear(linear, train, {"p": 3}, sizes={"o1": 3, "i1": 4}),
        tn.nn.Conv2d.from_conv(nn.Conv2d(4, 6, 3), "dct", {"c": 2, "d": 2}),
        tn.nn.Linear(12, 6, rewrite="monarch"),
    ):
        tn.save(layer, tmp_path / "layer.safetensors")
        same_layer(tn.load(tmp_path / "layer.safetensors"), layer)


def test_a_model_is_not_made(tmp_path: Path) -> None:
    layer = tn.nn.Linear(4, 3, rewrite="cp", size=2)
    models: list[nn.Module] = [nn.Sequential(layer), nn.Sequential(layer, nn.Linear(3, 2)), nn.Linear(3, 2)]
    for model in models:
        tn.save(model, tmp_path / "model.safetensors")
        with refused(CheckpointError, "holds a model", "tn.load(path, into=model)"):
            tn.load(tmp_path / "model.safetensors")


def _argument(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda layer: layer["arguments"].update({name: value})


HUGE = 2**40
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another class": lambda layer: layer.update({"class": "Conv3d"}),
    "a class that torch has and we do not": lambda layer: layer.update({"class": "LSTM"}),
    "channels": _argument("in_channels", 5),
    "huge channels": _argument("in_channels", 10**30),
    "channels of another type": _argument("in_channels", 4.0),
    "a huge stride": _argument("stride", [10**30, 1]),
    "a huge padding": _argument("padding", [10**18, 0]),
    "many axes": _argument("kernel_size", [3] * 10_000),
    "a text": _argument("kernel_size", "3, 3"),
    "nothing": _argument("padding_mode", None),
    "an object": _argument("dilation", {"a": 1}),
    "more arguments": _argument("device", "cuda"),
    "fewer arguments": lambda layer: layer["arguments"].pop("stride"),
    "a kernel that no tensor determines": lambda layer: layer.update(
        kernel="A[out:6 r:2] B[r in:4] Fill[kh:3 kw:2|value=1] -> [out in kh kw]"
    ),
    "a huge label": lambda layer: layer.update(kernel=f"{layer['kernel']} Fill[z:{HUGE}|value=1]"),
    "another plan": lambda layer: layer.update(planned_for=[16]),
    "a name": lambda layer: layer.update(names=["0"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_contradicts_itself(change: str, tmp_path: Path) -> None:
    layer = tn.nn.Conv2d.from_conv(nn.Conv2d(4, 6, (3, 2)), "cp", 2, starts=1)
    path = tmp_path / "layer.safetensors"
    tn.save(layer, path)
    header, description, data = taken_apart(path.read_bytes())
    CHANGES[change](description["layers"][0])
    path.write_bytes(put_together(header, json.dumps(description), data))
    with pytest.raises(CheckpointError):
        tn.load(path)


def test_an_embedding_without_its_padding_row(tmp_path: Path) -> None:
    layer = tn.nn.Embedding(12, 6, rewrite="cp", size=2)
    path = tmp_path / "layer.safetensors"
    tn.save(layer, path)
    header, description, data = taken_apart(path.read_bytes())
    description["layers"][0]["arguments"]["padding_idx"] = 2
    path.write_bytes(put_together(header, json.dumps(description), data))
    with refused(CheckpointError, "'padding'", (6,)):
        tn.load(path)


def test_a_dense_layer_alone_cannot_become_decomposed(tmp_path: Path) -> None:
    conv = nn.Conv2d(4, 6, 3)
    tn.save(decomposed(conv, "cp", 2, starts=1), tmp_path / "layer.safetensors")
    with refused(CheckpointError, "Conv2d", "tn.load(path)"):
        tn.load(tmp_path / "layer.safetensors", into=conv)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_a_layer_that_does_not_compute_is_not_written(dtype: torch.dtype, tmp_path: Path) -> None:
    layer = tn.nn.Linear(4, 3, rewrite="cp", size=2).to(dtype)
    assert layer.weight.dtype == dtype
    with refused(CheckpointError, str(dtype), "torch.float32"):
        tn.save(layer, tmp_path / "layer.safetensors")


def test_a_layer_with_a_core_that_is_computed_is_not_written(tmp_path: Path) -> None:
    layer = tn.nn.Linear(4, 3, rewrite="cp", size=2)
    nn.utils.parametrizations.weight_norm(layer, "B")
    with refused(CheckpointError, "'B'", "remove_parametrizations"):
        tn.save(layer, tmp_path / "layer.safetensors")
    nn.utils.parametrize.remove_parametrizations(layer, "B")
    tn.save(layer, tmp_path / "layer.safetensors")
    assert torch.equal(tn.load(tmp_path / "layer.safetensors").dense_weight(), layer.dense_weight())
