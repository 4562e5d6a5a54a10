"""Decomposed embeddings against torch's embedding with the rebuilt table, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import CompileError, LayerError, RuleError

# Sums of at most a hundred products of normal numbers, in another order, in float64.
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

RESHAPED = "W[rows dim] => Fuse[rows r1 r2] Fuse[dim d1 d2] A[r1 d1 p] B[p r2 d2]"
REWRITES: dict[str, tuple[str, object, dict[str, int]]] = {
    "cp": ("cp", 3, {}),
    "cut": ("rows | dim", "keep 0.5", {}),
    "reshaped train": (RESHAPED, 4, {"r1": 6, "d1": 2}),
    "train of three": (
        "W[rows dim] => Fuse[rows r1 r2 r3] Fuse[dim d1 d2] A[r1 p] B[p r2 d1 q] C[q r3 d2]",
        {"p": 2, "q": 3},
        {"r1": 2, "r2": 3, "d1": 2},
    ),
    "two parts on a core": ("W[rows dim] => Fuse[rows a b c] A[a c p] B[p b dim]", 3, {"a": 2, "b": 3}),
    "parts of a part": ("W[rows dim] => Fuse[rows a b] Fuse[b c d] A[d p a] B[p c dim]", 3, {"a": 2, "c": 3}),
    "rows on two cores": ("W[rows dim] => A[rows r] B[dim r] C[rows r]", 2, {}),
    "a tied core": ("W[rows dim] => Fuse[rows a b] A[a p] A[b q] C[p q dim]", {"p": 3, "q": 3}, {"a": 5, "b": 5}),
    "a copied part": ("W[rows dim] => Fuse[rows a b] Copy[a c e] A[c b p] B[p dim] D[e p]", {"p": 3}, {"a": 6}),
}


def table(rows: int = 24, **arguments: Any) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(rows, 10, dtype=torch.float64, **arguments)


def reshaped(**arguments: Any) -> tn.nn.Embedding:
    rewrite, size, sizes = REWRITES["reshaped train"]
    return tn.nn.Embedding.from_embedding(table(**arguments), rewrite, size, sizes=sizes)


def check_equal(layer: tn.nn.Embedding, numbers: Tensor) -> None:
    """Values and gradients are those of torch's embedding with the rebuilt table."""
    dense = layer.to_dense()
    assert isinstance(dense, nn.Embedding)
    value, expected = layer(numbers), dense(numbers)
    torch.testing.assert_close(value, expected, **ROUNDING)
    slope = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [*layer.parameters()]
    gradients = torch.autograd.grad(value, parameters, slope)
    (of_table,) = torch.autograd.grad(expected, [dense.weight], slope)
    wanted = torch.autograd.grad(layer.dense_weight(), parameters, of_table)
    for one, two in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, two, **ROUNDING)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_values_and_gradients_are_those_of_the_table(data: st.DataObject) -> None:
    rewrite, size, sizes = REWRITES[data.draw(st.sampled_from([*REWRITES]))]
    rows = 25 if "A[b q]" in rewrite else 24
    padding = data.draw(st.none() | st.integers(-rows, rows - 1))
    layer = tn.nn.Embedding.from_embedding(
        table(rows, padding_idx=padding), rewrite, size, sizes=sizes, starts=1, sweeps=2
    )
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel()
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count)))
    check_equal(layer, numbers.to(data.draw(st.sampled_from((torch.int64, torch.int32)))).reshape(shape))


@pytest.mark.parametrize("name", REWRITES)
def test_every_row(name: str) -> None:
    rewrite, size, sizes = REWRITES[name]
    dense = table(25 if name == "a tied core" else 24)
    layer = tn.nn.Embedding.from_embedding(dense, rewrite, size, sizes=sizes, starts=1, sweeps=2)
    torch.testing.assert_close(layer(torch.arange(dense.num_embeddings)), layer.dense_weight(), **ROUNDING)
    check_equal(layer, torch.arange(dense.num_embeddings))
    other = tn.nn.Embedding(dense.num_embeddings, 10, rewrite=rewrite, size=size, sizes=sizes, dtype=torch.float64)
    assert other.kernel == layer.kernel or "keep" in str(size)
    assert other.relative_error is None
    assert float(other.dense_weight().detach().square().mean()) == pytest.approx(1)


def test_the_table_is_never_contracted() -> None:
    """A plan for few tokens has no intermediate of the table's size, and its counts are those of the tokens."""
    layer = reshaped()
    assert layer.planned_for == (256,)
    per_token = layer.plan.multiply_adds / 256
    assert layer.replan((3, 2)).planned_for == (6,)
    assert layer.plan.multiply_adds == 6 * per_token
    assert f"{per_token:.0f} multiply-adds a token" in repr(layer)
    assert all(label not in layer.network.sizes for label in ("rows", "r1", "r2"))
    check_equal(layer, torch.tensor([3, 23, 0]))


def test_the_padding_row_stays_as_it_is() -> None:
    dense = table(padding_idx=3)
    assert not bool(dense.weight[3].any())
    layer = tn.nn.Embedding.from_embedding(dense, "rows | dim", 2)
    assert [*layer.state_dict()] == ["L", "R", "padding"]
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    before = layer.dense_weight().detach()
    layer(torch.arange(24)).square().sum().backward()
    optimizer.step()
    after = layer.dense_weight().detach()
    assert bool((after != before).any())
    assert torch.equal(layer(torch.tensor(3)), torch.zeros(10, dtype=torch.float64))
    assert torch.equal(after[3], before[3])
    with torch.no_grad():
        dense.weight[3] = 7.0
    assert torch.equal(tn.nn.Embedding.from_embedding(dense, "cp", 2)(torch.tensor([3]))[0], dense.weight[3].detach())


def test_it_compiles_exports_copies_and_freezes(tmp_path: Any) -> None:
    layer = reshaped(padding_idx=1)
    x, more = torch.tensor([[1, 2, 3], [23, 0, 3]]), torch.tensor([[5, 1, 7]] * 4)
    code: Any = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(code(x), layer(x), **ROUNDING)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(program.module()(more), layer(more), **ROUNDING)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    before = layer(x)
    torch.testing.assert_close(layer.freeze()(x), before, **ROUNDING)
    layer.draw(tmp_path / "layer.svg")
    assert (tmp_path / "layer.svg").stat().st_size > 1000
    half = layer.float()
    assert half(x).dtype == torch.float32


def test_what_is_refused() -> None:
    layer = reshaped()
    with pytest.raises(IndexError):
        layer(torch.tensor([24]))
    with pytest.raises(IndexError):
        layer(torch.tensor([-1]))
    with refused(CompileError, "torch.float64", "torch.int64"):
        layer(torch.zeros(2, dtype=torch.float64))
    with refused(LayerError, "nn.Embedding", "Linear"):
        tn.nn.Embedding.from_embedding(nn.Linear(2, 3), "cp", 1)
    with refused(LayerError, "Fuse[dim r1 d2]"):
        tn.nn.Embedding.from_embedding(
            table(), "W[rows dim] => Fuse[rows r1 r2] Fuse[dim r1 d2] A[r1 r2 d2]", sizes={"r1": 2}
        )
    with refused(RuleError, "rows"):
        tn.nn.Embedding.from_embedding(table(), "out | in", 2)
    with refused(LayerError, "max_norm=1.0"):
        tn.nn.Embedding(4, 3, max_norm=1.0, rewrite="cp", size=1)
