"""Checkpoints: what comes back is what was saved; a save that fails leaves what was there."""

from __future__ import annotations

import copy
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra.nn as layers
from tests.checkpoint_cases import FEW, OWN, X, converted, network, same_layer, same_state
from tests.nn_cases import LAYERS, input_for, usual
from tests.refusals import refused
from tnalgebra.checkpoint import load, save
from tnalgebra.checkpoint.reading import read_description
from tnalgebra.decompositions.catalogue import rules
from tnalgebra.decompositions.reshaped import per_group
from tnalgebra.errors import CheckpointError
from tnalgebra.fitting.metric import Metric
from tnalgebra.model.convert import convert
from tnalgebra.rewriting.rule import Rule

# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [*rules("out in kh kw").decompositions, *OWN], ids=lambda r: r.name)
def test_every_decomposition_comes_back(chosen: Rule, tmp_path: Path) -> None:
    model = converted(chosen)
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", into=network())
    same_state(loaded, model)
    same_layer(loaded[0], model[0])
    assert torch.equal(loaded(X), model(X))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {**usual(name), "dtype": dtype}
    windows: list[dict[str, Any]] = [{"stride": 2}, {"groups": 2, "dilation": 2}]
    others: dict[str, list[dict[str, Any]]] = {"Linear": [{"bias": False}], "Embedding": [{}, {"padding_idx": 2}]}
    for other in others.get(name, windows):
        dense = nn.Sequential(getattr(nn, name)(**arguments, **other))
        model, _ = convert(copy.deepcopy(dense), {"0": ("cp", {"size": {"r": 2}, **FEW})}, allow_larger=True)
        save(model, tmp_path / "model.safetensors")
        loaded = load(tmp_path / "model.safetensors", into=dense)
        same_state(loaded, model)
        same_layer(loaded[0], model[0])
        x = input_for(name, arguments)
        assert torch.equal(loaded(x), model(x))


@pytest.mark.slow
def test_plans_metrics_groups_and_layers_made_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grouped, dense, plain = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 1)
    metric = Metric(("in",), torch.diag(torch.rand(6, dtype=torch.float64) + 0.5))
    made = nn.Sequential(
        layers.Conv2d.from_conv(
            grouped, per_group(rules("out in kh kw")["tucker2"]), size={"a": 2, "b": 2}, sizes={"g": 2}, backward=True
        ),
        layers.Conv2d.from_conv(
            dense, "cp", size={"r": 3}, metric=metric, input_size=(9, 7), batch_size=3, candidates="factored", **FEW
        ),
        layers.Conv2d(5, 4, 1, rewrite="tucker2", size={"a": 2, "b": 2}),
    )
    save(made, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", into=nn.Sequential(grouped, dense, plain))
    same_state(loaded, made)
    for one, two in zip(loaded, made, strict=True):
        same_layer(one, two)
        assert (one.plan.request.candidates, one.plan.request.backward) == (
            two.plan.request.candidates,
            two.plan.request.backward,
        )
    assert loaded[2].trace is None
    (step,) = loaded[1].trace.steps
    assert step.change.output_error == made[1].trace.steps[0].change.output_error == made[1].output_error


def test_a_dense_model_and_a_single_layer(tmp_path: Path) -> None:
    save(network(), tmp_path / "dense.safetensors")
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    same_state(load(tmp_path / "dense.safetensors", into=other), network())
    layer = converted()[0]
    save(layer, tmp_path / "layer.safetensors")
    other_layer = copy.deepcopy(layer)
    other_layer.reset_parameters()
    same_layer(load(tmp_path / "layer.safetensors", into=other_layer), layer)
    same_state(other_layer, layer)
    with refused(CheckpointError, "Conv2d", "tn.load(path)"):
        load(tmp_path / "layer.safetensors", into=nn.Conv2d(4, 4, 3, padding=1))


PROGRAM = """
import sys, torch, tnalgebra as tn
from tests.checkpoint_cases import network
model = tn.load(sys.argv[1], into=network())
print(model[0].trace)
torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""


@pytest.mark.slow
def test_a_process_of_its_own(tmp_path: Path) -> None:
    model = converted("tensor_train")
    save(model, tmp_path / "model.safetensors")
    torch.save(X, tmp_path / "x.pt")
    command = [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ("model.safetensors", "x.pt", "y.pt"))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == str(model[0].trace).rstrip("\n")
    # plans and numbers are the same; the number of threads of the other process may not be
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), model(X).detach(), rtol=1e-6, atol=1e-6)


def test_a_file_of_the_first_version_is_read() -> None:
    """Written by tnalgebra 0.1.0: a convolution by its tensor ring, and what it gave."""
    torch.manual_seed(5)
    dense = nn.Conv2d(8, 12, 3, padding=1, stride=2)
    ranks = {"z": 3, "p": 3, "q": 3, "s": 3}
    model: Any = load(Path(__file__).parent / "tensor_ring_0_1_0.safetensors", into=nn.Sequential(dense))
    assert {bond: model[0].kernel.sizes[bond] for bond in ranks} == ranks
    assert model[0].planned_for == (16, 8, 16, 16)
    assert [step.rule.name for step in model[0].trace.steps] == ["tensor_ring"]
    kernel = torch.einsum("zop,piq,qhs,swz->oihw", *(model[0].state_dict()[core] for core in "ABCD"))
    x = torch.ones(2, 8, 16, 16)
    expected = nn.functional.conv2d(x, kernel, model[0].bias, stride=2, padding=1)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)  # float32: sums in another order


# Tensors -------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(4, 6)
        self.last.weight = self.first.weight
        self.again = self.conv = nn.Conv2d(4, 6, 3)
        flat = torch.randn(24)
        self.register_buffer("left", flat[:12].view(3, 4))
        self.register_buffer("right", flat[6:18])
        self.register_buffer("turned", flat.view(4, 6).mT)
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flag", torch.tensor([True, False]))


def test_shared_tensors_are_stored_once_and_memory_orders_do_not_matter(tmp_path: Path) -> None:
    model, _ = convert(Tied().to(memory_format=torch.channels_last), {"conv": ("cp", {"size": 2, **FEW})})
    save(model, tmp_path / "model.safetensors")
    description = read_description(tmp_path / "model.safetensors")
    assert description.aliases["last.weight"] == "first.weight"
    assert sorted(description.layers[0].names) == ["again", "conv"]
    other = Tied()
    loaded = load(tmp_path / "model.safetensors", into=other)
    same_state(loaded, model)
    assert loaded.last.weight is loaded.first.weight
    assert loaded.again is loaded.conv
    apart = Tied()
    apart.conv = copy.deepcopy(apart.conv)
    with refused(CheckpointError, "places", "again"):
        load(tmp_path / "model.safetensors", into=apart)
    apart = Tied()
    apart.last.weight = nn.Parameter(torch.zeros(6, 4))
    save(apart, tmp_path / "apart.safetensors")
    with refused(CheckpointError, "'first.weight'", "'last.weight'"):
        load(tmp_path / "apart.safetensors", into=Tied())


def twins() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))


def sharing(ranks: int = 4) -> nn.Sequential:
    """Two decomposed layers with one core in the middle."""
    model, _ = convert(twins(), {"*": ("tucker2", ranks)}, allow_larger=True, progress=False)
    model[1].G = model[0].G
    return model


def test_a_core_of_two_layers_is_one_parameter_again(tmp_path: Path) -> None:
    model, path = sharing(), tmp_path / "model.safetensors"
    save(model, path)
    untied, _ = convert(twins(), {"*": ("tucker2", 4)}, progress=False)
    untied[1].freeze()
    for other in (twins(), untied):
        loaded: Any = load(path, into=other)
        assert loaded[0].G is loaded[1].G
        assert sum(one.numel() for one in loaded.parameters()) == sum(one.numel() for one in model.parameters())
        same_state(loaded, model)
        x = torch.randn(2, 8, 9, 9)
        assert torch.equal(loaded(x), model(x))
    larger, _ = convert(twins(), {"*": ("tucker2", 5)}, allow_larger=True, progress=False)
    resized: Any = load(path, into=larger, resize=True)
    assert resized[0].G is resized[1].G
    torch.testing.assert_close(resized[1].dense_weight(), model[1].dense_weight(), rtol=1e-5, atol=1e-6)


def test_a_core_of_two_layers_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(sharing(), path)
    smaller, _ = convert(twins(), {"*": ("tucker2", 3)}, progress=False)
    mixed = twins()
    mixed[1].double()
    cores, weight = [*smaller.parameters()], mixed[1].weight
    with refused(CheckpointError, "'0.G'", "'1.G'", "the file's ranks"):
        load(path, into=smaller, resize=True)
    with refused(CheckpointError, "'0.G'", "torch.float64", "dtype="):
        load(path, into=mixed)
    assert all(one is two for one, two in zip(smaller.parameters(), cores, strict=True))
    assert mixed[1].weight is weight
    assert load(path, into=mixed, dtype=torch.float64)[0].G is mixed[1].G


def test_parameters_that_a_late_error_finds_shared_are_apart_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(sharing(), tmp_path / "model.safetensors")
    model, _ = convert(twins(), {"*": ("tucker2", 4)}, progress=False)
    before = [*model.parameters()]

    def broken(*args: Any, **keywords: Any) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(model, "load_state_dict", broken)
    with pytest.raises(MemoryError):
        load(tmp_path / "model.safetensors", into=model)
    assert all(one is two for one, two in zip(model.parameters(), before, strict=True))


def test_embeddings_that_share_all_cores_have_no_padding_row_after_a_load(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(30, 8, padding_idx=1), nn.Embedding(30, 8, padding_idx=1))

    model, _ = convert(build(), {"*": ("rows | dim", 2)}, progress=False)
    model[1].share_cores(model[0])
    save(model, tmp_path / "model.safetensors")
    loaded: Any = load(tmp_path / "model.safetensors", into=build())
    assert loaded[0].padding is None
    assert all(core is loaded[1].cores()[name] for name, core in loaded[0].cores().items())
    assert torch.equal(loaded[1](torch.arange(30)), model[1](torch.arange(30)))


def test_dtypes(tmp_path: Path) -> None:
    model = converted(model=network().double())
    with torch.no_grad():
        model[1].running_var[1] = float("inf")
    save(model, tmp_path / "model.safetensors")
    same_state(load(tmp_path / "model.safetensors", into=network().double()), model)
    same_state(load(tmp_path / "model.safetensors", into=network(), dtype=torch.float64), model)
    single = load(tmp_path / "model.safetensors", into=network())
    same_state(single, copy.deepcopy(model).float())
    moved = load(tmp_path / "model.safetensors", into=network(), device="cpu", dtype=torch.bfloat16)
    same_state(moved, copy.deepcopy(model).bfloat16())


def test_what_a_new_layer_takes_over(tmp_path: Path) -> None:
    save(converted(), tmp_path / "model.safetensors")
    model = network().train()
    calls: list[str] = []
    model[0].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: calls.append("called"))
    bias = model[0].bias
    load(tmp_path / "model.safetensors", into=model)
    assert model[0].training
    assert model[0].bias is bias
    assert not any(p.requires_grad for name, p in model[0].named_parameters() if name != "bias")
    model(X)
    assert calls == ["called"]


def test_a_converted_model_keeps_its_parameters_and_is_thawed(tmp_path: Path) -> None:
    model = converted()
    save(model, tmp_path / "model.safetensors")
    other = converted()
    for parameter in other.parameters():
        parameter.data.mul_(3)
    other[0].freeze()
    held = [*other.parameters()]
    load(tmp_path / "model.safetensors", into=other)
    assert all(one is two for one, two in zip(held, other.parameters(), strict=True))
    same_state(other, model)
    assert torch.equal(other(X), model(X))


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "fact"),
    [
        (torch.eye(3).to_sparse(), "dense tensor"),
        (torch.empty(3, device="meta"), "meta device"),
        (torch.zeros(3, dtype=torch.complex128), "torch.complex128"),
    ],
)
def test_what_cannot_be_saved(entry: Tensor, fact: str, tmp_path: Path) -> None:
    model = network()
    model.register_buffer("odd", entry)
    with refused(CheckpointError, "'odd'", fact):
        save(model, tmp_path / "model.safetensors")
    assert not [*tmp_path.iterdir()]


def test_a_link_is_followed_and_what_is_no_file_stays(tmp_path: Path) -> None:
    path, link = tmp_path / "model.safetensors", tmp_path / "latest.safetensors"
    link.symlink_to(path.name)
    save(network(), link)
    assert link.is_symlink()
    same_state(load(path, into=network(bias=True)), network())
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with refused(CheckpointError, (tmp_path / name).resolve(), "the name of a file"):
            save(network(), tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    with refused(CheckpointError, "OrderedDict"):
        save(network().state_dict(), path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(network(), path)
    before = path.read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with refused(CheckpointError, path):
            save(converted(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
