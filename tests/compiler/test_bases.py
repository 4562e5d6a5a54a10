"""Bases by name in plans: fast transforms have the values and gradients of the matrices, in every network."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tnalgebra as tn
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.compiler import bases, joins, program, tune
from tnalgebra.compiler.bases import apply_basis, has_fast_transform
from tnalgebra.compiler.compiled import Compiled
from tnalgebra.compiler.cost import Workload
from tnalgebra.compiler.operations import ApplyBasis
from tnalgebra.errors import CompileError, SizeError, ValuesError
from tnalgebra.networks import parse
from tnalgebra.tensors import BASES, basis_matrix, evaluate

NAMES = tuple(BASES)

NETWORKS = {
    "transform": ("X[n:3 i:8] P[a i] -> [n a]", "X"),
    "back": ("X[n:3 a:8] P[a i] -> [i n]", "X"),
    "there and back": ("X[n:3 i:8] P[a i] D[a] P[a j] -> [n j]", "X"),
    "two axes of images": ("X[n:2 c:3 h:8 w:16] P[a h] Q[b w] W[o:5 c] -> [n o a b]", "X"),
    "channels": ("X[n:2 c:8 h:3 w:5] P[a c] S[a] -> [n a h w]", "X"),
    "a window": ("X[n:2 c:3 x:8] P[a x] Conv[a b k | padding=1] K[o:4 c k:3] -> [n o b]", "X"),
    "after a window": ("X[n:2 c:3 x:10] Conv[x y k] K[c k:3] P[a y] -> [n c a]", "X"),
    "of a weight": ("X[n:3 i:8] L[o:5 a] P[a i] -> [n o]", "X"),
    "as a kernel": ("X[n:2 x:20] P[f k:8] Conv[x y k] -> [n f y]", "X"),
    "a batch of each": ("X[n:3 i:8 g:4] Y[n i h:5] P[a i] -> [n a g h]", "X Y"),
    "parts of an axis": ("X[n:3 x] Fuse[x u:4 i:8] P[a i] W[u v:3] -> [n v a]", "X"),
    "a sum": ("X[n:3 i:8] L[o:5 a] P[a i] + X[n i] M[o i] -> [n o]", "X"),
    "a sum of transforms": ("X[n:3 i:8] P[a i] D[a] + X[n i] Q[a i] -> [n a]", "X"),
    "rows and columns": ("X[i:8 j:16] P[a i] Q[b j] -> [b a]", "X"),
    "diagonal": ("X[n:3 a:8] P[a a] -> [n a]", "X"),
    "of all rows": ("X[n:3 i:8] P[a i] -> [n]", "X"),
    "an open label": ("X[n:3 i:8] P[a i] -> [n a i]", "X"),
}
"""name -> (network, names of its inputs); the tensors P and Q are bases."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast transforms cost next to nothing, so that every plan that can have one has it."""
    monkeypatch.setattr(tune, "_remembered", OrderedDict())
    for module in (joins, program):
        monkeypatch.setattr(module, "basis_work", lambda *_: Workload("pointwise", read=1, written=1, calls=0))


def make(text: str, inputs: str, basis: str, *, seed: int = 0, **choices: Any) -> tuple[Compiled, dict[str, Any]]:
    """A network whose tensors P and Q are a basis, compiled without measurements, and its values."""
    network = parse(text)
    named = {name: basis for name in ("P", "Q") if f"{name}[" in text}
    sized = tn.tensors.with_bases(network, named)
    values: dict[str, Any] = {**random_values(sized, seed), **named}
    module = tn.compile(
        network,
        inputs={name: values[name].shape for name in inputs.split()},
        values={name: value for name, value in values.items() if name not in inputs.split()},
        tune=False,
        **choices,
    )
    return module, values


def transforms(module: Compiled) -> list[ApplyBasis]:
    return [one for one in module.plan.chosen.program.operations if isinstance(one, ApplyBasis)]


def matrices(values: Mapping[str, Any], sizes: Mapping[str, int], network: Any) -> dict[str, Tensor]:
    """The values with the matrices of bases in place of their names."""
    nodes = tn.networks.tensors_of(network)
    return {
        name: basis_matrix(value, sizes[nodes[name].labels[0]]) if isinstance(value, str) else value
        for name, value in values.items()
    }


# The transforms --------------------------------------------------------------------------------------------------


@st.composite
def products(draw: st.DrawFn) -> tuple[str, int, list[int], int, bool]:
    """A basis, its size, a shape with an axis of that size, the number of that axis, and whether it is transposed."""
    name = draw(st.sampled_from(NAMES))
    size = draw(st.sampled_from((2, 4, 8, 16, 64, 128) if name in ("haar", "hadamard") else (2, 3, 4, 5, 6, 9, 16, 30)))
    shape = draw(st.permutations((2, 3, 5)))[: draw(st.integers(0, 3))]
    axis = draw(st.integers(0, len(shape)))
    return name, size, [*shape[:axis], size, *shape[axis:]], axis, draw(st.booleans())


def along(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    return torch.tensordot(matrix.to(tensor.dtype), tensor, dims=([1], [axis])).movedim(0, axis)


@settings(max_examples=100, deadline=None)
@given(products(), st.sampled_from((torch.float64, torch.complex128)))
def test_a_transform_is_the_product_with_the_matrix(product: Any, dtype: torch.dtype) -> None:
    name, size, shape, axis, transposed = product
    generator = torch.Generator().manual_seed(size)
    x, weight = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
    x.requires_grad_()
    matrix = BASES[name](size)
    value, expected = (
        apply_basis(x, name, axis, size, transposed=transposed),
        along(matrix.mT if transposed else matrix, x, axis),
    )
    assert value.shape == expected.shape
    assert value.dtype == dtype
    assert value.is_contiguous()
    assert (value - expected).abs().max() < 1e-13
    one, other = (torch.autograd.grad(result, x, weight)[0] for result in (value, expected))
    assert (one - other).abs().max() < 1e-13


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_types(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    value = apply_basis(x, name, 1, 64, transposed=False)
    assert value.dtype == dtype
    expected = x.double() @ BASES[name](64).mT
    assert (value - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_large_bases_need_no_matrix(name: str) -> None:
    size = 2**17
    network = f"X[n i:{size}] P[a i] -> [n a]"
    module = tn.compile(network, inputs={"X": (2, size)}, values={"P": name})
    back = tn.compile(f"X[n a:{size}] P[a i] -> [n i]", inputs={"X": (2, size)}, values={"P": name})
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    value = module(x)
    assert (back(value) - x).abs().max() < 1e-5
    for row in (0, 1, 2, 5, size - 1):  # the transforms of unit vectors are columns of the matrix
        unit = torch.zeros(2, size)
        unit[:, row] = 1
        assert (value * module(unit)).sum(1) == pytest.approx(x[:, row], abs=1e-4)
    with refused(SizeError, name, f"{size} x {size}"):
        evaluate(network, {"X": x, "P": name})


def test_which_sizes_have_a_fast_transform() -> None:
    assert not has_fast_transform("haar", 12)
    assert has_fast_transform("haar", 16)
    assert has_fast_transform("dct", 7)
    assert not any(has_fast_transform(name, 1) for name in NAMES)


# Networks --------------------------------------------------------------------------------------------------------


def check(text: str, inputs: str, basis: str, seed: int) -> Compiled:
    """Values and gradients of a plan, frozen too, against the oracle and a plan with the matrices as weights."""
    module, values = make(text, inputs, basis, seed=seed)
    network, names = module.network, inputs.split()
    dense = matrices(values, network.sizes, network)
    expected = evaluate(network, dense)
    assert (evaluate(text, values) - expected).abs().max() == 0
    tensors = [values[name].clone().requires_grad_() for name in names]
    value = module(*tensors)
    scale = 1 + expected.abs().max()
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= 1e-13 * scale
    held = tn.compile(
        network,
        inputs={name: values[name].shape for name in names},
        values={name: one for name, one in dense.items() if name not in names},
        constants=[name for name in dense if isinstance(values[name], str)],
        tune=False,
    )
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in held.named_parameters()}
    assert not list(module.buffers())
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients, others = (
        torch.autograd.grad((one(*tensors) * weight).sum(), [*tensors, *one.parameters()]) for one in (module, held)
    )
    for one, other in zip(gradients, others, strict=True):
        assert (one - other).abs().max() <= 1e-12 * (1 + other.abs().max())
    with torch.no_grad():
        assert (module.freeze()(*tensors) - expected).abs().max() <= 1e-13 * scale
    return module.thaw()


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(basis=st.sampled_from(NAMES), seed=st.integers(0, 100))
def test_networks(name: str, basis: str, seed: int) -> None:
    module = check(*NETWORKS[name], basis, seed)
    assert bool(transforms(module)) == (name not in ("diagonal", "of all rows", "an open label"))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_matrices(name: str) -> None:
    """By their prices, these small bases are applied as matrices."""
    module = check(*NETWORKS[name], "haar", 0)
    assert not transforms(module)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_transform_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor.clone()

    for what in ("_hadamard", "_to_haar", "_from_haar"):
        monkeypatch.setattr(bases, what, sabotaged)
    monkeypatch.setattr(bases, "_BY_FOURIER", dict.fromkeys(bases._BY_FOURIER, sabotaged))
    for network in ("transform", "back", "of a weight"):
        with pytest.raises(AssertionError):
            check(*NETWORKS[network], name, 0)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", NAMES)
def test_many_nodes(name: str) -> None:
    """Beyond the exact search over all orders."""
    count = 12
    factors = " ".join(f"P[{chr(98 + n)} {chr(97 + n)}] D{n}[{chr(98 + n)}]" for n in range(count))
    assert len(transforms(check(f"X[n:3 a:8] {factors} -> [n {chr(97 + count)}]", "X", name, 0))) >= count // 2


@pytest.mark.parametrize("backward", [False, True])
def test_prices_decide(backward: bool) -> None:
    """Where the product with the matrix is much faster, or much slower, it is predicted to be."""
    for size, is_fast in ((8, False), (2048, True)):
        for name in NAMES:
            module, _ = make(f"X[n:256 i:{size}] P[a i] -> [n a]", "X", name, backward=backward)
            assert bool(transforms(module)) == is_fast


def test_a_basis_is_part_of_the_printed_plan() -> None:
    module, _ = make("X[n:64 i:2048] P[a i] -> [n a]", "X", "dct")
    assert "dct transform of [n i] -> [n a]" in str(module.plan)
    assert "dct transform" in module.plan.steps[0].text


# What torch does to code -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", NAMES)
def test_complex_numbers(name: str) -> None:
    module, values = make("X[n:3 i:8] P[a i] -> [n a]", "X", name)
    assert transforms(module)
    x = torch.complex(values["X"], values["X"].flip(0))
    assert (module(x) - x @ BASES[name](8).mT.to(x.dtype)).abs().max() < 1e-13
    weight = torch.complex(*random_values(parse("A[o:2 a:8] B[o a]"), 0).values())
    both = tn.compile(
        "X[n i] P[a i] W[o a] -> [n o]", inputs={"X": (3, 8)}, values={"P": name, "W": weight}, tune=False
    )
    assert (both(x) - x @ BASES[name](8).mT.to(x.dtype) @ weight.mT).abs().max() < 1e-13


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", NAMES)
def test_types_devices_and_other_sizes(name: str) -> None:
    module, values = make("X[n:3 i:8] P[a i] W[o:2 a] -> [n o]", "X", name)
    assert transforms(module)
    x, weight = values["X"], values["W"]
    expected = x @ BASES[name](8).mT @ weight.mT
    assert (module(torch.cat([x, x])) - torch.cat([expected, expected])).abs().max() < 1e-13
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (other(x) - expected).abs().max() < 1e-13
        assert (other.float()(x.float()) - expected).abs().max() < 1e-5
        assert (other.to(torch.bfloat16)(x.bfloat16()) - expected).abs().max() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert (module.float()(x.float()) - expected).abs().max() < 0.1
    with pytest.raises(CompileError, match="'i'"):
        module(torch.ones(3, 4))


@pytest.mark.usefixtures("free")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own use of torch.jit
@pytest.mark.parametrize("name", NAMES)
def test_vmap_and_derivatives(name: str) -> None:
    module, values = make("X[n:3 i:8] P[a i] W[o:2 a] -> [n o]", "X", name)
    assert transforms(module)
    x = values["X"]
    matrix = BASES[name](8).mT @ values["W"].mT
    many = torch.stack([x, -x, 2 * x])
    assert (torch.func.vmap(module)(many) - many @ matrix).abs().max() < 1e-13
    _, tangent = torch.func.jvp(module, (x,), (x + 1,))
    assert (tangent - (x + 1) @ matrix).abs().max() < 1e-12
    assert torch.autograd.gradgradcheck(lambda one: module(one).square(), x.clone().requires_grad_())


@pytest.mark.usefixtures("free")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch.jit.trace
@pytest.mark.parametrize("name", NAMES)
def test_export(name: str) -> None:
    """Exported code has no Fourier transforms, which formats of exported code lack."""
    module, values = make("X[n:3 i:8] P[a i] W[o:2 a] -> [n o]", "X", name)
    assert transforms(module)
    program = torch.export.export(module, (values["X"],), dynamic_shapes=(({0: torch.export.Dim("n", min=2)},),))
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("fft" in one for one in names)
    x = torch.cat([values["X"], values["X"]])
    assert (program.module()(x) - module(x)).abs().max() < 1e-12
    traced = torch.jit.trace(module, (values["X"],))
    assert (traced(x) - module(x)).abs().max() < 1e-12


# What is refused -------------------------------------------------------------------------------------------------


def refusals() -> Iterator[tuple[str, dict[str, Any], type[Exception], tuple[str, ...]]]:
    yield "X[n i:6] P[a i]", {"P": "hadamard"}, SizeError, ("size 6", "a power of 2")
    yield "X[n i:6] P[a:4 i]", {"P": "dct"}, ValuesError, ("(4, 6)", "'P'")
    yield "X[n i:6] P[i]", {"P": "dct"}, ValuesError, ("1 axes", "'P'")
    yield "X[n i:6] P[a i]", {"P": "walsh"}, ValuesError, ("'walsh'", "dct, fourier, haar, hadamard")
    yield "X[n i:6] P[a i]", {"P": "dct", "Q": "dct"}, ValuesError, ("'Q'",)
    yield "X[n i:6] P[a b]", {"P": "dct"}, SizeError, ("'P'", "not known")


@pytest.mark.parametrize("case", list(refusals()), ids=lambda case: f"{case[0]} {case[1]}")
def test_refused(case: Any) -> None:
    network, values, kind, facts = case
    with refused(kind, *facts):
        tn.compile(network, inputs={"X": (2, 6)}, values=values)
    with refused(kind, *facts):
        evaluate(network, {"X": torch.ones(2, 6), **values})


def test_whole_numbers_are_refused() -> None:
    module, _ = make("X[n:3 i:8] P[a i] -> [n a]", "X", "dct")
    with refused(CompileError, "torch.int64"):
        module(torch.ones(3, 8, dtype=torch.int64))
