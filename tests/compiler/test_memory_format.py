"""Memory formats of decomposed layers: plans are made for the one that inputs come in, and outputs lie in it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.compiler.operations import Add, Arrange
from tnalgebra.errors import CompileError
from tnalgebra.nn.torch_layers import memory_format_of

FORMATS = (torch.contiguous_format, torch.channels_last)

LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "3x3": (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    "1x1": (nn.Conv2d, {"kernel_size": 1}),
    "1x1 strided": (nn.Conv2d, {"kernel_size": 1, "stride": 2, "bias": False}),
    "3x3 strided": (nn.Conv2d, {"kernel_size": 3, "stride": (2, 1)}),
    "dilated, circular": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"}),
    "groups": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "groups": 2}),
    "transposed": (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2}),
}


def in_format(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout)


def images(layout: torch.memory_format, channels: int = 8) -> Tensor:
    return in_format(torch.randn(3, channels, 11, 9, dtype=torch.float64), layout)


def layer_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, arguments = LAYERS[name]
    return kind(8, 6, **arguments, dtype=torch.float64)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("name", "rewrite"),
    [
        *((name, rewrite) for name in LAYERS for rewrite in ("tucker2", "out kh | in kw", "depthwise_separable")),
        *(("3x3", rewrite) for rewrite in ("cp", "tensor_ring", "out | in kh kw")),
    ],
)
def test_every_candidates_output_lies_as_torchs(name: str, rewrite: str, layout: torch.memory_format) -> None:
    dense = layer_of(name).to(memory_format=layout)
    layer = tn.nn.decomposed(dense, rewrite, size=tn.KeepFraction(0.5) if "|" in rewrite else ranks_of(rewrite))
    x = images(layout)
    wanted = layer.to_dense()(x)
    assert wanted.is_contiguous(memory_format=layout)
    plan = layer.plan
    for candidate in plan.candidates:
        layer._use(tn.compiler.Plan(plan.request, (candidate,)))
        value = layer(x)
        assert value.is_contiguous(memory_format=layout), candidate.program.style
        torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-11)
    assert layer.freeze()(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("rewrite", ["cp", "tensor_ring", "tensor_train", "tucker2", "kernel | channel"])
@pytest.mark.parametrize(
    "dense",
    [
        nn.ConvTranspose1d(3, 2, 1, stride=2, padding=1, dtype=torch.float64),
        nn.ConvTranspose1d(1, 3, 2, stride=2, dilation=2, dtype=torch.float64),
        nn.ConvTranspose2d(2, 6, 1, stride=(1, 2), dtype=torch.float64),
        nn.Conv1d(1, 3, 2, dtype=torch.float64),
        nn.Conv2d(3, 1, (1, 2), dtype=torch.float64),
        nn.Conv3d(2, 3, 1, dtype=torch.float64),
    ],
    ids=str,
)
def test_axes_of_one_element_leave_the_output_contiguous(dense: nn.Module, rewrite: str) -> None:
    one, other, *window = tn.nn.kernel_labels_of(dense)
    if "|" in rewrite:
        rewrite = f"{one} {' '.join(window)} | {other}"
    for rank in (1, 2):
        layer = tn.nn.decomposed(dense, rewrite, tn.KeepFraction(0.5) if "|" in rewrite else rank, starts=1, sweeps=1)
        x = torch.randn(2, dense.in_channels, *(4 + axis for axis in range(len(window))), dtype=torch.float64)
        plan, reference = layer.plan, layer.to_dense()
        for candidate in plan.candidates:
            layer._use(tn.compiler.Plan(plan.request, (candidate,)))
            assert layer(x).is_contiguous(), layer.code
            torch.testing.assert_close(layer(x), reference(x), rtol=1e-11, atol=1e-11)
        assert layer.eval().freeze()(x).is_contiguous(), layer.code


def ranks_of(rewrite: str) -> int | dict[str, int]:
    return dict.fromkeys(tn.rules()[rewrite].ranks, 2)


@pytest.mark.parametrize("shape", [(6, 8, 3, 3), (6, 8, 1, 1), (6, 1, 3, 3), (6, 8, 3, 3, 3), (6, 8, 1, 1, 1)], ids=str)
def test_formats_are_told_apart_by_strides(shape: tuple[int, ...]) -> None:
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    conv = (nn.Conv2d if len(shape) == 4 else nn.Conv3d)(shape[1], shape[0], shape[2:])  # type: ignore[arg-type]
    assert memory_format_of(conv.weight) == torch.contiguous_format
    assert memory_format_of(conv.to(memory_format=last).weight) == last
    assert memory_format_of(torch.empty(6, 8, 3)) == torch.contiguous_format


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1, stride=2, bias=False)
    begin = {"first": first, "norm": nn.BatchNorm2d(8), "relu": nn.ReLU(), "second": second}
    return nn.Sequential(OrderedDict(begin, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(16, 5)))


@pytest.mark.parametrize("whole", [False, True], ids=["images alone", "network and images"])
def test_a_converted_network_stays_in_channels_last(whole: bool) -> None:
    net = small_net().eval()
    if whole:
        net = net.to(memory_format=torch.channels_last)
    # without an example the weights determine the format
    second, _ = tn.convert(copy.deepcopy(net), {"second": ("out | in kh kw", {"r": 2})}, allow_larger=True)
    assert second.second.plan.request.channels_last == whole
    x = in_format(torch.randn(2, 3, 12, 12), torch.channels_last)
    model, _ = tn.convert(net, {torch.nn.Conv2d: ("tucker2", {"a": 2, "b": 2})}, example=x, allow_larger=True)
    formats = []
    for layer in model.modules():
        if isinstance(layer, tn.nn.Conv2d):
            assert layer.plan.request.channels_last
            layer.register_forward_hook(lambda module, inputs, output: formats.append(memory_format_of(output)))
    model(x)
    assert formats == [torch.channels_last] * 2


def test_a_layer_is_planned_for_another_format() -> None:
    layer = tn.nn.decomposed(layer_of("3x3"), "tucker2", size={"a": 3, "b": 3})
    assert not layer.plan.request.channels_last
    layer.replan((3, 8, 11, 9), memory_format=torch.channels_last)
    assert layer.plan.request.channels_last
    x = images(torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    asked = tn.nn.Conv2d.from_conv(
        layer.to_dense(), "tucker2", size={"a": 3, "b": 3}, memory_format=torch.channels_last
    )
    assert asked.plan.request.channels_last
    layer.replan((3, 8, 11, 9))
    assert layer.plan.request.channels_last
    with refused(CompileError, "torch.preserve_format"):
        layer.replan((3, 8, 11, 9), memory_format=torch.preserve_format)


def test_the_bias_stays_with_the_convolution_that_a_copy_follows() -> None:
    layer = tn.nn.decomposed(layer_of("3x3"), "tucker2", size={"a": 3, "b": 3})
    programs = [candidate.program.operations for candidate in layer.plan.candidates]
    copied = [program for program in programs if isinstance(program[-1], Arrange) and program[-1].copies]
    assert copied  # with the bias behind the copy, that would be the last operation
    assert not any(isinstance(operation, Add) for program in copied for operation in program)


@pytest.mark.parametrize("rewrite", ["tucker2", "block_term"])
def test_a_converted_model_is_put_into_a_format(rewrite: str) -> None:
    """Cores of a block term have five axes, of which torch's own `model.to` knows nothing."""
    ranks = ranks_of(rewrite)
    model, _ = tn.convert(small_net().eval(), {"first": (rewrite, ranks)}, example=(2, 3, 12, 12), allow_larger=True)
    x = torch.randn(2, 3, 12, 12)
    expected, before = model(x), dict(model.named_parameters())
    last = in_format(x, torch.channels_last)
    assert tn.nn.in_memory_format(model, torch.channels_last) is model
    assert model.first.plan.request.channels_last
    assert model.first(last).is_contiguous(memory_format=torch.channels_last)
    assert memory_format_of(model.second.weight) == torch.channels_last
    torch.testing.assert_close(model(last), expected, rtol=1e-4, atol=1e-5)
    tn.nn.in_memory_format(model, torch.contiguous_format)
    assert not model.first.plan.request.channels_last
    assert memory_format_of(model.second.weight) == torch.contiguous_format
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    with refused(CompileError, "torch.preserve_format"):
        tn.nn.in_memory_format(model, torch.preserve_format)


def test_a_format_of_other_axes_leaves_a_model_as_it_is() -> None:
    model, _ = tn.convert(small_net(), {"first": ("tucker2", ranks_of("tucker2"))}, allow_larger=True)
    tn.nn.in_memory_format(model, torch.channels_last_3d)
    assert not model.first.plan.request.channels_last
    assert memory_format_of(model.second.weight) == torch.contiguous_format
