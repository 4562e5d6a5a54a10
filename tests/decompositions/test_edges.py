"""Kernels at the edges of what numbers can be: equal singular values, zeros, far scales, short types, views.

For any rule of the catalogue, any cut and any right side that is drawn, the fit succeeds or is refused by an error of
the package. The errors that are reported are those of the numbers held, the layer computes what torch's layer with the
rebuilt kernel computes, and a file gives it back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tnalgebra as tn
from tests.kernel_cases import gaussian
from tests.refusals import refused
from tnalgebra.errors import TnalgebraError, ValuesError

QUICK: dict[str, Any] = {"starts": 2, "sweeps": 20}

LAYERS: dict[str, tuple[Callable[[torch.dtype], Any], tuple[int, ...]]] = {
    "linear": (lambda dtype: nn.Linear(6, 8, dtype=dtype), (5, 6)),
    "one output": (lambda dtype: nn.Linear(6, 1, dtype=dtype), (5, 6)),
    "conv1d": (lambda dtype: nn.Conv1d(4, 6, 3, stride=2, padding=1, dtype=dtype), (2, 4, 9)),
    "conv2d": (lambda dtype: nn.Conv2d(5, 7, (3, 2), padding=1, dtype=dtype), (2, 5, 6, 5)),
    "1 x 1": (lambda dtype: nn.Conv2d(4, 6, 1, dtype=dtype), (2, 4, 3, 3)),
    "depthwise": (lambda dtype: nn.Conv2d(6, 6, 3, padding=1, groups=6, dtype=dtype), (2, 6, 5, 4)),
    "transposed": (lambda dtype: nn.ConvTranspose2d(6, 4, (3, 2), stride=2, padding=1, dtype=dtype), (2, 6, 4, 5)),
}
LABELS = {2: "out in", 3: "out in k", 4: "out in kh kw"}
TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def orthogonal(kernel: Tensor) -> Tensor:
    """All singular values of the matrix `out | rest` are 1."""
    rows = kernel.flatten(1)
    tall = rows if len(rows) >= rows.shape[1] else rows.mT
    basis = torch.linalg.qr(tall).Q
    return (basis if tall is rows else basis.mT).reshape(kernel.shape)


def of_rank_one(kernel: Tensor) -> Tensor:
    rank_one = torch.ones((), dtype=kernel.dtype)
    for axis, size in enumerate(kernel.shape):
        rank_one = rank_one[..., None] * gaussian(size, seed=axis)
    return rank_one


def one_element(kernel: Tensor) -> Tensor:
    result = torch.zeros_like(kernel)
    result[(0,) * kernel.ndim] = 1
    return result


def over_channels(kernel: Tensor, low: float, high: float) -> Tensor:
    """The first output channel at the scale 10^high, the last at 10^low."""
    scales = torch.logspace(high, low, len(kernel), dtype=torch.float64)
    return kernel * scales.reshape(-1, *[1] * (kernel.ndim - 1))


EDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda kernel: kernel,
    "equal singular values": orthogonal,
    "ones": torch.ones_like,
    "rank 1": of_rank_one,
    "one element": one_element,
    "zeros": torch.zeros_like,
    "a channel of zeros": lambda kernel: kernel * (torch.arange(len(kernel)) > 0).reshape(-1, *[1] * (kernel.ndim - 1)),
    "1e-30": lambda kernel: kernel * 1e-30,
    "1e30": lambda kernel: kernel * 1e30,
    "1e30 and 1e-30": lambda kernel: over_channels(kernel, -30, 30),
    "1e3 and 1e-3": lambda kernel: over_channels(kernel, -3, 3),
    "subnormal in float32": lambda kernel: kernel * 1e-42,
    "the largest of float16": lambda kernel: kernel / kernel.abs().max() * 6e4,
    "the smallest of float16": lambda kernel: kernel * 1e-6,
}


@st.composite
def right_sides(draw: st.DrawFn, axes: int) -> str:
    """A rule with two to four cores: trees, loops, hyperedges, parallel bonds and batch labels."""
    labels = LABELS[axes].split()
    cores: list[list[str]] = [[] for _ in range(draw(st.integers(2, 4)))]
    for label in labels:
        for core in draw(st.sets(st.integers(0, len(cores) - 1), min_size=1, max_size=2)):
            cores[core].append(label)
    bonds = [(core, draw(st.integers(0, core - 1))) for core in range(1, len(cores))]
    for _ in range(draw(st.integers(0, 2))):
        bonds.append(tuple(draw(st.sets(st.integers(0, len(cores) - 1), min_size=2, max_size=3))))  # type: ignore[arg-type]
    for number, ends in enumerate(bonds):
        for core in ends:
            cores[core].append(f"b{number}")
    right = " ".join(f"{name}[{' '.join(core)}]" for name, core in zip("ABCD", cores, strict=False))
    return f"K[{' '.join(labels)}] => {right} -> [{' '.join(labels)}]"


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str, str, str, object, int]:
    """Layer, edge, type, rule, size and seed."""
    layer = draw(st.sampled_from(list(LAYERS)))
    axes = LAYERS[layer][0](torch.float32).weight.ndim
    rules = [rule.name for rule in tn.rules(LABELS[axes]).decompositions]
    rules += [rule.name for rule in tn.all_cuts(LABELS[axes])][:3]
    rule = draw(st.one_of(st.sampled_from(rules), right_sides(axes)))
    size: object = draw(st.sampled_from([2, 1, 3, "parameters 0.8", "keep 0.5", "error 0.1"]))
    if rule in ("spatially_separable", "depthwise_separable", "monarch"):
        size = None
    edge, dtype = draw(st.sampled_from(list(EDGES))), draw(st.sampled_from(list(TYPES)))
    return layer, edge, dtype, rule, size, draw(st.integers(0, 99))


def held(layer: tn.nn.KernelLayer) -> dict[str, Tensor]:
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    names = {node.name for node in layer.kernel.nodes}
    return {name: tensor.detach().double() for name, tensor in tensors.items() if name in names}


def error_of(dense: Tensor, kernel: Tensor) -> float:
    """||K - K~|| / ||K||, where the squares of no element overflow or vanish."""
    scale = float(kernel.abs().max())
    if not scale:
        return math.inf if bool(dense.any()) else 0.0
    return float(((kernel - dense) / scale).norm() / (kernel / scale).norm())


def check_forward(layer: Any, reference: Any, x: Tensor, dense: Tensor, magnitude: Tensor) -> None:
    """Compare with torch's layer in float64, to what rounding in the layer's type may do to the largest terms."""
    with torch.no_grad():
        reference.bias.zero_()
        reference.weight.copy_(dense)
        expected = reference(x.double())
        reference.weight.copy_(magnitude)
        terms = reference(x.double().abs())
        output = layer(x)
    assert output.dtype == x.dtype
    limits = torch.finfo(x.dtype)
    tolerance = 40 * limits.eps * terms + 200 * limits.smallest_normal
    inside = terms < limits.max  # elsewhere a sum may overflow on the way, as it may in torch's layer
    wrong = inside & ~((output.double() - expected).abs() <= tolerance)
    assert not bool(wrong.any()), f"{output.double()[wrong]} for {expected[wrong]}"


@settings(max_examples=60)
@given(cases())
def test_layers_at_the_edges(case: tuple[str, str, str, str, object, int]) -> None:
    name, edge, type_name, rule, size, seed = case
    make, shape = LAYERS[name]
    dtype = TYPES[type_name]
    module = make(dtype)
    kernel = EDGES[edge](gaussian(*module.weight.shape, seed=seed)).to(dtype)
    if not bool(kernel.isfinite().all()):
        return
    with torch.no_grad():
        module.weight.copy_(kernel)
        module.bias.zero_()
    try:
        layer = tn.nn.decomposed(module, rule, size, seed=seed, **QUICK)
    except TnalgebraError:
        return
    tensors = held(layer)
    dense = tn.evaluate(layer.kernel, tensors)
    assert layer.relative_error == pytest.approx(error_of(dense, kernel.double()), rel=1e-5, abs=1e-12)
    magnitude = tn.evaluate(layer.kernel, {name: tensor.abs() for name, tensor in tensors.items()})
    x = gaussian(*shape, seed=seed + 1).to(dtype)
    check_forward(layer, make(torch.float64), x, dense, magnitude)
    check_forward(layer.eval().freeze(), make(torch.float64), x, dense, magnitude)
    with TemporaryDirectory() as folder:
        tn.save(layer, Path(folder) / "layer.safetensors")
        loaded: Any = tn.load(Path(folder) / "layer.safetensors")
    assert loaded.relative_error == layer.relative_error
    for name, tensor in held(loaded).items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("edge", ["gaussian", "equal singular values", "ones", "rank 1", "one element"])
@pytest.mark.parametrize("rule", ["out | in kh kw", "tucker", "hierarchical_tucker", "monarch", "cp", "tensor_ring"])
def test_a_seed_gives_one_fit_on_any_number_of_threads(rule: str, edge: str) -> None:
    """To 1e-9, although the singular vectors of equal singular values are not unique."""
    shape = (12, 20) if rule == "monarch" else (12, 10, 3, 3)
    kernel, before = EDGES[edge](gaussian(*shape)), torch.get_num_threads()
    read = tn.cut(rule) if "|" in rule else tn.rules(LABELS[kernel.ndim])[rule]
    fits = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fits.append(read.apply(kernel, 2 if read.ranks else None, **QUICK))
    finally:
        torch.set_num_threads(before)
    one, two = fits
    assert two.relative_error == pytest.approx(one.relative_error, rel=1e-9, abs=1e-13)
    for name, value in one.values.items():
        torch.testing.assert_close(two.values[name], value, rtol=0, atol=1e-9 * float(value.abs().max()))


@pytest.mark.parametrize("edge", ["equal singular values", "ones", "rank 1", "one element", "zeros"])
@pytest.mark.parametrize("rule", ["out | in kh kw", "kh | out in kw", "tucker2", "tensor_train"])
def test_rounding_of_a_kernel_does_not_choose_its_cores(rule: str, edge: str) -> None:
    """As the order of sums does on other machines: equal singular values have vectors that are chosen."""
    kernel = EDGES[edge](gaussian(12, 10, 3, 3))
    read = tn.cut(rule) if "|" in rule else tn.rules()[rule]
    one = read.apply(kernel, 2)
    two = read.apply(kernel * (1 + 2e-16 * gaussian(*kernel.shape, seed=1).sign()), 2)
    for name, value in one.values.items():
        torch.testing.assert_close(two.values[name], value, rtol=0, atol=1e-9 * max(1.0, float(value.abs().max())))


UNUSABLE: dict[str, Tensor] = {
    "float8": torch.ones(8, 6).to(torch.float8_e4m3fn),
    "sparse": torch.ones(8, 6).to_sparse(),
    "meta": torch.ones(8, 6, device="meta"),
    "empty": torch.ones(0, 6),
    "NaN": torch.full((8, 6), math.nan),
    "infinity": torch.full((8, 6), math.inf),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_kernels_without_numbers_are_refused(kind: str) -> None:
    kernel = UNUSABLE[kind]
    for call in (
        lambda: tn.cut("out | in").apply(kernel, 2),
        lambda: tn.rules("out in")["tucker"].apply(kernel, 2),
        lambda: tn.spectra(kernel),
        lambda: tn.compare(kernel, ["out | in"], 2, progress=False),
    ):
        with pytest.raises(ValuesError):
            call()


def test_views_and_other_kinds_of_numbers_are_kernels() -> None:
    whole = gaussian(16, 12)
    views = [whole[::2, 1::2], whole.T[:8, :6], whole[:1, :6].expand(8, 6), whole[:8, :6].flip(0)]
    arrays = [whole.numpy()[:8, :6][::-1], np.broadcast_to(whole.numpy()[:1, :6], (8, 6))]
    numbers = [torch.arange(48).reshape(8, 6), whole[:8, :6] > 0, torch.arange(48).to(torch.uint16).reshape(8, 6)]
    trained = [nn.Parameter(whole[:8, :6])]
    for kernel in (*views, *arrays, *numbers, *trained):
        plain = torch.tensor(kernel.tolist(), dtype=torch.float64)
        fit = tn.cut("out | in").apply(kernel, 2)
        best = torch.linalg.svdvals(plain)
        assert fit.relative_error == pytest.approx(float(best[2:].norm() / best.norm()), abs=1e-13)
        assert not any(value.requires_grad for value in fit.values.values())
        torch.testing.assert_close(tn.spectra(kernel)[0].singular_values, best, rtol=0, atol=1e-6 * float(best[0]))


def test_numbers_beyond_their_type_are_refused() -> None:
    kernel = torch.full((8, 6), 6e4, dtype=torch.float16)
    with refused(ValuesError, "'S'", "float16"):
        tn.cut("out | in", form="svd").apply(kernel, 2)
    assert tn.cut("out | in").apply(kernel, 2).relative_error < 1e-3


def test_a_long_descent_does_not_depend_on_the_number_of_threads() -> None:
    """Rounding in another order leads a long descent to another basin."""
    kernel, before = gaussian(12, 8, 3, 3, 3), torch.get_num_threads()
    rule = tn.decompositions.read_rewrite("tensor_ring", ("out", "in", "kd", "kh", "kw"))
    fits = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fits.append(rule.apply(kernel, 3, starts=1))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, two = (fit.values for fit in fits)
    for name, core in one.items():
        torch.testing.assert_close(two[name], core, rtol=0, atol=1e-9 * float(core.norm()))
