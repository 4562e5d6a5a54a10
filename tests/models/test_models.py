"""The networks compute what their papers say, and are built for images of any kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import models
from models.cifar_resnet import BasicBlock, CifarResNet, resnet20, resnet32, resnet44, resnet56
from models.cnn4 import cnn4
from models.resnet50 import resnet50


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


def test_a_narrow_resnet50_has_torchvisions_layers_with_fewer_channels() -> None:
    theirs = torchvision.models.resnet50(weights=None, num_classes=8)
    model = resnet50(classes=8, width=32)
    for (name, module), (their_name, their_module) in zip(model.named_modules(), theirs.named_modules(), strict=True):
        assert name == their_name
        if isinstance(module, torch.nn.Conv2d):
            assert isinstance(their_module, torch.nn.Conv2d)
            assert module.in_channels == (3 if name == "conv1" else their_module.in_channels // 2)
            assert module.out_channels == their_module.out_channels // 2
            assert (module.stride, module.padding) == (their_module.stride, their_module.padding)
    assert model(images(2, 3, 64, 64)).shape == (2, 8)


def test_every_classifier_is_built_for_the_images() -> None:
    for name in models.__all__:
        if name != "wave_net":
            model = getattr(models, name)(classes=3, channels=2).eval()
            assert model(images(1, 2, 32, 32)).shape == (1, 3), name
