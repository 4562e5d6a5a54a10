"""Checkpoints: what comes back is what was saved; what does not fit is refused; hostile files do nothing."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from nn_cases import NAMES, input_for, usual
from torch import Tensor, nn

import tnalgebra.checkpoint as checkpoint
import tnalgebra.nn as layers
from tnalgebra.checkpoint import load, save
from tnalgebra.checkpoint_format import CHECK, KEY, MAX_HEADER, MAX_NODES, check_of
from tnalgebra.checkpoint_reading import read_description
from tnalgebra.conversion import convert
from tnalgebra.decompositions import per_group, rule, rules
from tnalgebra.errors import CheckpointError, TnalgebraError
from tnalgebra.fitting.metric import Metric
from tnalgebra.rewriting import Rule

TIED = rule("K[o i h w] => A[o r] A[i r] B[h r] B[w r]", name="tied")
HYPEREDGE = rule("K[o i h w] => A[o i r] B[h r] C[w r]", name="hyperedge")
RESHAPED = rule("K[o i h w] => Fuse[o o1 o2] Fuse[i i1 i2] A[o1 i1 p] B[p o2 i2 h w]", name="reshaped")
BASIS = rule("K[o i h w] => D[c h] T[o i c w]", fixed={"D": "dct"}, name="basis")
RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="ring")
TRAIN = rule("K[o i h w] => A[o p] B[p i q] C[q h s] D[s w]", name="own train")
OWN = (TIED, HYPEREDGE, RESHAPED, BASIS, RING, TRAIN)

FEW: Any = {"starts": 1, "sweeps": 2}
X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1))

# The same sums of a few hundred products, around 1, in another order, in float64.
ROUNDING: Any = {"rtol": 1e-11, "atol": 1e-11}


def network(**arguments: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, **{"padding": 1, **arguments}),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), groups=2),
    ).eval()


def converted(chosen: str | Rule = "tucker2", *, rank: int = 2, model: nn.Module | None = None) -> Any:
    """The network with its first layer decomposed."""
    made = rules("out in kh kw")[chosen] if isinstance(chosen, str) else chosen
    ranks = dict.fromkeys(made.ranks, rank)
    model, _ = convert(
        model or network(), {"0": (made, {"ranks": ranks, **FEW})}, allow_larger=True, example=tuple(X.shape)
    )
    return model


def same_state(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert [*first] == [*second]
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def layers_of(model: nn.Module) -> list[nn.Module]:
    """All modules but the code of decomposed layers, which is emitted anew when a layer is frozen."""
    return [module for module in model.modules() if not isinstance(module, torch.fx.GraphModule)]


def same_layer(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    assert (one.kernel, one.network, str(one.trace)) == (two.kernel, two.network, str(two.trace))
    assert one.code == two.code
    assert (one.relative_error, one.output_error) == (two.relative_error, two.output_error)
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in two.named_parameters()]
    assert repr(one) == repr(two)


# Round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [*rules("out in kh kw").decompositions, *OWN], ids=lambda r: r.name)
def test_every_decomposition_comes_back(chosen: Rule, tmp_path: Path) -> None:
    model = converted(chosen)
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", into=network())
    same_state(loaded, model)
    same_layer(loaded[0], model[0])
    assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_comes_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {**usual(name), "dtype": dtype}
    others: list[dict[str, Any]] = [{"bias": False}]
    others += [] if name == "Linear" else [{"stride": 2}, {"groups": 2, "dilation": 2}]
    for other in others:
        dense = nn.Sequential(getattr(nn, name)(**arguments, **other))
        model, _ = convert(copy.deepcopy(dense), {"0": ("cp", {"ranks": {"r": 2}, **FEW})}, allow_larger=True)
        save(model, tmp_path / "model.safetensors")
        loaded = load(tmp_path / "model.safetensors", into=dense)
        same_state(loaded, model)
        same_layer(loaded[0], model[0])
        x = input_for(name, arguments)
        assert torch.equal(loaded(x), model(x))


def test_plans_metrics_groups_and_layers_made_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grouped, dense, plain = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 1)
    metric = Metric(("in",), torch.diag(torch.rand(6, dtype=torch.float64) + 0.5))
    made = nn.Sequential(
        layers.Conv2d.from_conv(
            grouped, per_group(rules("out in kh kw")["tucker2"]), ranks={"a": 2, "b": 2}, sizes={"g": 2}, backward=True
        ),
        layers.Conv2d.from_conv(
            dense, "cp", ranks={"r": 3}, metric=metric, input_size=(9, 7), batch_size=3, candidates="factored", **FEW
        ),
        layers.Conv2d(5, 4, 1, rewrite="tucker2", ranks={"a": 2, "b": 2}),
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
    with pytest.raises(CheckpointError, match="no layer of the model can be exchanged"):
        load(tmp_path / "layer.safetensors", into=nn.Conv2d(4, 4, 3, padding=1))


PROGRAM = """
import sys, torch, torchvision, tnalgebra.checkpoint as checkpoint
model = torchvision.models.resnet18(num_classes=5).eval()
checkpoint.load(sys.argv[1], into=model)
print("".join(f"{name}: {layer.trace}\\n" for name, layer in model.named_modules() if hasattr(layer, "trace")))
torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""


def test_resnet18_in_a_process_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    convert(model, {"layer[12].*.conv?": ("out kh | in kw", 3), "fc": ("out | in", 2)}, example=x)
    save(model, tmp_path / "model.safetensors")
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ("model.safetensors", "x.pt", "y.pt"))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    traces = [
        f"{name}: {layer.trace}\n" for name, layer in model.named_modules() if isinstance(layer, layers.KernelLayer)
    ]
    assert len(traces) == 9
    assert done.stdout.rstrip("\n") == "".join(traces).rstrip("\n")
    # plans and numbers are the same; the number of threads of the other process may not be
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), model(x).detach(), rtol=1e-6, atol=1e-6)


# Tensors ----------------------------------------------------------------------------------------------------------


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
    model, _ = convert(Tied().to(memory_format=torch.channels_last), {"conv": ("cp", {"ranks": 2, **FEW})})
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
    with pytest.raises(CheckpointError, match=r"layer '\w+' differs in places"):
        load(tmp_path / "model.safetensors", into=apart)
    apart = Tied()
    apart.last.weight = nn.Parameter(torch.zeros(6, 4))
    save(apart, tmp_path / "apart.safetensors")
    with pytest.raises(CheckpointError, match=r"'first.weight' and 'last.weight' are one in the model and differ"):
        load(tmp_path / "apart.safetensors", into=Tied())


def test_dtypes(tmp_path: Path) -> None:
    model = converted(model=network().double())
    save(model, tmp_path / "model.safetensors")
    same_state(load(tmp_path / "model.safetensors", into=network().double()), model)
    same_state(load(tmp_path / "model.safetensors", into=network(), dtype=torch.float64), model)
    single = load(tmp_path / "model.safetensors", into=network())
    same_state(single, copy.deepcopy(model).float())
    moved = load(tmp_path / "model.safetensors", into=network(), device="cpu", dtype=torch.bfloat16)
    same_state(moved, copy.deepcopy(model).bfloat16())
    with pytest.raises(CheckpointError, match=r"dtype=torch\.int64"):
        load(tmp_path / "model.safetensors", into=network(), dtype=torch.int64)


def test_numbers_that_are_none_come_back(tmp_path: Path) -> None:
    model = converted()
    with torch.no_grad():
        model[0].U[0, 0] = float("nan")
        model[1].running_var[1] = float("inf")
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", into=network())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0, equal_nan=True)


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


# Writing ----------------------------------------------------------------------------------------------------------


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save(network(), path)
    before = path.read_bytes()

    def broken(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        save(converted(), path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (torch.eye(3).to_sparse(), "is no dense tensor"),
        (torch.empty(3, device="meta"), "has no elements"),
        (torch.zeros(3, dtype=torch.complex128), "has no place in the file"),
    ],
)
def test_what_cannot_be_saved(entry: Tensor, message: str, tmp_path: Path) -> None:
    model = network()
    model.register_buffer("odd", entry)
    with pytest.raises(CheckpointError, match=message):
        save(model, tmp_path / "model.safetensors")
    assert not [*tmp_path.iterdir()]


# What is refused --------------------------------------------------------------------------------------------------


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


# Other ranks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("chosen", ["tucker2", "cp", HYPEREDGE, TIED, RESHAPED, RING, TRAIN], ids=str)
def test_larger_ranks_leave_the_value(chosen: str | Rule, noise: float, tmp_path: Path) -> None:
    small, large = converted(chosen, model=network().double()), converted(chosen, rank=3, model=network().double())
    save(small, tmp_path / "model.safetensors")
    kernel, held = large[0].kernel, [*large.parameters()]
    load(tmp_path / "model.safetensors", into=large, resize=True, noise=noise)
    layer: Any = large[0]
    assert layer.kernel == kernel
    assert layer.relative_error == small[0].relative_error
    assert all(one is two for one, two in zip(held, large.parameters(), strict=True))
    x = X.double()
    torch.testing.assert_close(layer.dense_weight(), small[0].dense_weight(), **ROUNDING)
    torch.testing.assert_close(large(x), small(x), **ROUNDING)


def test_what_is_enlarged_is_trained(tmp_path: Path) -> None:
    save(converted("cp"), tmp_path / "model.safetensors")
    for noise, moves in ((0.01, True), (0.0, False)):
        model: Any = load(tmp_path / "model.safetensors", into=converted("cp", rank=4), resize=True, noise=noise)
        model(X).square().sum().backward()
        assert bool(model[0].A.grad[:, 2:].abs().max() > 0) == moves
    with pytest.raises(CheckpointError, match="noise=nan"):
        load(tmp_path / "model.safetensors", into=model, resize=True, noise=float("nan"))


def test_smaller_ranks_of_a_tree_are_the_best_there_are(tmp_path: Path) -> None:
    """With one bond, what is lost is the tail of the kernel's singular values."""
    chosen = rule("K[o i h w] => U[o r] V[r i h w]")
    model: Any = converted(chosen, rank=4, model=network().double())
    save(model, tmp_path / "model.safetensors")
    other: Any = load(tmp_path / "model.safetensors", into=converted(chosen, model=network().double()), resize=True)
    matrix = model[0].dense_weight().flatten(1)
    spectrum = torch.linalg.svdvals(matrix)
    lost = torch.linalg.matrix_norm(matrix - other[0].dense_weight().flatten(1))
    torch.testing.assert_close(lost, spectrum[2:].norm(), rtol=1e-9, atol=0)
    assert str(other[0].trace).startswith(str(model[0].trace))
    assert other[0].trace.steps[-1].rule.name == "truncate r"
    assert other[0].relative_error is None


@pytest.mark.parametrize("chosen", ["cp", HYPEREDGE, TIED, RING, TRAIN, RESHAPED], ids=str)
def test_smaller_ranks_of_any_network(chosen: str | Rule, tmp_path: Path) -> None:
    model, other = (converted(chosen, rank=rank, model=network().double()) for rank in (3, 2))
    save(model, tmp_path / "model.safetensors")
    kernel = other[0].kernel
    load(tmp_path / "model.safetensors", into=other, resize=True)
    assert other[0].kernel == kernel
    large, small = (one[0].dense_weight().detach() for one in (model, other))
    assert float((large - small).norm() / large.norm()) < 0.95
    save(other, tmp_path / "again.safetensors")
    same_layer(load(tmp_path / "again.safetensors", into=network().double())[0], other[0])


def test_smaller_and_larger_at_once(tmp_path: Path) -> None:
    models = [layers.Conv2d.from_conv(network()[0], "tucker2", ranks={"a": a, "b": b}) for a, b in ((4, 2), (2, 3))]
    save(models[0], tmp_path / "model.safetensors")
    load(tmp_path / "model.safetensors", into=models[1], resize=True)
    best = layers.Conv2d.from_conv(network()[0], "tucker2", ranks={"a": 2, "b": 2})
    weight = models[0].dense_weight()
    # truncation of one bond is optimal, so that it is at least as near as another fit of these ranks to the weight
    assert (models[1].dense_weight() - weight).norm() <= (best.dense_weight() - weight).norm() * (1 + 1e-5)


def test_constants_are_chosen_among_and_never_made_up(tmp_path: Path) -> None:
    large: Any = converted(BASIS, rank=3)
    small: Any = converted(BASIS, rank=2)
    save(large, tmp_path / "model.safetensors")
    rows = {tuple(row) for row in large[0].D.tolist()}
    load(tmp_path / "model.safetensors", into=small, resize=True)
    assert {tuple(row) for row in small[0].D.tolist()} < rows
    save(small, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="the bond 'c' stands on the constant 'D'"):
        load(tmp_path / "model.safetensors", into=large, resize=True)


# Hostile files ----------------------------------------------------------------------------------------------------


def tiny() -> nn.Module:
    torch.manual_seed(0)
    layer = layers.Linear.from_linear(nn.Linear(4, 3), "out | in", ranks=2)
    return nn.Sequential(layer, nn.Linear(3, 2))


def dense_tiny() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    save(tiny(), tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


def taken_apart(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, description, bytes of the tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"][KEY]), content[8 + length :]


def put_together(header: dict[str, Any], description: str, data: bytes) -> bytes:
    """A file whose check sum of the description is right."""
    metadata = {**header["__metadata__"], KEY: description, CHECK: check_of(description)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text + data


STRANGE = (
    *(None, True, -1, 0, 1, 2, 2**31, 2**63, 10**300, 1e308, 0.5, "", "../../etc/passwd", "/dev/zero", "__class__"),
    *("A" * 3000, "A[o:9999999999 i:9999999999]", "U[out:3 r:2] V[r in:4]", "X[n]", "\ud800", "\x00", [], {}, [[]]),
    *([2**40] * 3, {"a": {}}, "Fill[k:1000000000000 | value=1] U[out:3 r:2] V[r in:4] -> [out in]"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def changed(value: Any, draw: random.Random) -> Any:
    """JSON with one thing in it exchanged, left out, renamed or swapped with another."""
    value = copy.deepcopy(value)
    every = [path for path in places(value) if path]
    path, other = draw.choice(every), draw.choice(every)

    def at(place: tuple[Any, ...]) -> Any:
        found = value
        for key in place:
            found = found[key]
        return found

    holder, key = at(path[:-1]), path[-1]
    match draw.randrange(5):
        case 0:
            del holder[key]
        case 1:
            holder[key] = copy.deepcopy(at(other))
        case 2 if isinstance(holder, dict):
            holder[str(draw.choice(STRANGE))] = holder.pop(key)
        case _:
            holder[key] = draw.choice(STRANGE)
    return value


def mutated(content: bytes, draw: random.Random) -> bytes:
    header, description, data = taken_apart(content)
    text = json.dumps(description)
    match draw.randrange(8):
        case 0:  # bits
            flipped = bytearray(content)
            for _ in range(draw.choice((1, 1, 3))):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case 1:
            return content[: draw.randrange(len(content))] + draw.randbytes(draw.choice((0, 0, 9)))
        case 2:
            return struct.pack("<Q", draw.choice((0, 1, 2**20, 2**62, 2**64 - 1, MAX_HEADER + 1))) + content[8:]
        case 3:
            return put_together(changed(header, draw) | {"__metadata__": header["__metadata__"]}, text, data)
        case 4:
            start = draw.randrange(len(text))
            words = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 5000, '"names":["0"],', "null")
            return put_together(header, text[:start] + draw.choice(words) + text[start + draw.randrange(9) :], data)
        case 5:  # the metadata itself, as text
            raw = bytearray(put_together(header, text, data))
            start = draw.randrange(8, len(raw) - len(data))
            raw[start : start + draw.randrange(9)] = draw.choice(
                (b"\xff\xfe", b"{}", b'""', b'"__metadata__":{},', b"[")
            )
            return bytes(raw)
        case _:  # one field of the description
            return put_together(header, json.dumps(changed(description, draw)), data)


def test_mutated_files(whole: bytes, tmp_path: Path) -> None:
    """10,000 of them: an error of the package, and the model untouched; or a model that is the right one.

    Where a mutated description is one of the same tensors, its record (a trace, an error, a plan) may be another.
    """
    draw, path = random.Random(0), tmp_path / "mutated.safetensors"
    target, reference, x = dense_tiny(), tiny(), torch.randn(5, 4)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    loaded = 0
    for number in range(10_000):
        content = mutated(whole, draw)
        path.write_bytes(content)
        try:
            load(path, into=target)
        except TnalgebraError:
            if number % 50 == 0:
                assert {*before} == {*target.state_dict()}
                assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
            continue
        loaded += 1
        same_state(target, reference)
        torch.testing.assert_close(target(x), reference(x), rtol=1e-6, atol=1e-6)
        target = dense_tiny()
    assert 0 < loaded < 2000


def test_a_flipped_bit_is_found_wherever_it_is(whole: bytes, tmp_path: Path) -> None:
    path, reference = tmp_path / "flipped.safetensors", tiny()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            loaded = load(path, into=dense_tiny())
        except CheckpointError:
            continue
        same_state(loaded, reference)  # in a word that nothing depends on, such as "format"
        same_layer(loaded[0], reference[0])


def test_sizes_that_the_file_does_not_hold(whole: bytes, tmp_path: Path) -> None:
    header, description, data = taken_apart(whole)
    path = tmp_path / "model.safetensors"

    def refused(message: str, **fields: Any) -> None:
        entry = {**description["layers"][0], **fields}
        path.write_bytes(put_together(header, json.dumps({**description, "layers": [entry]}), data))
        with pytest.raises(CheckpointError, match=message):
            load(path, into=dense_tiny())

    kernel = description["layers"][0]["kernel"]
    refused("its kernel says", kernel=kernel.replace(":2", ":1000000000"))
    refused("has a size that no tensor of the file has", kernel=f"{kernel} Fill[k:1000000 | value=1] -> [out in]")
    refused("has a size that no tensor", kernel=f"{kernel} Fuse[k:1000000 l:1000 m:1000] Copy[k n] -> [out in]")
    refused(f"at most {MAX_NODES} are read", kernel=f"{kernel} {'Copy[r] ' * MAX_NODES} -> [out in]")
    refused("characters; at most", kernel=kernel + " " * 100_000)
    refused("the planned input of layer '0'", planned_for=[2**39, 4])
    refused("is planned for an input of 3 axes", planned_for=[2, 4, 4])
    refused("a number of at least 0", relative_error=-1)
    refused("the trace of layer '0' cannot be read", trace={"start": "K[a", "steps": []})
    refused("the ranks of layer '0'", ranks={})
    refused("differs in class", **{"class": "Conv2d"})
    path.write_bytes(put_together(header, json.dumps({**description, "version": 2}), data))
    with pytest.raises(CheckpointError, match="version 2 of the format; this tnalgebra reads 1"):
        load(path, into=dense_tiny())
    path.write_bytes(struct.pack("<Q", MAX_HEADER + 1) + b" " * (MAX_HEADER + 1))
    with pytest.raises(CheckpointError, match=f"at most {MAX_HEADER} are read"):
        load(path, into=dense_tiny())


def test_files_of_others(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="it has no description by tnalgebra"):
        load(path, into=network())
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path, into=network())
    with pytest.raises(CheckpointError, match="is no file"):
        load(tmp_path, into=network())


def test_the_check_sum_is_the_one_of_the_format(whole: bytes) -> None:
    """Computed here from the words of the format alone."""
    header, description, data = taken_apart(whole)
    text = header["__metadata__"][KEY]
    assert header["__metadata__"][CHECK] == f"{zlib.crc32(text.encode()):08x}"
    assert header["__metadata__"]["format"] == "pt"
    for name, check in description["tensors"].items():
        begin, end = header[name]["data_offsets"]
        words = f"torch.float32 {header[name]['shape']}".encode()
        assert zlib.crc32(words + data[begin:end]) == check
