"""Windows by Fourier transforms: the same values and gradients as by convolutions, for every kind of window."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tnalgebra as tn
from tests.compiler_cases import ROUNDING, compiled, torch_convolutions
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.compiler import fourier_steps
from tnalgebra.compiler.operations import TransformKernel
from tnalgebra.compiler.transforms import Points, convolve_each, transform_kernel
from tnalgebra.errors import CompileError, SizeError
from tnalgebra.networks import Network, parse
from tnalgebra.nn import layer_network
from tnalgebra.tensors import evaluate, magnitude

SPECTRAL: Any = {"candidates": "spectral", "tune": False}


def near(value: Tensor, expected: Tensor, scale: Tensor, rounding: float = ROUNDING) -> bool:
    """A transform mixes all elements, so that rounding is relative to the largest."""
    return value.shape == expected.shape and bool(((value - expected).abs() <= rounding * scale.max()).all())


def check_spectral(network: Network, inputs: str, *, seed: int = 0) -> Any:
    """Values and gradients of a spectral plan, frozen too, against the oracle and against a plan of convolutions."""
    values = random_values(network, seed)
    names = inputs.split()
    module = compiled(network, values, names, **SPECTRAL)
    assert all(one.is_spectral for one in module.plan.candidates)
    expected, scale = evaluate(network, values), magnitude(network, values)
    tensors = [values[name].clone().requires_grad_() for name in names]
    value = module(*tensors)
    assert near(value.detach(), expected, scale)
    direct = compiled(network, values, names, tune=False)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients, others = (
        torch.autograd.grad((one(*tensors) * weight).sum(), [*tensors, *one.parameters()]) for one in (module, direct)
    )
    for one, other in zip(gradients, others, strict=True):
        assert (one - other).abs().max() <= 1e-12 * (1 + other.abs().max())
    with torch.no_grad():
        assert near(module.freeze()(*tensors), expected, scale)
    return module.thaw()


@settings(max_examples=100)
@given(torch_convolutions())
def test_convolutions_of_torch(layer: nn.Module) -> None:
    kernel: Any = layer.weight
    size = (9, 8, 10)[: kernel.ndim - 2]
    network, values, _ = layer_network(layer, input_size=size)
    shape = (2, layer.in_channels, *size)
    try:
        module = tn.compile(network, inputs={"X": shape}, values=values, **SPECTRAL)
    except CompileError:  # windows of one element are simplified away, so that none may be left
        assume(False)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x)
        assert (module(x) - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())


@st.composite
def windows(draw: st.DrawFn) -> Network:
    """A depthwise or dense window on one or two axes, with any attributes, forwards or transposed."""
    axes = draw(st.integers(1, 2))
    nodes, before, after, ks = [], [], [], []
    turned = draw(st.integers(0, 3)) == 0
    for x, u, k in (("x", "u", "k"), ("y", "v", "h"))[:axes]:
        width, dilation = draw(st.integers(2, 9)), draw(st.integers(1, 2))
        reach = dilation * (width - 1) + 1
        stride = draw(st.sampled_from((1, 1, 2, 3)))
        mode = "zeros" if turned else draw(st.sampled_from(("zeros", "zeros", "reflect", "replicate", "circular")))
        low, high = (draw(st.integers(-1, min(reach, 6))) for _ in range(2))
        size = draw(st.integers(max(7, reach - min(low, 0) - min(high, 0) + 1), 40))
        attributes = f"stride={stride} padding={low}:{high} dilation={dilation} mode={mode}"
        count = (size + low + high - reach) // stride + 1
        nodes.append(f"Conv[{x}:{size} {u}:{count} {k}:{width} | {attributes}]")
        before.append(u if turned else x)
        after.append(x if turned else u)
        ks.append(k)
    inside, kernel, outside = draw(
        st.sampled_from((("c:3", "c", "c"), ("i:3", "i o:2", "o"), ("", "", ""), ("c:2", "c m:3", "c m")))
    )
    text = f"X[n:2 {inside} {' '.join(before)}] {' '.join(nodes)} K[{kernel} {' '.join(ks)}]"
    return parse(f"{text} -> [n {outside} {' '.join(after)}]")


@settings(max_examples=120)
@given(windows(), st.integers(0, 9))
def test_windows_of_every_kind(network: Network, seed: int) -> None:
    if any(getattr(node, "stride", 1) > 1 and "x" in network.output for node in network.nodes):
        return  # several sizes of x have one of y, so that no join may make x
    check_spectral(network, "X", seed=seed)


CASES = {
    "causal": "X[n:2 c:3 x:50] Conv[x u k:50 | padding=49:0] K[c k] -> [n c u]",
    "cut into blocks": "X[n:2 c:3 x:300] Conv[x u k:5 | padding=2] K[c k] -> [n c u]",
    "cut along one of two axes": "X[x:300 y:9] Conv[x u k:3 | padding=1] Conv[y v h:7 | padding=3] K[k h] -> [u v]",
    "three axes": "X[c:2 x:9 y:8 z:7] Conv[x u k:3] Conv[y v h:4 | padding=2 stride=2] Conv[z w d:2 | dilation=2] "
    "K[o:3 c k h d] -> [o u v w]",
    "groups": "X[n:2 c:6 x:20] Fuse[c g:2 i:3] Conv[x u k:7 | padding=3] K[g m:2 i k] Fuse[o g m] -> [n o u]",
    "decomposed": "X[n:2 i:3 x:20 y:9] Conv[x u k:7 | padding=3] Conv[y v h:5 | padding=2] A[o:4 r:5] B[i r] C[k r] "
    "D[h r] -> [n o u v]",
    "two windows": "X[n:2 x:40] Conv[x y k:9 | padding=4 mode=circular] Conv[y z h:5 | padding=2 mode=circular] a[k] "
    "b[h] -> [n z]",
    "two windows with channels": "X[n:2 i:3 x:20 y:12] Conv[x u k:7 | padding=1:5 mode=circular] A[o:4 i k h] "
    "Conv[y v h:13 | padding=12:0 mode=circular] Conv[u w d:5 | padding=2 mode=circular] B[p:2 o d e] "
    "Conv[v z e:4 | padding=1 stride=2 mode=circular] -> [n p w z]",
    "a Toeplitz vector": "V[n:2 j:20 d:3] c[r:39] Conv[i:20 j r | padding=19] -> [n i d]",
    "another axis behind": "X[n:2 x:30 d:3] Conv[x u k:9 | padding=8:0] K[k d] -> [n u d]",
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    inputs = "V" if name == "a Toeplitz vector" else "X"
    check_spectral(parse(CASES[name]), inputs)


def test_consecutive_windows_on_circles_are_transformed_once() -> None:
    """Values stay spectra between them, and the spectra of kernels for each channel are multiplied."""
    for name in ("two windows", "two windows with channels"):
        module = check_spectral(parse(CASES[name]), "X")
        kinds = [type(one).__name__ for one in module.plan.chosen.program.operations]
        assert kinds.count("Filter") + kinds.count("Inverse") == 1
        assert kinds.count("Transform") == kinds.count("Inverse")


def test_channels_are_transformed_some_at_a_time() -> None:
    x, kernel = torch.randn(2, 7, 40, 9, dtype=torch.float64), torch.randn(7, 5, 3, dtype=torch.float64)
    points = [Points(16, 5, (4, 0), is_cut=True), Points(12, 3, (1, 1))]
    whole = {"dilation": (1, 1), "shifts": (0, 0), "turned": True}
    for channels in (kernel, kernel[:1]):
        spectrum = transform_kernel(channels, (16, 12), **whole)[None, :, None]
        one, some = (convolve_each(x, spectrum, points, tile=tile) for tile in (2**20, 1000))
        expected = torch.conv2d(nn.functional.pad(x, (1, 1, 4, 0)), channels.expand(7, 5, 3)[:, None], groups=7)
        assert max((one - expected).abs().max(), (some - expected).abs().max()) < 1e-12


def test_a_kernel_that_is_an_input() -> None:
    check_spectral(parse("X[n:3 x:20] K[n k:5] Conv[x u k | padding=4:0] -> [n u]"), "X K")


@pytest.mark.parametrize("frozen", [False, True])
def test_inputs_of_other_sizes(frozen: bool) -> None:
    """More positions are more blocks; an axis may also be shorter than the kernel and its padding."""
    one = parse("X[n:2 c:3 x:50] Conv[x u k:9 | padding=8:0] K[c k] -> [n c u]")
    two = parse(
        "X[n:2 c:3 x:20 y:9] Conv[x u k:5 | padding=2 stride=2] Conv[y v h:5 | padding=2 mode=circular] "
        "K[o:4 c k h] -> [n o u v]"
    )
    circle = parse("X[n:2 c:3 x:20] Conv[x u k:9 | padding=8:0 mode=circular] K[c k] -> [n c u]")
    on_circles = (circle, ({"x": 8}, {"x": 11}, {"x": 60, "n": 3}))
    for network, others in (
        on_circles,
        (one, ({"x": 4}, {"x": 200, "n": 5})),
        (two, ({"x": 7, "y": 30}, {"x": 60, "y": 4})),
    ):
        module = compiled(network, random_values(network, 0), ["X"], **SPECTRAL)
        if frozen:
            module.freeze()
        for sizes in others:
            values = random_values(network, 0)
            network_there = Network(network.nodes, network.output, _at(network, sizes))
            x = torch.randn([network_there.sizes[label] for label in network.nodes[0].labels], dtype=torch.float64)
            values["X"] = x
            value = module(x).detach()
            assert near(value, evaluate(network_there, values), magnitude(network_there, values))


def _at(network: Network, sizes: dict[str, int]) -> dict[str, int]:
    kept = {label: size for label, size in network.sizes.items() if label not in {"n", "x", "y", "u", "v"}}
    labels = network.nodes[0].labels
    return {**kept, **{label: sizes.get(label, network.sizes[label]) for label in labels}}


def test_second_derivatives() -> None:
    module = compiled(network := parse(CASES["groups"]), random_values(network, 0), ["X"], **SPECTRAL)
    x = random_values(network, 1)["X"][:1, :, :9].clone().requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x[:, :, :7].detach().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    network = parse("X[n:2 c:3 x:300] Conv[x u k:65 | padding=32] K[c k] -> [n c u]")
    values = {name: value.to(dtype) for name, value in random_values(network, 0).items()}
    module = tn.compile(network, inputs={"X": values["X"].shape}, values={"K": values["K"]}, **SPECTRAL)
    expected, scale = evaluate(network, values), magnitude(network, values).max()
    for one in (module, copy.deepcopy(module).freeze()):
        value = one(values["X"])
        assert value.dtype == dtype
        assert (value.double() - expected).abs().max() <= max(torch.finfo(dtype).eps, 1e-6) * scale


def test_autocast_and_copies() -> None:
    network = parse("X[n:2 c:3 x:100] Conv[x u k:65 | padding=32] K[c k] -> [n c u]")
    values = {name: value.float() for name, value in random_values(network, 0).items()}
    module = tn.compile(network, inputs={"X": values["X"].shape}, values={"K": values["K"]}, **SPECTRAL)
    with torch.autocast("cpu", torch.bfloat16):
        value = module(values["X"])
    assert value.dtype == torch.bfloat16
    assert (value.double() - evaluate(network, values)).abs().max() < 0.05 * magnitude(network, values).max()
    assert torch.equal(copy.deepcopy(module)(values["X"]), module(values["X"]))
    doubled = copy.deepcopy(module).freeze().double()
    assert (doubled(values["X"].double()) - evaluate(network, values)).abs().max() < 1e-5


def long_layer() -> tuple[Any, Tensor]:
    """A module whose plan has transforms because that is predicted to be faster."""
    network = parse("X[n:1 c:4 x:2048] Conv[x u k:2048 | padding=2047:0] K[k] S[c] -> [n c u]")
    values = random_values(network, 0)
    module = compiled(network, values, ["X"], tune=False)
    assert module.plan.chosen.is_spectral
    return module, values["X"]


def test_a_long_window_is_a_transform() -> None:
    module, _ = long_layer()
    assert "Fourier" in str(module.plan)
    assert "transform_kernel" in module.code


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_exported_graphs_have_no_transforms() -> None:
    module, x = long_layer()
    expected = module(x).detach()
    program = torch.export.export(nn.Sequential(module), (x,))
    assert "fft" not in str(program.graph)
    traced = torch.jit.trace(nn.Sequential(module), (x,))
    for graph in (program.module(), traced):
        assert (graph(x) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_torch_compile_keeps_the_transforms() -> None:
    module, x = long_layer()
    compiled_module = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert (compiled_module(x) - module(x)).abs().max() < 1e-12 * module(x).abs().max()


def test_complex_inputs_have_no_transforms() -> None:
    network = parse("A[c:4 x:2048] B[c k:2048] Conv[x u k | padding=2047:0] -> [c u]")
    module = tn.compile(network, inputs={"A": (4, 2048), "B": (4, 2048)})
    assert any(one.is_spectral for one in module.plan.candidates)
    a, b = (torch.randn(4, 2048, 2, dtype=torch.float64) for _ in range(2))
    value = module(torch.view_as_complex(a), torch.view_as_complex(b))
    parts = [module(a[..., i].contiguous(), b[..., j].contiguous()) for i, j in ((0, 0), (1, 1), (0, 1), (1, 0))]
    assert (value.real - (parts[0] - parts[1])).abs().max() < 1e-8
    assert (value.imag - (parts[2] + parts[3])).abs().max() < 1e-8


def test_short_windows_stay_convolutions() -> None:
    for text in (
        "X[n:8 c:16 x:28 y:28] Conv[x u h:3 | padding=1] Conv[y v w:3 | padding=1] K[o:16 c h w] -> [n o u v]",
        "X[n:8 c:16 x:1000] Conv[x u k:5 | padding=2] K[c k] -> [n c u]",
    ):
        network = parse(text)
        module = compiled(network, random_values(network, 0), ["X"], tune=False)
        assert not any(one.is_spectral for one in module.plan.candidates)


def test_a_wrong_reach_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above see elements that are wrapped around the end of a block."""
    original = fourier_steps.fourier_axis

    def short(*arguments: Any, **keywords: Any) -> Any:
        axis = original(*arguments, **keywords)
        return axis._replace(reach=max(1, axis.reach - 1))

    monkeypatch.setattr("tnalgebra.compiler.lowering.fourier_axis", short)
    with pytest.raises(AssertionError):
        check_spectral(parse("X[n:2 c:3 x:301] Conv[x u k:5 | padding=2] K[c k] -> [n c u]"), "X")


def test_lengths_of_transforms() -> None:
    lengths = [fourier_steps.fast_length(number) for number in (1, 7, 11, 13, 17, 97, 1025)]
    assert lengths == [4, 8, 12, 16, 20, 100, 1080]
    network = parse("X[c:2 x:5000] Conv[x u k:33 | padding=16] K[c k] -> [c u]")
    module = compiled(network, random_values(network, 0), ["X"], **SPECTRAL)
    transforms = [one for one in module.plan.chosen.program.operations if isinstance(one, TransformKernel)]
    assert 66 <= transforms[0].lengths[0] < 5032


def test_refusals() -> None:
    text = "X[n c x] Conv[x u k:5 | padding=2] K[c k] -> [n c u]"
    shape, kernel = {"X": (1, 3, 20)}, torch.ones(3, 5)
    with refused(CompileError, "'K'", "floating point"):
        tn.compile(text, inputs=shape, values={"K": kernel.int()}, **SPECTRAL)
    with refused(CompileError, "'K'", "floating point"):
        tn.compile(text, inputs=shape, values={"K": kernel.to(torch.complex64)}, **SPECTRAL)
    module = tn.compile(text, inputs=shape, values={"K": kernel}, **SPECTRAL)
    with refused(CompileError, "torch.int64"):
        module(torch.ones(1, 3, 20, dtype=torch.int64))
    with refused(CompileError, "Fourier", "candidates='all'"):
        tn.compile("X[n i] W[o i] -> [n o]", inputs={"X": (1, 3)}, values={"W": torch.ones(2, 3)}, **SPECTRAL)
    with refused(CompileError, "Fourier"):
        local = "X[n x] Conv[x u k:2] K[u:4 k] -> [n u]"
        tn.compile(local, inputs={"X": (1, 5)}, values={"K": torch.ones(4, 2)}, **SPECTRAL)
    with refused(SizeError, "'u'"):
        tn.compile("X[x] K[y] Conv[x u k] -> [u y k]", inputs={"X": (5,)}, values={"K": torch.ones(2)}, **SPECTRAL)
