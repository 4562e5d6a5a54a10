"""Components that cancel each other become smaller, and the error stays within its bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import check_claim, gaussian, values_of
from tnalgebra.decompositions.degeneracy import correct_degeneracy
from tnalgebra.decompositions.load_trace import load_trace
from tnalgebra.errors import RuleError, ValuesError
from tnalgebra.fitting import degeneracy as correction
from tnalgebra.fitting.chosen_ranks import problem_of
from tnalgebra.fitting.degeneracy import corrected, degeneracy, squared_components, squared_rest
from tnalgebra.fitting.metric import Metric
from tnalgebra.fitting.objective import Problem
from tnalgebra.fitting.search import Settings, searched
from tnalgebra.network.network import Network, with_sizes
from tnalgebra.network.nodes import NamedTensor
from tnalgebra.network.notation import parse
from tnalgebra.tensors.evaluation import evaluate

NETWORKS = [
    "A[o:4 r:3] B[i:5 r] C[h:3 r] -> [o i h]",
    "A[z:2 o:4 p:3] B[p i:5 q:2] C[q h:3 z] -> [o i h]",
    "A[o:4 a:2 t:2] G[a b:2 h:3 t] B[b i:5 t] -> [o i h]",
    "A[i:5 r:3] B[i h:3 r] C[o:4 r] -> [o i h]",
    "A[o:4 r:3] B[i:5 r] C[h:3 s:2] D[s r] -> [o i h]",
    "A[o:4 r:3] A[i:4 r] B[h:3 r] -> [o i h]",
]


def problem_for(text: str, *, layers: int = 1, seed: int = 0, metric: bool = False) -> Problem:
    network = parse(text)
    sizes = [network.sizes[label] for label in network.output]
    metrics = []
    for number in range(layers if metric else 0):
        d = sizes[1] * sizes[2]
        x = gaussian(3 * d, d, seed=seed + number) + 0.5
        metrics.append(
            Metric(
                network.output[1:],
                (x.mT @ x / (3 * d)).reshape(*sizes[1:], *sizes[1:]),
                (),
                None,
                None,
                network.output[:1],
            )
        )
    return problem_of(gaussian(layers, *sizes, seed=seed), network, {}, {}, metrics)


def cores(problem: Problem, starts: int, seed: int) -> dict[str, Tensor]:
    return {
        name: gaussian(problem.layers, starts, *shape, seed=seed + number)
        for number, (name, shape) in enumerate(problem.free.items())
    }


def slow_components(text: str, values: dict[str, Tensor]) -> float:
    """The sum of squares over all values of all labels, one after another."""
    network = parse(text)
    labels = sorted(network.sizes)
    total = 0.0
    for place in product(*(range(network.sizes[label]) for label in labels)):
        at = dict(zip(labels, place, strict=True))
        term = 1.0
        for node in network.nodes:
            term *= float(values[node.name][tuple(at[label] for label in node.labels)])
        total += term**2
    return total


@pytest.mark.parametrize("text", NETWORKS)
def test_squared_components_are_those_summed_one_by_one(text: str) -> None:
    problem = problem_for(text, layers=2)
    values = cores(problem, 3, seed=5)
    found = squared_components(problem, values)
    assert found.shape == (2, 3)
    for layer, start in ((0, 0), (1, 2)):
        alone = {name: core[layer, start] for name, core in values.items()}
        assert float(found[layer, start]) == pytest.approx(slow_components(text, alone), rel=1e-12)
    if problem.tied:
        return
    for position, occurrence in enumerate(problem.occurrences):
        weighted = squared_rest(problem, position, values) * values[occurrence.name].square()
        torch.testing.assert_close(weighted.flatten(2).sum(2), found, rtol=1e-12, atol=0)


@settings(max_examples=60)
@given(st.sampled_from(NETWORKS), st.booleans(), st.sampled_from((0.0, 0.3, 0.9, 1.1)), st.integers(0, 2**30))
def test_components_get_smaller_within_the_bound(text: str, metric: bool, part: float, seed: int) -> None:
    problem = problem_for(text, layers=2, seed=seed, metric=metric)
    values = cores(problem, 2, seed=seed + 100)
    before = problem.loss(problem.model(values))
    found = corrected(problem, values, bound=part * problem.power, sweeps=5)
    bound = torch.maximum(before, part * problem.power.expand_as(before))
    assert (problem.loss(problem.model(found)) <= bound * (1 + 1e-9)).all()
    assert (squared_components(problem, found) <= squared_components(problem, values) * (1 + 1e-9)).all()
    assert {name: core.shape for name, core in found.items()} == {name: core.shape for name, core in values.items()}


def test_one_core_is_the_best_within_the_bound() -> None:
    """Against a general solver's answer: the optimum of Lagrange's equations, searched over the weight."""
    problem = problem_for("A[o:4 r:3] B[i:5 r] C[h:3 r] -> [o i h]")
    values = cores(problem, 1, seed=9)
    system = correction.System(problem, 0)
    limit = problem.loss(problem.model(values)) * 0.9
    found = correction._smaller(system, values, limit)
    E = torch.einsum("ir,hr->ihr", values["B"][0, 0], values["C"][0, 0]).reshape(15, 3)
    T = problem.target[0].reshape(4, 15)
    W = torch.diag((values["B"][0, 0].square().sum(0)) * (values["C"][0, 0].square().sum(0)))

    def solved(ridge: float) -> Tensor:
        return torch.linalg.solve(E.mT @ E + ridge * W, E.mT @ T.mT).mT

    low, high = 1e-12, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        if float((T - solved(middle) @ E.mT).square().sum()) <= float(limit):
            low = middle
        else:
            high = middle
    torch.testing.assert_close(found[0, 0], solved(low), rtol=1e-4, atol=1e-6)


def degenerate() -> Problem:
    """a (x) a (x) b + a (x) b (x) a + b (x) a (x) a: rank 3, and limit of tensors of rank 2 (de Silva, Lim 2008)."""
    a, b = torch.linalg.qr(gaussian(4, 2, seed=3)).Q.T
    terms = ((a, a, b), (a, b, a), (b, a, a))
    target = torch.stack([torch.einsum("i,j,k->ijk", *term) for term in terms]).sum(0)
    network = parse("A[i:4 r:2] B[j:4 r] C[k:4 r] -> [i j k]")
    return problem_of(target[None], network, {}, {})


def test_the_components_of_a_degenerate_approximation() -> None:
    problem = degenerate()
    ended = searched(problem, cores(problem, 8, seed=0), Settings())[0]
    values = {name: core[None, None] for name, core in ended.values.items()}
    assert ended.errors[-1] < 1e-3
    assert degeneracy(problem, values) > 10
    found = corrected(problem, values, bound=0.1**2 * float(problem.power))
    error = float((problem.loss(problem.model(found)) / problem.power).sqrt())
    assert 0.09 < error <= 0.1
    assert degeneracy(problem, found) < degeneracy(problem, values) / 8


def test_a_detour_of_the_components_is_taken_back_at_the_same_error() -> None:
    """A component and its negative, on top of a good approximation, do nothing but cancel each other."""
    network = parse("A[o:5 r:5] B[i:6 r] C[h:4 r] -> [o i h]")
    good = {"A": gaussian(5, 3, seed=1), "B": gaussian(6, 3, seed=2), "C": gaussian(4, 3, seed=3)}
    detour = {"A": gaussian(5, 1, seed=4), "B": gaussian(6, 1, seed=5), "C": gaussian(4, 1, seed=6)}
    values = {
        name: torch.cat([core, 20 * detour[name], (-20 if name == "A" else 20) * detour[name]], 1)[None, None]
        for name, core in good.items()
    }
    dense = torch.einsum("or,ir,hr->oih", *good.values())
    target = dense + 0.05 * dense.norm() * gaussian(5, 6, 4, seed=7) / math.sqrt(120)
    problem = problem_of(target[None], network, {}, {})
    before = problem.loss(problem.model(values))
    found = corrected(problem, values, bound=0.0, sweeps=300)
    assert float(problem.loss(problem.model(found))) <= float(before)
    assert degeneracy(problem, found) < degeneracy(problem, values) / 100
    assert degeneracy(problem, found) < 3


def test_starts_and_layers_side_by_side_are_as_alone() -> None:
    problem = problem_for(NETWORKS[0], layers=2)
    values = cores(problem, 3, seed=1)
    bound = 0.8 * problem.power
    together = corrected(problem, values, bound=bound, sweeps=3, tolerance=0.0)
    for layer, start in product(range(2), range(3)):
        alone = {name: core[layer : layer + 1, start : start + 1] for name, core in values.items()}
        own = corrected(problem.of_layers(torch.tensor([layer])), alone, bound=bound[layer], sweeps=3, tolerance=0.0)
        for name, core in own.items():
            torch.testing.assert_close(core[0, 0], together[name][layer, start], rtol=1e-6, atol=1e-8)


def test_what_is_not_corrected() -> None:
    problem = problem_for(NETWORKS[0])
    values = cores(problem, 1, seed=1)
    for name, core in corrected(problem, values, bound=0.0, sweeps=0).items():
        assert core is values[name]
    twin = problem_for("A[o:4 r:3] A[i:4 r] -> [o i]")
    tied = cores(twin, 1, seed=1)
    assert torch.equal(corrected(twin, tied, bound=100.0)["A"], tied["A"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correction, "LARGEST", 2)
        for name, core in corrected(problem, values, bound=100.0).items():
            assert torch.equal(core, values[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_and_types(dtype: torch.dtype) -> None:
    nodes = [NamedTensor("A", ("o", "r")), NamedTensor("B", ("i", "r"))]
    network = with_sizes(Network(nodes, ("o", "i")), {"o": 4, "i": 3, "r": 2})
    problem = problem_of(torch.zeros(1, 4, 3, dtype=dtype), network, {}, {})
    values = {"A": torch.zeros(1, 1, 4, 2, dtype=dtype), "B": torch.ones(1, 1, 3, 2, dtype=dtype)}
    found = corrected(problem, values, bound=1.0)
    assert all(core.dtype == dtype and core.isfinite().all() for core in found.values())
    problem = problem_of(gaussian(1, 4, 3).to(dtype), network, {}, {})
    values = {"A": gaussian(1, 1, 4, 2).to(dtype), "B": gaussian(1, 1, 3, 2, seed=1).to(dtype)}
    values["B"][..., 1] = 0  # a value of the bond that does nothing
    found = corrected(problem, values, bound=0.9 * problem.power)
    assert all(core.dtype == dtype and core.isfinite().all() for core in found.values())
    assert float(squared_components(problem, found)) < float(squared_components(problem, values))


# As a rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NETWORKS[:5])
@pytest.mark.parametrize("tolerance", [0.01, 0.2])
def test_a_network_within_a_tolerance_of_itself(text: str, tolerance: float, tmp_path: Path) -> None:
    network = parse(text)
    values = {name: 1e3 * value for name, value in values_of(text).items()}
    entry = correct_degeneracy(tolerance)
    fit = entry.apply(network, values, sweeps=20)
    check_claim(fit)
    assert fit.network == network
    assert fit.relative_error <= tolerance
    assert fit.report is not None
    assert fit.report.degeneracy < before_and_after(network, values, fit.values)[0] * (1 - tolerance / 2)
    assert fit.report.degeneracy == pytest.approx(before_and_after(network, values, fit.values)[1], rel=1e-9)
    fit.trace.check(values)
    fit.trace.save(tmp_path / "trace.json")
    again = load_trace(tmp_path / "trace.json").replay(values)
    assert all(torch.equal(again.values[name], value) for name, value in fit.values.items())


def before_and_after(network: Network, *several: Mapping[str, Tensor]) -> list[float]:
    """Degeneracy, over the norm of the first network's value."""
    target = evaluate(network, several[0])
    problem = problem_of(target[None], network, {}, {})
    return [degeneracy(problem, {name: value[None, None] for name, value in each.items()}) for each in several]


def test_types_and_windows_of_a_corrected_network() -> None:
    text = "A[x:6 r:3] B[i:5 r] C[h:3 r] Conv[x y k:3] -> [y k i h]"
    values = {name: value.float() for name, value in values_of(text).items()}
    fit = correct_degeneracy(0.1).apply(parse(text), values)
    assert fit.relative_error <= 0.1
    assert {value.dtype for value in fit.values.values()} == {torch.float32}


def test_what_a_correction_refuses() -> None:
    for tolerance in (0, 1, -0.1, math.nan, True, "0.1"):
        with pytest.raises(ValuesError, match="a tolerance of"):
            correct_degeneracy(tolerance)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="the correction needs the value of 'A'"):
        correct_degeneracy().apply(parse("A[i:3 r:2] B[r j:4]"))
    with pytest.raises(RuleError, match="a network without open labels is one number"):
        correct_degeneracy().apply(parse("A[r:2] B[r]"), values_of("A[r:2] B[r]"))
    with pytest.raises(RuleError, match="the tensor 'B' carries 'x' twice"):
        correct_degeneracy().apply(parse("A[i:3 r:2] B[r x:2 x]"), values_of("A[i:3 r:2] B[r x:2 x]"))
