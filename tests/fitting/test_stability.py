"""Fits with small components: what the search minimises, what it costs, and the gauge of the cores it gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fit_cases import PLANTED
from tests.fitting.test_correction import NETWORKS, cores, objective_for
from tests.kernel_cases import KERNEL, gaussian, measured, metric_of
from tests.refusals import refused
from tnalgebra.decompositions import load_trace
from tnalgebra.errors import ValuesError
from tnalgebra.fitting import Settings, follow_starts
from tnalgebra.networks import carriers, tensor_nodes
from tnalgebra.nn import Conv2d
from tnalgebra.rewriting import Fit, rule

LABELS = "K[out in kh kw] => "
TOPOLOGIES = {
    "cp": "A[out r] B[in r] C[kh r] D[kw r]",
    "ring": "A[z out p] B[p in q] C[q kh s] D[s kw z]",
    "block term": "U[out a t] G[a b kh kw t] V[in b t]",
    "triangle": "A[out r s] B[in kw s t] C[kh t r]",
    "two hyperedges": "A[out r s] B[in r] C[kh r s] D[kw s]",
    "square and tail": "A[out kh p q] B[q in r] C[r p s] D[s kw]",
    "tied": "A[out r] B[in s] M[r s] M[s r] C[kh r] D[kw r]",
    "tucker": "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]",
    "train": "A[out p] B[p in q] C[q kh s] D[s kw]",
    "cut": "A[out kh r] B[r in kw]",
    "batch label": "D[in kh kw r] P[out in r]",
}


def fitted(name: str, kernel: Tensor = KERNEL, **choices: object) -> Fit:
    text = LABELS + TOPOLOGIES[name] + " -> [out in kh kw]"
    bonds = rule(text).ranks
    return rule(text).apply(kernel, dict.fromkeys(bonds, 2 if len(bonds) > 2 else 4), **{"starts": 2, **choices})


# The search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("text", NETWORKS)
def test_the_ridge_has_the_slope_of_the_merit(text: str, metric: bool) -> None:
    objective = replace(objective_for(text, metric=metric), stability=0.05)
    values = {name: core.requires_grad_() for name, core in cores(objective, 1, 3).items()}
    loss, components = objective.loss(objective.model(values)), objective.squared_blocks(values)
    ridge = objective.ridge(loss.detach(), values)
    assert ridge is not None
    merit = objective.merit(loss, values)
    wanted = torch.autograd.grad(merit.sum(), list(values.values()), retain_graph=True)
    found = torch.autograd.grad((loss + ridge.detach() * components).sum(), list(values.values()))
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other * (merit / loss).item(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("text", NETWORKS[:3])
def test_a_search_ends_at_a_smaller_merit_than_one_for_the_error_alone(text: str) -> None:
    objective = replace(objective_for(text), stability=0.05)
    begun = cores(objective, 2, 3)

    def merit(stability: float) -> float:
        ((values, _),) = follow_starts(replace(objective, stability=stability), begun, Settings(sweeps=150))
        end = {name: core[None, None] for name, core in values.items()}
        return objective.merit(objective.loss(objective.model(end)), end).item()

    assert merit(0.05) <= 1.02 * merit(0.0)


@pytest.mark.parametrize("name", ["cp", "ring", "triangle", "two hyperedges"])
def test_small_components_cost_little(name: str) -> None:
    for metric in (None, metric_of(1)) if name == "cp" else (None,):
        least, stable = (fitted(name, stability=value, metric=metric) for value in (0.0, Settings.stability))
        error = [measured(fit.dense(), metric) if metric else fit.relative_error for fit in (stable, least)]
        assert error[0] <= 1.03 * error[1]
        assert stable.degeneracy <= max(1.05 * least.degeneracy, 2)
        assert stable.report is not None
        assert 0 <= stable.report.price < 0.02


def test_components_do_not_grow_where_there_is_no_best_approximation() -> None:
    """The sum of three products that two products come arbitrarily near to, with noise (de Silva and Lim 2008)."""
    a, b, c = (torch.linalg.qr(gaussian(6, 2, seed=seed))[0] for seed in (10, 11, 12))
    cube = 0.1 * gaussian(6, 6, 6, seed=13)
    for x, y, z in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        cube += torch.einsum("i,j,k", a[:, x], b[:, y], c[:, z])
    cp = rule("K[i j k] => A[i r] B[j r] C[k r]")
    least, stable = (cp.apply(cube, {"r": 2}, stability=value) for value in (0.0, Settings.stability))
    assert least.degeneracy > 5 * stable.degeneracy
    assert stable.relative_error < 1.02 * least.relative_error


@pytest.mark.parametrize("name", ["cp", "overcomplete cp", "ring", "triangle", "hyperedge"])
def test_an_exact_fit_is_met_at_any_stability(name: str) -> None:
    case = PLANTED[name]
    for stability in (Settings.stability, 0.1):
        assert case.rule.apply(case.planted(2), **case.choices, stability=stability).relative_error < 1e-6


def test_a_tree_has_no_use_for_stability() -> None:
    for name in ("tucker", "train", "cut"):
        one, other = (fitted(name, stability=value) for value in (0.0, 0.5))
        assert all(torch.equal(one.values[core], other.values[core]) for core in one.values)


@pytest.mark.parametrize("stability", [-0.1, 1.5, True, "much"])
def test_a_stability_out_of_range_is_refused(stability: object) -> None:
    with refused(ValuesError, "stability", stability):
        fitted("cp", stability=stability)


def test_a_saved_trace_of_before_has_no_stability(tmp_path: Path) -> None:
    fit = fitted("cp", stability=0.0)
    text = fit.trace.to_json().replace('"stability"', '"slack"')
    assert '"slack"' in text
    (tmp_path / "trace.json").write_text(text)
    again = load_trace(tmp_path / "trace.json").replay({"K": KERNEL})
    assert all(torch.equal(again.values[name], core) for name, core in fit.values.items())


# The gauge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_cores_have_one_norm_and_both_sides_of_a_bond_one_gram_matrix(name: str) -> None:
    for scale in (1.0, 1e30):
        fit = fitted(name, scale * KERNEL, sweeps=20)
        norms = [float(core.norm()) for core in fit.values.values()]
        assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-6)
        network, times = fit.network, {core: len(places) for core, places in tensor_nodes(fit.network).items()}
        for label, places in carriers(network).items():
            ends = [(fit.values[network.nodes[position].name], axis) for position, axis in places]
            if label in network.output or any(times[network.nodes[position].name] > 1 for position, _ in places):
                continue
            unfolded = [(core.movedim(axis, 0).flatten(1) / norms[0]) for core, axis in ends]
            grams = [matrix @ matrix.mT for matrix in unfolded]
            for gram in grams[1:]:
                if len(ends) == 2:
                    torch.testing.assert_close(gram, grams[0], rtol=0, atol=2e-3)
                else:
                    torch.testing.assert_close(gram.diagonal(), grams[0].diagonal(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_no_other_gauge_has_smaller_cores(name: str) -> None:
    fit = fitted(name, sweeps=20)
    least = sum(float(core.square().sum()) for core in fit.values.values())
    network = fit.network
    times = {core: len(places) for core, places in tensor_nodes(network).items()}
    for number, (label, places) in enumerate(carriers(network).items()):
        names = [network.nodes[position].name for position, _ in places]
        if label in network.output or len(places) != 2 or any(times[core] > 1 for core in names):
            continue
        for scale in (1e-2, 0.3):
            size = network.sizes[label]
            turn = torch.eye(size, dtype=torch.float64) + scale * gaussian(size, size, seed=number)
            values = dict(fit.values)
            for core, (_, axis), matrix in zip(names, places, (turn, torch.linalg.inv(turn).mT), strict=True):
                values[core] = torch.tensordot(values[core], matrix, dims=([axis], [0])).movedim(-1, axis)
            assert sum(float(core.square().sum()) for core in values.values()) >= least * (1 - 1e-6)


# Training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_fitted_layer_can_be_trained(name: str, optimiser: str) -> None:
    """Towards the output of the dense layer, from inputs of unit variance. The loss of the dense layer itself, a mean
    over channels of which there are 16, is stable up to a rate of 16."""
    dense = torch.nn.Conv2d(12, 16, 3, padding=1, bias=False)
    kernel = gaussian(16, 12, 3, 3, seed=4) * 0.8 ** torch.arange(12)[:, None, None]
    dense.weight.data = (4 * kernel / kernel.norm()).float()  # outputs of unit variance
    text = LABELS + TOPOLOGIES[name] + " -> [out in kh kw]"
    layer = Conv2d.from_conv(dense, text, 3, starts=2, sweeps=50)
    steps = {"sgd": torch.optim.SGD(layer.parameters(), 0.02), "adamw": torch.optim.AdamW(layer.parameters(), 1e-3)}
    losses = []
    for step in range(20):
        x = gaussian(8, 12, 8, 8, seed=step).float()
        loss = (layer(x) - dense(x).detach()).square().mean()
        steps[optimiser].zero_grad()
        loss.backward()
        steps[optimiser].step()
        losses.append(loss.item())
    assert max(losses) < 1.3 * losses[0]
