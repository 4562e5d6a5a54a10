"""Streams of layers and models: every output equals that of the model for the whole clip, frame by frame."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import LayerError, StreamError
from tnalgebra.streams import Stream
from tnalgebra.streams.flow import step_code
from tnalgebra.streams.timing import Delay


def outputs_of(stream: Stream, clip: Tensor, axis: int = 2, *, result_axis: int = 2) -> Tensor:
    """The outputs of a clip, those of `flush` at the end."""
    outputs = [y for x in clip.unbind(axis) if (y := stream.step(x)) is not None]
    assert len(outputs) == max(0, (clip.shape[axis] - 1 - stream.delay) // stream.stride + 1) or not stream.delay
    return torch.cat([torch.stack(outputs, result_axis), stream.flush()], result_axis)


def settled(model: nn.Module) -> nn.Module:
    """A model in float64 and evaluation mode, its batch normalisations with statistics of some training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.double().eval()


def check(
    model: nn.Module, shape: tuple[int, ...], along: str | int = "t", *, result_axis: int | None = None
) -> Stream:
    """Compare a stream with its model on a random clip."""
    model = settled(model)
    axis = along if isinstance(along, int) else {"t": 2, "y": 3}[along]
    stream = tn.stream(model, along, example=shape, padding="streaming")
    clip = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actual = outputs_of(stream, clip, axis, result_axis=axis if result_axis is None else result_axis)
        torch.testing.assert_close(actual, model(clip), rtol=1e-9, atol=1e-9)
    return stream


# Layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewrite", "groups"),
    [("cp", 1), ("tucker2", 1), ("tucker", 2), ("tensor_train", 1), ("tensor_ring", 2), ("out kh | in kw kd", 1)],
)
def test_layers_with_kernels_in_any_decomposition(rewrite: str, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 6, (3, 3, 2), padding=(1, 1, 0), stride=(1, 1, 2), dilation=(2, 1, 1), groups=groups)
    layer = tn.nn.decomposed(conv.double(), rewrite, 3, starts=1)
    stream = check(layer, (2, 4, 9, 5, 4))
    assert [len(shape) for shape in stream.state_shapes if shape] == [5]
    assert [shape[2] for shape in stream.state_shapes if shape] == [4], "dilation * (size - 1) frames"


@pytest.mark.parametrize(
    ("layer", "shape", "along"),
    [
        (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 11), "t"),
        (nn.Conv1d(4, 4, 3, padding=2, groups=4, stride=2), (2, 4, 12), "t"),
        (nn.Conv1d(3, 4, 2, padding=4), (2, 3, 11), "t"),
        (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 12, 7), "t"),
        (nn.Conv2d(3, 4, (2, 3), padding=1, stride=2), (2, 3, 7, 11), "y"),
        (nn.Conv3d(3, 4, (3, 2, 2), padding=(1, 0, 1), padding_mode="zeros"), (1, 3, 8, 4, 3), 2),
        (nn.Conv3d(3, 4, (2, 2, 3), padding=(0, 0, 1), padding_mode="zeros"), (1, 3, 4, 3, 9), 4),
        (nn.AvgPool1d(3, stride=1, padding=1), (2, 3, 9), "t"),
        (nn.AvgPool3d((2, 2, 2), stride=(1, 2, 2), divisor_override=3), (1, 3, 7, 4, 4), "t"),
        (nn.AvgPool3d((2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), count_include_pad=False), (1, 3, 7, 4, 4), "t"),
        (nn.MaxPool1d(3, stride=2, padding=1, dilation=2), (2, 3, 14), "t"),
        (nn.MaxPool3d((2, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)), (1, 3, 9, 4, 4), "t"),
    ],
)
def test_layers_of_torch(layer: nn.Module, shape: tuple[int, ...], along: str | int) -> None:
    check(layer, shape, along)


# Models ---------------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """A block of a temporal convolutional network: padded on both ends, the right end cut off, and a shortcut."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv = nn.Conv1d(channels, channels, 3, padding=self.cut, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)[:, :, : -self.cut])) + x


class Shortcut(nn.Module):
    """A residual block of a video network, strided, whose shortcut is concatenated as well."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1, stride=stride)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(channels)
        self.short = nn.Conv3d(channels, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        short = self.short(x)
        y = self.norm(self.second(functional.relu(self.first(x), inplace=True)))
        y += short
        return torch.cat([y.relu(), short], 1)


class Head(nn.Module):
    """Paddings and poolings as functions, and linear heads: one of mean positions, one of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 5, 3, padding=(0, 1, 1))
        self.mean, self.all = nn.Linear(5, 4), nn.Linear(5 * 25, 4)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(functional.pad(x, (0, 0, 0, 0, 2, 0)))
        x = functional.max_pool3d(x, (2, 2, 2), stride=1)[..., 1:]
        n, _, t = x.shape[:3]
        x = functional.pad(x, (1, 0, 0, 0))
        return self.mean(x.mean((3, 4)).transpose(1, 2)) + self.all(x.transpose(1, 2).reshape(n, t, -1)) + self.shift


def test_a_causal_network_has_no_delay() -> None:
    model = nn.Sequential(Causal(4, 1), Causal(4, 2), Causal(4, 4))
    stream = check(model, (2, 4, 20))
    assert (stream.delay, stream.receptive_field) == (0, 15)
    assert tn.stream(model, "t").delay == 0, "nothing is padded on the right in the end"
    assert stream.state_shapes == ((2, 4, 2), (2, 4, 4), (2, 4, 8))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_branches_are_delayed_until_they_meet(stride: int) -> None:
    stream = check(nn.Sequential(Shortcut(2, stride), nn.ReLU(), Shortcut(4, 1)), (1, 2, 16, 6, 5))
    assert stream.stride == stride


def test_a_wrong_delay_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Delay, "held", lambda delay, before: -(-delay.steps // before.stride) + 1)
    with pytest.raises(AssertionError):
        check(Shortcut(2, 1), (1, 2, 12, 4, 4))


def test_heads_of_frames() -> None:
    check(Head(), (2, 3, 9, 6, 6), result_axis=1)


def test_poolings_dropout_and_activations() -> None:
    model = nn.Sequential(
        *(nn.ConstantPad3d((0, 0, 0, 0, 2, 0), 0.5), nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.SiLU(inplace=True)),
        *(nn.Dropout3d(0.5), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(4, 4, (3, 1, 1), dilation=(2, 1, 1), groups=2)),
        *(nn.PReLU(), nn.AvgPool3d((2, 1, 1), stride=1), nn.AdaptiveAvgPool3d((None, 1, 1)), nn.Flatten(3)),
    )
    stream = check(model, (1, 2, 14, 8, 8))
    assert (stream.delay, stream.receptive_field) == (5, 8)


class Centred(nn.Conv3d):
    """Functions in place of a layer: a convolution whose kernel is computed at each call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return functional.conv3d(x, weight, self.bias, self.stride, self.padding, self.dilation, groups=self.groups)


class Named(nn.Conv3d):
    """A layer of another class that computes what torch's does, as in models of torchvision."""

    def __init__(self, channels: int) -> None:
        super().__init__(3, channels, (3, 3, 3), padding=(1, 1, 1))


def test_weights_that_are_computed_and_layers_of_other_classes() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv3d(4, 4, (2, 3, 1), padding=(0, 1, 0), dilation=(2, 1, 1)))
    stream = check(nn.Sequential(Named(4), nn.ReLU(), normed, Centred(4, 4, 3, 2, 1, groups=2)), (1, 3, 14, 6, 5))
    assert stream.stride == 2


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """A chain of one to four layers along time, some of them with a shortcut and a decomposed kernel."""
    parts: list[nn.Module] = []
    channels = 3
    torch.manual_seed(draw(st.integers(0, 99)))
    for _ in range(draw(st.integers(1, 4))):
        size, dilation, stride = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.sampled_from((1, 1, 2)))
        reach = dilation * (size - 1)
        match draw(st.sampled_from(("causal", "same", "none", "block", "pool"))):
            case "causal":
                parts.append(nn.ConstantPad1d((reach, 0), 0.0))
                parts.append(nn.Conv1d(channels, 4, size, dilation=dilation, stride=stride))
            case "same":
                conv = nn.Conv1d(channels, 4, size, dilation=dilation, padding=reach // 2 if stride > 1 else "same")
                parts.append(conv)
            case "none":
                conv = nn.Conv1d(channels, 4, size, dilation=dilation, stride=stride, padding=draw(st.integers(0, 2)))
                parts.append(tn.nn.decomposed(conv, draw(st.sampled_from(("cp", "tensor_train"))), 2, starts=1))
            case "block":
                parts.append(Causal(channels, dilation))
                continue
            case _:
                parts.append(draw(st.sampled_from((nn.AvgPool1d, nn.MaxPool1d)))(size, stride=1))
                continue
        parts.append(draw(st.sampled_from((nn.ReLU(), nn.BatchNorm1d(4), nn.Hardswish()))))
        channels = 4
    return nn.Sequential(*parts)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(layers())
@settings(max_examples=15)
def test_random_models(model: nn.Module) -> None:
    check(model, (2, 3, 40))


class Applied(nn.Module):
    """A function of a clip and a weight, without a layer."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(2, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, _: functional.avg_pool1d(x, 4, 4),
        lambda x, _: functional.avg_pool1d(x, 5),
        lambda x, _: functional.avg_pool1d(x, 6, stride=3),
        lambda x, _: functional.max_pool1d(x, 8, 8),
        lambda x, weight: functional.conv1d(x, weight, stride=4),
        lambda x, weight: functional.conv1d(x, weight, None, 5),
        lambda x, _: x[:, :, ::4],
    ],
)
def test_functions_with_strides(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    check(Applied(function), (2, 3, 41))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, weight: functional.conv1d(x, weight, dilation=6),
        lambda x, weight: functional.conv1d(x, weight, None, 2, dilation=11),
        lambda x, _: x[:, :, 50:],
    ],
)
def test_functions_that_reach_far(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    check(Applied(function), (2, 3, 101))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose code is written, in the order in which that happens."""
    steps: list[int] = []

    def recorded(flow: torch.fx.GraphModule, step: int, *others: Any, **named: Any) -> torch.fx.GraphModule:
        steps.append(step)
        return step_code(flow, step, *others, **named)

    monkeypatch.setattr(import_module("tnalgebra.streams.stream"), "step_code", recorded)
    return steps


def test_steps_that_are_alike_share_their_code(written: list[int]) -> None:
    model = settled(nn.Sequential(nn.Conv1d(2, 2, 9, padding=8, dilation=2), nn.AvgPool1d(2)))
    stream, clip = tn.stream(model, "t", example=(1, 2, 60)), torch.randn(1, 2, 60, dtype=torch.float64)
    for _ in range(2):
        outputs = torch.cat([stream.steps(clip), stream.flush()], 2)
        torch.testing.assert_close(outputs, model(clip))
    assert len(written) <= 8, "before, while and after the window is full, on and beside the lattice of the pooling"


def test_steps_before_the_first_frame_share_their_code(written: list[int]) -> None:
    model = settled(nn.Sequential(nn.ConstantPad1d((6, 0), 1.0), nn.Sigmoid(), nn.Conv1d(2, 2, 3)))
    stream, clip = tn.stream(model, "t", example=(1, 2, 9)), torch.randn(1, 2, 9, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(torch.cat([stream.steps(clip), stream.flush()], 2), model(clip))
    before = [step for step in written if step < 0]
    assert 1 <= len(before) <= 3, "the padding fills the window, or is left behind"


# States and copies -----------------------------------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(2)
    return settled(nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 2, 2)))


def test_the_step_is_pure_and_states_are_known_beforehand() -> None:
    model, clip = small(), torch.randn(2, 3, 9, dtype=torch.float64)
    stream = tn.stream(model, "t", example=clip)
    state = stream.initial_state()
    assert tuple(tensor.shape for tensor in state) == stream.state_shapes == ((), (2, 3, 2), (2, 4, 1))
    first = state
    outputs = []
    for frame in clip.unbind(2):
        before = [tensor.clone() for tensor in state]
        y, new = stream.step(frame, state)
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True)), "no state is changed in place"
        assert [(one.shape, one.dtype) for one in new] == [(one.shape, one.dtype) for one in state]
        outputs.append(y)
        state = new
    assert [y is None for y in outputs] == [True] * stream.delay + [False] * 7
    expected = model(clip)
    torch.testing.assert_close(torch.stack([y for y in outputs if y is not None], 2), expected[:, :, :7])
    again, _ = stream.step(clip[:, :, 0], first)
    assert again is None
    y, _ = stream.step(clip[:, :, 2], stream.step(clip[:, :, 1], stream.step(clip[:, :, 0], first)[1])[1])
    assert y is not None
    y.sum().backward()
    assert model[0].weight.grad is not None, "gradients pass through the state"


def test_a_stream_has_the_weights_of_its_model_and_its_own_state() -> None:
    model, clip = small(), torch.randn(2, 3, 9, dtype=torch.float64)
    stream = tn.stream(model, "t", example=clip)
    other = copy.deepcopy(stream)
    stream.steps(clip[:, :, :4])
    kept = copy.deepcopy(stream)
    rest = torch.cat([stream.steps(clip[:, :, 4:]), stream.flush()], 2)
    torch.testing.assert_close(torch.cat([kept.steps(clip[:, :, 4:]), kept.flush()], 2), rest)
    with torch.no_grad():
        model[0].weight.mul_(-1)
    torch.testing.assert_close(outputs_of(stream, clip), model(clip))
    assert not torch.allclose(outputs_of(other, clip), model(clip))
    stream.float()
    torch.testing.assert_close(outputs_of(stream, clip.float()), model(clip.float()))
    assert model[0].weight.dtype == torch.float32
    one = clip.float()[:1]
    torch.testing.assert_close(outputs_of(stream, one), model(one)), "another batch"


def test_a_stream_is_pickled_with_its_state() -> None:
    model, clip = small(), torch.randn(2, 3, 9, dtype=torch.float64)
    stream = tn.stream(model, "t", example=clip)
    stream.steps(clip[:, :, :4])
    other = pickle.loads(pickle.dumps(stream))
    for one in (stream, other):
        rest = torch.cat([one.steps(clip[:, :, 4:]), one.flush()], 2)
        torch.testing.assert_close(rest, model(clip)[:, :, 4 - stream.delay :])


def test_frames_may_be_written_over() -> None:
    model, clip = small(), torch.randn(2, 3, 9, dtype=torch.float64)
    stream, frame = tn.stream(model, "t", example=clip), torch.empty(2, 3, dtype=torch.float64)
    outputs = []
    for one in clip.unbind(2):
        outputs.append(stream.step(frame.copy_(one)))
    torch.testing.assert_close(torch.stack([y for y in outputs if y is not None], 2), model(clip)[:, :, :7])


def test_a_kept_state_moves_with_the_stream() -> None:
    model, clip = small(), torch.randn(2, 3, 9, dtype=torch.float64)
    stream = tn.stream(model, "t", example=clip)
    first = stream.steps(clip[:, :, :5])
    stream.float()
    second = torch.cat([stream.steps(clip[:, :, 5:].float()), stream.flush()], 2)
    torch.testing.assert_close(torch.cat([first.float(), second], 2), model(clip.float()))


def test_a_frozen_stream_computes_the_same() -> None:
    model = settled(nn.Sequential(tn.nn.decomposed(nn.Conv1d(6, 8, 5), "cp", 3, starts=1), nn.ReLU()))
    stream = tn.stream(model, "t", example=(1, 6, 9))
    clip = torch.randn(1, 6, 9, dtype=torch.float64)
    expected = stream.steps(clip)
    stream.reset()
    torch.testing.assert_close(stream.freeze().steps(clip), expected)


# Compiled and exported -------------------------------------------------------------------------------------------


def exported() -> tuple[Stream, Tensor, Tensor]:
    """A stream with padding behind a delay, a clip, and the model's output for it."""
    torch.manual_seed(0)
    layer = tn.nn.decomposed(nn.Conv1d(4, 4, 3), "cp", 2, starts=1)
    model = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), layer).eval()
    clip = torch.randn(2, 3, 12)
    return tn.stream(model, "t", example=clip, padding="streaming"), clip, model(clip).detach()


def test_the_module_is_the_step_after_the_delay() -> None:
    stream, clip, expected = exported()
    for call in (stream, torch.export.export(stream, (clip[:, :, 0], stream.initial_state())).module()):
        state, outputs = stream.initial_state(), []
        for frame in clip.unbind(2):
            y, state = call(frame, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs[stream.delay :], 2), expected[:, :, : 12 - stream.delay])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_and_onnx_take_the_step(tmp_path: Path) -> None:
    import onnxruntime

    stream, clip, expected = exported()
    state = stream.initial_state()
    torch.onnx.export(stream, (clip[:, :, 0], state), tmp_path / "step.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "step.onnx"), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in state]
    compiled: Any = torch.compile(stream, backend="aot_eager")
    for number, frame in enumerate(clip.unbind(2)):
        y, *arrays = session.run(None, dict(zip(names, [frame.numpy(), *arrays], strict=True)))
        z, state = compiled(frame, state)
        if number >= stream.delay:
            torch.testing.assert_close(torch.from_numpy(y), expected[:, :, number - stream.delay], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(z, expected[:, :, number - stream.delay], rtol=1e-4, atol=1e-5)


def test_a_strided_step_has_no_single_code() -> None:
    stream = tn.stream(nn.Conv1d(3, 4, 3, stride=2), "t")
    with refused(StreamError, "every step of 2", "stream.step(x, state)"):
        stream(torch.randn(1, 3), stream.initial_state())


# What is shown and refused ---------------------------------------------------------------------------------------


def test_what_a_stream_shows() -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 4, 3, padding=1)).eval()
    stream = tn.stream(model, "t", example=(1, 3, 16, 10, 10), padding="streaming")
    shown = repr(stream)
    for fact in (
        "delay 2",
        "receptive field 5",
        "state of 2,200 elements in 2 tensors",
        "a clip of 16",
        "flush: 2 (Conv3d)",
    ):
        assert fact in shown
    assert stream.multiply_adds == 100 * 27 * (3 * 8 + 8 * 4)
    assert stream.clip_multiply_adds == 16 * stream.multiply_adds


class Scaled(nn.Module):
    """Arguments with defaults are those that a stream has."""

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
        return scale * x if mask is None else mask * x


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return mask * x


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


class Backwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(2)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = nn.Conv1d(3, 3, 1, stride=2), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.slow(x), self.fast(x)], 2)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1:] * x


class Recurrent(nn.Module):
    """Of the two outputs of its layer one has no axis of time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x.transpose(1, 2))[0]
        return states.transpose(1, 2)


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (Recurrent(), ("layer (GRU)", "output 1 of 2 has no axis of time")),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1)), ("1 (AdaptiveAvgPool1d)", "global pooling")),
        (nn.Sequential(nn.Conv1d(3, 4, 3), Mean()), ("mean", "global pooling", "AvgPool3d((16, 1, 1), stride=1)")),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(1)), ("1 (Flatten)",)),
        (nn.GroupNorm(1, 3), ("0 (GroupNorm)", "computes a frame from other frames")),
        (nn.Softmax(2), ("0 (Softmax)", "computes a frame from other frames")),
        (Backwards(), ("flip", "computes a frame from other frames")),
        (Last(), ("getitem", "counted from its end")),
        (Joined(), ("cat",)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2), ("0 (ConvTranspose1d)", "is not a window over")),
        (nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), ("0 (Conv1d)", "circular")),
        (nn.Sequential(nn.ReplicationPad1d((2, 0)), nn.Conv1d(3, 4, 3)), ("0 (ReplicationPad1d)", "replication")),
        (nn.AvgPool1d(3, padding=1, stride=1, count_include_pad=False), ("count_include_pad is False",)),
        (nn.MaxPool1d(3, ceil_mode=True), ("ceil_mode",)),
        (
            nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1)),
            ("2 (Conv1d) is behind another window and is padded by 1", "padding='streaming'"),
        ),
    ],
)
def test_what_cannot_be_a_stream_is_refused_by_name(model: nn.Module, facts: tuple[str, ...]) -> None:
    with refused(StreamError, *facts):
        tn.stream(model.eval(), "t", example=(1, 3, 16))


def test_a_weight_of_zero_does_not_hide_that_frames_are_mixed() -> None:
    norm = nn.GroupNorm(1, 3)
    nn.init.zeros_(norm.weight)
    with refused(StreamError, "0 (GroupNorm)"):
        tn.stream(norm, "t", example=(1, 3, 16))


def test_modes_and_weights_are_checked() -> None:
    check(nn.Sequential(nn.Conv1d(3, 4, 3), Scaled()), (1, 3, 8))
    with refused(StreamError, "Masked has another input 'mask'"):
        tn.stream(Masked(), "t", example=(1, 3, 8))
    with refused(StreamError, "1 (BatchNorm1d) is in training mode", "model.eval()"):
        tn.stream(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), "t")
    with refused(StreamError, "along is 'time'"):
        tn.stream(nn.Conv1d(3, 4, 3), "time")
    with refused(StreamError, "does not have axis 5"):
        tn.stream(nn.Conv1d(3, 4, 3), 5)
    with refused(StreamError, "no layer that shows the shape of a clip", "example="):
        tn.stream(nn.Sequential(nn.ReLU()), "t")
    reflected = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3, padding_mode="reflect"))
    with refused(LayerError, "computed from other parameters"):
        tn.stream(reflected, "t")
    with refused(StreamError, "values are given for a module"):
        tn.stream(nn.Conv1d(3, 4, 3), "t", values={"K": torch.ones(4, 3, 3)})
