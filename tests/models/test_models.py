"""The networks compute what their papers say, and are found by name."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from models import MODELS, build_model, build_surrogate
from models.cifar_resnet import BasicBlock, CifarResNet, resnet20, resnet32, resnet44, resnet56
from models.cnn4 import cnn4
from models.resnet50 import resnet50
from tests.refusals import refused
from tnalgebra.errors import DataError

_module_numbers = itertools.count()


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3)])
def test_cnn4_is_its_description(size: int, channels: int) -> None:
    model = cnn4(classes=7, channels=channels, widths=(2, 3, 5, 6))
    batch = images(4, channels, size, size)
    described = nn.Sequential(
        *(model.conv1, nn.ReLU(), model.conv2, nn.ReLU(), nn.MaxPool2d(2)),
        *(model.conv3, nn.ReLU(), model.conv4, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.linear),
    )
    logits = model(batch)
    assert logits.shape == (4, 7)
    torch.testing.assert_close(logits, described(batch))
    kernels = [tuple(layer.weight.shape) for layer in (model.conv1, model.conv2, model.conv3, model.conv4)]
    assert kernels == [(2, channels, 3, 3), (3, 2, 3, 3), (5, 3, 3, 3), (6, 5, 3, 3)]


@pytest.mark.parametrize(
    ("build", "depth", "parameters"),
    [(resnet20, 20, 269_722), (resnet32, 32, 464_154), (resnet44, 44, 658_586), (resnet56, 56, 853_018)],
)
def test_cifar_resnets_have_the_depth_and_parameters_of_the_paper(
    build: Callable[..., CifarResNet], depth: int, parameters: int
) -> None:
    model = build()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(images(2, 3, 32, 32)).shape == (2, 10)


def test_shortcut_takes_every_second_pixel_and_puts_zero_channels_around() -> None:
    block = BasicBlock(2, 6, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    features = images(3, 2, 7, 4) - 0.5
    result = block(features)
    assert result.shape == (3, 6, 4, 2)
    for channel, y, x in itertools.product(range(6), range(4), range(2)):
        expected = features[:, channel - 2, 2 * y, 2 * x].relu() if channel in (2, 3) else torch.zeros(3)
        torch.testing.assert_close(result[:, channel, y, x], expected, rtol=0, atol=0)


def test_block_without_a_change_of_size_adds_its_input() -> None:
    block = BasicBlock(3, 3, stride=1)
    features = images(2, 3, 5, 4)
    hidden = functional.relu(block.bn1(functional.conv2d(features, block.conv1.weight, padding=1)))
    expected = functional.relu(features + block.bn2(functional.conv2d(hidden, block.conv2.weight, padding=1)))
    torch.testing.assert_close(block(features), expected)


def test_resnet50_is_torchvisions() -> None:
    theirs = torchvision.models.resnet50(weights=None).eval()
    model = resnet50()
    model.load_state_dict(theirs.state_dict())
    batch = images(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(batch), theirs(batch), rtol=0, atol=0)


@pytest.mark.parametrize(("cifar_stem", "stem", "last_size"), [(False, (64, 1, 7, 7), 1), (True, (64, 1, 3, 3), 4)])
def test_resnet50_for_other_images(cifar_stem: bool, stem: tuple[int, ...], last_size: int) -> None:
    model = resnet50(classes=5, channels=1, cifar_stem=cifar_stem).eval()
    sizes: list[tuple[int, ...]] = []
    model.get_submodule("layer4").register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape)))
    assert model(images(2, 1, 32, 32)).shape == (2, 5)
    assert tuple(model.get_parameter("conv1.weight").shape) == stem
    assert sizes == [(2, 2048, last_size, last_size)]


def test_every_registered_model_is_built_for_the_images() -> None:
    assert list(MODELS) == ["cnn4", "resnet20", "resnet32", "resnet44", "resnet56", "resnet50", "resnet50_cifar"]
    for name in MODELS:
        model = build_model(name, classes=3, channels=2).eval()
        assert model(images(1, 2, 32, 32)).shape == (1, 3), name


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
    fields = [build_surrogate("wave_net", inputs=3, outputs=1, seed=1).first.weight for _ in range(2)]
    assert torch.equal(*fields)
