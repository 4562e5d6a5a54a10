"""Decompositions of one kernel at equal parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kernel_cases import gaussian
from tests.refusals import refused
from tnalgebra.decompositions.cuts import cut
from tnalgebra.errors import RankError, RuleError, ValuesError
from tnalgebra.fitting.metric import Metric
from tnalgebra.fitting.ranks import ParameterBudget
from tnalgebra.model.compare import compare
from tnalgebra.rewriting.text import rule

RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="my_ring")


def test_each_is_what_its_rule_gives_and_the_nearest_comes_first() -> None:
    kernel = gaussian(9, 8, 3, 2, seed=1)
    found = compare(kernel, ["tucker2", RING, "out kh | in kw", "K[o i *k] => L[o r] R[r i *k]"], parameters=0.5)
    errors = [row.fit.relative_error for row in found.rows if row.fit is not None]
    assert len(errors) == 4
    assert errors == sorted(errors)
    assert all(row.fit is not None and row.fit.parameters <= kernel.numel() / 2 for row in found.rows)
    alone = cut("out kh | in kw").apply({"K": kernel}, ParameterBudget(0.5))
    assert found["out kh | in kw"].relative_error == pytest.approx(alone.relative_error, abs=1e-12)
    assert torch.equal(found["my_ring"].dense(), RING.apply({"K": kernel}, ParameterBudget(0.5)).dense())


def test_the_table_has_a_line_each_and_says_what_could_not_be_made() -> None:
    layer = nn.Conv2d(6, 4, 3)
    found = compare(layer, ["cp", "spatially_separable", "out | in kh kw"], parameters=0.3)
    lines = str(found).splitlines()
    assert lines[0].split() == ["decomposition", "parameters", "kept", "error", "ranks"]
    assert lines[-1].startswith("spatially_separable: ParameterBudget(fraction=0.3) allows 64 parameters, rank 1 takes")
    assert {line.split("  ")[0] for line in lines[2:-1]} == {"cp", "out | in kh kw"}
    with refused(RuleError, "'spatially_separable'", "rank 1 takes"):
        found["spatially_separable"]
    with refused(RuleError, "'tucker'", "cp"):
        found["tucker"]
    assert list(found.to_pandas()["name"])[-1] == "spatially_separable"


def test_a_metric_orders_by_the_error_of_the_output() -> None:
    kernel, inputs = gaussian(5, 4, 3, seed=2), gaussian(40, 12, seed=3) * torch.linspace(0.1, 3, 12)
    covariance = (inputs.mT @ inputs / 40).reshape(4, 3, 4, 3)
    metric = Metric(("in", "k"), covariance)
    found = compare(kernel, ["cp", "tensor_train", "out | in k"], parameters=0.5, metric=metric)
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
    ("kernel", "rules", "parameters", "error", "fact"),
    [
        (gaussian(4, 3), ["tukker"], 0.5, RuleError, "'tukker'"),
        (gaussian(4, 3), ["out | in", "out | in"], 0.5, RuleError, "'out | in'"),
        (gaussian(4, 3), ["out | in"], 1.5, RankError, "1.5"),
        (gaussian(4), ["out | in"], 0.5, RuleError, "1 axes"),
        (gaussian(4, 3) * torch.nan, ["out | in"], 0.5, ValuesError, "NaN"),
    ],
)
def test_what_cannot_be_compared(
    kernel: torch.Tensor, rules: list[str], parameters: float, error: type[Exception], fact: str
) -> None:
    with refused(error, fact):
        compare(kernel, rules, parameters=parameters)
