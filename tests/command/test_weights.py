"""Weights are loaded whole or not at all, and an error lists all that is wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.command import build_model, load_weights
from tnalgebra.command.build import shipped_files
from tnalgebra.errors import DataError
from tnalgebra.model import load_images

State = dict[str, Tensor]


def network() -> nn.Sequential:
    """A network with parameters, buffers and a counter of batches."""
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))


def state_of(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(state: State, expected: State) -> None:
    assert list(state) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)


@pytest.fixture
def saved() -> State:
    """A state whose every entry differs from a fresh network's."""
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.full_like(value, 5) if value.dtype == torch.int64 else torch.rand(value.shape, generator=generator)
        for key, value in network().state_dict().items()
    }


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def check_refused(source: Path, *facts: str) -> str:
    """The error has every fact, and leaves the network as it was."""
    model = network()
    before = state_of(model)
    with refused(DataError, source, *facts) as caught:
        load_weights(model, source)
    assert_same(state_of(model), before)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": {"module." + key: value for key, value in state.items()}, "best": 0.9},
        lambda state: {
            key: nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()
        },
    ],
    ids=["plain", "state_dict", "model", "data_parallel", "parameters"],
)
def test_the_usual_forms_of_a_checkpoint(wrap: Callable[[State], object], saved: State, tmp_path: Path) -> None:
    model = network()
    load_weights(model, write(tmp_path / "w.pth", wrap(saved)))
    assert_same(state_of(model), saved)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_module_of_the_network_may_be_called_module(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)
            self.scale = nn.Parameter(torch.rand(1))

    source = Wrapped()
    model = Wrapped()
    load_weights(model, write(tmp_path / "w.pth", source.state_dict()))
    assert_same(state_of(model), state_of(source))


def test_the_counter_of_batches_may_be_missing(saved: State, tmp_path: Path) -> None:
    del saved["1.num_batches_tracked"]
    model = network().half()
    load_weights(model, write(tmp_path / "w.pth", saved))
    assert int(model.state_dict()["1.num_batches_tracked"]) == 0
    found = {key: value for key, value in state_of(model).items() if key in saved}
    assert_same(found, {key: value.half() for key, value in saved.items()})  # in the dtype of the network


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"0.weight": None, "3.bias": None}, ["Sequential", "missing", "0.weight", "3.bias"]),
        ({"extra.weight": torch.ones(2)}, ["unexpected", "extra.weight"]),
        ({f"more.{index}": torch.ones(1) for index in range(25)}, ["more.19", "and 5 more"]),
        ({"3.weight": torch.rand(5, 3)}, ["3.weight: (5, 3)", "(4, 3)"]),
        ({"3.bias": torch.ones(4, dtype=torch.int64)}, ["3.bias: int64", "float32"]),
        ({"3.weight": torch.tensor([[NAN] * 3] * 4)}, ["not finite", "3.weight"]),
        ({"1.running_var": torch.tensor([1, 1, -INFINITY])}, ["not finite", "1.running_var"]),
        ({"3.weight": torch.full((4, 3), 1e300, dtype=torch.float64)}, ["not finite", "3.weight (float32)"]),
    ],
    ids=["missing", "unexpected", "many", "shape", "kind", "nan", "infinity", "overflow"],
)
def test_a_state_that_does_not_fit(
    changes: dict[str, Tensor | None], facts: list[str], saved: State, tmp_path: Path
) -> None:
    changed = {key: value for key, value in {**saved, **changes}.items() if value is not None}
    message = check_refused(write(tmp_path / "w.pth", changed), *facts)
    assert "more.20" not in message
    assert "0.bias" not in message


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "does not exist"),
        *[(bytes_, "torch checkpoint") for bytes_ in (b"", b"\x80\x02", b"PK\x03\x04" + bytes(40))],
        (b"in the beginning there was a text", "b'in the beginning the'"),
        (pickle.dumps(print, protocol=2), "torch checkpoint"),
        (torch.rand(3), "a Tensor"),
        ({"state_dict": {}}, "an empty one"),
        ({"epoch": 3, "weights": [1, 2]}, "epoch: int"),
    ],
)
def test_a_file_that_is_not_a_checkpoint(content: object, fact: str, tmp_path: Path) -> None:
    source = tmp_path / "w.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        write(source, content)
    check_refused(source, fact)


def test_a_checkpoint_that_was_cut_off(saved: State, tmp_path: Path) -> None:
    source = write(tmp_path / "w.pth", saved)
    source.write_bytes(source.read_bytes()[:-200])
    check_refused(source, "torch checkpoint")
    check_refused(tmp_path, "does not exist")


def test_another_number_of_classes_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "w.pth", build_model("cnn4", classes=10, channels=3).state_dict())
    with refused(DataError, "10 classes", "built for 3"):
        load_weights(build_model("cnn4", classes=3, channels=3), source)
    with refused(DataError, "3 channels", "built for 1"):
        load_weights(build_model("cnn4", classes=10, channels=1), source)
    with refused(DataError, "conv1.weight", "linear.bias") as caught:
        load_weights(build_model("cnn4", classes=3, channels=1), source)
    assert "fix:" not in str(caught.value)


def test_a_dense_network_that_the_library_saved(saved: State, tmp_path: Path) -> None:
    source, path = network(), tmp_path / "w.safetensors"
    source.load_state_dict(saved)
    tn.save(source, path)
    model = network()
    load_weights(model, path)
    assert_same(state_of(model), saved)
    path.write_bytes(path.read_bytes()[:-200])
    check_refused(path, "safetensors file")


def test_a_decomposed_network_is_not_for_a_dense_one(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    name = next(name for name, layer in network().named_modules() if isinstance(layer, nn.Conv2d))
    smaller, _ = tn.convert(network(), {name: ("out | in kh kw", {"r": 1}), "*": None}, allow_larger=True)
    tn.save(smaller, path)
    check_refused(path, "the weights do not fit", f"{name}.weight", f"{name}.L")


@pytest.mark.slow
def test_resnet20_reaches_its_published_accuracy(cifar10_folder: Path, resnet20_weights: Path) -> None:
    model = build_model("resnet20", classes=10, channels=3)
    load_weights(model, resnet20_weights)
    images = load_images(cifar10_folder, "test")
    assert len(images) == 10_000
    top1 = tn.studies.accuracy(model, images, batch_size=200)
    assert top1 == pytest.approx(0.9173, abs=5e-5)  # half an image: the very same 9,173 are right


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.stem)
def test_shipped_weights_are_small_and_find_their_network(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.stat().st_size < 4_000_000
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert all(facts[name] for name in ("about", "origin", "licence"))
    model = build_model(facts["about"].partition(",")[0], classes=len(facts["classes"].split()), channels=3)
    load_weights(model, "shipped")
    assert path.stem in capsys.readouterr().out
    for key, value in state.items():
        torch.testing.assert_close(model.state_dict()[key], value.float(), rtol=0, atol=0)


def test_a_network_without_shipped_weights_is_refused() -> None:
    check_refused(Path("shipped"), "Sequential", "--weights FILE")
