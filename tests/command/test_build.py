"""Networks are found by name: ours, a function of one's own, and those of torchvision and timm."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.refusals import refused
from tnalgebra.command import build_model
from tnalgebra.command.build import check_trained
from tnalgebra.errors import DataError, MissingPackageError, StudyError

_module_numbers = itertools.count()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with refused(DataError, "'resnet-20'", "resnet50_cifar", "did you mean 'resnet20'?", "package.module:function"):
        build_model("resnet-20", classes=10, channels=3)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module with this text into the current directory, which is not on the import path; give its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])

    def write(text: str) -> str:
        package = f"own_networks_{next(_module_numbers)}"
        (tmp_path / package).mkdir()
        (tmp_path / package / "nets.py").write_text("from torch import nn\n" + text)
        return f"{package}.nets"

    return write


@pytest.mark.parametrize(
    ("parameters", "outputs", "inputs"),
    [
        ("classes, channels", 3, 2),
        ("*, channels=7, depth=1", 9, 2),
        ("classes=7", 3, 8),
        ("", 9, 8),
        ("depth=1, **settings", 3, 2),
        ("classes=7, /", 7, 8),
    ],
)
def test_a_function_of_ones_own_gets_what_it_can_take(
    module: Callable[[str], str], parameters: str, outputs: int, inputs: int
) -> None:
    name = module(
        f"def build({parameters}):\n"
        "    given = locals() | locals().get('settings', {})\n"
        "    return nn.Linear(given.get('channels', 8), given.get('classes', 9))\n"
    )
    before = list(sys.path)
    model = build_model(f"{name}:build", classes=3, channels=2)
    assert isinstance(model, nn.Linear)
    assert (model.out_features, model.in_features) == (outputs, inputs)
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "function", "facts"),
    [
        ("def build(): return 3", "build", ["int", "torch.nn.Module"]),
        ("def build(): pass", "biuld", ["'biuld'", "nets.py", ":build?"]),
        ("net = nn.ReLU()", "net", ["'net'", "a ReLU"]),
        ("def build(classes, n): pass", "build", ["'n'", "build(classes, n)", "classes=3"]),
        ("import no_such_module_here", "build", ["'no_such_module_here'"]),
        ("def build(:", "build", ["SyntaxError"]),
        ("def build(classes): return nn.Linear(classes, -1)", "build", ["RuntimeError: ", "classes=3"]),
    ],
)
def test_what_is_wrong_with_a_module_of_ones_own(
    module: Callable[[str], str], text: str, function: str, facts: list[str]
) -> None:
    name = module(text)
    with refused(DataError, name, *facts):
        build_model(f"{name}:{function}", classes=3, channels=2)


@pytest.mark.parametrize("name", ["nowhere.nets:build", "a:", ":b", "a..b:c", "a/b:c", "a:b:c"])
def test_a_text_that_names_no_function(name: str) -> None:
    with refused(DataError, name):
        build_model(name, classes=3, channels=2)


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, other = (build_model("cnn4", classes=3, channels=1, seed=seed).conv1.weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    torch.manual_seed(1)
    assert torch.equal(build_model("cnn4", classes=3, channels=1).conv1.weight, a)


def test_a_network_gets_the_sizes_it_has() -> None:
    assert build_model("wave_net", inputs=4, outputs=2)(torch.zeros(1, 4, 9, 8)).shape == (1, 2, 9, 8)
    with refused(DataError, "'wave_net'", "'classes'", "classes=3, channels=2"):
        build_model("wave_net", classes=3, channels=2)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_resnet"])
def test_a_network_of_a_library(name: str) -> None:
    model = build_model(name, classes=4, channels=3, seed=1).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    with refused(StudyError, name, "not trained", "--untrained"):
        check_trained(model, name, pretrained=False, seed=1, classes=4, channels=3)
    assert build_model(name)(torch.zeros(2, 3, 32, 32)).shape == (2, 1000), "the library's own default"


def test_timm_builds_for_any_number_of_channels_and_torchvision_for_three() -> None:
    assert build_model("timm:test_resnet", classes=4, channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    with refused(DataError, "3 channels", "have 1", "timm:NAME"):
        build_model("torchvision:resnet18", classes=4, channels=1)


@pytest.mark.parametrize(("name", "near"), [("torchvision:resnet19", "resnet18"), ("timm:resnet27", "resnet26")])
def test_a_library_without_such_a_network(name: str, near: str) -> None:
    with refused(DataError, name.partition(":")[2], near):
        build_model(name)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnalgebra.command.build.find_spec", lambda name: None)
    with refused(MissingPackageError, "timm:resnet26", "timm", "tnalgebra[study]"):
        build_model("timm:resnet26")


def test_pretrained_weights_are_for_libraries() -> None:
    with refused(DataError, "'cnn4'", "--weights FILE"):
        build_model("cnn4", pretrained=True, classes=10, channels=1)


def test_a_plain_name_outside_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnalgebra.command.build.CHECKOUT", "models_that_nobody_has")
    with refused(DataError, "'resnet20'", "models_that_nobody_has", "torchvision:NAME"):
        build_model("resnet20")


def test_a_function_that_loads_its_weights_is_trained(module: Callable[[str], str]) -> None:
    name = module(
        "def build():\n"
        "    net = nn.Linear(3, 4)\n"
        "    for parameter in net.parameters():\n"
        "        nn.init.ones_(parameter)\n"
        "    return net\n"
    )
    check_trained(build_model(f"{name}:build", seed=0), f"{name}:build", pretrained=False, seed=0)
