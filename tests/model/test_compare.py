"""Decompositions of one kernel at one size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.kernel_cases import gaussian
from tests.refusals import refused
from tnalgebra import nn as layers
from tnalgebra.decompositions import cut, rules
from tnalgebra.errors import LayerError, RankError, RuleError, ValuesError
from tnalgebra.fitting import KeepFraction, Metric, MultiplyAddsBudget, ParameterBudget
from tnalgebra.model import compare
from tnalgebra.rewriting import rule

RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="my_ring")


def test_each_is_what_its_rule_gives_and_the_nearest_comes_first() -> None:
    kernel = gaussian(9, 8, 3, 2, seed=1)
    rewrites = ["tucker2", RING, "out kh | in kw", "K[o i *k] => L[o r] R[r i *k]"]
    found = compare(kernel, rewrites, "parameters 0.5")
    errors = [row.fit.relative_error for row in found.rows if row.fit is not None]
    assert len(errors) == 4
    assert errors == sorted(errors)
    assert all(row.fit is not None and row.fit.parameters <= kernel.numel() / 2 for row in found.rows)
    alone = cut("out kh | in kw").apply(kernel, ParameterBudget(0.5))
    assert found["out kh | in kw"].relative_error == pytest.approx(alone.relative_error, abs=1e-12)
    assert torch.equal(found["my_ring"].dense(), RING.apply(kernel, ParameterBudget(0.5)).dense())


def test_of_equal_errors_the_fewest_parameters_come_first() -> None:
    """An exact kernel of rank 2, of which every rule but the last is exact to rounding."""
    kernel = gaussian(9, 2, seed=1) @ gaussian(2, 8, seed=2)
    sizes = {f"K[o i] => L[o r:{rank}] R[r i]": rank for rank in (7, 2, 5, 1)}
    found = compare(kernel, [*sizes], "parameters 1.0", labels="o i")
    assert [sizes[row.name] for row in found.rows if row.fit is not None] == [2, 1]
    wider = [*sizes, "K[o i] => L[o r:2] G[r s:2] R[s i]", "K[o i] => L[o r:3] R[r i]"]
    sizes |= {wider[-2]: 22, wider[-1]: 3}
    for order in (wider, wider[::-1]):
        found = compare(kernel, order, "parameters 1.0", labels="o i")
        assert [sizes[row.name] for row in found.rows if row.fit is not None] == [2, 22, 3, 1]


@pytest.mark.parametrize(
    ("size", "ranks"), [(2, [2, 2]), ("a=3 b=2", [3, 2]), ("keep 0.5", [4, 4]), (KeepFraction(0.25), [2, 2])]
)
def test_a_size_in_every_form(size: Any, ranks: list[int]) -> None:
    found = compare(gaussian(9, 8, 3, 2, seed=1), "tucker2", size)
    assert [*found.records()[0]["ranks"].values()] == ranks


def test_a_fit_is_a_row_as_it_is() -> None:
    kernel = gaussian(9, 8, 3, 2, seed=1)
    fit = RING.apply(kernel, {"p": 2, "q": 2, "s": 2, "z": 2}, starts=1)
    found = compare(kernel, [RING, fit, cut("out | in kh kw").apply(kernel, 3)], "parameters 0.5")
    assert found["my_ring (fit)"] is fit
    assert {row.name for row in found.rows} == {"my_ring", "my_ring (fit)", "out | in kh kw (fit)"}
    with refused(ValuesError, "(9, 8, 3, 2)", "(9, 8, 2, 3)"):
        compare(kernel.mT, fit, 2)


def test_all_are_those_of_the_catalogue_for_these_labels() -> None:
    kernel = gaussian(6, 4, 3, seed=1)
    found = compare(kernel, "all", "parameters 0.6", starts=1)
    assert {row.name for row in found.rows} == {one.name for one in rules("out in k").decompositions}
    for row in found.rows:
        assert (row.fit is None) == bool(row.reason)
        assert row.fit is None or row.fit.parameters <= 0.6 * kernel.numel()
        assert row.fit is None or row.multiply_adds == row.fit.multiply_adds((1,))


def test_equal_structures_are_named() -> None:
    found = compare(gaussian(6, 4, seed=1), ["cp", "tucker2", "tensor_train", "out | in", "in | out"], "r=2")
    assert [row.name for row in found.rows if row.fit is None] == ["tucker2", "tensor_train"]
    assert found.notes[-1].startswith("the same network at these ranks: ")
    assert {*found.notes[-1].partition(": ")[2].split(", ")} == {"cp", "out | in", "in | out"}
    assert str(found).splitlines()[-1] == found.notes[-1]
    assert not compare(gaussian(6, 4, 3, seed=1), ["out | in k", "in | out k"], 2).notes


def test_all_in_a_list_stands_for_the_catalogue() -> None:
    kernel = gaussian(6, 4, 3, 3, seed=1)
    found = compare(kernel, ["all", RING, "cp"], "parameters 0.6", starts=1)
    names = [row.name for row in found.rows]
    assert {*names} == {"my_ring", *(one.name for one in rules("out in kh kw").decompositions)}
    assert len({*names}) == len(names)


def test_without_any_fit_the_table_has_the_columns_of_the_dense_kernel() -> None:
    found = compare(gaussian(6, 4, seed=1), "cp", "parameters 0.01")
    assert found.rows[0].fit is None
    assert str(found).splitlines()[0].split() == ["decomposition", "parameters", "kept", "multiply-adds"]


def test_an_embedding_is_compared_on_tokens() -> None:
    found = compare(nn.Embedding(30, 20), "all", "parameters 0.3", starts=1)
    assert found["cp"].parameters <= 0.3 * 30 * 20
    assert found.multiply_adds == 0


def test_what_cannot_be_made_is_a_row_with_its_reason() -> None:
    found = compare(nn.Conv2d(8, 8, 3), ["spatially_separable", "cp"], "parameters 0.3", starts=1)
    assert [row.name for row in found.rows if row.fit is not None] == ["cp"]
    assert found.rows[1].name == "spatially_separable"
    assert "172 parameters" in found.rows[1].reason


# A budget of multiply-adds, a layer and its time ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (nn.Conv2d(12, 16, 3, stride=2, padding=1), (2, 12, 14, 10)),
        (nn.ConvTranspose1d(12, 16, 3), (2, 12, 14)),
        (nn.Linear(24, 20), (3, 5, 24)),
    ],
)
def test_a_budget_of_multiply_adds_is_of_the_layer_on_the_example(layer: nn.Module, example: tuple[int, ...]) -> None:
    found = compare(layer, ["cp", "tensor_train", "tucker2"], MultiplyAddsBudget(0.4), example=example, starts=1)
    assert found.multiply_adds == dense_multiply_adds(layer, example)
    for row in found.rows:
        assert row.fit is not None
        assert row.multiply_adds is not None
        assert 0.6 * 0.4 * found.multiply_adds < row.multiply_adds <= 0.4 * found.multiply_adds
        ours = layers.decomposed(layer, row.fit, candidates="factored").eval()
        with torch.no_grad():
            assert ours(torch.randn(example)).shape == layer(torch.randn(example)).shape


def dense_multiply_adds(layer: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(shape))
    return counter.get_total_flops() // 2


def test_a_budget_of_multiply_adds_of_a_kernel_is_of_one_position() -> None:
    kernel = gaussian(12, 10, 3, 3, seed=1)
    found = compare(
        kernel, ["cp", "tucker2", "spatially_separable", "depthwise_separable"], "multiply-adds 0.3", starts=1
    )
    assert found.multiply_adds == kernel.numel()
    for row in found.rows[:3]:
        assert row.fit is not None
        assert row.multiply_adds == row.fit.multiply_adds((1, 1)) <= 0.3 * kernel.numel()
    assert found.rows[3].name == "spatially_separable"
    assert "allows 324 multiply-adds" in found.rows[3].reason
    least = float(found.rows[3].reason.rpartition("multiply-adds ")[2].strip("'"))
    assert compare(kernel, "spatially_separable", MultiplyAddsBudget(least)).rows[0].fit is not None


def test_times_are_beside_those_of_the_dense_layer() -> None:
    layer = nn.Conv2d(6, 4, 3).train()
    found = compare(layer, ["cp", "out | in kh kw"], 2, example=(1, 6, 8, 8), time=True)
    assert layer.training
    assert found.seconds is not None
    assert found.seconds > 0
    assert all(row.seconds is not None and row.seconds > 0 for row in found.rows)
    assert {record["dense_seconds"] for record in found.records()} == {found.seconds}
    assert " ms " in str(found).splitlines()[0]
    assert str(found).splitlines()[-1].startswith("dense")


def test_the_table_has_a_line_each_and_says_what_could_not_be_made() -> None:
    layer = nn.Conv2d(6, 4, 3)
    found = compare(layer, ["cp", "spatially_separable", "out | in kh kw"], "parameters 0.3")
    lines = str(found).splitlines()
    assert lines[0].split() == ["decomposition", "parameters", "kept", "error", "multiply-adds", "degeneracy", "ranks"]
    assert lines[-1].startswith("spatially_separable: ")
    assert "allows 64 parameters" in lines[-1]
    assert {line.split("  ")[0] for line in lines[2:4]} == {"cp", "out | in kh kw"}
    assert lines[-2].startswith("dense ")
    with refused(RuleError, "'spatially_separable'", "allows 64 parameters"):
        found["spatially_separable"]
    with refused(RuleError, "'tucker'", "cp"):
        found["tucker"]
    with refused(RuleError, "no rewrite"):
        compare(layer, [], "parameters 0.5")
    assert list(found.to_pandas()["name"])[-1] == "spatially_separable"
    assert repr(found) == f"<Comparison 2 of 3 decompositions, nearest {found.rows[0].name!r}>"


def test_a_metric_orders_by_the_error_of_the_output() -> None:
    kernel, inputs = gaussian(5, 4, 3, seed=2), gaussian(40, 12, seed=3) * torch.linspace(0.1, 3, 12)
    covariance = (inputs.mT @ inputs / 40).reshape(4, 3, 4, 3)
    metric = Metric(("in", "k"), covariance)
    found = compare(kernel, ["cp", "tensor_train", "out | in k"], "parameters 0.5", metric=metric)
    errors = [row.fit.output_error for row in found.rows if row.fit is not None]
    assert None not in errors
    assert errors == sorted(errors)
    assert "output error" in str(found)
    for row in found.rows:
        assert row.fit is not None
        assert row.fit.output_error == pytest.approx(
            metric.relative(kernel - row.fit.dense(), kernel, ("out", "in", "k")), rel=1e-6
        )


@pytest.mark.parametrize(
    ("kernel", "rewrites", "size", "settings", "error", "facts"),
    [
        (gaussian(4, 3), ["tukker"], 2, {}, RuleError, ["'tukker'"]),
        (gaussian(4, 3), ["out | in", "out | in"], 2, {}, RuleError, ["'out | in'", "twice"]),
        (gaussian(4, 3), ["out | in"], 0.5, {}, RankError, ["0.5", "'parameters 0.5'"]),
        (gaussian(4, 3), ["out | in"], "parameters 1.5", {}, RankError, ["1.5"]),
        (gaussian(4), ["out | in"], 2, {}, RuleError, ["1 axes"]),
        (gaussian(4, 3), ["out | in"], 2, {"labels": "o i k"}, RuleError, ["o i k", "2 axes"]),
        (gaussian(4, 3) * torch.nan, ["out | in"], 2, {}, ValuesError, ["NaN"]),
        (gaussian(4, 3), ["out | in"], 2, {"time": True}, RuleError, ["kernel alone", "time"]),
        (gaussian(4, 3), ["out | in"], 2, {"example": (1, 3)}, RuleError, ["kernel alone", "example"]),
        (nn.ReLU(), ["out | in"], 2, {}, LayerError, ["ReLU"]),
        (nn.Linear(4, 3), ["out | in"], 2, {"example": (2, 5)}, LayerError, ["example"]),
        (nn.Embedding(9, 4), ["rows | dim"], "multiply-adds 0.5", {}, RankError, ["embedding", "parameters"]),
        ("64x64x3x3", "all", 2, {}, ValuesError, ["str", "layer", "weight"]),
    ],
)
def test_what_cannot_be_compared(
    kernel: Any, rewrites: Any, size: Any, settings: dict[str, Any], error: type[Exception], facts: list[str]
) -> None:
    with refused(error, *facts):
        compare(kernel, rewrites, size, **settings)
