"""Layers whose kernels have bases by name: copies, checkpoints and adapters keep them, other values are noticed."""

from __future__ import annotations

import copy
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.checkpoint_cases import put_together, taken_apart
from tests.refusals import refused
from tnalgebra.compiler import joins, program, tune
from tnalgebra.compiler.bases import BY_FOURIER
from tnalgebra.compiler.cost import Workload
from tnalgebra.compiler.operations import ApplyBasis
from tnalgebra.errors import CheckpointError
from tnalgebra.tensors import BASES

NAMES = tuple(BASES)


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast transforms cost next to nothing, so that every plan that can have one has it."""
    monkeypatch.setenv("TNALGEBRA_TUNE", "0")
    monkeypatch.setattr(tune, "_remembered", OrderedDict())
    for module in (joins, program):
        monkeypatch.setattr(module, "basis_work", lambda *_: Workload("pointwise", read=1, written=1, calls=0))


def linear(name: str, *, bias: bool = True) -> tuple[tn.nn.Linear, Tensor]:
    """A layer whose input is transformed into a basis, in float64, and an input."""
    torch.manual_seed(0)
    rule = tn.rule("W[out in] => L[out a] P[a in]", fixed={"P": name})
    layer = tn.nn.Linear.from_linear(nn.Linear(16, 5, bias=bias).double(), rule, {"a": 16})
    return layer, torch.randn(7, 16, dtype=torch.float64)


def transforms(layer: Any) -> list[ApplyBasis]:
    return [one for one in layer.plan.chosen.program.operations if isinstance(one, ApplyBasis)]


def dense_output(layer: Any, x: Tensor) -> Tensor:
    """The output by the tensors that the layer holds, without its plan."""
    return nn.functional.linear(x, layer.L @ layer.P, layer.bias)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_has_the_transform_in_its_plan(name: str) -> None:
    layer, x = linear(name)
    assert layer.bases == {"P": name}
    assert transforms(layer)
    assert layer.constants == ("P",)
    assert (layer.P - BASES[name](16)).abs().max() == 0
    assert layer.relative_error is not None
    assert layer.relative_error < 1e-14
    expected = dense_output(layer, x)
    assert (layer(x) - expected).abs().max() < 1e-13
    assert (layer.to_dense()(x) - expected).abs().max() < 1e-13
    weight = torch.randn_like(expected)
    one, other = (
        torch.autograd.grad((value * weight).sum(), [*layer.parameters()])
        for value in (layer(x), dense_output(layer, x))
    )
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(one, other, strict=True))
    with torch.no_grad():
        assert (layer.freeze()(x) - expected).abs().max() < 1e-13


def test_rows_of_a_basis_are_elements() -> None:
    """A fit that leaves rows out, and a constant that only has the values of a basis, are not bases by name."""
    rule = tn.rule("W[out in] => L[out a] P[a in]", fixed={"P": "dct"})
    assert not tn.nn.Linear.from_linear(nn.Linear(16, 5), rule, {"a": 7}).bases
    rule = tn.rule("W[out in] => L[out a] P[a in]")
    layer = tn.nn.Linear.from_linear(nn.Linear(16, 5), rule, {"a": 16}, fixed={"P": BASES["dct"](16)})
    assert not layer.bases
    assert tn.nn.Linear.from_linear(nn.Linear(16, 5), rule, {"a": 16}, fixed={"P": "dct"}).bases == {"P": "dct"}


@pytest.mark.parametrize("name", NAMES)
def test_other_elements_are_noticed(name: str) -> None:
    layer, x = linear(name)
    before = layer(x)
    other = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    swapped = torch.func.functional_call(layer, {"P": other}, (x,))
    assert (swapped - nn.functional.linear(x, layer.L @ other, layer.bias)).abs().max() < 1e-13
    assert (layer(x) - before).abs().max() == 0
    for frozen in (False, True):
        with torch.no_grad():
            if frozen:
                layer.freeze()
                layer(x)
            layer.P.mul_(2)
            assert not layer.bases
            assert (layer(x) - dense_output(layer, x)).abs().max() < 1e-13
            layer.P.div_(2)
            assert layer.bases == {"P": name}
            assert (layer(x) - before).abs().max() < 1e-13
    state = layer.state_dict() | {"P": other}
    layer.load_state_dict(state)
    assert not layer.bases
    assert (layer(x) - dense_output(layer, x)).abs().max() < 1e-13
    layer.P = BASES[name](16)
    assert layer.bases == {"P": name}
    assert (layer(x) - before).abs().max() < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_types(name: str) -> None:
    layer, x = linear(name)
    expected = layer(x)
    for one in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).freeze()):
        assert one.bases == {"P": name}
        assert (one(x) - expected).abs().max() < 1e-13
    short = copy.deepcopy(layer).to(torch.bfloat16).float()
    assert short.bases == {"P": name}
    assert (short.P - BASES[name](16)).abs().max() < 1e-7
    assert (short(x.float()) - expected).abs().max() < 0.1
    with torch.inference_mode():
        made = copy.deepcopy(layer)
        assert (made(x) - expected).abs().max() < 1e-13
        made.P.mul_(2)
        assert (made(x) - dense_output(made, x)).abs().max() < 1e-13
    assert not torch.allclose(made(x), expected)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(x.to("meta")).shape == expected.shape
    empty = meta.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert (empty(x) - expected).abs().max() < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_and_compile(name: str) -> None:
    layer, x = linear(name)
    expected = layer(x)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert not any("fft" in str(node.target) for node in program.graph.nodes)
    assert (program.module()(x[:3]) - expected[:3]).abs().max() < 1e-13
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert (compiled(x) - expected).abs().max() < 1e-13
    with torch.no_grad():
        layer.P.mul_(2)
    assert (layer(x) - dense_output(layer, x)).abs().max() < 1e-13


def test_random_values_and_ranks() -> None:
    rule = tn.rule("W[out in] => L[out a] P[a in]", fixed={"P": "hadamard"})
    layer = tn.nn.Linear(16, 5, rewrite=rule, size={"a": 16})
    assert layer.bases == {"P": "hadamard"}
    x = torch.randn(3, 16)
    assert (layer(x) - dense_output(layer, x)).abs().max() < 1e-5


def test_convolutions() -> None:
    rule = tn.rule("K[out in kh kw] => G[out a kh kw] P[a in]", fixed={"P": "haar"})
    conv = nn.Conv2d(8, 6, 3, padding=1).double()
    layer = tn.nn.Conv2d.from_conv(conv, rule, {"a": 8}, input_size=9)
    assert transforms(layer)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    assert (layer(x) - conv(x)).abs().max() < 1e-12
    for memory_format in (torch.channels_last, torch.contiguous_format):
        assert (layer(x.to(memory_format=memory_format)) - conv(x)).abs().max() < 1e-12


# Checkpoints and adapters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_keep_the_name(name: str, tmp_path: Path) -> None:
    layer, x = linear(name)
    expected, path = layer(x), tmp_path / "layer.safetensors"
    tn.save(layer, path)
    assert taken_apart(path.read_bytes())[1]["layers"][0]["bases"] == {"P": name}
    read = tn.load(path)
    assert read.bases == {"P": name}
    assert transforms(read)
    assert (read(x) - expected).abs().max() < 1e-13
    model = nn.Sequential(layer)
    tn.save(model, path)
    fresh = tn.load(path, into=nn.Sequential(nn.Linear(16, 5).double()))
    assert transforms(fresh[0])
    assert (fresh(x) - expected).abs().max() < 1e-13


def test_files_without_names_load(tmp_path: Path) -> None:
    layer, x = linear("dct")
    path = tmp_path / "layer.safetensors"
    tn.save(layer, path)
    rewrite(path, lambda entry: entry.pop("bases"))
    read = tn.load(path)
    assert not read.bases
    assert not transforms(read)
    assert (read(x) - layer(x)).abs().max() < 1e-13
    model = nn.Sequential(layer)
    tn.save(model, path)
    rewrite(path, lambda entry: entry.pop("bases"))
    assert tn.load(path, into=model)[0].bases == {"P": "dct"}


@pytest.mark.parametrize(
    ("bases", "facts"),
    [
        ({"P": "walsh"}, ("'walsh'",)),
        ({"L": "dct"}, ("bases", "constants")),
        ({"P": 3}, ("a text",)),
        ([], ("an object",)),
    ],
)
def test_files_with_wrong_bases_are_refused(bases: Any, facts: tuple[str, ...], tmp_path: Path) -> None:
    layer, _ = linear("dct")
    path = tmp_path / "layer.safetensors"
    tn.save(layer, path)
    rewrite(path, lambda entry: entry.update(bases=bases))
    with refused(CheckpointError, *facts):
        tn.load(path)


def test_a_file_whose_elements_are_not_the_basis_has_its_elements(tmp_path: Path) -> None:
    layer, x = linear("dct")
    path = tmp_path / "layer.safetensors"
    tn.save(layer, path)
    rewrite(path, lambda entry: entry.update(bases={"P": "hadamard"}))
    read = tn.load(path)
    assert (read(x) - layer(x)).abs().max() < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_adapters(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 5)).double()
    rule = tn.rule("W[o i] => L[o a] P[a i]", fixed={"P": name})
    adapted, adapters = tn.adapt(copy.deepcopy(model), {"0": rule}, {"a": 16}, tune=False)
    layer: Any = adapted[0].adapters["default"]
    assert layer.bases == {"P": name}
    assert transforms(layer)
    with torch.no_grad():
        layer.L.normal_()
    x = torch.randn(7, 16, dtype=torch.float64)
    expected = model(x) + x @ (layer.L @ BASES[name](16)).mT
    assert (adapted(x) - expected).abs().max() < 1e-12
    path = tmp_path / "adapter.safetensors"
    tn.save_adapter(adapted, path)
    read = tn.load_adapter(path, into=copy.deepcopy(model), tune=False)
    again: Any = read[0].adapters["default"]
    assert again.bases == {"P": name}
    assert transforms(again)
    assert (read(x) - expected).abs().max() < 1e-12
    adapters.merge()
    assert (adapted(x) - expected).abs().max() < 1e-12


def test_which_bases_exported_code_lacks() -> None:
    assert {*BY_FOURIER} < {*NAMES}


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change the entry of the first layer in a file's description."""
    header, description, data = taken_apart(path.read_bytes())
    change(description["layers"][0])
    path.write_bytes(put_together(header, json.dumps(description), data))
