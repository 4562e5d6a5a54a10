"""Components that cancel each other become smaller, and the error stays within its bound."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import check_claim, gaussian, values_of
from tests.refusals import refused
from tnalgebra.decompositions import correct_degeneracy, load_trace
from tnalgebra.errors import RuleError, ValuesError
from tnalgebra.fitting import Metric, Objective, Settings, degeneracy_of, follow_starts, objective_of, shrink_components
from tnalgebra.networks import Network, parse
from tnalgebra.tensors import evaluate

NETWORKS = [
    "A[o:4 r:3] B[i:5 r] C[h:3 r] -> [o i h]",
    "A[z:2 o:4 p:3] B[p i:5 q:2] C[q h:3 z] -> [o i h]",
    "A[o:4 a:2 t:2] G[a b:2 h:3 t] B[b i:5 t] -> [o i h]",
    "A[i:5 r:3] B[i h:3 r] C[o:4 r] -> [o i h]",
    "A[o:4 r:3] B[i:5 r] C[h:3 s:2] D[s r] -> [o i h]",
    "A[o:4 r:3] A[i:4 r] B[h:3 r] -> [o i h]",
]


def objective_for(text: str, *, layers: int = 1, seed: int = 0, metric: bool = False) -> Objective:
    network = parse(text)
    sizes = [network.sizes[label] for label in network.output]
    metrics = []
    for number in range(layers if metric else 0):
        d = sizes[1] * sizes[2]
        x = gaussian(3 * d, d, seed=seed + number) + 0.5
        covariance = (x.mT @ x / (3 * d)).reshape(*sizes[1:], *sizes[1:])
        metrics.append(Metric(network.output[1:], covariance, outputs=network.output[:1]))
    return objective_of(gaussian(layers, *sizes, seed=seed), network, {}, metrics=metrics)


def cores(objective: Objective, starts: int, seed: int) -> dict[str, Tensor]:
    return {
        name: gaussian(objective.layers, starts, *shape, seed=seed + number)
        for number, (name, shape) in enumerate(objective.free.items())
    }


def of_one(values: dict[str, Tensor], layer: int, start: int) -> dict[str, Tensor]:
    """One layer and one start, with both axes."""
    return {name: core[layer : layer + 1, start : start + 1] for name, core in values.items()}


def slow_components(text: str, values: dict[str, Tensor]) -> float:
    """The sum of squares over all values of all labels, one after another."""
    network = parse(text)
    total = 0.0
    for place in product(*(range(size) for size in network.sizes.values())):
        at = dict(zip(network.sizes, place, strict=True))
        term = math.prod(float(values[node.name][tuple(at[label] for label in node.labels)]) for node in network.nodes)
        total += term**2
    return total


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("text", NETWORKS)
def test_the_degeneracy_is_that_of_components_summed_one_by_one(text: str, metric: bool) -> None:
    objective = objective_for(text, metric=metric)
    values = cores(objective, 1, seed=5)
    components = slow_components(text, {name: core[0, 0] for name, core in values.items()})
    expected = math.sqrt(components / float(objective.target.square().sum()))
    assert degeneracy_of(objective, values) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60)
@given(st.sampled_from(NETWORKS), st.booleans(), st.sampled_from((0.0, 0.3, 0.9, 1.1)), st.integers(0, 2**30))
def test_components_get_smaller_within_the_bound(text: str, metric: bool, part: float, seed: int) -> None:
    objective = objective_for(text, layers=2, seed=seed, metric=metric)
    values = cores(objective, 2, seed=seed + 100)
    before = objective.loss(objective.model(values))
    found = shrink_components(objective, values, bound=part * objective.power, sweeps=3)
    bound = torch.maximum(before, part * objective.power.expand_as(before))
    assert (objective.loss(objective.model(found)) <= bound * (1 + 1e-9)).all()
    for layer, start in product(range(2), range(2)):
        after = degeneracy_of(objective, of_one(found, layer, start))
        assert after <= degeneracy_of(objective, of_one(values, layer, start)) * (1 + 1e-9)
    assert {name: core.shape for name, core in found.items()} == {name: core.shape for name, core in values.items()}


def test_one_core_is_the_best_within_the_bound() -> None:
    """Against a general solver's answer: the optimum of Lagrange's equations, searched over the weight."""
    whole = objective_for("A[o:4 r:3] B[i:5 r] C[h:3 r] -> [o i h]")
    values = cores(whole, 1, seed=9)
    constants = {name: values[name][0, 0] for name in ("B", "C")}
    objective = objective_of(whole.target, parse("A[o:4 r:3] B[i:5 r] C[h:3 r] -> [o i h]"), {}, constants=constants)
    limit = 0.9 * objective.loss(objective.model({"A": values["A"]}))
    E = torch.einsum("ir,hr->ihr", constants["B"], constants["C"]).reshape(15, 3)
    T = objective.target[0].reshape(4, 15)
    W = torch.diag(constants["B"].square().sum(0) * constants["C"].square().sum(0))

    def solved(ridge: float) -> Tensor:
        return torch.linalg.solve(E.mT @ E + ridge * W, E.mT @ T.mT).mT

    nearest = {"A": solved(0.0)[None, None]}
    found = shrink_components(objective, nearest, bound=limit)["A"]
    low, high = 1e-12, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        if float((T - solved(middle) @ E.mT).square().sum()) <= float(limit):
            low = middle
        else:
            high = middle
    torch.testing.assert_close(found[0, 0], solved(low), rtol=1e-4, atol=1e-6)


def degenerate() -> Objective:
    """a (x) a (x) b + a (x) b (x) a + b (x) a (x) a: rank 3, and limit of tensors of rank 2 (de Silva, Lim 2008)."""
    a, b = torch.linalg.qr(gaussian(4, 2, seed=3)).Q.T
    terms = ((a, a, b), (a, b, a), (b, a, a))
    target = torch.stack([torch.einsum("i,j,k->ijk", *term) for term in terms]).sum(0)
    return objective_of(target[None], parse("A[i:4 r:2] B[j:4 r] C[k:4 r] -> [i j k]"), {})


@pytest.mark.slow
def test_the_components_of_a_degenerate_approximation() -> None:
    objective = degenerate()
    found, report = follow_starts(objective, cores(objective, 8, seed=0), Settings())[0]
    values = {name: core[None, None] for name, core in found.items()}
    assert report.errors[-1] < 1e-3
    assert degeneracy_of(objective, values) > 10
    found = shrink_components(objective, values, bound=0.1**2 * float(objective.power))
    error = float((objective.loss(objective.model(found)) / objective.power).sqrt())
    assert 0.09 < error <= 0.1
    assert degeneracy_of(objective, found) < degeneracy_of(objective, values) / 8


def test_a_detour_of_the_components_is_taken_back_at_the_same_error() -> None:
    """A component and its negative, on top of a good approximation, do nothing but cancel each other."""
    good = {"A": gaussian(5, 3, seed=1), "B": gaussian(6, 3, seed=2), "C": gaussian(4, 3, seed=3)}
    detour = {"A": gaussian(5, 1, seed=4), "B": gaussian(6, 1, seed=5), "C": gaussian(4, 1, seed=6)}
    values = {
        name: torch.cat([core, 20 * detour[name], (-20 if name == "A" else 20) * detour[name]], 1)[None, None]
        for name, core in good.items()
    }
    dense = torch.einsum("or,ir,hr->oih", *good.values())
    target = dense + 0.05 * dense.norm() * gaussian(5, 6, 4, seed=7) / math.sqrt(120)
    objective = objective_of(target[None], parse("A[o:5 r:5] B[i:6 r] C[h:4 r] -> [o i h]"), {})
    before = objective.loss(objective.model(values))
    found = shrink_components(objective, values, bound=0.0, sweeps=300)
    assert float(objective.loss(objective.model(found))) <= float(before)
    assert degeneracy_of(objective, found) < min(3, degeneracy_of(objective, values) / 100)


def test_starts_and_layers_side_by_side_are_as_alone() -> None:
    objective = objective_for(NETWORKS[0], layers=2)
    values = cores(objective, 3, seed=1)
    bound = 0.8 * objective.power
    together = shrink_components(objective, values, bound=bound, sweeps=3, tolerance=0.0)
    for layer, start in product(range(2), range(3)):
        layers, alone = torch.tensor([layer]), of_one(values, layer, start)
        found = shrink_components(objective.of_layers(layers), alone, bound=bound[layer], sweeps=3, tolerance=0.0)
        for name, core in found.items():
            torch.testing.assert_close(core[0, 0], together[name][layer, start], rtol=1e-6, atol=1e-8)


def test_large_and_tied_cores_stay() -> None:
    """The core A has p * r = 2116 unknowns, more than are corrected, and B and C have 46."""
    objective = objective_for("A[o:2 p:46 r:46] B[i:3 p] C[h:3 r] -> [o i h]")
    values = cores(objective, 1, seed=1)
    found = shrink_components(objective, values, bound=1.1 * objective.loss(objective.model(values)), sweeps=2)
    parallel = torch.nn.functional.normalize(found["A"].flatten(), dim=0)  # only its norm is balanced
    torch.testing.assert_close(parallel, torch.nn.functional.normalize(values["A"].flatten(), dim=0))
    assert degeneracy_of(objective, found) < degeneracy_of(objective, values)
    assert shrink_components(objective, values, bound=0.0, sweeps=0)["A"] is values["A"]
    twin = objective_for("A[o:4 r:3] A[i:4 r] -> [o i]")
    tied = cores(twin, 1, seed=1)
    assert torch.equal(shrink_components(twin, tied, bound=100.0)["A"], tied["A"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_and_types(dtype: torch.dtype) -> None:
    network = parse("A[o:4 r:2] B[i:3 r] -> [o i]")
    zeros = {"A": torch.zeros(1, 1, 4, 2, dtype=dtype), "B": torch.ones(1, 1, 3, 2, dtype=dtype)}
    values = {"A": gaussian(1, 1, 4, 2).to(dtype), "B": gaussian(1, 1, 3, 2, seed=1).to(dtype)}
    values["B"][..., 1] = 0  # a value of the bond that does nothing
    for target, begun in ((torch.zeros(1, 4, 3, dtype=dtype), zeros), (gaussian(1, 4, 3).to(dtype), values)):
        objective = objective_of(target, network, {})
        found = shrink_components(objective, begun, bound=0.9 * objective.power if begun is values else 1.0)
        assert all(core.dtype == dtype and core.isfinite().all() for core in found.values())
    assert degeneracy_of(objective, found) < degeneracy_of(objective, values)


# As a rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NETWORKS[:5])
@pytest.mark.parametrize("tolerance", [0.01, 0.2])
def test_a_network_within_a_tolerance_of_itself(text: str, tolerance: float, tmp_path: Path) -> None:
    network = parse(text)
    values = {name: 1e3 * value for name, value in values_of(text).items()}
    fit = correct_degeneracy(tolerance).apply(network, values=values, sweeps=20)
    check_claim(fit)
    assert fit.network == network
    assert fit.relative_error <= tolerance
    assert fit.report is not None
    objective = objective_of(evaluate(network, values)[None], network, {})
    before, after = (
        degeneracy_of(objective, {name: value[None, None] for name, value in each.items()})
        for each in (values, fit.values)
    )
    assert fit.report.degeneracy == pytest.approx(after, rel=1e-9)
    assert after < before * (1 - tolerance / 2)
    fit.trace.check(values)
    fit.trace.save(tmp_path / "trace.json")
    again = load_trace(tmp_path / "trace.json").replay(values)
    assert all(torch.equal(again.values[name], value) for name, value in fit.values.items())


def test_types_and_windows_of_a_corrected_network() -> None:
    text = "A[x:6 r:3] B[i:5 r] C[h:3 r] Conv[x y k:3] -> [y k i h]"
    values = {name: value.float() for name, value in values_of(text).items()}
    fit = correct_degeneracy(0.1).apply(parse(text), values=values)
    assert fit.relative_error <= 0.1
    assert {value.dtype for value in fit.values.values()} == {torch.float32}


def test_what_a_correction_refuses() -> None:
    wrong: list[object] = [0, 1, -0.1, math.nan, True, "0.1"]
    for tolerance in wrong:
        with refused(ValuesError, "tolerance", tolerance):
            correct_degeneracy(tolerance)

    def apply(network: Network, values: dict[str, Tensor]) -> None:
        correct_degeneracy().apply(network, values=values)

    with refused(RuleError, "'A'"):
        apply(parse("A[i:3 r:2] B[r j:4]"), values={})
    with refused(RuleError, "open labels"):
        apply(parse("A[r:2] B[r]"), values=values_of("A[r:2] B[r]"))
    with refused(RuleError, "'B'", "'x'"):
        apply(parse("A[i:3 r:2] B[r x:2 x]"), values=values_of("A[i:3 r:2] B[r x:2 x]"))
