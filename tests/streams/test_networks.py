"""Streams of networks: every output equals that of the network for the whole clip, and comes when it is said to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tnalgebra as tn
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.errors import CompileError, StreamError
from tnalgebra.networks import Conv, Fill, NamedTensor, Network, Node, shape_of
from tnalgebra.streams.timing import TimeWindow

FRAMES = 23
"""Of the clips of random networks."""


@st.composite
def chains(draw: st.DrawFn) -> Network:
    """X[n c t] with one to four windows along t, each followed by a kernel, by two cores of one, or by a mean."""
    nodes: list[Node] = [NamedTensor("X", ("n", "c", "t"))]
    sizes = {"n": 2, "c": 3, "t": FRAMES}
    channels, time, left = "c", "t", FRAMES
    for number in range(draw(st.integers(1, 4))):
        size, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        low, high = draw(st.integers(-2, 5)), draw(st.integers(-2, 5))
        stride = draw(st.sampled_from((1, 1, 2, 3)))
        after = (left + low + high - dilation * (size - 1) - 1) // stride + 1
        if after < 1:
            continue
        k, y, left = f"k{number}", f"t{number}", after
        nodes.append(Conv(time, y, k, stride=stride, low=low, high=high, dilation=dilation))
        sizes[k] = size
        time = y
        new, bond = f"c{number}", f"r{number}"
        match draw(st.sampled_from(("kernel", "train", "cp", "mean"))):
            case "kernel":
                nodes.append(NamedTensor(f"K{number}", (new, channels, k)))
            case "train":
                nodes += [NamedTensor(f"A{number}", (channels, bond)), NamedTensor(f"B{number}", (bond, k, new))]
            case "cp":
                cores = [(new, bond), (channels, bond), (k, bond)]
                nodes += [NamedTensor(f"{name}{number}", labels) for name, labels in zip("UVW", cores, strict=True)]
            case _:
                nodes.append(Fill((k,), "mean"))
                continue
        sizes |= {new: 4 + number, bond: 2}
        channels = new
    return Network(nodes, ("n", channels, time), {label: size for label, size in sizes.items() if _is_on(label, nodes)})


def _is_on(label: str, nodes: list[Node]) -> bool:
    return any(label in node.labels for node in nodes)


def outputs_and_steps(stream: Any, clip: Tensor, axis: int) -> tuple[list[Tensor], list[int]]:
    """All outputs of a clip, those of `flush` at the end, and the steps at which the others came."""
    outputs, steps = [], []
    for number, frame in enumerate(clip.unbind(axis)):
        y = stream.step(frame)
        if y is not None:
            outputs.append(y)
            steps.append(number)
    return [*outputs, *stream.flush().unbind(2)], steps


def stream_of(network: Network, values: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """A stream of a network, and its input."""
    weights = {name: value for name, value in values.items() if name != "X"}
    return tn.stream(network, "t", values=weights, padding="streaming"), values["X"]


@given(chains(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_every_output_is_that_of_the_clip_and_comes_in_time(network: Network, seed: int) -> None:
    values = random_values(network, seed)
    stream, clip = stream_of(network, values)
    expected = tn.evaluate(network, values)
    outputs, steps = outputs_and_steps(stream, clip, 2)
    torch.testing.assert_close(torch.stack(outputs, 2), expected, rtol=1e-10, atol=1e-10)
    assert steps == [stream.stride * number + stream.delay for number in range(len(steps))]
    assert (FRAMES - 1 - stream.delay) // stream.stride + 1 in (len(steps), 0) or len(steps) == expected.shape[2]


def test_a_broken_window_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above sees a state that is one frame too long, and zeros that come a frame late."""
    network = tn.parse("X[n:2 c:3 t:9] Conv[t s k:3 | padding=1] K[o:4 c k] -> [n o s]")
    values = random_values(network, 0)
    expected = tn.evaluate(network, values)
    held, after = TimeWindow.held, TimeWindow.after
    broken = {
        "held": lambda window, before: held(window, before) + 1,
        "after": lambda window, before: after(dataclasses.replace(window, low=0), before),
    }
    for name, function in broken.items():
        with monkeypatch.context() as patch:
            patch.setattr(TimeWindow, name, function)
            stream, clip = stream_of(network, values)
            outputs, _ = outputs_and_steps(stream, clip, 2)
        assert len(outputs) != expected.shape[2] or not torch.allclose(torch.stack(outputs, 2), expected), name


def test_what_the_first_core_did_to_a_frame_is_in_the_state() -> None:
    network = tn.parse("X[n:1 c:6 t h:5] Conv[t s k:3] Conv[h u kh:3] A[o:7 r:2] B[c r] C[k r] D[kh r] -> [n o s u]")
    values = {name: value for name, value in random_values(_with_time(network), 0).items() if name != "X"}
    stream = tn.stream(network, "t", values=values)
    (state,) = [shape for shape in stream.state_shapes if shape]
    assert state[:3] == (1, 2, 2), "two frames of two channels, not of six"
    assert (stream.delay, stream.receptive_field) == (2, 3)
    dense = tn.stream("X[n:1 c:6 t h:5] Conv[t s k] Conv[h u kh] K[o c k kh] -> [n o s u]", values={"K": kernel()})
    assert stream.multiply_adds < dense.multiply_adds == 6 * 7 * 9 * 3


def kernel() -> Tensor:
    """A kernel of 7 x 6 x 3 x 3."""
    return torch.randn(7, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _with_time(network: Network) -> Network:
    return tn.networks.with_sizes(network, {"t": 8})


def test_patches_and_tensors_of_two_windows() -> None:
    for text in (
        "X[n:2 c:3 t] Conv[t s k:3 | padding=2:0] -> [n s k c]",
        "X[n:2 c:3 t] Conv[t s k:3 | padding=2:0] Conv[s r j:2 | padding=1:0] K[o:4 c k j] -> [n o r]",
        "X[t n:2 c:4] Fuse[c g:2 i:2] Conv[t s k:3 | padding=2:0] K[o:6 i k] Fuse[o g m:3] -> [s o n]",
    ):
        network = _with_time(tn.parse(text))
        values = random_values(network, 1)
        stream, clip = stream_of(network, values)
        expected = tn.evaluate(network, values)
        assert shape_of(network, network.output) == tuple(expected.shape)
        torch.testing.assert_close(stream.steps(clip), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_terms_of_a_sum_meet(stride: int) -> None:
    """Windows of 5 and 2 frames and none, of which the last two are delayed; the output has another order."""
    text = (
        f"X[n:2 t:14 c:3] Conv[t s k:5 | stride={stride} padding=2] K[o:4 c k]"
        f" + X[n t c] Conv[t s j:2 | stride={stride} padding=1:0] A[o r:2] B[r c j]"
        f" + X[n t c] Conv[t s i:1 | stride={stride}] U[o c i] -> [s n o]"
    )
    network = tn.parse(text)
    values = random_values(network, 3)
    stream = tn.stream(network, "t", values={name: one for name, one in values.items() if name != "X"})
    outputs = torch.cat([stream.steps(values["X"]), stream.flush()])
    torch.testing.assert_close(outputs, tn.evaluate(network, values), rtol=1e-10, atol=1e-10)
    assert (stream.delay, stream.stride) == (2, stride)


def test_a_compiled_network_is_streamed_with_its_own_weights() -> None:
    bias = torch.arange(7.0, dtype=torch.float64)
    text = "X[n c t h] Conv[t s k | padding=2:0] Conv[h u kh] K[o c k kh] -> [n o s u]"
    compiled = tn.compile(text, inputs={"X": (2, 6, 9, 5)}, values={"K": kernel(), "bias": bias}, bias="o")
    stream = tn.stream(compiled, "t")
    clip = torch.randn(2, 6, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(stream.steps(clip), compiled(clip))
    with torch.no_grad():
        compiled.K.mul_(2)
    stream.reset()
    torch.testing.assert_close(stream.steps(clip), compiled(clip))


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("X[n:1 c:3 t] K[o:3 c] -> [n o]", ("all of 't' is summed", "Conv[t s k]")),
        ("X[n:1 c:3 t] Fill[t | value=mean] K[o:3 c] -> [n o]", ("all of 't' is summed", "Conv[t s k]")),
        ("X[n:1 c:3 t] K[o:3 c t] -> [n o t]", ("several nodes", "K[o c t]")),
        ("X[n:1 c:3 t] K[o:3 c t] -> [n o]", ("numbers differ from frame to frame",)),
        ("X[n:1 c:3 s] Conv[t s k:3] K[o:3 c k] -> [n o t]", ("the input 'X' does not have the label 't'",)),
        ("X[n:1 c:3 t] Conv[x t k:3 | stride=2] K[o:3 c k] -> [n o x]", ("Conv[x t k | stride=2]",)),
        ("X[n:1 c:3 t] Fuse[t a:2 b:4] K[o:3 c b] -> [n o a]", ("Fuse[t a b]",)),
        ("X[n:1 c:3 t] Conv[t s k:3 | padding=2:0 mode=replicate] K[o:3 c k] -> [n o s]", ("replicate", "mode=zeros")),
        ("X[n:1 c:3 t] Conv[t s k:3] Conv[t r j:3] K[o:3 c k j] -> [n o s r]", ("several nodes",)),
        ("X[n:1 c:3 u] K[o:3 c] -> [n o u]", ("does not have the label 't'",)),
        (
            "X[n:1 c:3 t] Conv[t s k:3 | stride=2] K[o:3 c k] + X[n c t] Conv[t s i:5 | padding=1] A[o c i] -> [n o s]",
            ("joins frames that come at different rates",),
        ),
        ("X[n:1 c:3 t] K[o:3 c] + A[o t:8] Fill[n | value=1] -> [n o t]", ("a term of the sum", "'X'")),
        (
            "X[n:1 c:3 t] Conv[t s k:3] A[d:3 c k] Conv[s r j:3 | padding=1] K[o:3 d j] -> [n o r]",
            ("behind another window", "padded by 1 on the right", "padding='streaming'"),
        ),
    ],
)
def test_what_cannot_be_a_stream_is_refused_by_name(text: str, facts: tuple[str, ...]) -> None:
    network = tn.parse(text)
    weights = {node.name: node for term in network.terms for node in term.nodes if node.name in "AK"}
    values = {name: torch.ones(3, 3, *[3] * (len(node.labels) - 2)) for name, node in weights.items()}
    if "i:5" in text:
        values["A"] = torch.ones(3, 3, 5)
    if "A[o t:8]" in text:
        values["A"] = torch.ones(3, 8)
    if "K[o:3 c t]" in text:
        values = {"K": torch.ones(3, 3, 8)}
    if "Fuse" in text:
        values = {"K": torch.ones(3, 3, 4)}
    with refused(StreamError, *facts):
        tn.stream(network, "t", values=values)


def test_arguments_are_checked() -> None:
    text = "X[n:1 c:3 t] Conv[t s k] K[o c k] -> [n o s]"
    values = {"K": torch.ones(2, 3, 3)}
    with refused(StreamError, "padding is 'same'", "'exact' or 'streaming'"):
        tn.stream(text, "t", values=values, padding="same")  # type: ignore[arg-type]
    with refused(StreamError, "2 tensors have no values"):
        tn.stream(text, "t")
    with refused(StreamError, "the example has 4 axes", "'X' has 3"):
        tn.stream(text, "t", values=values, example=(1, 3, 8, 8))
    stream = tn.stream(text, "t", values=values)
    with refused(StreamError, "the frame has 3 axes, not 2"):
        stream.step(torch.ones(1, 3, 1))
    with refused(StreamError, "the clip has 2 axes, not 3"):
        stream.steps(torch.ones(1, 3))
    with refused(StreamError, "no clip has begun"):
        stream.flush()
    stream.step(torch.ones(1, 3))
    with refused(StreamError, "the frame is (2, 3) of torch.float32, the one before (1, 3)", "stream.reset()"):
        stream.step(torch.ones(2, 3))
    stream.reset()
    with refused(CompileError, "torch.float64"):
        stream.step(torch.ones(1, 3, dtype=torch.float64))
    assert stream.steps(torch.ones(1, 3, 5)).shape == (1, 2, 3), "a refused frame leaves no state"
    with refused(StreamError, "of the type int cannot be a stream"):
        tn.stream(3, "t")  # type: ignore[arg-type]


def test_frames_states_and_examples_are_checked() -> None:
    stream = tn.stream("X[n:1 c:3 t] Conv[t s k] K[o c k] -> [n o s]", "t", values={"K": torch.ones(2, 3, 3)})
    x, state = torch.ones(1, 3), stream.initial_state()
    with refused(StreamError, "the frame is a list"):
        stream.step([1.0])  # type: ignore[call-overload]
    with refused(StreamError, "the clip is a list"):
        stream.steps([x])  # type: ignore[arg-type]
    with refused(StreamError, "meta device"):
        stream.step(x.to("meta"))
    others = tn.stream("X[n:1 c:3 t] Conv[t s k] K[o c k] -> [n o s]", "t", values={"K": torch.ones(2, 3, 5)})
    for wrong in ((), state[:-1], (*state, state[-1]), others.initial_state(), stream.initial_state((2, 3)), "ab"):
        with refused(StreamError, "the state does not belong to this stream", "() (1, 3, 2)", "(1, 3)"):
            stream.step(x, wrong)  # type: ignore[call-overload]
        with refused(StreamError, "the state does not belong to this stream"):
            stream(x, wrong)
    for shape in (x, 5, (1, -3), (1.0, 3.0)):
        with refused(StreamError, "the shape of a frame is"):
            stream.initial_state(shape)  # type: ignore[arg-type]
    layer = torch.nn.Conv1d(3, 2, 3)
    for example in (16, "1 3 16", (1, 3, 0), (1, 3, -16)):
        with refused(StreamError, "the example is"):
            tn.stream(layer, example=example)  # type: ignore[arg-type]
    with refused(StreamError, "along is ['t']"):
        tn.stream(layer, ["t"])  # type: ignore[arg-type]
