"""One core beside constants is a linear problem: its fit is the core of least norm among the best, at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.kernel_cases import KERNEL, SIZES, check_claim, gaussian, measured, metric_of
from tests.refusals import refused
from tnalgebra.errors import RuleError
from tnalgebra.fitting import Metric
from tnalgebra.networks import parse_rule, tensor_nodes, with_sizes
from tnalgebra.rewriting import rule
from tnalgebra.tensors import evaluate

CASES = {
    "cur": "C[out kh p] U[p q] R[q in kw]",
    "weights of a cp": "U[r] A[out r] B[in r] C[kh r] D[kw r]",
    "core of a tucker": "U[p q r s] A[out p] B[in q] C[kh r] D[kw s]",
    "factor of a tucker": "U[in q] G[p q r s] A[out p] C[kh r] D[kw s]",
    "core of a ring": "A[s out p] U[p in q] C[q kh r] D[r kw s]",
    "open on both": "U[out in p] A[p out kh] B[out kw]",
    "open on all": "U[out in kh r] A[out kw r] B[out in] C[kw kh]",
    "summed alone": "U[out in p] A[kh kw]",
    "summed twice": "C[out p q] U[p] R[q in kh kw]",
    "a bond of its own": "U[out p q] A[p in kh] B[kw]",
    "with a pattern": "U[r s] A[out r] B[in kh s] Fill[kw | value=2]",
}
BONDS = {"p": 3, "q": 4, "r": 2, "s": 3}
METRICS = {
    "none": None,
    "window": metric_of(1),
    "channels": metric_of(2, "in"),
    "grouped": metric_of(3, grouped=True),
    "wanted": metric_of(4, crossed=True),
}


@dataclass(frozen=True)
class Problem:
    """A right side with one free core, and constants whose last slices along every axis are sums of the first ones."""

    text: str
    deficient: bool

    @property
    def equation(self) -> str:
        return f"K[out in kh kw] => {self.text} -> [out in kh kw]"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        right = with_sizes(parse_rule(self.equation)[1], SIZES)
        labels = {name: right.nodes[places[0]].labels for name, places in tensor_nodes(right).items()}
        return {name: tuple({**SIZES, **BONDS}[label] for label in names) for name, names in labels.items()}

    @property
    def fixed(self) -> dict[str, Tensor]:
        constants = {}
        for number, (name, shape) in enumerate(self.shapes.items()):
            if name != "U":
                constants[name] = gaussian(*shape, seed=number)
                for axis, size in enumerate(shape if self.deficient else ()):
                    if size > 1:
                        first = constants[name].narrow(axis, 0, size - 1)
                        last = first.sum(axis, keepdim=True)
                        constants[name] = torch.cat([first, last], axis)
        return constants

    @property
    def sizes(self) -> dict[str, int] | None:
        """Sizes of the bonds that no constant has."""
        right = parse_rule(self.equation)[1]
        ((core,), others) = [[n for n in right.nodes if (n.name == "U") == free] for free in (True, False)]
        known = {label for node in others for label in node.labels}
        return {bond: BONDS[bond] for bond in core.labels if bond in BONDS.keys() - known} or None

    def design(self) -> NDArray[np.float64]:
        """Column [:, j] is the dense tensor where element j of the core is 1 and all others are 0."""
        right = with_sizes(parse_rule(self.equation)[1], SIZES)
        units = torch.eye(math.prod(self.shapes["U"]), dtype=torch.float64)
        columns = [evaluate(right, {**self.fixed, "U": unit.reshape(self.shapes["U"])}) for unit in units]
        return torch.stack([column.flatten() for column in columns], 1).numpy()


def weighted(columns: NDArray[np.float64], metric: Metric | None) -> NDArray[np.float64]:
    """Columns of dense tensors in coordinates where the metric is the Frobenius norm."""
    if metric is None:
        return columns
    tensors = columns.reshape(*SIZES.values(), -1)
    d = math.prod(SIZES[label] for label in metric.labels)
    roots = np.linalg.cholesky(metric.covariance.reshape(-1, d, d).numpy())
    order = [list(SIZES).index(label) for label in SIZES if label not in metric.labels]
    moved = np.transpose(tensors, [*order, *(list(SIZES).index(label) for label in metric.labels), 4])
    rows = moved.reshape(7, -1, d, columns.shape[1])
    return np.einsum("oaic,oij->oajc", rows, np.broadcast_to(roots, (7, d, d))).reshape(-1, columns.shape[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_the_fit_is_the_best_core_of_least_norm(name: str, metric: str) -> None:
    for deficient in (False, True):
        problem, norm = Problem(CASES[name], deficient), METRICS[metric]
        fit = rule(problem.equation).apply(KERNEL, problem.sizes, fixed=problem.fixed, metric=norm, stability=0.1)
        check_claim(fit)
        kernel = KERNEL if norm is None or norm.cross is None else norm.target(KERNEL, tuple(SIZES))
        design = problem.design()
        right = weighted(kernel.reshape(-1, 1).numpy(), norm)
        best, _, _, _ = np.linalg.lstsq(weighted(design, norm), right, rcond=1e-11)
        np.testing.assert_allclose(fit.values["U"].flatten(), best[:, 0], rtol=0, atol=1e-8 * np.abs(best).max())
        if norm is not None:
            assert fit.output_error == pytest.approx(measured(fit.dense(), norm), rel=1e-9)


def test_a_kernel_in_the_span_of_the_constants_is_met() -> None:
    """The residual is then rounding, in each type that a fit is computed in."""
    kernel = gaussian(12, 4, seed=1) @ gaussian(4, 10, seed=2)
    cur = rule("K[o i] => C[o p] U[p q] R[q i]")
    for columns, rows in ((4, 4), (6, 9), (12, 10)):
        fit = cur.apply(kernel, fixed={"C": kernel[:, :columns], "R": kernel[:rows]})
        assert fit.relative_error < 1e-12
        torch.testing.assert_close(fit.values["U"], torch.linalg.pinv(kernel[:rows, :columns]), rtol=0, atol=1e-12)
        low = cur.apply(kernel.float(), fixed={"C": kernel[:, :columns], "R": kernel[:rows]}, dtype=torch.float32)
        assert low.relative_error < 1e-5
    near = kernel + 1e-3 * gaussian(12, 10, seed=3)
    many = cur.apply_many([near, kernel], fixed={"C": near[:, :4], "R": near[:4]})
    for target, fit in zip((near, kernel), many, strict=True):
        core = torch.linalg.pinv(near[:, :4]) @ target @ torch.linalg.pinv(near[:4])
        torch.testing.assert_close(fit.values["U"], core, rtol=1e-9, atol=1e-12)


def test_a_core_of_zeros_fits_beside_constants_of_zeros() -> None:
    fit = rule("K[o i] => C[o p] U[p q] R[q i]").apply(
        gaussian(5, 4), fixed={"C": torch.zeros(5, 2), "R": gaussian(3, 4)}
    )
    assert fit.relative_error == 1
    assert not bool(fit.values["U"].any())


def test_constants_alone_are_refused() -> None:
    with refused(RuleError, "nothing is left"):
        rule("K[o i] => C[o p] R[p i]").apply(gaussian(5, 4), fixed={"C": gaussian(5, 2), "R": gaussian(2, 4)})
